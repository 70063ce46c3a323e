"""What huggingface_hub says to the Hub on the way of an adapter: Xet as it is installed, LFS in parts, teams, tags, terms."""

import json
from pathlib import Path

import pytest
from cases import check_each

from persona.errors import ShareError
from persona.models.adapter import WEIGHTS_FILE
from persona.share.hub import HubRef, pull_adapter, push_adapter
from tests.hub_fixtures import SECRETS, contents, edit_card, on_hub
from tests.local_hub import ANN, BEN, Hub
from tests.local_xet import XetStorage

pytest_plugins = "tests.hub_fixtures"
pytestmark = pytest.mark.usefixtures("machine")


def test_weights_go_through_xet_and_come_back_the_same(mine: Path, hub: Hub, xet: XetStorage) -> None:
    said = push_adapter(mine, "zhen", token=ANN)
    assert on_hub(mine, "ann/zhen").items() <= hub.files("ann/zhen").items()
    weights = (mine / WEIGHTS_FILE).read_bytes()
    assert not any("lfs" in r for r in hub.requests) and weights not in b"".join(hub.received)
    stored = b"".join(f.read_bytes() for f in xet.folder.rglob("*") if f.is_file())
    assert ANN.encode() not in stored and not any(s in stored for s in SECRETS.values())
    assert contents(pull_adapter(HubRef.parse(said["link"]), token=ANN)) == on_hub(mine, "ann/zhen")
    assert any("xet-read-token" in r for r in hub.requests), "they came through Xet"
    assert not any(r.startswith("GET") and r.endswith(WEIGHTS_FILE) for r in hub.requests)
    assert push_adapter(mine, "zhen", token=ANN)["revision"] == said["revision"], "nothing new, no new commit"


def test_a_xet_storage_in_trouble_is_waited_for(mine: Path, hub: Hub, xet: XetStorage) -> None:
    hub.fail("xet-write-token", 2, 503)
    push_adapter(mine, "zhen", token=ANN)
    assert on_hub(mine, "ann/zhen").items() <= hub.files("ann/zhen").items() and hub.faults[0].times == 0


def test_refusals_of_xet_are_sentences_and_asked_for_once(mine: Path, hub: Hub, xet: XetStorage) -> None:
    def check(status: int, why: str, asked: int) -> None:
        hub.requests.clear()
        hub.fail("xet-write-token", 99, status)
        with pytest.raises(ShareError, match=why):
            push_adapter(mine, "zhen", token=ANN)
        assert sum("xet-write-token" in r for r in hub.requests) == asked, "hf_xet's own tries, and no others"
        hub.faults.clear()
        assert WEIGHTS_FILE not in hub.files("ann/zhen")

    check_each(
        [(401, "expired or revoked", 1), (403, "no right to do this", 1), (404, "not on the Hub", 1),
         (503, "in trouble .status 503", 4)],
        check,
    )  # fmt: skip


def test_a_xet_storage_that_cannot_be_reached_says_so(mine: Path, hub: Hub, xet: XetStorage) -> None:
    xet.url = "http://127.0.0.1:9"
    with pytest.raises(ShareError, match="cannot be reached, or the connection broke. Nothing is lost"):
        push_adapter(mine, "zhen", token=ANN)
    assert WEIGHTS_FILE not in hub.files("ann/zhen")


def test_weights_in_parts_arrive_whole_and_a_broken_part_is_sent_again(mine: Path, hub: Hub) -> None:
    hub.part_bytes = 1000
    hub.cut("PUT /lfs", 1)
    hub.fail("/lfs-verify", 1, 503)
    push_adapter(mine, "zhen", token=ANN)
    assert on_hub(mine, "ann/zhen").items() <= hub.files("ann/zhen").items()
    parts = [r for r in hub.requests if r.startswith("PUT /lfs")]
    assert len(set(parts)) == -(-(mine / WEIGHTS_FILE).stat().st_size // 1000) < len(parts)
    assert sum("lfs-verify" in r for r in hub.requests) == 2


def test_a_repository_of_an_organization(mine: Path, hub: Hub) -> None:
    hub.organizations = {"studio": {"ann"}}
    assert push_adapter(mine, "studio/zhen", token=ANN)["private"] and hub.repos["studio/zhen"].private
    assert json.loads(next(b for b in hub.received if b.startswith(b"{")))["organization"] == "studio"
    assert contents(pull_adapter(HubRef("studio/zhen"), token=ANN)) == on_hub(mine, "studio/zhen")
    for repo, token in (("studio/other", BEN), ("studio/zhen", BEN), ("elsewhere/zhen", ANN)):
        with pytest.raises(ShareError, match="no right to do this|not shared with your account"):
            push_adapter(mine, repo, token=token)
    with pytest.raises(ShareError, match="not shared with your account"):
        pull_adapter(HubRef("studio/zhen"), token=BEN)


def test_private_is_made_public_by_its_owner_and_the_links_stay(mine: Path, hub: Hub) -> None:
    edit_card(mine, rights="CC0")
    link = HubRef.parse(push_adapter(mine, "zhen", token=ANN)["link"])
    with pytest.raises(ShareError, match="change it at .*/ann/zhen/settings"):
        push_adapter(mine, "zhen", public=True, token=ANN)
    hub.repos["ann/zhen"].private = False  # in its settings on the Hub
    assert push_adapter(mine, "zhen", public=True, token=ANN)["revision"] == link.revision
    assert contents(pull_adapter(link)) == on_hub(mine, "ann/zhen"), "without a token"


def test_a_tag_is_a_revision_like_any_other(mine: Path, hub: Hub) -> None:
    edit_card(mine, rights="CC0")
    push_adapter(mine, "zhen", public=True, token=ANN)
    before, repo = on_hub(mine, "ann/zhen"), hub.repos["ann/zhen"]
    repo.tags["v1.0"] = repo.head
    edit_card(mine, system="You are someone else.")
    push_adapter(mine, "zhen", public=True, token=ANN)
    for revision, same in (("v1.0", True), ("main", False), ("", False)):
        assert (contents(pull_adapter(HubRef("ann/zhen", revision))) == before) is same


def test_terms_that_were_not_accepted_are_named(mine: Path, hub: Hub) -> None:
    edit_card(mine, rights="CC0")
    push_adapter(mine, "zhen", public=True, token=ANN)
    hub.gated.add("ann/zhen")
    for token in (None, BEN):
        with pytest.raises(ShareError, match="accept terms on its Hub page first"):
            pull_adapter(HubRef("ann/zhen"), token=token)


def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_stored(mine: Path, hub: Hub) -> None:
    card = (mine / "README.md").read_text(encoding="utf-8")
    for wrong in ("pipeline_tag: [a]", "language: klingon", "base_model: just-a-name"):
        lines = [line for line in card.splitlines() if not line.startswith(wrong.split()[0])]
        (mine / "README.md").write_text("\n".join([lines[0], wrong, *lines[1:]]), encoding="utf-8")
        with pytest.raises(ShareError, match="(?s)the Hub refuses it: .*Correct it in the adapter's folder"):
            push_adapter(mine, "zhen", token=ANN)
        assert hub.files("ann/zhen").keys() == {".gitattributes"} and not hub.blobs
