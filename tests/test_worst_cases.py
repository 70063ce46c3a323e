"""Work grows with the input, not with its square: each of these would take minutes to hours if something looked back."""

import random
import signal
from collections.abc import Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest

from persona.errors import InputError
from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.store.persona_folder import PersonaCard
from persona.write.importers import ImportOptions, registry
from persona.write.importers.text_source import open_source
from persona.write.lint import lint_pairs
from persona.write.lint.fixes import fix_findings
from persona.write.lint.summary import summarize_dataset
from tests import worst_cases

CARD = PersonaCard(name="Mags", probes=("Who are you then?",))
GUARD = 30  # seconds of CPU time, of which the slowest case needs four


@contextmanager
def guard_against_hanging():
    def stop(*_):
        raise AssertionError(f"more than {GUARD} s of CPU time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, GUARD)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def import_all(path, format: str | None) -> None:
    source = open_source(path)
    format = format or registry.detect_format(source)
    registry.get_importer(format).survey(source)
    for _ in registry.read_source(source, format, ImportOptions(speakers=("Ann",), turns=2)):
        pass


def check_text(text: str) -> None:
    text = text[:MAX_CHARACTERS]
    pairs = [Pair(text, text, ((text, text),)), Pair("Hi", "Ahoy, **friend**.")]
    found = lint_pairs(pairs, CARD)
    fix_findings(pairs, found, CARD)
    summarize_dataset(pairs, CARD, found)


def read_worst_case(name: str, folder: Path, formats: Sequence[str | None]) -> None:
    path = folder / name
    path.write_text(worst_cases.FILES[name](80_000), encoding="utf-8")
    for format in formats:
        with guard_against_hanging():
            try:
                import_all(path, format)
            except InputError as e:
                assert len(str(e)) < 3_000


@pytest.mark.slow
@pytest.mark.parametrize("name", worst_cases.FILES)
def test_what_reads_the_file_ends(name, tmp_path):
    """Detection by all importers, and the one that is chosen."""
    read_worst_case(name, tmp_path, [None])


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize("name", worst_cases.FILES)
def test_every_importer_ends(name, tmp_path):
    read_worst_case(name, tmp_path, list(registry.import_formats()))


@pytest.mark.slow
@pytest.mark.parametrize("name", worst_cases.TEXTS)
def test_every_check_ends(name):
    with guard_against_hanging():
        check_text(worst_cases.TEXTS[name](MAX_CHARACTERS))


def near_duplicates(count: int, size: int) -> list[Pair]:
    draw = random.Random(1)
    text = "".join(draw.choices("abcdefghij ", k=size))

    def change() -> str:
        at = draw.randrange(size)
        return f"{text[:at]}{draw.randrange(1_000)}{text[at:]}"

    return [Pair(change(), change()) for _ in range(count)]


def one_question(count: int, size: int) -> list[Pair]:
    draw = random.Random(1)
    return [Pair("Who are you?", "".join(draw.choices("abcdefghij ", k=size))) for _ in range(count)]


SETS = {
    "near-duplicates of long texts": lambda: near_duplicates(40, 90_000),
    "many near-duplicates": lambda: near_duplicates(5_000, 60),
    "equal pairs": lambda: [Pair("Who are you?", "Mags.")] * 25_000,
    "one question, other answers": lambda: one_question(10_000, 60),
    "one question, long answers": lambda: one_question(40, 90_000),
    "one answer, other questions": lambda: [Pair(f"What is {n}?", "A secret.") for n in range(10_000)],
    "many turns": lambda: [Pair("a", "b", (("c", "d"),) * 25_000)],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_every_check_of_a_set_ends(name):
    pairs = SETS[name]()
    with guard_against_hanging():
        found = lint_pairs(pairs, CARD)
        fix_findings(pairs, found, CARD)


def test_long_near_duplicates_are_still_found():
    pairs = near_duplicates(2, 20_000)
    assert [(f.rule, f.pairs) for f in lint_pairs(pairs, CARD) if f.rule == "near-duplicate"] == [
        ("near-duplicate", (2,))
    ]
    other = [pairs[0], Pair(pairs[1].instruction[:10_000] + "z" * 10_000, pairs[1].output)]
    assert not [f for f in lint_pairs(other, CARD) if f.rule == "near-duplicate"]


def test_a_speech_grows_as_its_lines_are_joined():
    from persona.write.importers.speaker_turns import GrowingSpeech, Speech, join_lines, rewrite_directions

    lines = ("", "a", "（点头）", "（", "）", "(x", "y)", "字", " ")
    for first, second, third in product(lines, repeat=3):
        held, text = GrowingSpeech(Speech(1, "Ann", first)), first
        for line in (second, third):
            held.add(line)
            text = join_lines(text, line)
        assert held.finish().text == text
        assert held.is_only_directions() == (not rewrite_directions(text))
