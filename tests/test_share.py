"""Zip, link and Hub: what leaves is the allow-list, what comes in is checked, and every refusal is a sentence."""

import errno
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from persona import adapter, share
from persona.base import Base
from persona.errors import AdapterError, PersonaError, ShareError
from persona.files import PROJECT
from persona.folder import Card
from persona.share import WEIGHTS, Link
from persona.templates import read_template
from tests.hub import ANN, BEN, OLD, Hub

FACTS = {
    "config": {"learning_rate": 5e-4, "lora_r": 2, "target_modules": "all-linear", "max_length": 64},
    "figures": {"train_rows": 9, "held_out_rows": 1, "steps": 3, "base_nll": 4.0, "adapter_nll": 3.0},
}
SECRETS = {"secret.txt": b"do not share", "training_args.bin": b"pickle", "optimizer.pt": b"pickle", ".env": b"KEY=1"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**small, num_attention_heads=2, num_key_value_heads=2))
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    target = tmp_path_factory.mktemp("run") / "adapter"
    base = Base("someone/tiny-base", Path("/nowhere"), "r1", "MIT")
    card = Card(name="Zhen Huan 甄嬛", system="你是甄嬛。", rights="CC0")
    adapter.write(model, target, base=base, template=read_template("chatml"), card=card, facts=FACTS)
    return target


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whose folders and login are under tmp_path, and who waits for nothing between two tries."""
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / "kept"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def mine(trained: Path, tmp_path: Path) -> Path:
    """A copy of the adapter, in a folder where other things lie about."""
    folder = tmp_path / "run" / "adapter"
    shutil.copytree(trained, folder)
    for name, data in SECRETS.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits longer before each new try
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def allowed(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in adapter.FILES}


def edit_card(folder: Path, **changes: Any) -> None:
    file = folder / "persona.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}, ensure_ascii=False), "utf-8")


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def under(folder: Path, prefix: str = "x/") -> dict[str, bytes]:
    return {prefix + name: data for name, data in allowed(folder).items()}


# --- zip ---------------------------------------------------------------------------------------------------------


def test_zip_round_trip(mine: Path, tmp_path: Path) -> None:
    packed = share.pack(mine, tmp_path / "out" / "p.zip")
    opened = share.unpack(packed, tmp_path / "in")
    assert contents(opened) == allowed(mine)
    assert opened.name.startswith("zhen-huan-甄嬛-") and adapter.check(opened).card == adapter.check(mine).card
    assert share.unpack(packed, tmp_path / "in") == opened
    assert list((tmp_path / "in").iterdir()) == [opened]


def test_zip_holds_the_allow_list_and_nothing_else(mine: Path, tmp_path: Path) -> None:
    packed = share.pack(mine, tmp_path / "p.zip")
    with zipfile.ZipFile(packed) as archive:
        assert archive.namelist() == [f"zhen-huan-甄嬛/{name}" for name in sorted(adapter.FILES)]
    assert not any(data in packed.read_bytes() for data in SECRETS.values())


def test_zip_is_deterministic_and_leaves_no_part_behind(mine: Path, tmp_path: Path) -> None:
    one = share.pack(mine, tmp_path / "out" / "one.zip")
    os.utime(mine / "README.md", (0, 0))
    two = share.pack(mine, tmp_path / "out" / "two.zip")
    assert one.read_bytes() == two.read_bytes()
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["one.zip", "two.zip"]


def test_failed_pack_keeps_the_old_zip(mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = share.pack(mine, tmp_path / "out" / "p.zip")
    before = packed.read_bytes()
    shutil.move(mine / WEIGHTS, tmp_path / "weights")
    (mine / WEIGHTS).write_bytes(b"junk")
    with pytest.raises(AdapterError, match="damaged"):
        share.pack(mine, packed)
    shutil.copyfile(tmp_path / "weights", mine / WEIGHTS)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("persona.share.shutil.copyfileobj", full)
    with pytest.raises(ShareError, match="disk is full"):
        share.pack(mine, packed)
    with pytest.raises(ShareError, match="disk is full"):
        share.unpack(packed, tmp_path / "in")
    assert packed.read_bytes() == before and len(list(packed.parent.iterdir())) == 1
    assert list((tmp_path / "in").iterdir()) == []


def test_same_weights_with_other_texts_are_another_folder(mine: Path, tmp_path: Path) -> None:
    one = share.unpack(share.pack(mine, tmp_path / "p.zip"), tmp_path / "in")
    edit_card(mine, system="你是皇后。")
    other = share.pack(mine, tmp_path / "q.zip")
    two = share.unpack(other, tmp_path / "in")
    assert one != two and adapter.check(one).card.system == "你是甄嬛。"
    assert share.unpack(other, tmp_path / "in") == two and adapter.check(two).card.system == "你是皇后。"


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "./a/"])
def test_zip_made_by_hand_is_opened(mine: Path, tmp_path: Path, prefix: str) -> None:
    members = {**under(mine, prefix), "__MACOSX/._README.md": b"x", f"{prefix}optimizer.pt": b"x", "README.md/": b""}
    opened = share.unpack(make_zip(tmp_path / "p.zip", members, zipfile.ZIP_DEFLATED), tmp_path / "in")
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
        share.unpack(bad, tmp_path / "in" / "deep")
    assert not list(tmp_path.rglob("evil*")) and not list((tmp_path / "in" / "deep").iterdir())


def test_symbolic_link_is_refused(mine: Path, tmp_path: Path) -> None:
    members = under(mine)
    del members["x/README.md"]
    bad = make_zip(tmp_path / "p.zip", members)
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(link_member("x/README.md"), "/etc/passwd")
    with pytest.raises(ShareError, match="symbolic link"):
        share.unpack(bad, tmp_path / "in")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["x/run.json", "./x/run.json", f"x/{WEIGHTS}"])
def test_duplicate_member_is_refused(mine: Path, tmp_path: Path, again: str) -> None:
    bad = make_zip(tmp_path / "p.zip", under(mine))
    with zipfile.ZipFile(bad, "a") as archive:
        archive.writestr(again, b"{}")
    with pytest.raises(ShareError, match="twice"):
        share.unpack(bad, tmp_path / "in")


def test_two_adapters_in_one_zip_are_refused(mine: Path, tmp_path: Path) -> None:
    with pytest.raises(ShareError, match="2 adapters"):
        share.unpack(make_zip(tmp_path / "p.zip", {**under(mine), **under(mine, "y/")}), tmp_path / "in")


def test_encrypted_zip_is_refused(mine: Path, tmp_path: Path) -> None:
    bad = make_zip(tmp_path / "p.zip", under(mine))
    bad.write_bytes(patched(bad.read_bytes(), "x/run.json", 8, "<H", 1))
    with pytest.raises(ShareError, match="encrypted"):
        share.unpack(bad, tmp_path / "in")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_packing_is_refused(mine: Path, tmp_path: Path, method: int) -> None:
    with pytest.raises(ShareError, match="another method"):
        share.unpack(make_zip(tmp_path / "p.zip", under(mine), method), tmp_path / "in")


def test_bombs_are_refused(mine: Path, tmp_path: Path) -> None:
    text = make_zip(tmp_path / "t.zip", {**under(mine), "x/README.md": bytes(10_000_001)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ShareError, match="is the limit"):
        share.unpack(text, tmp_path / "in")
    weights = make_zip(tmp_path / "w.zip", {**under(mine), f"x/{WEIGHTS}": bytes(20_000_000)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ShareError, match="100 times"):
        share.unpack(weights, tmp_path / "in")
    huge = tmp_path / "h.zip"
    huge.write_bytes(patched(make_zip(huge, under(mine)).read_bytes(), f"x/{WEIGHTS}", 24, "<I", 4_000_000_001))
    with pytest.raises(ShareError, match="4,000 MB is the limit"):
        share.unpack(huge, tmp_path / "in")
    assert list((tmp_path / "in").iterdir()) == []


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

    monkeypatch.setattr("persona.share.shutil.copyfileobj", counting)
    packed = make_zip(tmp_path / "p.zip", {**under(mine), "x/README.md": bytes(9_000_000)}, zipfile.ZIP_DEFLATED)
    honest = packed.read_bytes()
    for declared in (100, 9_000_001):
        packed.write_bytes(patched(honest, "x/README.md", 24, "<I", declared))
        written.clear()
        with pytest.raises(ShareError, match="damaged"):
            share.unpack(packed, tmp_path / "in")
        assert max(written) <= max(declared, (mine / WEIGHTS).stat().st_size)
    assert list((tmp_path / "in").iterdir()) == []


def test_truncated_and_damaged_zips_are_refused(mine: Path, tmp_path: Path) -> None:
    good = make_zip(tmp_path / "p.zip", under(mine), zipfile.ZIP_DEFLATED).read_bytes()
    bad = tmp_path / "bad.zip"
    for end in (0, 10, len(good) // 2, len(good) - 30, len(good) - 1):
        bad.write_bytes(good[:end])
        with pytest.raises(ShareError, match="bad.zip: damaged"):
            share.unpack(bad, tmp_path / "in")
    bad.write_bytes(make_zip(tmp_path / "e.zip", {"x": b""}).read_bytes().replace(b"x", b"\0"))  # no name
    with pytest.raises(AdapterError, match="no adapter_model"):
        share.unpack(bad, tmp_path / "in")
    # every byte of the directory and of the headers is turned over once: refused in words, or harmless
    start = good.index(b"PK\1\2")
    for at in [*range(60), *range(start, len(good))]:
        bad.write_bytes(good[:at] + bytes([good[at] ^ 0xFF]) + good[at + 1 :])
        try:
            opened = share.unpack(bad, tmp_path / "in")
        except PersonaError as e:
            assert "could not be written" not in str(e)
            continue
        assert contents(opened).items() <= allowed(mine).items()


def test_zip_of_pickles_is_refused_with_the_reason(mine: Path, tmp_path: Path) -> None:
    members = {n: d for n, d in under(mine).items() if not n.endswith(WEIGHTS)}
    with pytest.raises(AdapterError, match="adapter_model.bin.*can run code.*safetensors"):
        share.unpack(make_zip(tmp_path / "p.zip", {**members, "x/adapter_model.bin": b"x"}), tmp_path / "in")
    with pytest.raises(AdapterError, match="no adapter_model.safetensors"):
        share.unpack(make_zip(tmp_path / "q.zip", members), tmp_path / "in")
    with pytest.raises(AdapterError, match="two folders deep"):
        share.unpack(make_zip(tmp_path / "r.zip", under(mine, "a/b/c/")), tmp_path / "in")


@pytest.mark.parametrize(
    ("file", "data"),
    [
        (WEIGHTS, b"junk"),
        ("adapter_config.json", b'{"peft_type": "IA3"}'),
        ("chat_template.jinja", b"\xff\xfe"),
        ("run.json", b"[" * 200_000),
        ("persona.json", b'{"name": ' + b"9" * 5_000 + b"}"),
        ("persona.json", b'{"name": ""}'),
    ],
)
def test_zip_of_a_broken_adapter_is_refused(mine: Path, tmp_path: Path, file: str, data: bytes) -> None:
    with pytest.raises(AdapterError) as caught:
        share.unpack(make_zip(tmp_path / "p.zip", {**under(mine), f"x/{file}": data}), tmp_path / "in")
    assert str(tmp_path) not in str(caught.value)
    assert list((tmp_path / "in").iterdir()) == []


# --- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "repo", "revision"),
    [
        ("ann/zhen-huan", "ann/zhen-huan", ""),
        ("  ann/Zhen_Huan.2@v1.0 ", "ann/Zhen_Huan.2", "v1.0"),
        ("http://127.0.0.1:7860/?persona=ann/zhen@0123abc", "ann/zhen", "0123abc"),
        ("https://app.example/sub/?__theme=dark&persona=ann%2Fzhen", "ann/zhen", ""),
        ("https://huggingface.co/spaces/ann/app?persona=ben/x", "ben/x", ""),
        ("https://huggingface.co/ann/zhen", "ann/zhen", ""),
        ("https://huggingface.co/ann/zhen/tree/main", "ann/zhen", "main"),
    ],
)
def test_links_are_understood(text: str, repo: str, revision: str) -> None:
    assert Link.parse(text) == Link(repo, revision)


@pytest.mark.parametrize(
    "text",
    [
        "", "zhen", "a/b/c", "/b", "a/", "../b", "a/..", "a/b..c", "a/b--c", "a/.b", "a/b.git", "a b/c", "ä/b", "a/b@",
        "a/b@c/d", "a/b@../c", "a/b@c..d", "a/b@-c", "a/b@c@d", "a/b?x", "a/b\n", "a/b\nc",
        "a" * 97 + "/b", "a/b@" + "c" * 101,
        "https://evil.example/ann/zhen", "https://huggingface.co/ann", "https://huggingface.co/datasets/ann",
        "https://huggingface.co/ann/zhen/blob/main", "https://huggingface.co/ann/zhen/tree/a/b", "file:///ann/zhen",
        "ftp://huggingface.co/ann/zhen", "http://x/?persona=", "http://x/?persona=http://y/?persona=a/b",
        "http://x/?persona=a/b&persona=c/d", "http://[x/?persona=a/b",
    ],
)  # fmt: skip
def test_other_links_are_refused(text: str) -> None:
    if text == "a/b\n":  # white space around a link comes from copying
        assert Link.parse(text) == Link("a/b")
        return
    with pytest.raises(ShareError):
        Link.parse(text)


def test_link_is_built_and_read_back() -> None:
    made = share.link("http://127.0.0.1:7860", "ann/zhen", "0123abc")
    assert made == "http://127.0.0.1:7860/?persona=ann/zhen@0123abc"
    assert Link.parse(made) == Link("ann/zhen", "0123abc")
    assert share.link("https://x.example/app/?a=1#b", "ann/zhen") == "https://x.example/app/?persona=ann/zhen"
    for app, repo, revision in [("x.example", "a/b", ""), ("http://x", "a", ""), ("http://x", "a/b", "c&d")]:
        with pytest.raises(ShareError):
            share.link(app, repo, revision)


def test_importing_share_is_cheap() -> None:
    heavy = {"torch", "gradio", "transformers", "huggingface_hub"}
    code = f"import sys, persona.share; print(*{heavy} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=PROJECT).strip() == ""


# --- Hub ---------------------------------------------------------------------------------------------------------


def test_push_is_private_and_pull_gives_the_same_bytes(mine: Path, hub: Hub, tmp_path: Path) -> None:
    said = share.push(mine, "zhen", app_url="http://app.example", token=ANN)
    assert said == {
        "url": f"{hub.url}/ann/zhen",
        "link": f"http://app.example/?persona=ann/zhen@{said['revision']}",
        "revision": hub.repos["ann/zhen"].head,
        "private": True,
    }
    assert hub.repos["ann/zhen"].private and len(hub.repos["ann/zhen"].commits) == 2
    for link in (said["link"], said["url"], "ann/zhen"):
        pulled = share.pull(Link.parse(link), token=ANN)
        assert contents(pulled) == allowed(mine) and pulled.is_relative_to(tmp_path / "kept" / "hub")


@pytest.mark.parametrize("lfs", [True, False])
def test_nothing_but_the_allow_list_is_uploaded(
    mine: Path, hub: Hub, tmp_path: Path, lfs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.lfs = lfs
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", lfs)  # hf_xet uploads along another path
    share.push(mine, "ann/zhen", token=ANN)
    assert {**allowed(mine), ".gitattributes": hub.files("ann/zhen")[".gitattributes"]} == hub.files("ann/zhen")
    sent = b"\n".join([*hub.received, *hub.files("ann/zhen").values()])
    for secret in (ANN.encode(), str(tmp_path).encode(), *SECRETS, *SECRETS.values()):
        assert (secret if isinstance(secret, bytes) else secret.encode()) not in sent
    # and this search does find what was sent
    assert b"adapter_config.json" in sent and allowed(mine)["run.json"] in sent
    kept = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert ANN.encode() not in kept


def test_old_revision_keeps_its_bytes(mine: Path, hub: Hub) -> None:
    first, before = share.push(mine, "zhen", token=ANN), allowed(mine)
    edit_card(mine, system="你是皇后。")
    (mine / "run.json").unlink()
    second = share.push(mine, "zhen", token=ANN)
    assert first["revision"] != second["revision"]
    assert contents(share.pull(Link.parse(first["link"]), token=ANN)) == before
    newest = contents(share.pull(Link("ann/zhen"), token=ANN))
    assert newest["persona.json"] == (mine / "persona.json").read_bytes() and "run.json" not in newest
    assert share.push(mine, "zhen", token=ANN)["revision"] == second["revision"]  # nothing new, no new commit


def test_public_needs_rights_and_a_repo_never_changes_sides(mine: Path, hub: Hub) -> None:
    edit_card(mine, rights="  ")
    with pytest.raises(ShareError, match="'rights' in .*persona.json is empty"):
        share.push(mine, "zhen", public=True, token=ANN)
    assert hub.requests == []
    edit_card(mine, rights="CC0")
    assert share.push(mine, "zhen", public=True, token=ANN)["private"] is False
    assert contents(share.pull(Link("ann/zhen"))) == allowed(mine)  # without a token
    commits = len(hub.repos["ann/zhen"].commits)
    edit_card(mine, system="secret")
    with pytest.raises(ShareError, match="is public, but private was asked"):
        share.push(mine, "zhen", token=ANN)
    share.push(mine, "other", token=ANN)
    with pytest.raises(ShareError, match="is private, but public was asked"):
        share.push(mine, "other", public=True, token=ANN)
    assert len(hub.repos["ann/zhen"].commits) == commits and hub.repos["ann/other"].private


def test_push_refusals_are_sentences(mine: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for repo, token, why in [
        ("ben/zhen", ANN, "no right to do this"),
        ("zhen", OLD, "expired or revoked"),
        ("zhen", None, "not logged in"),
        ("a/b/c", ANN, "not a name on the Hub"),
        ("zhen huan", ANN, "not a name on the Hub"),
    ]:
        with pytest.raises(ShareError, match=why) as caught:
            share.push(mine, repo, token=token)
        assert not token or token not in str(caught.value)
    hub.add("ben/zhen", {})
    with pytest.raises(ShareError, match="no right to do this"):
        share.push(mine, "ben/zhen", public=True, token=ANN)
    assert hub.blobs == {} and list(hub.repos) == ["ben/zhen"] and hub.files("ben/zhen") == {}
    monkeypatch.setenv("HF_TOKEN", BEN)
    assert share.push(mine, "mine")["url"].endswith("/ben/mine")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(ANN)
    assert share.push(mine, "mine")["url"].endswith("/ann/mine")


@pytest.mark.parametrize("file", [f for f in adapter.FILES if f != WEIGHTS])
def test_paths_and_tokens_are_found_before_anything_is_sent(mine: Path, hub: Hub, tmp_path: Path, file: str) -> None:
    plain = (mine / file).read_bytes()
    leaks = {str(tmp_path / "ann" / "x"): "your home folder", str(tmp_path / "kept"): "PERSONA_HOME"}
    for text, why in {**leaks, BEN: "access token", "s3cret-token": "access token"}.items():
        leak = plain.replace(b"CC0", text.encode()).replace(b"someone/tiny-base", text.encode())
        (mine / file).write_bytes(leak if leak != plain else plain + f"{{# {text} #}}".encode())
        with pytest.raises(ShareError, match=why) as caught:
            share.push(mine, "zhen", token="s3cret-token")
        assert text not in str(caught.value) or why in leaks.values()
        if text != "s3cret-token":
            with pytest.raises(ShareError, match=why):
                share.pack(mine, tmp_path / "p.zip")
    assert hub.requests == [] and not (tmp_path / "p.zip").exists()
    (mine / file).write_bytes(plain.replace(b"CC0", f"{tmp_path}/anna".encode()))  # someone else's name
    share.pack(mine, tmp_path / "p.zip")


STEPS_OF_A_PUSH = ["whoami", "/repos/create", "GET /api/models", "/preupload", "PUT /lfs", "/commit/main"]


@pytest.mark.parametrize("where", STEPS_OF_A_PUSH)
@pytest.mark.parametrize("status", [0, 503])
def test_push_broken_off_is_tried_again(mine: Path, hub: Hub, where: str, status: int) -> None:
    hub.fail(where, 99, status)
    with pytest.raises(ShareError, match="Nothing is lost; try again"):
        share.push(mine, "zhen", token=ANN)
    assert "ann/zhen" not in hub.repos or WEIGHTS not in hub.files("ann/zhen")
    hub.faults.clear()
    share.push(mine, "zhen", token=ANN)
    assert allowed(mine).items() <= hub.files("ann/zhen").items()


def test_pull_broken_off_is_tried_again(mine: Path, hub: Hub) -> None:
    share.push(mine, "zhen", token=ANN)
    hub.cut(f"GET /ann/zhen/resolve/{hub.repos['ann/zhen'].head}/{WEIGHTS}", 99)
    with pytest.raises(ShareError, match="connection broke|cannot be reached"):
        share.pull(Link("ann/zhen"), token=ANN)
    hub.faults.clear()
    hub.cut("GET /ann/zhen/resolve")  # once: the client goes on by itself
    assert contents(share.pull(Link("ann/zhen"), token=ANN)) == allowed(mine)


def test_pull_refusals_are_sentences(mine: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    said = share.push(mine, "zhen", token=ANN)
    pinned = Link.parse(said["link"])
    for source, token, why in [
        (pinned, BEN, "not shared with you"),
        (pinned, None, "not shared with you"),
        (pinned, OLD, "expired or revoked"),
        (Link("ann/nothing"), ANN, "not on the Hub"),
        (Link("ann/zhen", "0" * 40), ANN, "no such revision"),
        (Link("ann/zhen", "v2"), ANN, "no such revision"),
    ]:
        with pytest.raises(ShareError, match=why):
            share.pull(source, token=token)
    share.pull(pinned, token=ANN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert contents(share.pull(pinned)) == allowed(mine)  # this commit is here already
    with pytest.raises(ShareError, match="cannot be reached"):
        share.pull(Link("ann/zhen"), token=ANN)


def test_pull_takes_only_the_allow_list_and_never_pickles(mine: Path, hub: Hub) -> None:
    files = allowed(mine)
    hub.add("ben/x", {**files, "evil.py": b"x", "adapter_model.bin": b"x", "sub/README.md": b"x"})
    assert contents(share.pull(Link("ben/x"))) == files
    assert not any("evil" in r or ".bin" in r or "sub/" in r for r in hub.requests)
    weights = files.pop(WEIGHTS)
    hub.add("ben/pickles", {**files, "adapter_model.bin": weights})
    with pytest.raises(AdapterError, match="ben/pickles: holds adapter_model.bin.*can run code"):
        share.pull(Link("ben/pickles"))
    hub.add("ben/broken", {**files, WEIGHTS: weights[:100]})
    with pytest.raises(AdapterError, match="damaged"):
        share.pull(Link("ben/broken"))
    hub.add("ben/big", {**files, WEIGHTS: weights, "run.json": bytes(10_000_001)})
    with pytest.raises(ShareError, match="run.json .* too large"):
        share.pull(Link("ben/big"))
    assert not any("pickles/resolve" in r or "big/resolve" in r for r in hub.requests)
