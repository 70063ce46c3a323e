"""Rules that compare pairs with each other and with the persona's probes."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rapidfuzz import process
from rapidfuzz.distance import Indel

from persona.errors import Message
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.lint.finding import (
    Finding,
    count_words,
    finding_key,
    normalize_text,
    pair_texts,
    pairs_named,
    quote_text,
    quote_texts,
)
from persona.write.lint.near_duplicates import find_similar, measure_likeness
from persona.write.lint.question_kinds import is_identity_question

MIN_LIKENESS = 0.9  # of a whole pair: one word in ten differs
MIN_PART_LIKENESS = 0.8  # of question and answer each; another question with the same answer is no repeat
DIFFERENT_ANSWER_LIKENESS = 0.6  # answers less alike than this are different answers
MIN_PROBE_LIKENESS = 0.85
MAX_ANSWERS = 20  # of one question, compared with each other


def stripped_texts(pair: Pair) -> tuple[str, ...]:
    return tuple(text.strip() for text in pair_texts(pair))


def find_duplicates(pairs: Sequence[Pair]) -> Iterator[Finding]:
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, pair in enumerate(pairs, 1):
        if any(texts := stripped_texts(pair)):
            rows.setdefault(texts, []).append(row)
    for texts, (first, *again) in rows.items():
        if again:
            fix = Message("Delete {count} repeat(s)", count=len(again))
            message = Message(
                "{pairs} repeats pair {row} ({question}) exactly, so it would be learned {times} times."
                if len(again) == 1 else
                "{pairs} repeat pair {row} ({question}) exactly, so it would be learned {times} times.",
                pairs=pairs_named(again), row=first, question=quote_text(texts[-2], 24), times=len(again) + 1,
            )  # fmt: skip
            yield Finding("duplicate", "warning", tuple(again), message, fix, finding_key("duplicate", texts))


def distinct_rows(pairs: Sequence[Pair]) -> list[int]:
    """Rows of finished pairs without exact repeats."""
    first: dict[tuple[str, ...], int] = {}
    for row, pair in enumerate(pairs, 1):
        if pair.instruction.strip() and pair.output.strip():
            first.setdefault(stripped_texts(pair), row)
    return list(first.values())


def find_near_duplicates(
    pairs: Sequence[Pair], rows: Sequence[int], normalized: dict[int, list[str]]
) -> Iterator[Finding]:
    """One finding for each group of nearly equal pairs; a group belongs to its earliest pair."""
    whole = ["\n".join(normalized[row]) for row in rows]
    leader: dict[int, tuple[int, float]] = {}
    same: dict[str, int] = {}
    for at, text in enumerate(whole):  # all but spaces, case and punctuation is the same
        if (first := same.setdefault(text, at)) != at:
            leader[at] = (first, 1.0)
    kept = list(same.values())
    for i, j, likeness in sorted(find_similar([whole[at] for at in kept], MIN_LIKENESS)):
        i, j = kept[i], kept[j]
        # a member leads no group, or a chain of small steps would join unlike pairs
        if j not in leader and i not in leader and _parts_alike(normalized[rows[i]], normalized[rows[j]]):
            leader[j] = (i, likeness)
    groups: dict[int, list[tuple[int, float]]] = {}
    for at, (first, likeness) in sorted(leader.items()):
        groups.setdefault(first, []).append((rows[at], likeness))
    for first, members in groups.items():
        row = rows[first]
        found = [r for r, _ in members]
        least = min(likeness for _, likeness in members)
        how = Message("but for spaces and punctuation the same as")
        if least < 1:
            how = Message(
                "{percent} % or more the same as" if len(found) > 1 else "{percent} % the same as",
                percent=round(least * 100),
            )  # fmt: skip
        message = Message(
            "{pairs} is {how} pair {row} ({question}). Keep the better one, or make them differ."
            if len(found) == 1 else
            "{pairs} are {how} pair {row} ({question}). Keep the better one, or make them differ.",
            pairs=pairs_named(found), how=how, row=row, question=quote_text(pairs[row - 1].instruction, 24),
        )  # fmt: skip
        texts = sorted("\x1e".join(pair_texts(pairs[r - 1])) for r in (row, *found))
        yield Finding("near-duplicate", "warning", tuple(found), message, "", finding_key("near-duplicate", texts))


def _parts_alike(one: list[str], other: list[str]) -> bool:
    return len(one) == len(other) and all(
        measure_likeness(a, b, MIN_PART_LIKENESS) >= MIN_PART_LIKENESS for a, b in zip(one, other, strict=True)
    )


def _distinct_answers(answers: Iterable[tuple[int, str]], alike: float) -> list[int]:
    """The rows of answers that are unlike each other, the first of each kind."""
    kept: list[tuple[int, str]] = []
    for row, answer in answers:
        if len(kept) < MAX_ANSWERS and all(measure_likeness(answer, k, alike) < alike for _, k in kept):
            kept.append((row, answer))
    return [row for row, _ in kept]


def find_rival_answers(
    pairs: Sequence[Pair], rows: Sequence[int], normalized: dict[int, list[str]]
) -> Iterator[Finding]:
    """Questions with different answers: a warning for questions about who the persona is, else a hint."""
    asked: dict[tuple[str, ...], list[int]] = {}
    for row in rows:
        asked.setdefault(tuple(normalized[row][:-1]), []).append(row)
    for question, group in asked.items():
        if len(group) < 2:
            continue
        text = pairs[group[0] - 1].instruction
        identity = is_identity_question(text)
        rivals = _distinct_answers(
            ((row, normalized[row][-1]) for row in group), MIN_LIKENESS if identity else DIFFERENT_ANSWER_LIKENESS
        )
        if len(rivals) < 2:
            continue
        advice = (
            Message("The persona should know who it is: let the answers agree")
            if identity
            else Message(
                "Fine if the persona may answer either way; if what came before decides, add it as earlier turns"
            )
        )
        shown = quote_texts([pairs[row - 1].output for row in rivals], 2)
        message = Message(
            "{pairs} ask {question} and answer differently: {answers}. {advice}.",
            pairs=pairs_named(rivals), question=quote_text(text, 24), answers=shown, advice=advice,
        )  # fmt: skip
        key = finding_key("rival-answers", [*question, *sorted(normalized[row][-1] for row in rivals)])
        yield Finding("rival-answers", "warning" if identity else "hint", tuple(rivals), message, "", key)


def find_same_answers(
    pairs: Sequence[Pair], rows: Sequence[int], normalized: dict[int, list[str]]
) -> Iterator[Finding]:
    most = max(3, len(pairs) // 200)  # different questions with one answer: 3, or a half per cent of a large set
    given: dict[str, dict[str, int]] = {}
    for row in rows:
        given.setdefault(normalized[row][-1], {}).setdefault(normalized[row][-2], row)
    for answer, questions in given.items():
        if len(questions) > most:
            found = tuple(questions.values())
            message = Message(
                "{pairs} answer {count} different questions with {answer}. It would become the persona's answer to "
                "everything: vary it.",
                pairs=pairs_named(found), count=len(questions), answer=quote_text(pairs[found[0] - 1].output),
            )  # fmt: skip
            yield Finding("same-answer", "hint", found, message, "", finding_key("same-answer", [answer]))


def find_probes_in_pairs(pairs: Sequence[Pair], card: PersonaCard) -> Iterator[Finding]:
    """Probes test what was learned, so none may be among the pairs."""
    if not card.probes or not pairs:
        return
    asked = [
        (row, normalize_text(q)) for row, p in enumerate(pairs, 1) for q in (p.instruction, *(u for u, _ in p.history))
    ]
    questions = [q for _, q in asked]
    best: dict[int, tuple[float, str]] = {}
    for probe in card.probes:
        if not normalize_text(probe):
            continue
        scores = process.cdist(
            [normalize_text(probe)],
            questions,
            scorer=Indel.normalized_similarity,
            score_cutoff=MIN_PROBE_LIKENESS,
            dtype=np.float32,
        )[0]
        for at in np.flatnonzero(scores).tolist():
            likeness = float(scores[at])
            if likeness < 1 and count_words(probe) < 4:  # short questions are alike by chance
                continue
            best[asked[at][0]] = max(best.get(asked[at][0], (0.0, "")), (likeness, probe))
    for row, (likeness, probe) in sorted(best.items()):
        message = Message(
            "Pair {row} repeats the probe {probe}, so that probe tests memorization. Change one of the two."
            if likeness == 1 else
            "Pair {row} nearly repeats the probe {probe}, so that probe tests memorization. Change one of the two.",
            row=row, probe=quote_text(probe),
        )  # fmt: skip
        severity, key = (
            ("warning" if likeness == 1 else "hint"),
            finding_key("probe-in-pairs", [*pair_texts(pairs[row - 1]), probe]),
        )
        yield Finding("probe-in-pairs", severity, (row,), message, "", key)  # type: ignore[arg-type]
