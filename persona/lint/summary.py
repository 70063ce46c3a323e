"""What a set covers, whether it is enough to hear the persona, and what to write next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from persona.folder import Card
from persona.lint.finding import Finding
from persona.lint.kinds import kind
from persona.pairs import Pair

# How many of each kind a set should have, and of all: by the shipped sets (176 and 314 pairs), whose voices are heard
# after a training of minutes, about a third of what the smaller one has.
WANTED: Mapping[str, int] = {
    "identity": 10, "greeting": 5, "small talk": 15, "domain": 15, "refusal": 5, "multi-turn": 8,
}  # fmt: skip
ENOUGH = 100
ADVICE: Mapping[str, str] = {
    "identity": "who she is, in other words each time (name, family, where she lives, “are you an AI?”)",
    "greeting": "greetings and goodbyes",
    "small talk": "everyday talk (weather, food, being tired or sad, asking for advice)",
    "domain": "questions about her own world, which nobody else could answer",
    "refusal": "questions that she declines in her own voice (harm, secrets, medicine, money, “drop the character”)",
    "multi-turn": "pairs with earlier turns, where the answer depends on them",
}


@dataclass(frozen=True)
class Summary:
    """kinds: kind of question → usable pairs of it; "multi-turn" are counted once more, under their kind.

    pairs: all rows; usable: those without an error that are no exact repeat. missing: the kinds to write next, the
    emptiest first.
    """

    pairs: int
    usable: int
    kinds: Mapping[str, int]
    enough: bool
    missing: tuple[str, ...]
    text: str


def summarise(pairs: Sequence[Pair], card: Card, findings: Iterable[Finding]) -> Summary:
    """Coverage by kind of question, and what to add next, in plain words."""
    spoilt = {row for f in findings if f.severity == "error" or f.rule == "duplicate" for row in f.pairs}
    usable = [pair for row, pair in enumerate(pairs, 1) if row not in spoilt and pair.output.strip()]
    kinds = dict.fromkeys(WANTED, 0)
    for pair in usable:
        kinds[kind(pair)] += 1
        kinds["multi-turn"] += bool(pair.history)
    short = sorted((k for k in WANTED if kinds[k] < WANTED[k]), key=lambda k: kinds[k] / WANTED[k])
    enough = len(usable) >= ENOUGH and kinds["identity"] >= WANTED["identity"]
    return Summary(
        len(pairs), len(usable), kinds, enough, tuple(short), _paragraph(card, len(usable), kinds, enough, short)
    )


def _paragraph(card: Card, usable: int, kinds: Mapping[str, int], enough: bool, missing: list[str]) -> str:
    if not usable:
        return f"There is nothing to learn from yet. Begin with {WANTED['identity']} pairs about {ADVICE['identity']}."
    count = f"{usable:,} usable pair{'s' if usable > 1 else ''}"
    if enough:
        text = f"{count}: enough to hear {card.name} after a training."
    elif usable < ENOUGH:
        text = f"{count}; {card.name} is heard from about {ENOUGH}, so write {ENOUGH - usable} more."
    else:
        text = f"{count}, but too few of them say who {card.name} is."
    if not missing:
        return f"{text} Every kind of question is covered; more pairs now deepen the voice rather than widen it."
    nexts = "; ".join(f"{WANTED[k] - kinds[k]} more {k}: {ADVICE[k]}" for k in missing[:3])
    return f"{text} Add next: {nexts}."
