"""In a real browser: preferences are imported, ten votes are cast and trained on, and the vote is held again."""

import json
import shutil

import pytest
import torch
from browsing import draw_adapter, open_page
from safetensors.torch import load_file, save_file

from benchmarks.page import CONTROLS
from persona.compare.preference_sources import collect_all
from persona.models.adapter import WEIGHTS_FILE
from persona.train import run_folder
from persona.train.run_folder import Run

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]
VOTES = 10


@pytest.fixture
def run(trained_persona, page_base) -> Run:
    """The persona's run, whose adapter ends its answers: it has a row of the stop token that is often the likeliest.

    The random base hardly ever ends one, and nothing is learned from a preferred answer that was cut off.
    """
    (made,) = run_folder.list_runs(trained_persona)
    run = Run(made.path.rename(made.path.with_name("20260102-030405" + made.name[15:])))  # labels name the minute
    shutil.rmtree(run.adapter)
    stop = {"model.embed_tokens": [CONTROLS.index("<eos>")]}
    draw_adapter(page_base, run.adapter, trained_persona.card(), trainable_token_indices=stop)
    facts = json.loads((run.adapter / "run.json").read_text())
    (run.adapter / "run.json").write_text(json.dumps({**facts, "base": {"id": page_base.id}}))  # of no revision
    weights = load_file(run.adapter / WEIGHTS_FILE)
    (row,) = (name for name in weights if "trainable_tokens_delta" in name)
    torch.manual_seed(1)
    save_file({**weights, row: torch.randn_like(weights[row])}, run.adapter / WEIGHTS_FILE, {"format": "pt"})
    return run


def ask_and_vote(page, question: str, rule) -> None:
    """Vote for the answer that `rule` prefers of the two texts: the one that it gives the lower number."""
    page.fill("#blind-question textarea", question)
    page.click("#blind-ask")
    page.wait_for_selector("#vote-left:not([disabled])")
    page.traffic.settle(page)
    left, right = (rule(page.inner_text(f"#blind-{side}")) for side in ("left", "right"))
    page.click("#vote-left" if left <= right else "#vote-right")
    page.wait_for_selector("#blind-reveal .reveal")
    page.traffic.settle(page)  # what is asked next takes this vote's place


def test_ten_votes_are_trained_on_and_the_vote_is_held_again(browser, page_server, trained_persona, run):
    page, errors = open_page(browser, f"{page_server.url}/?persona=zhen-huan&step=write")

    # a file of preferences: the page asks, and keeps them
    page.click("[role=tab]:has-text('Import')")
    row = json.dumps({"prompt": "水开了吗？", "chosen": "开了。", "rejected": "开了，还很烫。"}).encode()
    page.set_input_files(
        "#import-file input[type=file]", {"name": "both.jsonl", "mimeType": "text/plain", "buffer": row}
    )
    page.click("#keep-preferences")
    page.wait_for_selector("#kept-preferences:has-text('Imported preferences: 1')")

    # ten votes for the shorter answer, and a correction
    page.click("#step-compare-button")
    page.click("#compare-tabs [role=tab]:has-text('Blind vote')")
    page.click("#sampling button")
    page.fill("#longest input[type=number]", "16")
    for n in range(VOTES):
        ask_and_vote(page, f"第 {n} 盏灯是谁的？", len)
    assert f"{VOTES} votes" in page.inner_text("#blind-reveal")
    page.fill("#vote-correction textarea", "本宫的。")
    page.click("#vote-to-pairs")
    page.wait_for_selector("#blind-status:has-text('Added as pair')")
    page.wait_for_selector("#train-on-votes:has-text(' votes, choices and corrections')")
    page.traffic.settle(page)
    found = collect_all(trained_persona).preferences
    assert len(found) >= 6 and {p.pair.source for p in found} == {"vote", "correction", "preference"}
    assert page.inner_text("#train-on-votes") == f"Train on {len(found)} votes, choices and corrections"
    assert page.locator("button:text-is('Run')").count() == 0, "no component without a name"

    # both answers with their masks, then the run
    page.click("#votes-preview button >> nth=0")
    for side, meaning in (("chosen", "to write this"), ("rejected", "to write this less often")):
        page.wait_for_selector(f"#{side}-mask .legend span:has-text('{meaning}') >> nth=0")
        assert page.locator(f"#{side}-mask .mask .learned").count()
    page.click("#train-on-votes")
    page.wait_for_selector(
        "#train-status [data-testid=preferences]:has-text('Of held-out choices it now prefers yours')"
    )
    page.traffic.settle(page)
    status = page.inner_text("#train-status")
    newest, parent = run_folder.list_runs(trained_persona)
    assert parent == run and newest.manifest()["parent"]["adapter"] == f"run/zhen-huan/{run.name}"
    held_out = sum(row.held_out for row in newest.rows())
    learned = f"learns from {len(found) - held_out} preferences, {held_out} more held out"
    assert f"{learned}; goes on from 甄嬛" in status, status
    assert "Write more pairs" not in status
    for chart in ("reward-margin", "accuracy", "chosen"):
        assert page.is_visible(f"#curve-{chart}")
    assert page.locator("#samples .sample").count() >= 2

    # the vote on what it made: against what it was made from, with the interval
    page.click("#vote-again")
    page.wait_for_selector("#blind-question textarea")
    page.traffic.settle(page)
    after, before = (page.input_value(f"{field} input") for field in ("#adapter", "#blind-rival"))
    assert after != before and "Base" not in after + before
    ask_and_vote(page, "今日可好？", len)
    shown = page.inner_text("#blind-reveal")
    assert f"{after} against {before}, 1 vote" in shown and "95 % interval" in shown
    assert {line.split(" ", 1)[1] for line in shown.splitlines()[:2]} == {after, before}
    assert errors == []
