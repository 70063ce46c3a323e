"""Links and the Hub: private first, nothing but the allow-list, one commit, and every refusal is a sentence."""

import json
from pathlib import Path

import pytest
from cases import check_each

from persona.errors import AdapterError, ShareError
from persona.models import adapter
from persona.share import archive
from persona.share.archive import WEIGHTS_FILE
from persona.share.hub import HubRef, pull_adapter, push_adapter, share_url
from persona.ui import i18n
from tests.hub_fixtures import SECRETS, allowed, contents, edit_card, on_hub
from tests.local_hub import ANN, BEN, OLD, Hub

pytest_plugins = "tests.hub_fixtures"
pytestmark = pytest.mark.usefixtures("machine")


# --- links -------------------------------------------------------------------------------------------------------


def test_links_are_understood() -> None:
    cases = [
        ("ann/zhen-huan", "ann/zhen-huan", ""),
        ("  ann/Zhen_Huan.2@v1.0 ", "ann/Zhen_Huan.2", "v1.0"),
        ("http://127.0.0.1:7860/?persona=ann/zhen@0123abc", "ann/zhen", "0123abc"),
        ("https://app.example/sub/?__theme=dark&persona=ann%2Fzhen", "ann/zhen", ""),
        ("https://huggingface.co/spaces/ann/app?persona=ben/x", "ben/x", ""),
        ("https://huggingface.co/ann/zhen", "ann/zhen", ""),
        ("https://huggingface.co/ann/zhen/tree/main", "ann/zhen", "main"),
    ]

    def check(text: str, repo: str, revision: str) -> None:
        assert HubRef.parse(text) == HubRef(repo, revision)

    check_each(cases, check)


def test_other_links_are_refused() -> None:
    cases = [
        "", "zhen", "a/b/c", "/b", "a/", "../b", "a/..", "a/b..c", "a/b--c", "a/.b", "a/b.git", "a b/c", "ä/b", "a/b@",
        "a/b@c/d", "a/b@../c", "a/b@c..d", "a/b@-c", "a/b@c@d", "a/b?x", "a/b\n", "a/b\nc",
        "a" * 97 + "/b", "a/b@" + "c" * 101,
        "https://evil.example/ann/zhen", "https://huggingface.co/ann", "https://huggingface.co/datasets/ann",
        "https://huggingface.co/ann/zhen/blob/main", "https://huggingface.co/ann/zhen/tree/a/b", "file:///ann/zhen",
        "ftp://huggingface.co/ann/zhen", "http://x/?persona=", "http://x/?persona=http://y/?persona=a/b",
        "http://x/?persona=a/b&persona=c/d", "http://[x/?persona=a/b",
    ]  # fmt: skip

    def check(text: str) -> None:
        if text == "a/b\n":  # white space around a link comes from copying
            assert HubRef.parse(text) == HubRef("a/b")
            return
        with pytest.raises(ShareError):
            HubRef.parse(text)

    check_each(cases, check)


def test_link_is_built_and_read_back() -> None:
    made = share_url("http://127.0.0.1:7860", "ann/zhen", "0123abc")
    assert made == "http://127.0.0.1:7860/?persona=ann/zhen@0123abc"
    assert HubRef.parse(made) == HubRef("ann/zhen", "0123abc")
    assert share_url("https://x.example/app/?a=1#b", "ann/zhen") == "https://x.example/app/?persona=ann/zhen"
    for app, repo, revision in [("x.example", "a/b", ""), ("http://x", "a", ""), ("http://x", "a/b", "c&d")]:
        with pytest.raises(ShareError):
            share_url(app, repo, revision)


# --- Hub ---------------------------------------------------------------------------------------------------------


def test_push_is_private_and_pull_gives_the_same_bytes(mine: Path, hub: Hub, tmp_path: Path) -> None:
    said = push_adapter(mine, "zhen", app_url="http://app.example", token=ANN)
    assert said == {
        "url": f"{hub.url}/ann/zhen",
        "link": f"http://app.example/?persona=ann/zhen@{said['revision']}",
        "revision": hub.repos["ann/zhen"].head,
        "private": True,
    }
    assert hub.repos["ann/zhen"].private and len(hub.repos["ann/zhen"].commits) == 2
    for text in (said["link"], said["url"], "ann/zhen"):
        pulled = pull_adapter(HubRef.parse(text), token=ANN)
        assert contents(pulled) == on_hub(mine, "ann/zhen") and pulled.is_relative_to(tmp_path / "kept" / "hub")


@pytest.mark.parametrize("lfs", [True, False])
def test_nothing_but_the_allow_list_is_uploaded(
    mine: Path, hub: Hub, tmp_path: Path, lfs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.lfs = lfs
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", lfs)  # hf_xet uploads along another path
    push_adapter(mine, "ann/zhen", token=ANN)
    assert {**on_hub(mine, "ann/zhen"), ".gitattributes": hub.files("ann/zhen")[".gitattributes"]} == hub.files(
        "ann/zhen"
    )
    sent = b"\n".join([*hub.received, *hub.files("ann/zhen").values()])
    for secret in (ANN.encode(), str(tmp_path).encode(), *SECRETS, *SECRETS.values()):
        assert (secret if isinstance(secret, bytes) else secret.encode()) not in sent
    # and this search does find what was sent
    assert b"adapter_config.json" in sent and allowed(mine)["run.json"] in sent
    kept = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert ANN.encode() not in kept


def test_old_revision_keeps_its_bytes(mine: Path, hub: Hub) -> None:
    first, before = push_adapter(mine, "zhen", token=ANN), on_hub(mine, "ann/zhen")
    edit_card(mine, system="你是皇后。")
    (mine / "run.json").unlink()
    second = push_adapter(mine, "zhen", token=ANN)
    assert first["revision"] != second["revision"]
    assert contents(pull_adapter(HubRef.parse(first["link"]), token=ANN)) == before
    newest = contents(pull_adapter(HubRef("ann/zhen"), token=ANN))
    assert newest["persona.json"] == (mine / "persona.json").read_bytes() and "run.json" not in newest
    assert push_adapter(mine, "zhen", token=ANN)["revision"] == second["revision"]  # nothing new, no new commit


def test_public_needs_rights_and_a_repo_never_changes_sides(mine: Path, hub: Hub) -> None:
    edit_card(mine, rights="  ")
    with pytest.raises(ShareError, match="does not say whose text it was trained on"):
        push_adapter(mine, "zhen", public=True, token=ANN)
    assert hub.requests == []
    edit_card(mine, rights="CC0")
    assert push_adapter(mine, "zhen", public=True, token=ANN)["private"] is False
    assert contents(pull_adapter(HubRef("ann/zhen"))) == on_hub(mine, "ann/zhen")  # without a token
    commits = len(hub.repos["ann/zhen"].commits)
    edit_card(mine, system="secret")
    with pytest.raises(ShareError, match="is public, but private was asked"):
        push_adapter(mine, "zhen", token=ANN)
    push_adapter(mine, "other", token=ANN)
    with pytest.raises(ShareError, match="is private, but public was asked") as refused:
        push_adapter(mine, "other", public=True, token=ANN)
    with i18n.as_language("zh"):
        assert "公开" in i18n.localized(refused.value.message) and "private" not in i18n.localized(
            refused.value.message
        )
    assert len(hub.repos["ann/zhen"].commits) == commits and hub.repos["ann/other"].private


def test_push_refusals_are_sentences(mine: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for repo, token, why in [
        ("ben/zhen", ANN, "no right to do this"),
        ("zhen", OLD, "expired or revoked"),
        ("zhen", None, "not logged in"),
        ("a/b/c", ANN, "not a name on the Hub"),
        ("zhen huan", ANN, "^'zhen huan': not a name on the Hub"),
        ("", ANN, "needs a name"),
    ]:
        with pytest.raises(ShareError, match=why) as caught:
            push_adapter(mine, repo, token=token)
        assert not token or token not in str(caught.value)
    hub.add("ben/zhen", {})
    with pytest.raises(ShareError, match="no right to do this"):
        push_adapter(mine, "ben/zhen", public=True, token=ANN)
    assert hub.blobs == {} and list(hub.repos) == ["ben/zhen"] and hub.files("ben/zhen") == {}
    monkeypatch.setenv("HF_TOKEN", BEN)
    assert push_adapter(mine, "mine")["url"].endswith("/ben/mine")
    monkeypatch.delenv("HF_TOKEN")
    (tmp_path / "token").write_text(ANN)
    assert push_adapter(mine, "mine")["url"].endswith("/ann/mine")


@pytest.mark.parametrize("file", [f for f in adapter.ADAPTER_FILES if f != WEIGHTS_FILE])
def test_paths_and_tokens_are_found_before_anything_is_sent(mine: Path, hub: Hub, tmp_path: Path, file: str) -> None:
    plain = (mine / file).read_bytes()
    leaks = {str(tmp_path / "ann" / "x"): "your home folder", str(tmp_path / "kept"): "PERSONA_HOME"}
    for text, why in {**leaks, BEN: "access token", "s3cret-token": "access token"}.items():
        leak = plain.replace(b"CC0", text.encode()).replace(b"someone/tiny-base", text.encode())
        (mine / file).write_bytes(leak if leak != plain else plain + f"{{# {text} #}}".encode())
        with pytest.raises(ShareError, match=why) as caught:
            push_adapter(mine, "zhen", token="s3cret-token")
        assert text not in str(caught.value) or why in leaks.values()
        if text != "s3cret-token":
            with pytest.raises(ShareError, match=why):
                archive.pack_adapter(mine, tmp_path / "p.zip")
    assert hub.requests == [] and not (tmp_path / "p.zip").exists()
    (mine / file).write_bytes(plain.replace(b"CC0", f"{tmp_path}/anna".encode()))  # someone else's name
    archive.pack_adapter(mine, tmp_path / "p.zip")


STEPS_OF_A_PUSH = ["whoami", "/repos/create", "GET /api/models", "/preupload", "PUT /lfs", "/commit/main"]


@pytest.mark.parametrize("where", STEPS_OF_A_PUSH)
@pytest.mark.parametrize("status", [0, 503])
def test_push_broken_off_is_tried_again(mine: Path, hub: Hub, where: str, status: int) -> None:
    hub.fail(where, 99, status)
    with pytest.raises(ShareError, match="Nothing is lost; try again"):
        push_adapter(mine, "zhen", token=ANN)
    assert "ann/zhen" not in hub.repos or WEIGHTS_FILE not in hub.files("ann/zhen")
    hub.faults.clear()
    push_adapter(mine, "zhen", token=ANN)
    assert on_hub(mine, "ann/zhen").items() <= hub.files("ann/zhen").items()


def test_pull_broken_off_is_tried_again(mine: Path, hub: Hub) -> None:
    push_adapter(mine, "zhen", token=ANN)
    hub.cut(f"GET /ann/zhen/resolve/{hub.repos['ann/zhen'].head}/{WEIGHTS_FILE}", 99)
    with pytest.raises(ShareError, match="connection broke|cannot be reached"):
        pull_adapter(HubRef("ann/zhen"), token=ANN)
    hub.faults.clear()
    hub.cut("GET /ann/zhen/resolve")  # once: the client goes on by itself
    assert contents(pull_adapter(HubRef("ann/zhen"), token=ANN)) == on_hub(mine, "ann/zhen")


def test_pull_refusals_are_sentences(mine: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    said = push_adapter(mine, "zhen", token=ANN)
    pinned = HubRef.parse(said["link"])
    for source, token, why in [
        (pinned, BEN, "private and not shared with your account"),
        (pinned, None, "private. .* shared with you, log in"),
        (pinned, OLD, "expired or revoked"),
        (HubRef("ann/nothing"), ANN, "not on the Hub .any more."),
        (HubRef("ann/zhen", "0" * 40), ANN, "no such revision"),
        (HubRef("ann/zhen", "v2"), ANN, "no such revision"),
    ]:
        with pytest.raises(ShareError, match=why):
            pull_adapter(source, token=token)
    pull_adapter(pinned, token=ANN)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert contents(pull_adapter(pinned)) == on_hub(mine, "ann/zhen")  # this commit is here already
    with pytest.raises(ShareError, match="cannot be reached"):
        pull_adapter(HubRef("ann/zhen"), token=ANN)


def test_pull_takes_only_the_allow_list_and_never_pickles(mine: Path, hub: Hub) -> None:
    files = allowed(mine)
    hub.add("ben/x", {**files, "evil.py": b"x", "adapter_model.bin": b"x", "sub/README.md": b"x"})
    assert contents(pull_adapter(HubRef("ben/x"))) == files
    assert not any("evil" in r or ".bin" in r or "sub/" in r for r in hub.requests)
    weights = files.pop(WEIGHTS_FILE)
    hub.add("ben/pickles", {**files, "adapter_model.bin": weights})
    with pytest.raises(AdapterError, match="ben/pickles: holds adapter_model.bin.*can run code"):
        pull_adapter(HubRef("ben/pickles"))
    hub.add("ben/broken", {**files, WEIGHTS_FILE: weights[:100]})
    with pytest.raises(AdapterError, match="damaged"):
        pull_adapter(HubRef("ben/broken"))
    hub.add("ben/big", {**files, WEIGHTS_FILE: weights, "run.json": bytes(10_000_001)})
    with pytest.raises(ShareError, match="run.json .* too large"):
        pull_adapter(HubRef("ben/big"))
    assert not any("pickles/resolve" in r or "big/resolve" in r for r in hub.requests)


# --- what passes by is waited for ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", STEPS_OF_A_PUSH)
@pytest.mark.parametrize("status", [0, 429, 503])
def test_a_push_waits_and_goes_on_by_itself(mine: Path, hub: Hub, where: str, status: int) -> None:
    hub.fail(where, 2, status)
    push_adapter(mine, "zhen", token=ANN)
    assert on_hub(mine, "ann/zhen").items() <= hub.files("ann/zhen").items()
    assert sum(where in r for r in hub.requests) >= 3 and hub.faults[0].times == 0


def test_weights_that_arrived_are_not_sent_again(mine: Path, hub: Hub) -> None:
    """The connection is lost after the weights, then after the commit itself: one upload, one commit."""
    hub.fail("/commit/main", 1, 0)
    hub.lose("/commit/main")
    done = push_adapter(mine, "zhen", token=ANN)
    assert len([r for r in hub.requests if r.startswith("PUT /lfs")]) == 1
    assert list(hub.repos["ann/zhen"].commits)[1:] == [done["revision"]]


def test_a_busy_hub_is_given_the_time_that_it_asks_for(mine: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("persona.share.hub_errors.time.sleep", waited.append)
    hub.retry_after = 17
    hub.fail("GET /api/whoami", 2, 429)
    push_adapter(mine, "zhen", token=ANN)
    assert waited.count(17) == 2
    hub.retry_after = 7200  # nobody waits for two hours in front of a page
    hub.fail("GET /api/whoami", 99, 429)
    with pytest.raises(ShareError, match="asks for patience"):
        push_adapter(mine, "zhen", token=ANN)
    assert max(waited) == 60


@pytest.mark.parametrize(("status", "asked"), [(401, 1), (403, 1), (404, 1), (503, 4)])
def test_what_does_not_pass_is_not_tried_again(mine: Path, hub: Hub, status: int, asked: int) -> None:
    hub.fail("GET /api/whoami", 99, status)
    with pytest.raises(ShareError):
        push_adapter(mine, "zhen", token=ANN)
    assert hub.requests == ["GET /api/whoami-v2"] * asked


def test_a_download_goes_on_where_it_broke_off(mine: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)  # it keeps whole chunks
    push_adapter(mine, "zhen", token=ANN)
    hub.cut(f"GET /ann/zhen/resolve/{hub.repos['ann/zhen'].head}/{WEIGHTS_FILE}")
    assert contents(pull_adapter(HubRef("ann/zhen"), token=ANN)) == on_hub(mine, "ann/zhen")
    assert hub.ranges == ["bytes=3000-"] and (mine / WEIGHTS_FILE).stat().st_size // 2 in range(3000, 4000)


def test_names_that_lead_out_of_the_folder_are_not_asked_for(mine: Path, hub: Hub, tmp_path: Path) -> None:
    evil = {f"{up}{WEIGHTS_FILE}": b"x" for up in ("../", "/etc/", "a/../../")}
    hub.add("ben/evil", {**evil, **allowed(mine), "pytorch_model.bin": b"x", "config.py": b"x"})
    assert contents(pull_adapter(HubRef("ben/evil"))) == allowed(mine)
    asked = [r for r in hub.requests if "resolve" in r]
    assert {r.rsplit("/", 1)[1] for r in asked} == set(allowed(mine)) and not any(".." in r for r in asked)
    hub.add("ben/huge", allowed(mine))
    hub.sizes["ben/huge", WEIGHTS_FILE] = 4_000_000_001
    with pytest.raises(ShareError, match="4,000 MB. is too large"):
        pull_adapter(HubRef("ben/huge"))


def test_push_from_the_command_line(
    mine: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from persona.cli import share as cli_share

    monkeypatch.setenv("HF_TOKEN", ANN)
    cli_share.push(mine.parent, "zhen", public=False, as_json=True)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    revision = hub.repos["ann/zhen"].head
    assert said == {"url": f"{hub.url}/ann/zhen", "link": f"http://127.0.0.1:7860/?persona=ann/zhen@{revision}"}
    assert hub.repos["ann/zhen"].private and ANN not in str(said)
