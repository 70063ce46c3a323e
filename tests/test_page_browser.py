"""What a newcomer does, in a real browser: open 甄嬛, edit a pair, see the mask, train a few steps, hear two voices."""

import json

import pytest
from browsing import cell, fill, joined, open_page, settle, steps_done
from cases import check_each
from waiting import wait_for

pytest_plugins = "browsing"
pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.fixture(params=["tiny", pytest.param("embedded", marks=pytest.mark.release)])
def server(request):
    """A page whose base has two layers; before a release, with the embedded base itself."""
    return request.getfixturevalue({"tiny": "page_server", "embedded": "real_server"}[request.param])


def test_the_whole_way(browser, server, request):
    """Open, edit, mask, train, reload in the middle, compare, zip, open the zip."""
    page, errors = open_page(browser, server.url)
    page.click("#open-zhen-huan")
    page.wait_for_selector("text=843 pairs")

    # an edit is on disk when the page says saved, and its mask follows
    fill(page, 1, "output", "本宫甄嬛，今日改了一句。")
    file = server.home / "personas/zhen-huan/pairs.jsonl"
    wait_for(lambda: json.loads(file.read_text().splitlines()[0])["output"] == "本宫甄嬛，今日改了一句。")
    page.wait_for_function("document.querySelector('#write-mask .mask')?.innerText.includes('今日改了一句')")

    # the mask shows the reply and its stop token as learned, the question as masked
    page.click("#to-template")
    page.wait_for_selector("#mask .mask .learned")
    assert joined(page, "#mask .mask .learned") == "本宫甄嬛，今日改了一句。<eos>"
    assert "你是谁？" in joined(page, "#mask .mask .masked")
    page.wait_for_selector("#totals .good")

    # train; a reload in the middle finds the run again: of the longest preset, or two layers are done before the page is
    page.click("#to-train")
    page.wait_for_selector("#plan .quiet")
    page.click("#preset label:has-text('Thorough')")
    page.wait_for_selector("#plan:has-text('760 steps')")
    page.click("#start-training")
    page.wait_for_selector("#train-status:has-text('Training')")
    page.reload()
    page.wait_for_selector("#train-status:has-text('Training')")
    page.wait_for_selector("#train-status:has-text('/')")
    wait_for(lambda: steps_done(page) >= 4, 300, every=0.2)
    page.click("#stop-training")
    page.wait_for_selector("#train-status:has-text('Stopped')")
    page.wait_for_selector("#loss-plot .vega-embed")

    # two voices
    page.click("#to-compare")
    page.wait_for_function("document.querySelector('#adapter input')?.value?.includes('甄嬛')")
    page.click("#sampling button")
    page.fill("#longest input[type=number]", "16")
    page.fill("#say textarea", "你是谁？")
    page.click("#send")
    settle(page)
    base, persona = (page.locator(f"{c} .bot.message").last.inner_text() for c in ("#chat-base", "#chat-persona"))
    assert base.strip() and persona.strip()
    assert base != persona or "tiny" in request.node.name  # four steps hardly change two random layers

    # out as a zip, and in again
    page.click("#to-share")
    page.wait_for_selector("#share-about .card")
    page.click("#make-zip")
    with page.expect_download() as download:
        page.click("#zip-file a")
    zipped = server.home / "adapter.zip"
    download.value.save_as(zipped)
    page.click("#step-compare-button")
    page.click("#open-adapters button")
    page.set_input_files("#open-zip input[type=file], input[type=file][accept='.zip']", str(zipped))
    page.wait_for_function("document.querySelector('#adapter input')?.value?.includes('opened')")
    assert errors == []


def test_what_was_typed_survives_the_page_being_killed(browser, page_server):
    """The server is killed; the edit that the page called saved is there after a restart."""
    page, _ = open_page(browser, page_server.url)
    page.click("#open-lighthouse-keeper")
    page.wait_for_selector("text=661 pairs")
    fill(page, 2, "instruction", "Who keeps this light?")
    file = page_server.home / "personas/lighthouse-keeper/pairs.jsonl"
    wait_for(lambda: "Who keeps this light?" in file.read_text())
    page_server.kill()
    page_server.start()
    page.goto(page_server.url)
    page.wait_for_selector(cell(2, "instruction"))  # the tab remembers who was open
    assert page.input_value(cell(2, "instruction")) == "Who keeps this light?"


def test_a_new_persona_is_told_what_is_missing(browser, page_server):
    page, errors = open_page(browser, page_server.url)
    page.fill("#new-name input, #new-name textarea", "Ada")
    page.click("#start")
    page.wait_for_selector("#pairs .empty >> text=No pairs yet")
    page.click("#to-template")
    page.wait_for_selector(".toast-body >> text=There are no pairs yet")
    assert "There are no pairs yet" in page.get_attribute("#step-train-button[aria-disabled]", "title")
    page.click("#pairs .empty [data-do=add]")
    page.wait_for_selector(cell(1, "output"))
    fill(page, 1, "instruction", "Who are you?")
    fill(page, 1, "output", "Ada.")
    page.wait_for_selector("#step-train-button[title*='One pair is too few']")
    page.click("#to-template")
    page.wait_for_selector("#mask .mask .learned")
    page.click("#to-train")
    page.wait_for_selector(".toast-body >> text=One pair is too few")
    assert errors == []


SCRIPT = """第1幕
（碎石滩，黄昏）
老渡工：姑娘，要过河么？
阿萝：要过。（望着对岸）今夜风大，船可还稳？
老渡工：稳得很。你去对岸做什么？
阿萝：寻一个人。他欠我一盏灯。
老渡工：姑娘，要过河么？
阿萝：要过。今夜风大，（叹气）船可还稳？
"""


def test_import_check_fix_undo_reload(browser, page_server, tmp_path):
    """A screenplay is dropped, its repeats are found, deleted with a click, brought back, and all of it stays."""
    play = tmp_path / "play.txt"
    play.write_text(SCRIPT, encoding="gb18030")
    page, errors = open_page(browser, page_server.url)
    page.set_input_files("#start-file input[type=file]", str(play))
    page.wait_for_selector("#start-voice input")
    assert not list((page_server.home / "personas").glob("*")), "nothing is made before it is said whose voice it is"
    page.click("#start-voice input")
    page.click("[role=option]:has-text('阿萝')")
    page.click("#start-with-file")
    page.wait_for_selector("#import-found >> text=play.txt")
    assert "gb18030" in page.inner_text("#import-found")
    page.wait_for_selector("#import-preview .persona")
    assert page.locator("#import-preview .persona").all_inner_texts()[0] == "要过。今夜风大，船可还稳？"
    page.click("#import-add")
    page.wait_for_selector("#import-report >> text=3 pairs added")

    page.click("button[role=tab]:has-text('Check')")
    page.wait_for_selector("#findings summary:has-text('duplicate')")
    page.click("#findings summary:has-text('duplicate') [data-do=show]")
    page.wait_for_function("document.querySelectorAll('#pairs [data-row]').length === 1")
    page.click("#pairs [data-row='3'] .mark [data-do=fix]")
    file = next((page_server.home / "personas").glob("*/pairs.jsonl"))
    wait_for(lambda: len(file.read_text().splitlines()) == 2)
    page.wait_for_selector("#pairs-status >> text=2 pairs")
    page.wait_for_selector("#pairs .empty >> text=No pair matches")  # the filter still asks for repeats
    page.fill("#search input, #search textarea", "船")
    page.wait_for_function("!document.querySelector('#findings')?.innerText.toLowerCase().includes('duplicate')")
    page.click("#undo-edit")
    wait_for(lambda: len(file.read_text().splitlines()) == 3)
    page.reload()
    page.wait_for_selector(cell(3, "output"))
    page.wait_for_selector("#redo-edit:has-text('Delete')")
    page.click("#redo-edit")
    wait_for(lambda: len(file.read_text().splitlines()) == 2)
    source = json.loads(file.read_text().splitlines()[0])["source"]
    assert source == "play.txt:4"
    assert errors == [] and not page.locator(".toast-body.error").count()


def test_rows_are_added_searched_replaced_and_the_marks_follow(browser, page_server):
    page, errors = open_page(browser, page_server.url)
    page.fill("#new-name input, #new-name textarea", "Ada")
    page.click("#start")
    page.click("#pairs .empty button")
    page.wait_for_function("document.activeElement?.dataset.field === 'instruction'")
    page.keyboard.type("Who are you?")
    page.keyboard.press("Tab")
    page.keyboard.type("I am Ada.")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector(cell(2, "output"))
    page.wait_for_selector("#pairs [data-row='2'] .mark.error")
    fill(page, 2, "instruction", "What do you do?")
    fill(page, 2, "output", "As an AI language model, I count.")
    file = page_server.home / "personas/ada/pairs.jsonl"
    wait_for(lambda: "I count." in file.read_text())
    page.wait_for_selector("#pairs [data-row='2'] .mark:has-text('AI')")
    page.wait_for_function("!document.querySelector('#pairs .unsaved')")

    page.click("#many-pairs > button")
    page.fill("#find input, #find textarea", "As an AI language model, ")
    page.wait_for_selector("#replace-preview del")
    page.click("#replace-all")
    wait_for(lambda: json.loads(file.read_text().splitlines()[1])["output"] == "I count.")
    page.fill("#search input, #search textarea", "count")
    page.wait_for_function("document.querySelectorAll('#pairs [data-row]').length === 1")
    assert page.input_value(cell(2, "output")) == "I count."
    page.wait_for_function("!document.querySelector('#pairs .mark')?.innerText.includes('AI')")

    # what is drawn again shows what is on disk, also in a cell that was typed in
    page.traffic.settle(page)
    page.fill("#search input, #search textarea", "")
    page.wait_for_function("document.querySelectorAll('#pairs [data-row]').length === 2")
    assert page.input_value(cell(1, "output")) == "I am Ada."
    fill(page, 1, "output", "I am Ada L.")
    page.wait_for_selector("#undo-edit:has-text('edit of pair 1')")
    page.click("#undo-edit")
    page.wait_for_function(f"document.querySelector(`{cell(1, 'output')}`).value === 'I am Ada.'")
    page.click("#undo-edit")
    page.wait_for_function(f"document.querySelector(`{cell(2, 'output')}`).value.startsWith('As an AI')")
    assert [json.loads(line)["output"] for line in file.read_text().splitlines()] == [
        "I am Ada.", "As an AI language model, I count.",
    ]  # fmt: skip
    assert errors == []


MARKUP = [
    "<img src=x onerror='window.hit = 1'>", "<svg onload='window.hit = 1'></svg>", "<img src='https://evil.example/x.png'>",
    "<iframe srcdoc='<script>parent.hit = 1</script>'></iframe>", "<object data='https://evil.example/x'></object>",
    "<script src='https://evil.example/x.js'></script>", "<form action='https://evil.example/'><button>x</button></form>",
]  # fmt: skip


def test_the_browser_refuses_what_a_text_of_somebody_else_could_bring(browser, page_server):
    """If some component ever showed a text as HTML: the policy of the page is behind it."""
    page, errors = open_page(browser, page_server.url)
    page.wait_for_selector("#brand")
    assert errors == []
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "evil.example" in request.url else None)

    def check(markup):
        page.wait_for_timeout(200)  # what the one before was still refused is not taken for this one's
        errors.clear()
        page.evaluate("""html => {
            const added = document.createElement("div");
            added.append(document.createRange().createContextualFragment(html));
            document.body.append(added);
            added.querySelector("form[action*=evil] button")?.click();
        }""", markup)  # fmt: skip
        wait_for(lambda: bool(errors) or page.wait_for_timeout(100))
        assert "Content Security Policy" in errors[0]
        assert page.evaluate("window.hit") is None and page.url.startswith(page_server.url)

    check_each([(m,) for m in MARKUP], check)
