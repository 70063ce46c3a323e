"""Near-duplicate texts among up to 100,000: MinHash finds candidates, rapidfuzz compares them.

Every text is cut into overlapping pieces (3 characters, 4 in alphabets, where 3 are too common). Of each text 48 minima
of hashed pieces are kept, in 16 bands of 3; two texts that agree in a band are candidates. Texts with half of their
pieces in common meet in some band with 88 %, with two thirds in common with 99.7 % (1 - (1 - J³)^16).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

BANDS, BAND_ROWS = 16, 3
MAX_COMPARED = 4_000  # characters of a text that are compared with another
MAX_NEIGHBOURS = 3  # of a text in a crowded band, so that work stays linear; others meet in another band
BLOCK_CHARACTERS = 2_000_000  # characters hashed at once, so that memory does not grow with the set
_ALPHABETS_END = 0x2E80  # code points below are alphabets, above are Han, kana and the like


def find_similar(texts: Sequence[str], cutoff: float) -> list[tuple[int, int, float]]:
    """(i, j, likeness) with i < j for texts whose likeness (1 - normalised Indel distance) is `cutoff` or more."""
    if len(texts) < 2:
        return []
    signatures = np.concatenate([_minhash(block) for block in _blocks(texts)])
    left, right = _candidates(signatures)
    found = []
    for at in range(0, len(left), 200_000):
        i, j = left[at : at + 200_000], right[at : at + 200_000]
        agree = (signatures[i] == signatures[j]).mean(axis=1) > 0.2  # an estimate of J; below, `cutoff` is out of reach
        i, j = i[agree].tolist(), j[agree].tolist()
        scores = (measure_likeness(texts[a], texts[b], cutoff) for a, b in zip(i, j, strict=True))
        found += [(a, b, likeness) for a, b, likeness in zip(i, j, scores, strict=True) if likeness]
    return found


def measure_likeness(one: str, other: str, cutoff: float = 0.0) -> float:
    """1 - normalised Indel distance; 0 below `cutoff`. Of texts longer than MAX_COMPARED, by their two ends.

    The work for a whole text grows with the square of its length.
    """
    if max(len(one), len(other)) <= MAX_COMPARED:
        return Indel.normalized_similarity(one, other, score_cutoff=cutoff)
    end = MAX_COMPARED // 2
    likeness = min(
        min(len(one), len(other)) / max(len(one), len(other)),
        Indel.normalized_similarity(one[:end], other[:end], score_cutoff=cutoff),
        Indel.normalized_similarity(one[-end:], other[-end:], score_cutoff=cutoff),
    )
    return likeness if likeness >= cutoff else 0.0


def is_like_any(text: str, others: Sequence[str], cutoff: float) -> bool:
    """Whether a short text is as like one of the others as `cutoff`, or more."""
    return bool(process.extractOne(text, others, scorer=Indel.normalized_similarity, score_cutoff=cutoff))


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    block: list[str] = []
    size = 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size > BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _minhash(texts: list[str]) -> np.ndarray:
    """One row of BANDS * BAND_ROWS minima per text."""
    joined = "".join(text + "\0\0\0" for text in texts)  # the zeros end the last pieces and keep texts apart
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32)
    padded = np.concatenate([points, np.zeros(3, np.uint32)])
    with np.errstate(over="ignore"):
        piece = padded[:-3].copy()
        for step in (1, 2):
            piece = _mix_bits(piece) + padded[step : step - 3]
        # the fourth character counts in alphabets only
        piece = _mix_bits(_mix_bits(piece) + np.where(points < _ALPHABETS_END, padded[3:], 0).astype(np.uint32))
        starts = np.cumsum([0, *(len(t) + 3 for t in texts[:-1])])
        minima = np.empty((len(texts), BANDS * BAND_ROWS), np.uint32)
        for n in range(BANDS * BAND_ROWS):
            seed = np.uint32((0x9E3779B9 * (n + 1)) & 0xFFFFFFFF)
            minima[:, n] = np.minimum.reduceat((piece ^ seed) * np.uint32(0x85EBCA6B + 2 * n), starts)
    return minima


def _mix_bits(x: np.ndarray) -> np.ndarray:
    """Every bit of a 32-bit number spread over all others."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def _candidates(signatures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i < j) that agree in a band, each once."""
    count = len(signatures)
    with np.errstate(over="ignore"):
        bands = [
            _mix_bits(_mix_bits(_mix_bits(signatures[:, n]) + signatures[:, n + 1]) + signatures[:, n + 2]).astype(
                np.uint32
            )
            for n in range(0, BANDS * BAND_ROWS, BAND_ROWS)
        ]
    codes = []
    for n, band in enumerate(bands):
        order = np.lexsort((bands[n - 1], band))  # within a crowd, texts that agree in another band too stand together
        ordered = band[order]
        for step in range(1, min(MAX_NEIGHBOURS, count - 1) + 1):
            at = np.flatnonzero(ordered[step:] == ordered[:-step])
            a, b = order[at], order[at + step]
            codes.append(np.minimum(a, b).astype(np.int64) * count + np.maximum(a, b))
    unique = np.unique(np.concatenate(codes))
    return unique // count, unique % count
