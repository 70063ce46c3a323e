"""pairs.jsonl: what is a pair, what is not and where, and that no save loses anything."""

import errno
import json
import os

import pytest
from cases import check_each
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import InputError
from persona.store.files import write_atomic
from persona.store.pairs import (
    MAX_CHARACTERS,
    Pair,
    dump_pairs,
    find_unfinished,
    hash_pairs,
    iter_pairs,
    parse_pair,
    read_pairs,
    scan_pairs,
    write_pairs,
)
from persona.store.persona_folder import PersonaCard, create_persona_at

GOOD = {
    "one": (b'{"instruction": "a", "output": "b"}', [Pair("a", "b")]),
    "line-break-at-the-end": (b'{"instruction": "a", "output": "b"}\n', [Pair("a", "b")]),
    "byte-order-mark": (b'\xef\xbb\xbf{"instruction": "a", "output": "b"}\n', [Pair("a", "b")]),
    "blank-lines": (b'\n  \n{"instruction": "a", "output": "b"}\n\n\n', [Pair("a", "b")]),
    "crlf": (
        b'{"instruction": "a", "output": "b"}\r\n{"instruction": "c", "output": "d"}\r\n',
        [Pair("a", "b"), Pair("c", "d")],
    ),
    "wide": ('{"instruction": "你是谁？", "output": "𠮷👍🏽"}'.encode(), [Pair("你是谁？", "𠮷👍🏽")]),
    "surrogate-pair-escaped": (b'{"instruction": "a", "output": "\\ud83d\\ude00"}', [Pair("a", "😀")]),
    "history-and-source": (
        b'{"instruction": "a", "output": "b", "history": [["c", "d"]], "source": "s"}',
        [Pair("a", "b", (("c", "d"),), "s")],
    ),
    "empty-history": (b'{"instruction": "a", "output": "b", "history": []}', [Pair("a", "b")]),
    "null-history": (b'{"instruction": "a", "output": "b", "history": null}', [Pair("a", "b")]),
    "unfinished-is-still-a-pair": (b'{"instruction": "", "output": " "}', [Pair("", " ")]),
    "other-line-breaks": ('{"instruction": "a\u2028b", "output": "c\x85d"}'.encode(), [Pair("a\u2028b", "c\x85d")]),
    "as-long-as-allowed": (
        json.dumps({"instruction": "x" * MAX_CHARACTERS, "output": "b"}).encode(),
        [Pair("x" * MAX_CHARACTERS, "b")],
    ),
    "empty-file": (b"", []),
}

BAD = {
    "not-json": (b"hello", "not JSON"),
    "cut-short": (b'{"instruction": "a", "output": "b"', "column 35: not JSON"),
    "two-on-a-line": (b'{"instruction": "a"} {"output": "b"}', "column 22: not JSON"),
    "list": (b'["a", "b"]', "a list, not an object"),
    "null": (b"null", "a NoneType, not an object"),
    "no-instruction": (b'{"output": "b"}', "'instruction' is missing"),
    "no-output": (b'{"instruction": "a"}', "'output' is missing"),
    "null-output": (b'{"instruction": "a", "output": null}', "'output' is missing"),
    "number": (b'{"instruction": 7, "output": "b"}', "'instruction' is not text: 7"),
    "output-list": (b'{"instruction": "a", "output": ["b"]}', "'output' is not text"),
    "source-number": (b'{"instruction": "a", "output": "b", "source": 1}', "'source' is not text: 1"),
    "lone-surrogate": (b'{"instruction": "a", "output": "\\ud800"}', "'output' holds half a character"),
    "lone-surrogate-in-history": (
        b'{"instruction": "a", "output": "b", "history": [["c", "\\udfff"]]}',
        "'history' holds half a character",
    ),
    "gbk": ('{"instruction": "你", "output": "b"}'.encode("gbk"), "byte 18 is not UTF-8"),
    "too-long": (
        json.dumps({"instruction": "a", "output": "x" * (MAX_CHARACTERS + 1)}).encode(),
        "'output' has 100,001 characters, more than 100,000",
    ),
    "history-text": (b'{"instruction": "a", "output": "b", "history": "c"}', "'history' is not a list"),
    "half-turn": (b'{"instruction": "a", "output": "b", "history": [["c"]]}', "'history' is not a list"),
    "long-turn": (b'{"instruction": "a", "output": "b", "history": [["c", "d", "e"]]}', "'history' is not a list"),
    "number-in-turn": (b'{"instruction": "a", "output": "b", "history": [["c", 1]]}', "'history' is not a list"),
    "dict-turn": (b'{"instruction": "a", "output": "b", "history": [{"user": "c"}]}', "'history' is not a list"),
    "nested-too-deep": (b"[" * 100_000, "recursion"),
    "number-too-long": (b'{"instruction": ' + b"1" * 5_000 + b', "output": "b"}', "not JSON"),
}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "pairs.jsonl"


def test_good_lines_are_read(file):
    def check(data, pairs):
        file.write_bytes(data)
        assert scan_pairs(file) == (pairs, [])
        assert read_pairs(file) == pairs

    check_each(GOOD, check)


def test_a_bad_line_is_named_and_costs_no_other(file):
    """Counted from 1, blank lines included, as editors count."""

    def check(line, why):
        file.write_bytes(b'{"instruction": "a", "output": "b"}\n\n' + line + b'\n{"instruction": "c", "output": "d"}\n')
        pairs, bad = scan_pairs(file)
        assert pairs == [Pair("a", "b"), Pair("c", "d")]
        assert [b.line for b in bad] == [3]
        assert why.lower() in bad[0].why.lower()
        with pytest.raises(InputError) as e:
            read_pairs(file)
        assert f"{file} line 3: " in str(e.value)
        assert len(str(e.value)) < 500, "an error is read by a person: it must not quote the whole line"

    check_each(BAD, check)


def test_all_bad_lines_are_named_at_once(file):
    file.write_bytes(b"x\n" * 25)
    with pytest.raises(InputError) as e:
        read_pairs(file)
    assert str(e.value).count(" line ") >= 20 and "and 5 more" in str(e.value)


def test_an_absent_file_is_an_empty_persona(file):
    assert scan_pairs(file) == ([], [])


def test_a_folder_in_the_place_of_the_file_is_refused(file):
    file.mkdir()
    with pytest.raises(InputError, match=r"pairs\.jsonl: cannot be read"):
        scan_pairs(file)


text = st.text(max_size=40) | st.sampled_from(["\u2028", "\x85", "\r\n", "\x00", "\ufeff", "𠮷", '"\\', "\x1e"])
some_pairs = st.lists(
    st.builds(Pair, text, text, st.lists(st.tuples(text, text), max_size=3).map(tuple), text), max_size=5
)


@settings(max_examples=60)
@given(pairs=some_pairs)
def test_what_is_written_is_read_back(tmp_path_factory, pairs):
    """Whatever characters a person may paste: line separators inside a text must not end the line."""
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    write_pairs(file, pairs)
    assert scan_pairs(file) == (pairs, [])
    assert file.read_text(encoding="utf-8") == dump_pairs(pairs)


def test_sha256_tells_pairs_apart():
    """It goes into the run's record: equal pairs, equal sum; order and every field count."""
    a, b = Pair("a", "b"), Pair("a", "b", (("c", "d"),))
    assert hash_pairs([a, b]) == hash_pairs([Pair("a", "b"), b])
    assert len({hash_pairs(x) for x in ([], [a], [b], [a, b], [b, a])}) == 5


@pytest.mark.parametrize(
    "pair, missing",
    [
        (Pair("a", "b"), []),
        (Pair(" ", "b"), ["'instruction' is empty"]),
        (Pair("a", "\n"), ["'output' is empty"]),
        (Pair("a", "\u3000"), ["'output' is empty"]),
        (Pair("", ""), ["'instruction' is empty", "'output' is empty"]),
        (Pair("a", "b", (("c", ""),)), ["'history' has an empty turn"]),
        (Pair("a", "b", ((" ", "d"),)), ["'history' has an empty turn"]),
    ],
)
def test_unfinished(pair, missing):
    assert find_unfinished([Pair("x", "y"), pair]) == [(2, why) for why in missing]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def forbidden(*_):
    raise OSError(errno.EACCES, "Permission denied")


def broken(*_):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize("failing", ["replace", "fsync"])
@pytest.mark.parametrize(
    "error, says", [(full, "disk is full"), (forbidden, "no permission"), (broken, "Input/output error")]
)
def test_a_failed_save_leaves_the_old_file(file, monkeypatch, failing, error, says):
    write_pairs(file, [Pair("old", "content")])
    monkeypatch.setattr(os, failing, error)
    with pytest.raises(InputError, match=says):
        write_pairs(file, [Pair("new", "content")])
    assert [p.name for p in file.parent.iterdir() if p.name != "home"] == [file.name], "a temporary file was left"
    assert read_pairs(file) == [Pair("old", "content")]


def test_a_save_waits_for_the_text_and_for_its_new_name(file, monkeypatch):
    """Without the second a lost power cable could bring the old file back."""
    synced, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or real(handle))
    write_pairs(file, [Pair("a", "b")])
    assert synced == [file.stat().st_ino, file.parent.stat().st_ino]


def test_an_interrupted_save_leaves_no_temporary_file(file, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(file, "x")
    assert [p.name for p in file.parent.iterdir()] == ["home"]


def test_half_a_character_is_refused_in_words(file):
    """A page or a caller can hand over what no UTF-8 file can hold."""
    write_pairs(file, [Pair("old", "content")])
    with pytest.raises(InputError, match="half a character"):
        write_pairs(file, [Pair("a", "\ud800")])
    assert read_pairs(file) == [Pair("old", "content")]


def test_saving_over_a_broken_file_loses_nothing(tmp_path):
    """Lines that are no pairs move aside, byte for byte recoverable, and a second time adds to the first."""
    persona = create_persona_at(tmp_path / "p", PersonaCard(name="P"), [Pair("a", "b")])
    gbk = '{"instruction": "你好", "output": "好"}'.encode("gbk")
    persona.pairs_file.write_bytes(b'{"instruction": "a", "output": "b"}\n{"instruction": "half\n' + gbk + b"\n")
    persona.save_pairs([Pair("a", "b"), Pair("c", "d")])
    assert persona.pairs() == [Pair("a", "b"), Pair("c", "d")]
    aside = (persona.path / "pairs.rejected.txt").read_text(encoding="utf-8")
    assert '{"instruction": "half\n' in aside and "# line 2: " in aside and "# line 3: " in aside
    kept = aside.splitlines()[-1]
    assert kept.encode("latin-1").decode("unicode_escape").encode("latin-1") == gbk

    persona.pairs_file.write_text("second\n", encoding="utf-8")
    persona.save_pairs([])
    assert (persona.path / "pairs.rejected.txt").read_text(encoding="utf-8").startswith(aside)
    assert "second\n" in (persona.path / "pairs.rejected.txt").read_text(encoding="utf-8")


def test_a_clean_file_leaves_nothing_aside(tmp_path):
    persona = create_persona_at(tmp_path / "p", PersonaCard(name="P"), [Pair("a", "b")])
    persona.save_pairs([Pair("c", "d")])
    assert not (persona.path / "pairs.rejected.txt").exists()


def test_bad_lines_are_set_aside_before_the_file_is_replaced(tmp_path, monkeypatch):
    """If setting aside fails, the broken file must still be there."""
    persona = create_persona_at(tmp_path / "p", PersonaCard(name="P"))
    persona.pairs_file.write_text("precious\n", encoding="utf-8")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="disk is full"):
        persona.save_pairs([Pair("a", "b")])
    assert persona.pairs_file.read_text(encoding="utf-8") == "precious\n"


def test_a_key_of_another_format_is_named_not_dropped():
    """Alpaca's "input" is half of the question; silently left out, the persona would learn to answer the other half."""
    with pytest.raises(InputError, match="unknown key 'input'"):
        parse_pair({"instruction": "Translate", "input": "茶", "output": "Tea"})
    assert parse_pair({"instruction": "Hi", "input": "", "output": "Yes"}) == Pair("Hi", "Yes")


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    """What the page's handlers read together; a list that a caller changes is the caller's own."""
    file, reads = tmp_path / "pairs.jsonl", []
    iter_lines = iter_pairs
    monkeypatch.setattr("persona.store.pairs.iter_pairs", lambda path: reads.append(path) or iter_lines(path))
    write_pairs(file, [Pair("a", "b")])
    first, _ = scan_pairs(file)
    first.append(Pair("mine", "only"))
    assert scan_pairs(file) == ([Pair("a", "b")], []) and len(reads) == 1
    write_pairs(file, [Pair("c", "d")])
    assert scan_pairs(file) == ([Pair("c", "d")], []) and len(reads) == 2
    file.write_text(file.read_text() + "{}\n")
    assert len(scan_pairs(file)[1]) == 1 and len(reads) == 3
    file.unlink()
    assert scan_pairs(file) == ([], [])
