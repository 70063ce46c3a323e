"""Options of an import, combined at random over the forms: pairs, or one sentence, and never a traceback."""

import io
import random
import zipfile

import pytest

from tests.random_talk import CHATS, ROLES, random_talk, write_log
from tests.test_chat_layouts import FORMATS

pytest_plugins = "tests.cli_fixtures"

NAMES = (
    "A",
    "instruction",
    "output",
    "question",
    "text",
    "speaker",
    "content",
    "mes",
    "nothing",
    "",
    "=",
    "len(output)",
)


def option(rng, persona):
    """An option with a value that makes sense, or does not."""
    name = rng.choice(NAMES)
    piece = rng.choice(("[:3]", "[2:]", "[10%:50%]", "[-2:]", "[5:2]", "[:0]", "[999:]", "[", "[::2]", "[:200%]"))
    return rng.choice((
        ("--speaker", persona), ("--speaker", persona.swapcase()), ("--speaker", ""), ("--speaker", "Nobody"),
        ("--split", f"{rng.choice(('', 'train', 'test', 'train+test'))}{piece}"),
        ("--rows", str(rng.choice((0, 1, 5, -1, 10**9)))), ("--shuffle", str(rng.choice((0, 3, -1, 2**40)))),
        ("--where", f"{name}{rng.choice(('=', '!=', '>', '<=', '~', ''))}{rng.choice(('a', '3', '', 'é', '('))}"),
        ("--where", f"len({name}){rng.choice('><=')}{rng.choice(('3', '1e9', 'x'))}"),
        ("--join-input", rng.choice(("line", "none", "alpaca-zh", "paragraph", "x"))),
        ("--member", rng.choice(("talk", "b.txt", "../x", ""))),
        ("--column", f"{rng.choice(('instruction', 'output', 'input', 'history', 'source', 'x'))}={name}"),
        ("--actions", rng.choice(("keep", "drop", "x"))), ("--history", str(rng.choice((0, 1, 3, 10**6)))),
        ("--format", rng.choice(("alpaca", "messages", "sharegpt", "chat", "screenplay", "prose", "table", "character", "x"))),
    ))  # fmt: skip


def write(folder, rng, form, talk, persona):
    data = write_log(form, talk) if form in FORMATS else (CHATS | ROLES)[form](talk, persona)
    name = f"{form}.txt" if form in FORMATS else form
    file = folder / name
    if rng.random() < 0.15:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("talk" + file.suffix, data)
            archive.writestr("b.txt", "Bob: a?\nAnn: b.\n" * 3)
        file, data = folder / "x.zip", out.getvalue()
    data = data if isinstance(data, bytes) else data.encode()
    file.write_bytes(data[: len(data) // 2] if rng.random() < 0.1 else data)
    return file


def attack(folder, call, seed):
    rng = random.Random(seed)
    form = rng.choice([*FORMATS, *CHATS, *ROLES])
    talk = random_talk(rng, "en")
    persona = talk[1][0]
    file = write(folder, rng, form, talk, persona)
    given = [x for _ in range(rng.randint(1, 5)) for x in option(rng, persona)]
    status, out, err = call("import", file, folder / f"p{seed}", *given, "--json")
    where = f"{seed}: {form} {' '.join(map(repr, given))}\n{err}{out[-300:]}"
    assert status in (0, 1, 2) and "Traceback" not in err, where
    assert status or '"replies": 0' not in out, where
    if status == 1:
        assert err.strip() and len(err.strip().split("\n")) <= 20 and "{" not in err.split(":")[0], where
        assert not (folder / f"p{seed}").exists(), where


def test_options_at_random(tmp_path, call):
    for seed in range(40):
        attack(tmp_path, call, seed)


@pytest.mark.slow
@pytest.mark.parametrize("first, last", [(40, 150), pytest.param(150, 600, marks=pytest.mark.release)])
def test_many_options_at_random(tmp_path, call, first, last):
    for seed in range(first, last):
        attack(tmp_path, call, seed)
