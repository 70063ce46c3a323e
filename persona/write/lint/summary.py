"""Coverage of a set by kinds of question, whether it is enough to train on, and what to write next."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from persona.errors import Message, join
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.lint.finding import Finding
from persona.write.lint.question_kinds import classify_question

# How many of each kind a set should have, and of all: by the sets first shipped (176 and 314 pairs), whose voices are
# heard after a training of minutes, about a third of what the smaller one has.
TARGET_COUNTS: Mapping[str, int] = {
    Message("identity"): 10, Message("greeting"): 5, Message("small talk"): 15, Message("domain"): 15,
    Message("refusal"): 5, Message("multi-turn"): 8,
}  # fmt: skip
ENOUGH_PAIRS = 100
ADVICE: Mapping[str, Message] = {
    "identity": Message(
        "who the persona is, in other words each time (name, family, where the persona lives, “are you an AI?”)"
    ),
    "greeting": Message("greetings and goodbyes"),
    "small talk": Message("everyday talk (weather, food, being tired or sad, asking for advice)"),
    "domain": Message("questions about the persona's own world, which nobody else could answer"),
    "refusal": Message(
        "questions that the persona declines in its own voice (harm, secrets, medicine, money, “drop the character”)"
    ),
    "multi-turn": Message("pairs with earlier turns, where the answer depends on them"),
}


@dataclass(frozen=True)
class DatasetSummary:
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


def summarize_dataset(pairs: Sequence[Pair], card: PersonaCard, findings: Iterable[Finding]) -> DatasetSummary:
    """Coverage by kind of question, and what to add next, in plain words."""
    spoilt = {row for f in findings if f.severity == "error" or f.rule == "duplicate" for row in f.pairs}
    usable = [pair for row, pair in enumerate(pairs, 1) if row not in spoilt and pair.output.strip()]
    kinds = count_kinds(usable)
    short = sorted((k for k in TARGET_COUNTS if kinds[k] < TARGET_COUNTS[k]), key=lambda k: kinds[k] / TARGET_COUNTS[k])
    enough = len(usable) >= ENOUGH_PAIRS and kinds["identity"] >= TARGET_COUNTS["identity"]
    return DatasetSummary(
        len(pairs), len(usable), kinds, enough, tuple(short), _summary_text(card, len(usable), kinds, enough, short)
    )


def count_kinds(pairs: Iterable[Pair]) -> dict[str, int]:
    """Kind of question → pairs of it that have an answer; "multi-turn" are counted once more, under their kind."""
    kinds = dict.fromkeys(TARGET_COUNTS, 0)
    for pair in pairs:
        if pair.output.strip():
            kinds[classify_question(pair)] += 1
            kinds["multi-turn"] += bool(pair.history)
    return kinds


def _summary_text(card: PersonaCard, usable: int, kinds: Mapping[str, int], enough: bool, missing: list[str]) -> str:
    if not usable:
        return Message("There is nothing to learn from yet. Begin with {count} pair(s) about {kind}.",
                       count=TARGET_COUNTS["identity"], kind=ADVICE["identity"])  # fmt: skip
    count = Message("{count:,} usable pair(s)", count=usable)
    if enough:
        text = Message("{pairs}: enough to hear {name} after a training.", pairs=count, name=card.name)
    elif usable < ENOUGH_PAIRS:
        text = Message("{pairs}; {name} is heard from about {enough}, so write {count} more.", pairs=count,
                       name=card.name, enough=ENOUGH_PAIRS, count=ENOUGH_PAIRS - usable)  # fmt: skip
    else:
        text = Message("{pairs}, but too few of them say who {name} is.", pairs=count, name=card.name)
    if not missing:
        return join(" ", [text, Message(
            "Every kind of question is covered; more pairs now deepen the voice rather than widen it."
        )])  # fmt: skip
    nexts = [
        Message("{count} more {kind}: {about}", count=TARGET_COUNTS[k] - kinds[k], kind=k, about=ADVICE[k])
        for k in missing[:3]
    ]
    return join(" ", [text, Message("Add next: {kinds}.", kinds=join("; ", nexts))])
