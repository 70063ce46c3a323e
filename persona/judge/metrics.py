"""Metrics of texts and likelihoods; no model here.

A word (split_words) is a character of Chinese or Japanese, else a run of letters and digits.
"""

import difflib
import re
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import LCSseq

from persona.store.cjk import HAN, HAN_RARE, KANA
from persona.write.writing_systems import count_scripts

RESAMPLES = 2000  # of the bootstrap; its own error is then a hundredth of the interval
COPY_WORDS = 8  # shorter common runs are set phrases, not copies
COPY_SHARE = 0.5  # of the training reply, in one run
_CJK = KANA + HAN + HAN_RARE
_WORD = re.compile(f"[{_CJK}]|[^\\W{_CJK}]+")


def split_words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def bleu_tokenization(texts: Sequence[str]) -> str:
    """sacrebleu's tokenization for these texts, by their leading script: zh, char (scripts without spaces), 13a."""
    leading = count_scripts("".join(texts)).most_common(1)
    return {"HAN": "zh", "KANA": "char", "HANGUL": "char", "THAI": "char"}.get(leading[0][0] if leading else "", "13a")


def similarity(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """BLEU-4 and chrF2 of the whole set (Post 2018), and mean ROUGE-L F1 (Lin 2004), each 0 … 100."""
    import sacrebleu

    bleu = sacrebleu.corpus_bleu(answers, [references], tokenize=bleu_tokenization(references), force=True).score
    chrf = sacrebleu.corpus_chrf(answers, [references]).score
    rouge = float(np.mean([rouge_l(a, r) for a, r in zip(answers, references, strict=True)]))
    return {"bleu": float(bleu), "chrf": float(chrf), "rouge_l": 100 * rouge}


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 … 1."""
    a, r = split_words(answer), split_words(reference)
    common = LCSseq.similarity(a, r)
    return 2 * common / (len(a) + len(r)) if common else 0.0


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Distinct n-grams of words among all n-grams of the texts (Li et al. 2016); 0 where there are none."""
    ngrams = [tuple(w[i : i + n]) for w in map(split_words, texts) for i in range(len(w) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def longest_common_run(answer: str, reference: str) -> int:
    """Length in words of the longest run that both texts contain."""
    a, r = split_words(answer), split_words(reference)
    return difflib.SequenceMatcher(None, a, r, autojunk=False).find_longest_match().size


def is_copy(answer: str, reference: str) -> bool:
    """Whether the answer is the reference, or contains COPY_SHARE of it in one run."""
    if answer.strip() == reference.strip():
        return True
    return longest_common_run(answer, reference) >= max(COPY_WORDS, COPY_SHARE * len(split_words(reference)))


def quantiles(values: Sequence[float]) -> list[float]:
    """5, 25, 50, 75 and 95 %."""
    return [float(x) for x in np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])]


def bootstrap(rows: Sequence[Sequence[float]], weights: Sequence[float], seed: int = 0) -> list[tuple[float, ...]]:
    """(mean, low, high) for each column of `rows`, weighted, with the 95 % percentile interval over resampled rows.

    All columns see the same resampled rows: an interval of differences is a paired one (Efron & Tibshirani 1993).
    """
    values, weight = np.asarray(rows, dtype=float), np.asarray(weights, dtype=float)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    sums = np.einsum("bn,bnc->bc", weight[drawn], values[drawn])
    means = sums / weight[drawn].sum(1, keepdims=True)
    low, high = np.quantile(means, [0.025, 0.975], axis=0)
    mean = weight @ values / weight.sum()
    return [(float(m), float(a), float(b)) for m, a, b in zip(mean, low, high, strict=True)]


def cohen_kappa(first: Sequence[int], second: Sequence[int], seed: int = 0) -> tuple[float, float, float]:
    """(kappa, low, high) of two raters' choices, numbered from 0, of the same items; the 95 % percentile interval over
    resampled items. Where both can only agree, as with one choice for all, kappa is 0: nothing is beyond chance."""
    size = max(*first, *second) + 1
    cells = np.bincount(np.asarray(first) * size + np.asarray(second), minlength=size * size)
    drawn = np.random.default_rng(seed).multinomial(len(first), cells / len(first), RESAMPLES)
    shares = np.concatenate([cells[None], drawn]).reshape(-1, size, size) / len(first)
    agreed = np.trace(shares, axis1=1, axis2=2)
    by_chance = (shares.sum(1) * shares.sum(2)).sum(1)
    kappas = np.divide(agreed - by_chance, 1 - by_chance, out=np.zeros_like(agreed), where=by_chance < 1 - 1e-9)
    low, high = np.quantile(kappas[1:], [0.025, 0.975])
    return float(kappas[0]), float(low), float(high)


def format_percent(x: float | None) -> str:
    return "–" if x is None else f"{100 * x:.0f} %"
