"""The held-out split: which pairs of a run are measured on and not learned from."""

import random

from persona.store.pairs import Pair
from persona.train.run_folder import RunRow


def split_held_out(pairs: list[Pair], fraction: float, seed: int, limit: int = 0) -> list[RunRow]:
    """Hold out `fraction` of the pairs, at least one, drawn by `seed`. Pairs of one instruction stay together.

    limit: pairs to hold out at most, as far as those that stay together allow it; 0: no limit.
    """
    groups: dict[str, list[int]] = {}
    for n, pair in enumerate(pairs):
        groups.setdefault(pair.instruction.strip(), []).append(n)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    count = max(1, round(len(pairs) * fraction)) if fraction else 0
    count = min(count, limit or count)
    held_out: set[int] = set()
    for group in order[:-1]:
        if len(held_out) >= count:
            break
        held_out.update(group)
    return [RunRow(pair, n in held_out) for n, pair in enumerate(pairs)]
