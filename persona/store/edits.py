"""Edits of pairs as values: apply, invert, diff, find and replace, split, join. Nothing here touches the disk."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from persona.errors import InputError
from persona.store.pairs import Pair


@dataclass(frozen=True)
class PairChange:
    """One row of an edit. `at` counts from 0 in the pairs before the edit.

    old and new: replaced. Only old: removed. Only new: inserted before the pair at `at`.
    """

    at: int
    old: Pair | None
    new: Pair | None


def apply_changes(pairs: Sequence[Pair], changes: Iterable[PairChange]) -> list[Pair]:
    """The pairs after the changes. Raises InputError when a row has changed since the edit was made."""
    after: list[Pair] = []
    done = 0
    for change in changes:
        if not done <= change.at <= len(pairs) or (
            change.old and list(pairs[change.at : change.at + 1]) != [change.old]
        ):
            raise InputError(
                "Pair {row} was changed elsewhere (another window, or on disk) since you saw it here. Copy "
                "what you just typed, press Reload, and type it again.",
                row=change.at + 1,
            )
        after += pairs[done : change.at]
        done = change.at + (change.old is not None)
        if change.new is not None:
            after.append(change.new)
    return after + list(pairs[done:])


def invert_changes(changes: Iterable[PairChange]) -> Iterator[PairChange]:
    """The changes that undo the given ones."""
    moved = 0
    for change in changes:
        yield PairChange(change.at + moved, change.new, change.old)
        moved += (change.new is not None) - (change.old is not None)


def diff_pairs(before: Sequence[Pair], after: Sequence[Pair]) -> list[PairChange]:
    """Changes that lead from one list to the other: row by row where the length is the same, else as one block."""
    if len(before) == len(after):
        return [PairChange(n, a, b) for n, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    if len(after) < len(before) and (taken := _removed_pairs(before, after)) is not None:
        return taken
    start = next(
        (n for n, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after))
    )
    end = 0
    while end < min(len(before), len(after)) - start and before[-1 - end] == after[-1 - end]:
        end += 1
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    removed = [PairChange(start + n, pair, None) for n, pair in enumerate(old)]
    return removed + [PairChange(start + len(old), None, pair) for pair in new]


def _removed_pairs(before: Sequence[Pair], after: Sequence[Pair]) -> list[PairChange] | None:
    """The rows that are missing, if `after` is `before` without some rows."""
    kept, taken = 0, []
    for n, pair in enumerate(before):
        if kept < len(after) and after[kept] == pair:
            kept += 1
        else:
            taken.append(PairChange(n, pair, None))
    return taken if kept == len(after) else None


def search_pattern(find: str, match_case: bool) -> re.Pattern[str]:
    """What finds the text `find` as it stands."""
    return re.compile(re.escape(find), 0 if match_case else re.IGNORECASE)


def replace_in_pairs(pairs: Sequence[Pair], find: str, replacement: str, match_case: bool = True) -> list[PairChange]:
    """The changes of a find-and-replace over questions, answers and earlier turns. Raises InputError without `find`."""
    if not find:
        raise InputError("Find: write the text that is to be replaced.")
    pattern = search_pattern(find, match_case)

    def swap(text: str) -> str:
        return pattern.sub(lambda _: replacement, text)

    changes = []
    for n, pair in enumerate(pairs):
        history = tuple((swap(user), swap(reply)) for user, reply in pair.history)
        new = replace(pair, instruction=swap(pair.instruction), output=swap(pair.output), history=history,
                      system=swap(pair.system))  # fmt: skip
        if new != pair:
            changes.append(PairChange(n, pair, new))
    return changes


def split_pair(pair: Pair) -> list[Pair]:
    """One pair as several: a conversation into one pair a reply; a single reply in two, near its middle.

    The second half of a reply follows the first as its history; what is said between them is left to the author.
    Raises InputError when the reply has no place to split it at.
    """
    if pair.history:
        parts = (
            replace(pair, instruction=user, output=reply, history=pair.history[:n])
            for n, (user, reply) in enumerate(pair.turns)
        )
        split = [part.weigh(pair.weights[: n + 1]) for n, part in enumerate(parts)]
        return [part for part in split if part.instruction.strip() or part.weights != (0,)]  # no greeting
    text = pair.output
    ends = [n for n in range(1, len(text)) if text[n - 1] in "\n。！？!?…" or text[n - 2 : n] == ". "]
    ends = [n for n in ends if text[:n].strip() and text[n:].strip() and text[n] not in "。！？!?…”」』\"'"]
    if not ends:
        raise InputError("This answer has one sentence only: there is no place to split it at.")
    cut = min(ends, key=lambda n: abs(n - len(text) // 2))
    first = replace(pair, output=text[:cut].rstrip(), weights=())
    return [first, Pair("", text[cut:].lstrip(), (first.turns[-1],), pair.source, pair.system)]


def join_pairs(first: Pair, second: Pair) -> Pair:
    """Two pairs as one conversation: the first becomes what was said before."""
    if second.history[: len(first.turns)] == first.turns:
        return second
    joined = replace(second, history=first.turns + second.history, weights=())
    return joined.weigh((first.weights or (1,) * len(first.turns)) + (second.weights or (1,) * len(second.turns)))
