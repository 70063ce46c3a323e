"""Damaged row files: whatever happened to them, they end in items or a sentence, and no row is lost."""

import json
import random
from pathlib import Path

import pytest
from row_files import FORMATS, GOOD, NOTES, SKIPPED, source

from persona.errors import InputError, PersonaError
from persona.store.pairs import Pair, parse_pair
from persona.write.importers import ImportNote, ImportOptions, SkippedRow
from persona.write.importers.registry import detect_format, get_importer, import_formats
from persona.write.importers.text_source import open_source


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four accidents: bytes deleted, doubled, swapped, overwritten, put in, or the end cut off."""
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, size = chance.randrange(len(made) or 1), chance.choice((1, 1, 2, 8, 40))
        match chance.randrange(7):
            case 0:
                del made[at : at + size]
            case 1:
                made[at:at] = made[at : at + size]
            case 2:
                to = chance.randrange(len(made) or 1)
                made[at : at + size], made[to : to + size] = made[to : to + size], made[at : at + size]
            case 3:
                made[at : at + size] = chance.randbytes(size)
            case 4:
                made[at:at] = chance.randbytes(size)
            case 5:
                made[at:at] = chance.choice(
                    (b'"', b"{", b"}", b"[", b"]", b",", b"\n", b"\r", b"\\", b"\x00", b":", b"NaN")
                )
            case 6 if chance.random() < 0.3:
                del made[at:]
    return bytes(made)


def walk(file: Path) -> None:
    """Every way through the importers ends in items or in a PersonaError."""
    try:
        opened = open_source(file)
        detect_format(opened)
    except PersonaError:
        if not file.stat().st_size:
            return
    for name in (*FORMATS, "character"):
        for step in (
            lambda name=name: import_formats()[name].survey(opened),
            lambda name=name: list(get_importer(name).read(opened, ImportOptions())),
        ):
            try:
                step()
            except PersonaError as e:
                assert 0 < len(str(e)) < 6_000


SMALL = [(name, data if isinstance(data, bytes) else data.encode()) for name, data, *_ in (*GOOD, *SKIPPED, *NOTES)]
SMALL = [(name, data) for name, data in SMALL if 20 < len(data) < 20_000]


@pytest.mark.slow
@pytest.mark.parametrize("count", [200, pytest.param(4_000, marks=[pytest.mark.slow, pytest.mark.release])])
def test_damaged_files_end_in_items_or_a_sentence(tmp_path, count):
    chance = random.Random(count)
    light = [s for s in SMALL if not s[0].endswith((".xlsx", ".parquet"))]
    for n in range(count):
        name, data = chance.choice(SMALL if n % 10 == 0 else light)
        (tmp_path / name).write_bytes(made := damaged(data, chance))
        try:
            walk(tmp_path / name)
        except BaseException as e:
            e.add_note(f"input {n}: {name} {made!r:.3000}")
            raise


def is_pair(text: str) -> bool:
    try:
        parse_pair(json.loads(text))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("count", [300, pytest.param(3_000, marks=[pytest.mark.slow, pytest.mark.release])])
@pytest.mark.parametrize("format", ["alpaca", "sharegpt", "messages"])
def test_no_row_of_a_damaged_file_is_lost(tmp_path, format, count):
    """Each line that is not blank is a pair or is skipped, whatever happened to it."""
    history = (("a", "b"),) if format == "alpaca" else ()  # elsewhere each reply of it may become a pair
    pairs = [Pair(f"你是谁？{n}", f'本宫"甄嬛"。\n{n}', history * (n % 3), "s") for n in range(8)]
    module, chance = import_formats()[format], random.Random(count)
    data = "".join(module.dump(pairs))
    data = data if module.SUFFIX == ".jsonl" else data[1:-2].strip().replace(",\n", "\n")
    whole = 0
    for _ in range(count):
        opened = source(tmp_path, "x.jsonl", damaged(data.encode(), chance) or b"x")
        lines = [number for number, text in opened.lines() if text.strip()]
        try:
            found = [item for item in module.read(opened, ImportOptions()) if not isinstance(item, ImportNote)]
        except InputError:  # no row is left that tells which key is which
            assert not list(filter(is_pair, (text for _, text in opened.lines())))
            continue
        # a damaged line may hold several objects, each of which is read or skipped
        skipped = {item.line for item in found if isinstance(item, SkippedRow)}
        pairs_read = [item for item in found if isinstance(item, Pair)]
        assert skipped <= set(lines) and len(pairs_read) + len(skipped) >= len(lines), opened.bytes()
        whole += sum(isinstance(item, Pair) for item in found)
    assert whole > 5 * count, "most rows are not touched, and are read"
