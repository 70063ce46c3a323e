"""Which pairs of a run are held out."""

import random

from persona.store.pairs import Pair
from persona.train.run_folder import RunRow


def split_held_out(pairs: list[Pair], fraction: float, seed: int) -> list[RunRow]:
    """Hold out `fraction` of the pairs, at least one. Rows with the same instruction stay on one side."""
    groups: dict[str, list[int]] = {}
    for n, pair in enumerate(pairs):
        groups.setdefault(pair.instruction.strip(), []).append(n)
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted = max(1, round(len(pairs) * fraction)) if fraction else 0
    held: set[int] = set()
    for group in order[:-1]:
        if len(held) >= wanted:
            break
        held.update(group)
    return [RunRow(pair, n in held) for n, pair in enumerate(pairs)]
