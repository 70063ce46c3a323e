"""A shared server in a real browser: two visitors write, drop, save and come back, and neither meets the other."""

import json

import pytest
from browsing import cell, fill, open_page
from waiting import wait_for

from persona.ui.middleware import workspaces

pytest_plugins = "browsing"
# test_attacks_visitors.py tries the same without a browser, in `make test`
pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.release]


@pytest.fixture(autouse=True)
def shared(monkeypatch):
    """Before the server is started."""
    monkeypatch.setenv("PERSONA_SHARED", "1")


def test_two_visitors_work_side_by_side(browser, shared, own_server):
    opened = []
    for example in ("zhen-huan", "lighthouse-keeper"):
        page, errors = open_page(browser, own_server.url)
        page.wait_for_selector("#retention:has-text('kept until')")
        page.click(f"#open-{example}")
        page.wait_for_selector(cell(1, "output"))
        opened.append((page, errors))
    (first, _), (second, _) = opened
    fill(first, 1, "output", "本宫甄嬛，今日改了一句。")
    ids = [workspaces.visitor_of_secret(next(c["value"] for c in p.context.cookies() if c["name"] == workspaces.VISITOR_COOKIE).partition(".")[0])
           for p, _ in opened]  # fmt: skip
    home = own_server.home / "visitors"
    file = home / ids[0] / "personas/zhen-huan/pairs.jsonl"
    wait_for(lambda: json.loads(file.read_text().splitlines()[0])["output"] == "本宫甄嬛，今日改了一句。")
    assert sorted(p.relative_to(home).as_posix() for p in home.glob("*/personas/[!.]*")) == sorted(
        [f"{ids[0]}/personas/zhen-huan", f"{ids[1]}/personas/lighthouse-keeper"]
    )
    assert not (own_server.home / "personas").exists()

    # a file to save, and a file that is dropped
    first.click("[role=tab]:has-text('Import')")
    first.click("#export-section > button")
    first.click("#export-pairs")
    with first.expect_download() as saved:
        first.click("#export-file a")
    assert "今日改了一句" in saved.value.path().read_text()
    second.click("[role=tab]:has-text('Import')")
    second.set_input_files("#import-file input[type=file]",
                           {"name": "more.jsonl", "mimeType": "application/json",
                            "buffer": b'{"instruction": "Who calls?", "output": "Nobody calls here."}'})  # fmt: skip
    second.wait_for_selector("#import-preview:has-text('Nobody calls here.')")

    # who comes back finds their own, and in the list nothing else
    for page, name, other in ((first, "甄嬛", "Mags"), (second, "Mags", "甄嬛")):
        page.reload()
        page.wait_for_selector(cell(1, "output"))
        page.click("#persona-list input")
        listed = page.locator("[role=option]").all_inner_texts()
        assert any(name in x for x in listed) and not any(other in x for x in listed)
    assert [errors for _, errors in opened] == [[], []]
