"""What becomes of the thinking that pairs hold, by the setting `thinking` of the run."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from persona.errors import Message
from persona.store.pairs import Pair
from persona.store.thinking import has_block, split_thinking
from persona.write.lint.finding import Finding, finding_key, pair_texts, pairs_named
from persona.write.lint.text_rules import find_thinking

# of a block at the beginning of a reply; anywhere else it would be learned as text
_FATE = {
    "none": Message("the answer begins with thinking, which training leaves out (Thinking: none)"),
    "keep": Message("the answer begins with thinking: the model reads it, and learns the rest (Thinking: keep)"),
    "train": Message("the answer begins with thinking, which is learned with it (Thinking: train)"),
}


def judge_thinking(findings: Iterable[Finding], pairs: Sequence[Pair], mode: str) -> Iterator[Finding]:
    """The findings, those of thinking at the beginning of a reply as hints of what becomes of it."""
    for finding in findings:
        if finding.rule == "thinking" and all(_is_in_place(pairs[row - 1]) for row in finding.pairs):
            message = Message("{pairs}: {what}.", pairs=pairs_named(finding.pairs), what=_FATE[mode])
            finding = replace(finding, severity="hint", message=message)
        yield finding


def _is_in_place(pair: Pair) -> bool:
    replies = [reply for _, reply in pair.turns]
    said = [user for user, _ in pair.turns] + [split_thinking(reply)[1] for reply in replies]
    return any(map(has_block, replies)) and not any(map(find_thinking, said))


def find_without_thinking(pairs: Sequence[Pair], mode: str) -> Iterator[Finding]:
    """Pairs without thinking, of which a run that trains thinking learns not to think."""
    if mode != "train":
        return
    rows = tuple(row for row, pair in enumerate(pairs, 1) if pair.output.strip() and not split_thinking(pair.output)[0])
    if not rows:
        return
    message = Message(
        "{count:,} of {total:,} pair(s) hold no thinking, and teach the model to answer without. Write some, or choose "
        "Thinking: keep.",
        count=len(rows), total=len(pairs),
    )  # fmt: skip
    texts = [text for row in rows for text in pair_texts(pairs[row - 1])]
    yield Finding("no-thinking", "warning", rows, message, key=finding_key("no-thinking", texts))
