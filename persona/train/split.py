"""The held-out split: which pairs of a run are measured on and not learned from."""

import random

from persona.store.pairs import Pair
from persona.train.run_folder import RunRow


def split_held_out(pairs: list[Pair], fraction: float, seed: int, limit: int = 0) -> list[RunRow]:
    """Hold out `fraction` of the pairs, at least one, drawn by `seed`.

    Pairs of one instruction stay together, and so do the replies of one conversation: each stands in the history of
    the next. Where that would leave nothing to hold out, or far too much, as with a single long conversation, its
    replies are parted. limit: pairs to hold out at most, as far as those that stay together allow it; 0: no limit.
    """
    count = max(1, round(len(pairs) * fraction)) if fraction else 0
    count = min(count, limit or count)
    held_out: set[int] = set()
    if any(pair.history for pair in pairs):
        held_out = _draw_groups(_group_pairs(pairs, by_conversation=True), count, 2 * count, seed)
    held_out = held_out or _draw_groups(_group_pairs(pairs, by_conversation=False), count, len(pairs), seed)
    return [RunRow(pair, n in held_out) for n, pair in enumerate(pairs)]


def _draw_groups(groups: list[list[int]], count: int, most: int, seed: int) -> set[int]:
    """The numbers in groups drawn until there are `count`, and no more than `most`."""
    random.Random(seed).shuffle(groups)
    drawn: set[int] = set()
    for group in groups[:-1]:
        if len(drawn) < count and len(drawn) + len(group) <= most:
            drawn.update(group)
    return drawn


def _group_pairs(pairs: list[Pair], by_conversation: bool) -> list[list[int]]:
    """The numbers of the pairs that stay together, in the order in which they first appear."""
    first: dict[object, int] = {}  # instruction, or exchange that a conversation begins with → its first pair
    group_of = list(range(len(pairs)))  # a pair → an earlier one of its group, the first of all → itself

    def find(n: int) -> int:
        while group_of[n] != n:
            group_of[n] = n = group_of[group_of[n]]
        return n

    for n, pair in enumerate(pairs):
        keys: list[object] = [pair.instruction.strip()]
        if by_conversation:
            keys.append(next((turn for turn in pair.turns if turn[0].strip()), pair.turns[0]))  # not the greeting
        for key in keys:
            one, other = sorted((find(first.setdefault(key, n)), find(n)))
            group_of[other] = one
    groups: dict[int, list[int]] = {}
    for n in range(len(pairs)):
        groups.setdefault(find(n), []).append(n)
    return list(groups.values())
