"""Pairs that are too short or too long, dropped in bulk: which they are, and the edit that drops them."""

from collections.abc import Sequence
from dataclasses import dataclass

from persona.errors import InputError, Message
from persona.store import edit_history
from persona.store.edits import PairChange
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona

MAX_SHOWN = 60  # characters of a pair's text in a preview


@dataclass(frozen=True)
class LengthLimits:
    """In characters, surrounding spaces not counted; a maximum of 0 is none."""

    min_answer: int = 0
    max_answer: int = 0
    min_question: int = 0
    max_question: int = 0

    def allow(self, pair: Pair) -> bool:
        question, answer = len(pair.instruction.strip()), len(pair.output.strip())
        return (
            self.min_question <= question <= (self.max_question or question)
            and self.min_answer <= answer <= (self.max_answer or answer)
        )  # fmt: skip


def find_outside(pairs: Sequence[Pair], limits: LengthLimits) -> list[PairChange]:
    """The changes that drop the pairs outside the limits. Raises InputError without a limit."""
    if limits == LengthLimits():
        raise InputError("Give a length: pairs with a shorter or longer answer or question are dropped.")
    return [PairChange(n, pair, None) for n, pair in enumerate(pairs) if not limits.allow(pair)]


def drop_outside(persona: Persona, limits: LengthLimits) -> int:
    """Drop the persona's pairs outside the limits, as one edit that can be undone. Returns how many they were."""
    changes = find_outside(persona.scan()[0], limits)
    if changes:
        edit_history.commit(persona, Message("filter by length: {n} pair(s)", n=f"{len(changes):,}"), changes)
    return len(changes)


def describe(change: PairChange) -> str:
    """A dropped pair's lengths and beginnings, on one line."""
    assert change.old
    texts = (" ".join(text.split()) for text in (change.old.instruction, change.old.output))
    question, answer = (text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…" for text in texts)
    return f"{question} ({len(change.old.instruction.strip()):,}) → {answer} ({len(change.old.output.strip()):,})"
