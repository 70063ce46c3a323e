"""Zip: what leaves is the allow-list, what comes in is checked, and every refusal is a sentence."""

import errno
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from persona.errors import AdapterError, PersonaError, ShareError
from persona.models import adapter
from persona.share import archive as share_archive
from persona.share import loss_plot
from persona.share.archive import WEIGHTS_FILE
from persona.store.workspace import PROJECT_DIR
from tests.hub_fixtures import SECRETS, allowed, contents, edit_card

pytest_plugins = "tests.hub_fixtures"
pytestmark = pytest.mark.usefixtures("machine")


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def under(folder: Path, prefix: str = "x/") -> dict[str, bytes]:
    return {prefix + name: data for name, data in allowed(folder).items()}


# --- zip ---------------------------------------------------------------------------------------------------------


def test_zip_round_trip(mine: Path, tmp_path: Path) -> None:
    packed = share_archive.pack_adapter(mine, tmp_path / "out" / "p.zip")
    opened = share_archive.unpack_adapter(packed, tmp_path / "in")
    assert contents(opened) == allowed(mine)
    assert (
        opened.name.startswith("zhen-huan-甄嬛-")
        and adapter.read_adapter(opened).card == adapter.read_adapter(mine).card
    )
    assert share_archive.unpack_adapter(packed, tmp_path / "in") == opened
    assert list((tmp_path / "in").iterdir()) == [opened]


def test_zip_holds_the_allow_list_and_nothing_else(mine: Path, tmp_path: Path) -> None:
    packed = share_archive.pack_adapter(mine, tmp_path / "p.zip")
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [f"zhen-huan-甄嬛/{name}" for name in sorted(adapter.ADAPTER_FILES)]
    assert not any(data in packed.read_bytes() for data in SECRETS.values())


def test_zip_is_deterministic_and_leaves_no_part_behind(mine: Path, tmp_path: Path) -> None:
    one = share_archive.pack_adapter(mine, tmp_path / "out" / "one.zip")
    os.utime(mine / "README.md", (0, 0))
    two = share_archive.pack_adapter(mine, tmp_path / "out" / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["one.zip", "two.zip"]


def test_zip_is_of_one_moment(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card and the loss curve are rewritten while the zip is packed: once by a rename, once in place."""
    really_open = share_archive.open_adapter_file
    changes = [lambda: edit_card(mine, system="new"), lambda: (mine / "loss.png").write_bytes(b"")]

    def open_beside_a_writer(file: Path) -> Any:
        opened = really_open(file)
        if changes and file.parent == mine and file.name == "run.json":
            changes.pop(0)()
        return opened

    monkeypatch.setattr("persona.share.archive.open_adapter_file", open_beside_a_writer)
    packed = share_archive.pack_adapter(mine, tmp_path / "out" / "p.zip")
    assert not changes and contents(share_archive.unpack_adapter(packed, tmp_path / "in")) == allowed(mine)
    changes += [lambda: (mine / "loss.png").touch()] * 99
    with pytest.raises(ShareError, match="being written all the time"):
        share_archive.pack_adapter(mine, packed)
    assert list(packed.parent.iterdir()) == [packed]


def test_a_loss_curve_is_whole_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that opens the picture while another one is drawn sees the old one."""
    picture = tmp_path / "loss.png"
    loss_plot.draw_loss_plot([(1, 2.0), (2, 1.0)], [], picture)
    old, seen, save = picture.read_bytes(), [], Image.Image.save

    def look(self: Any, out: Any, *args: Any, **options: Any) -> None:
        seen.append(picture.read_bytes())
        save(self, out, *args, **options)
        seen.append(picture.read_bytes())

    monkeypatch.setattr(Image.Image, "save", look)
    loss_plot.draw_loss_plot([(1, 2.0), (2, 1.5)], [], picture)
    assert seen == [old, old] and picture.read_bytes() != old


def test_failed_pack_keeps_the_old_zip(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = share_archive.pack_adapter(mine, tmp_path / "out" / "p.zip")
    before = packed.read_bytes()
    shutil.move(mine / WEIGHTS_FILE, tmp_path / "weights")
    (mine / WEIGHTS_FILE).write_bytes(b"junk")
    with pytest.raises(AdapterError, match="damaged"):
        share_archive.pack_adapter(mine, packed)
    shutil.copyfile(tmp_path / "weights", mine / WEIGHTS_FILE)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("persona.share.archive.shutil.copyfileobj", full)
    with pytest.raises(ShareError, match="disk is full"):
        share_archive.pack_adapter(mine, packed)
    with pytest.raises(ShareError, match="disk is full"):
        share_archive.unpack_adapter(packed, tmp_path / "in")
    assert packed.read_bytes() == before and len(list(packed.parent.iterdir())) == 1
    assert list((tmp_path / "in").iterdir()) == []


def test_same_weights_with_other_texts_are_another_folder(mine: Path, tmp_path: Path) -> None:
    one = share_archive.unpack_adapter(share_archive.pack_adapter(mine, tmp_path / "p.zip"), tmp_path / "in")
    edit_card(mine, system="你是皇后。")
    other = share_archive.pack_adapter(mine, tmp_path / "q.zip")
    two = share_archive.unpack_adapter(other, tmp_path / "in")
    assert one != two and adapter.read_adapter(one).card.system == "你是甄嬛。"
    assert (
        share_archive.unpack_adapter(other, tmp_path / "in") == two
        and adapter.read_adapter(two).card.system == "你是皇后。"
    )


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "./a/"])
def test_zip_made_by_hand_is_opened(mine: Path, tmp_path: Path, prefix: str) -> None:
    members = {**under(mine, prefix), "__MACOSX/._README.md": b"x", f"{prefix}optimizer.pt": b"x", "README.md/": b""}
    opened = share_archive.unpack_adapter(make_zip(tmp_path / "p.zip", members, zipfile.ZIP_DEFLATED), tmp_path / "in")
    assert contents(opened) == allowed(mine)


def link_member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def patched(data: bytes, name: str, at: int, form: str, value: int) -> bytes:
    """The zip `data` with one number changed in the central directory's entry for `name`."""
    entry = data.rindex(name.encode()) - 46
    assert data[entry : entry + 4] == b"PK\1\2"
    return data[: entry + at] + struct.pack(form, value) + data[entry + at + struct.calcsize(form) :]


REFUSED_NAMES = ["../evil.txt", "x/../../evil.txt", "/etc/evil.txt", "C:/evil.txt", "x\\..\\evil.txt"]


@pytest.mark.parametrize("name", REFUSED_NAMES)
def test_names_that_lead_out_are_refused(mine: Path, tmp_path: Path, name: str) -> None:
    bad = make_zip(tmp_path / "p.zip", {**under(mine), name: b"evil"})
    with pytest.raises(ShareError, match="leads out of the zip"):
        share_archive.unpack_adapter(bad, tmp_path / "in" / "deep")
    assert not list(tmp_path.rglob("evil*")) and not list((tmp_path / "in" / "deep").iterdir())


def test_symbolic_link_is_refused(mine: Path, tmp_path: Path) -> None:
    members = under(mine)
    del members["x/README.md"]
    bad = make_zip(tmp_path / "p.zip", members)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(link_member("x/README.md"), "/etc/passwd")
    with pytest.raises(ShareError, match="symbolic link"):
        share_archive.unpack_adapter(bad, tmp_path / "in")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["x/run.json", "./x/run.json", f"x/{WEIGHTS_FILE}"])
def test_duplicate_member_is_refused(mine: Path, tmp_path: Path, again: str) -> None:
    bad = make_zip(tmp_path / "p.zip", under(mine))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(again, b"{}")
    with pytest.raises(ShareError, match="twice"):
        share_archive.unpack_adapter(bad, tmp_path / "in")


def test_two_adapters_in_one_zip_are_refused(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(ShareError, match="2 adapters"):
        share_archive.unpack_adapter(
            make_zip(tmp_path / "p.zip", {**under(mine), **under(mine, "y/")}), tmp_path / "in"
        )


def test_encrypted_zip_is_refused(mine: Path, tmp_path: Path) -> None:
    bad = make_zip(tmp_path / "p.zip", under(mine))
    bad.write_bytes(patched(bad.read_bytes(), "x/run.json", 8, "<H", 1))
    with pytest.raises(ShareError, match="encrypted"):
        share_archive.unpack_adapter(bad, tmp_path / "in")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packing_is_refused(mine: Path, tmp_path: Path, method: int) -> None:
    with pytest.raises(ShareError, match="another method"):
        share_archive.unpack_adapter(make_zip(tmp_path / "p.zip", under(mine), method), tmp_path / "in")


def test_bombs_are_refused(mine: Path, tmp_path: Path) -> None:
    text = make_zip(tmp_path / "t.zip", {**under(mine), "x/README.md": bytes(10_000_001)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ShareError, match="is the limit"):
        share_archive.unpack_adapter(text, tmp_path / "in")
    weights = make_zip(
        tmp_path / "w.zip", {**under(mine), f"x/{WEIGHTS_FILE}": bytes(20_000_000)}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ShareError, match="100 times"):
        share_archive.unpack_adapter(weights, tmp_path / "in")
    huge = tmp_path / "h.zip"
    huge.write_bytes(patched(make_zip(huge, under(mine)).read_bytes(), f"x/{WEIGHTS_FILE}", 24, "<I", 4_000_000_001))
    with pytest.raises(ShareError, match="4,000 MB is the limit"):
        share_archive.unpack_adapter(huge, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


def test_a_zip_of_countless_files_is_refused(mine: Path, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {**under(mine), **{f"x/{n:060}": b"" for n in range(40_000)}})
    with pytest.raises(ShareError, match="its list of files is longer than 4,000,000 bytes"):
        share_archive.unpack_adapter(path, tmp_path / "in")


def test_a_lie_about_the_size_is_refused_and_costs_no_disk(
    mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    copy = shutil.copyfileobj

    def counting(source: Any, out: Any, length: int) -> None:
        try:
            copy(source, out, length)
        finally:
            written.append(out.tell())

    monkeypatch.setattr("persona.share.archive.shutil.copyfileobj", counting)
    packed = make_zip(tmp_path / "p.zip", {**under(mine), "x/README.md": bytes(9_000_000)}, zipfile.ZIP_DEFLATED)
    honest = packed.read_bytes()
    for declared in (100, 9_000_001):
        packed.write_bytes(patched(honest, "x/README.md", 24, "<I", declared))
        written.clear()
        with pytest.raises(ShareError, match="damaged"):
            share_archive.unpack_adapter(packed, tmp_path / "in")
        assert max(written) <= max(declared, (mine / WEIGHTS_FILE).stat().st_size)
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.slow
def test_truncated_and_damaged_zips_are_refused(mine: Path, tmp_path: Path) -> None:
    good = make_zip(tmp_path / "p.zip", under(mine), zipfile.ZIP_DEFLATED).read_bytes()
    bad = tmp_path / "bad.zip"
    for end in (0, 10, len(good) // 2, len(good) - 30, len(good) - 1):
        bad.write_bytes(good[:end])
        with pytest.raises(ShareError, match="bad.zip: damaged"):
            share_archive.unpack_adapter(bad, tmp_path / "in")
    bad.write_bytes(make_zip(tmp_path / "e.zip", {"x": b""}).read_bytes().replace(b"x", b"\0"))  # no name
    with pytest.raises(AdapterError, match="no adapter_model"):
        share_archive.unpack_adapter(bad, tmp_path / "in")
    # every byte of the directory and of the headers is turned over once: refused in words, or harmless
    start = good.index(b"PK\1\2")
    for at in [*range(60), *range(start, len(good))]:
        bad.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            opened = share_archive.unpack_adapter(bad, tmp_path / "in")
        except PersonaError as e:
            assert "could not be written" not in str(e)
            continue
        assert contents(opened).items() <= allowed(mine).items()


def test_zip_of_pickles_is_refused_with_the_reason(mine: Path, tmp_path: Path) -> None:
    members = {n: d for n, d in under(mine).items() if not n.endswith(WEIGHTS_FILE)}
    with pytest.raises(AdapterError, match="adapter_model.bin.*can run code.*safetensors"):
        share_archive.unpack_adapter(
            make_zip(tmp_path / "p.zip", {**members, "x/adapter_model.bin": b"x"}), tmp_path / "in"
        )
    with pytest.raises(AdapterError, match="no adapter_model.safetensors"):
        share_archive.unpack_adapter(make_zip(tmp_path / "q.zip", members), tmp_path / "in")
    with pytest.raises(AdapterError, match="two folders deep"):
        share_archive.unpack_adapter(make_zip(tmp_path / "r.zip", under(mine, "a/b/c/")), tmp_path / "in")


@pytest.mark.parametrize(
    ("file", "data"),
    [
        (WEIGHTS_FILE, b"junk"),
        ("adapter_config.json", b'{"peft_type": "IA3"}'),
        ("chat_template.jinja", b"\xff\xfe"),
        ("run.json", b"[" * 200_000),
        ("persona.json", b'{"name": ' + b"9" * 5_000 + b"}"),
        ("persona.json", b'{"name": ""}'),
    ],
)
def test_zip_of_a_broken_adapter_is_refused(mine: Path, tmp_path: Path, file: str, data: bytes) -> None:
    with pytest.raises(AdapterError) as caught:
        share_archive.unpack_adapter(make_zip(tmp_path / "p.zip", {**under(mine), f"x/{file}": data}), tmp_path / "in")
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "in").iterdir()) == []


def test_importing_share_and_hub_is_cheap() -> None:
    heavy = {"torch", "gradio", "transformers", "huggingface_hub"}
    code = f"import sys, persona.share.hub; print(*{heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT_DIR).strip() == ""


def test_an_opened_zip_is_in_the_list_it_is_chosen_from(mine: Path, tmp_path: Path, home: Path) -> None:
    """The page refuses a value that its list lacks, so the list is read after the zip was unpacked."""
    from persona.ui.chosen import Chosen
    from persona.ui.steps import compare

    view = compare.open_zip(str(share_archive.pack_adapter(mine, tmp_path / "p.zip")), Chosen())
    shown = view.adapter_list
    assert shown.value.startswith("opened/") and shown.value in [value for _, value in shown.choices]
    assert view.adapter == view.chosen.adapter == shown.value
