"""In a real browser: a refused text, a stopped run, a run that is watched until it ends."""

import json
import subprocess
import sys
import time

import pytest
from browsing import cell, fill, open_page

from persona.train import run_folder

pytest_plugins = "browsing"
pytestmark = pytest.mark.slow


def test_a_text_that_is_refused_is_marked_and_said_once(browser, page_server):
    page, errors = open_page(browser, page_server.url)
    page.fill("#new-name input, #new-name textarea", "Otto")
    page.click("#start")
    page.click("#pairs .empty [data-do=add]")
    fill(page, 1, "output", "Tick.")
    page.wait_for_selector("#pairs-status .saving >> text=saved.")
    page.fill(cell(1, "instruction"), "x" * 5_000_000)
    page.wait_for_selector("#pairs textarea.refused")
    page.wait_for_selector("#pairs-status .saving >> text=not saved")
    page.wait_for_selector(".toast-body >> text=more than 100,000")
    page.click(cell(1, "output"))  # leaves the cell, which sends what was not sent yet
    page.keyboard.press("Escape")
    page.wait_for_timeout(1500)
    assert page.locator(".toast-body").count() == 1
    assert "nothing is written" not in page.inner_text("#pairs [data-row='1'] .marks")
    page.fill(cell(1, "instruction"), "What time is it?")
    page.wait_for_selector("#pairs-status .saving >> text=/^saved/")
    assert page.locator("#pairs .refused").count() == 0 and errors == []


def open_train(page):
    for step in ("template", "train"):
        page.click(f"#to-{step}")


def test_a_stopped_run_says_so_and_offers_to_resume(browser, page_server, trained_persona):
    (run,) = run_folder.list_runs(trained_persona)
    run.log("plan", steps=60, rows=283, held_out=31)
    run.log("step", step=14, loss=3.0, seconds=60.0)
    run.log("state", state="stopped")
    page, errors = open_page(browser, page_server.url)
    page.wait_for_selector("#write-mask .mask")  # a new tab opens who was edited last
    open_train(page)
    page.wait_for_selector("#navigation .next-hint >> text=stopped at step 14 of 60")
    page.wait_for_selector("#train-status >> text=Stopped at step 14 of 60")
    assert page.is_visible("#resume-training") and "done" not in page.inner_text("#navigation .next-hint")
    assert errors == []


def test_a_run_that_is_watched_counts_down_and_its_end_is_seen(browser, page_server, trained_persona):
    """The time left is one everywhere; with the end come the adapter, the hint and the steps, without a reload."""
    (run,) = run_folder.list_runs(trained_persona)
    run.adapter.rename(run.path / "not-yet")
    worker = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)  # ended by page_server
    run_folder.record_worker(run, worker.pid)
    run.log("state", state="starting")
    run.log("plan", steps=60, rows=283)
    run.log("state", state="running")
    for step in (1, 2):
        run.log("step", step=step, loss=3.0, seconds=10.0 * step, time=time.time() + 10 * step - 20)
    (page_server.home / "queue").mkdir(exist_ok=True)
    (page_server.home / "queue/now.json").write_text(json.dumps({"run": str(run.path)}))
    page, errors = open_page(browser, page_server.url)  # a new tab opens the run that trains
    page.wait_for_selector("#navigation .countdown")
    page.wait_for_selector("#train-status .countdown")
    page.wait_for_selector("#plan >> text=Another run trains now")
    shown = "() => [...document.querySelectorAll('.countdown')].map((node) => node.innerText)"
    page.wait_for_function(f"() => new Set(({shown})()).size === 1")
    first = page.evaluate(shown)[0]
    page.evaluate("Date.now = ((now) => () => now() + 120_000)(Date.now)")
    page.wait_for_function(
        f"(first) => ({shown})().every((text, _, all) => text === all[0] && text !== first)", arg=first
    )
    assert page.get_attribute("#step-share-button", "aria-disabled") == "true"
    page.click("#stop-training")
    page.wait_for_selector("#train-status >> text=Stopping after this step")
    assert page.is_disabled("#stop-training")
    (run.path / "not-yet").rename(run.adapter)
    run.log("state", state="done")
    page.wait_for_selector("#navigation .next-hint >> text=Training is done. Next: Compare")
    worker.kill()
    worker.wait()
    page.wait_for_function("!document.querySelector('#plan').innerText.includes('Another run trains')")
    assert page.locator("#navigation li.done").count() == 3 and page.locator(".countdown").count() == 0
    page.click("#step-share-button")
    page.wait_for_selector("#navigation .next-hint >> text=A zip needs no account")
    page.click("#step-train-button")
    page.click("#persona-list input")
    page.click("#persona-list [role=option] >> text=New or example")
    page.wait_for_selector("#navigation .next-hint >> text=three ways")
    assert errors == []
