"""Which pairs of a run are held out."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.store.pairs import Pair
from persona.train.split import split_held_out

PAIRS = [Pair(f"Who are you, {n}?", f"Mags {n}.") for n in range(20)]

some_pairs = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=40).map(
    lambda names: [Pair(name if n % 2 else f" {name}\n", str(n)) for n, name in enumerate(names)]
)


@settings(max_examples=150)
@given(some_pairs, st.sampled_from([0.01, 0.1, 0.25, 0.5]), st.integers(0, 2**32 - 1))
def test_split(pairs, fraction, seed):
    """Every pair once and in order; the same question never on both sides; something to learn, something to measure."""
    rows = split_held_out(pairs, fraction, seed)
    assert [r.pair for r in rows] == pairs
    assert split_held_out(pairs, fraction, seed) == rows
    held = {r.pair.instruction.strip() for r in rows if r.held_out}
    kept = {r.pair.instruction.strip() for r in rows if not r.held_out}
    assert not held & kept
    assert kept, "nothing is left to learn from"
    assert held or len({p.instruction.strip() for p in pairs}) == 1, "nothing is held out"


def test_replies_of_one_conversation_are_held_out_together():
    """Else a held-out reply stands in the history of a row that is learned from."""

    def talk(name: str, length: int) -> list[Pair]:
        said = [(f"{name} asks {n}", f"reply {n} to {name}") for n in range(length)]
        return [Pair(*said[n], history=tuple(said[:n])) for n in range(length)]

    pairs = [pair for name in "abcdefgh" for pair in talk(name, 4)]
    for seed in range(5):
        rows = split_held_out(pairs, 0.25, seed)
        held = {r.pair.instruction[0] for r in rows if r.held_out}
        assert sum(r.held_out for r in rows) == 8 and not held & {r.pair.instruction[0] for r in rows if not r.held_out}
    parted = split_held_out(talk("a", 20), 0.1, 0)
    assert sum(r.held_out for r in parted) == 2, "a single conversation is parted"


@pytest.mark.parametrize("count, fraction, held", [(20, 0.1, 2), (314, 0.1, 31), (2, 0.5, 1), (2, 0.01, 1), (9, 0, 0)])
def test_split_holds_out_the_share_asked_for(count, fraction, held):
    rows = split_held_out([Pair(str(n), "x") for n in range(count)], fraction, 0)
    assert sum(r.held_out for r in rows) == held
    limited = split_held_out([r.pair for r in rows], fraction, 0, limit=20)
    assert sum(r.held_out for r in limited) == min(held, 20)


def test_split_depends_on_the_seed_and_on_nothing_global():
    random.seed(1)
    first = split_held_out(PAIRS, 0.25, 3)
    random.seed(2)
    assert split_held_out(PAIRS, 0.25, 3) == first
    assert len({tuple(r.held_out for r in split_held_out(PAIRS, 0.25, seed)) for seed in range(10)}) > 5
