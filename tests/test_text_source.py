"""The encoding of a file from outside, found from its bytes; no byte of it is lost."""

import pytest

from persona.errors import InputError
from persona.write.importers.text_source import open_source, save_pasted

ZH = "甄嬛：今日乏了。\n皇帝：朕来看看你。\n"
TW = "甄嬛：今日乏了。\n皇帝：朕來看看妳，身子可好？\n"
EN = "Ann: Café? “Yes”, naïve — ok.\n"


def test_short_and_long_texts_are_read_as_they_were_written(tmp_path):
    table = [
        (ZH, ("utf-8", "utf-8-sig", "utf-16", "utf-32", "gb18030", "gbk")),
        ("甲：谁？\n乙：我。\n", ("utf-8", "gb18030", "utf-16")),
        (ZH * 400, ("utf-8", "gb18030", "utf-16", "utf-16-le", "utf-16-be")),
        (TW, ("big5", "utf-8")),
        (TW * 400, ("big5",)),
        (EN, ("utf-8", "utf-16")),
        (EN * 100, ("cp1252",)),
        ("plain ascii\n", ("ascii",)),
    ]
    for text, encodings in table:
        for encoding in encodings:
            file = tmp_path / "t.txt"
            file.write_bytes(text.encode(encoding))
            got = "".join(line + "\n" for _, line in open_source(file).lines())
            assert got == text, (encoding, open_source(file).encoding)


def test_lines_are_numbered_whatever_ends_them(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes(b"a\r\nb\rc\n\nd")
    assert list(open_source(file).lines()) == [(1, "a"), (2, "b"), (3, "c"), (4, ""), (5, "d")]


def test_a_byte_that_is_no_text_shows_and_costs_nothing(tmp_path):
    file = tmp_path / "t.txt"
    file.write_bytes(("好" * 40_000).encode() + b"\n")
    with file.open("ab") as f:
        f.write(b"\xff ok\n")
    source = open_source(file)
    assert list(source.lines())[-1][0] == 2 and "ok" in list(source.lines())[-1][1]


def test_a_line_without_end_comes_in_pieces(tmp_path, monkeypatch):
    from persona.write.importers import text_source

    monkeypatch.setattr(text_source, "MAX_LINE", 10)
    file = tmp_path / "t.txt"
    file.write_text("x" * 25 + "\nend")
    assert list(open_source(file).lines()) == [(1, "x" * 10), (1, "x" * 10), (1, "x" * 5), (2, "end")]


def test_names_from_outside_lose_what_is_no_name(tmp_path):
    file = tmp_path / "t.txt"
    file.write_text("x")
    assert open_source(file, "../../etc/pass\nwd").name == "passwd"
    assert open_source(file, "a\x00\x1b").location(3) == "a:3"


@pytest.mark.parametrize("make", [lambda p: p.write_bytes(b""), lambda p: p.mkdir(), lambda p: None])
def test_nothing_to_read_is_refused(tmp_path, make):
    make(tmp_path / "t.txt")
    with pytest.raises(InputError, match=r"t\.txt"):
        open_source(tmp_path / "t.txt")


def test_pasted_text_is_a_file_for_as_long_as_it_is_read():
    with save_pasted("好\r\n\ud800") as path:
        assert [line for _, line in open_source(path).lines()] == ["好", "\\ud800"]
    assert not path.exists()
