"""Gradio's front end, mended for the page: its searches answer as before, and no event is left without its answer."""

import socket
import threading

import gradio as gr
import pytest
import uvicorn
from browsing import open_page
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from persona.ui.middleware import front_end

pytest_plugins = "browsing"

# both versions of both searches, over a tree whose parts are moved and replaced, and over events with several targets
SAME_ANSWERS = """([find, findByPath, attached, attachedById]) => {
  const make = (text) => eval(`(() => { ${text}; return Z; })()`);
  const [was, now] = [make(find), make(findByPath)];
  const node = (id, ...children) => ({ id, children });
  const root = node(0, node(1, node(2), node(3, node(4))), node(5), { id: 6 }, node(7, node(8), node(9)));
  const ids = [...Array(12).keys()];
  const same = () => ids.every((id) => was(root, id) === now(root, id));
  const found = [same(), same()];
  root.children.reverse();
  found.push(same());
  root.children[0].children = [node(9), node(10, node(8))];
  found.push(same());
  root.children.pop();
  found.push(same());

  const events = [
    { targets: [[1, "click"], [2, "change"]] }, { targets: [[1, "load"], [1, "input"]] }, { targets: [] },
    { targets: [[2, null], [2, "blur"]] }, { targets: [[1, "click"]] },
  ];
  const [a, b] = [attached, attachedById].map((body) => eval(`({ f(e, t) { ${body} })`));
  const of = (holder, id) => holder.f({ id, props: { shared_props: {} } }, events).props.shared_props.attached_events;
  const said = [1, 2, 3].map((id) => [of(a, id), of(b, id)]);
  return [found, said];
}"""


@pytest.mark.parametrize("kind", front_end.MENDED)
def test_the_files_of_this_gradio_are_served_mended(kind):
    """Fails for another Gradio: then look what its front end does there, and change or drop front_end.py."""
    mends = front_end.MENDED[kind]
    (file,) = [f for f in front_end.ASSETS.glob(f"{kind}-*.js") if all(old in f.read_text("utf-8") for old in mends)]
    page = Starlette(routes=[Route("/assets/{name}", lambda r: PlainTextResponse("Gradio's"))],
                     middleware=[Middleware(front_end.FrontEndMiddleware)])  # fmt: skip
    client = TestClient(page)
    answer = client.get(f"/assets/{file.name}")
    assert answer.headers["content-type"].startswith("text/javascript")
    original = file.read_text(encoding="utf-8")
    for old, new in mends.items():
        assert original.count(old) == 1 and old not in answer.text and answer.text.count(new) == 1
    for other in ("core-none.js", "index-none.js", file.name.replace(kind, "store")):
        assert client.get(f"/assets/{other}").text == "Gradio's"


def test_a_file_with_other_code_is_served_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(front_end, "ASSETS", tmp_path)
    front_end.mended.cache_clear()
    (tmp_path / "core-next.js").write_text(front_end.FIND_NODE_JS)  # one of the two
    assert front_end.mended("core-next.js") is None


@pytest.mark.slow
@pytest.mark.browser
def test_both_versions_answer_the_same(browser):
    texts = [text for pair in front_end.MENDED["core"].items() for text in pair]
    found, said = browser.new_page().evaluate(SAME_ANSWERS, texts)
    assert found == [True] * 5
    assert said == [[["click", "load", "click"]] * 2, [["change"]] * 2, [[]] * 2]


@pytest.fixture
def two_buttons():
    """The address of a small Gradio page with the mended front end: A and B write their names into a box of their own."""
    with gr.Blocks() as blocks:
        for name in "AB":
            box = gr.Textbox(elem_id=f"said-{name}")
            gr.Button(name, elem_id=f"ask-{name}").click(lambda name=name: name, None, box)
    page = Starlette(middleware=[Middleware(front_end.FrontEndMiddleware)])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = gr.mount_gradio_app(page, blocks, path="/")
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = server.force_exit = True  # a stream may be open
        thread.join()


# `held` is a part of an address: the first answer from there is kept back, whole, until release()
HOLD_ANSWERS = """(held) => {
  const { fetch } = window;
  let keep = true;
  const released = new Promise((done) => (window.release = done));
  window.fetch = async (...asked) => {
    const answer = await fetch(...asked);
    if (!keep || !(asked[0].url ?? String(asked[0])).includes(held)) return answer;
    keep = false;
    const { status, headers } = answer;
    const body = await answer.text();
    window.kept = true;
    await released;
    return new Response(body, { status, headers });
  };
}"""


def ask(page, name: str) -> None:
    with page.expect_response(lambda answer: "/queue/join" in answer.url):
        page.click(f"#ask-{name}")


def ask_and_hold(browser, url: str, held: str):
    """A tab that has asked A, and whose first answer from an address with `held` is kept back."""
    page, _ = open_page(browser, url)
    page.wait_for_selector("#ask-A")
    page.traffic.settle(page)
    page.evaluate(HOLD_ANSWERS, held)
    ask(page, "A")
    page.wait_for_function("window.kept")
    return page


def said(page, name: str) -> None:
    page.wait_for_function(f"document.querySelector('#said-{name} textarea').value === '{name}'", timeout=10_000)


@pytest.mark.slow
@pytest.mark.browser
def test_an_event_taken_while_the_stream_closes_is_answered(browser, two_buttons):
    page = ask_and_hold(browser, two_buttons, "/queue/data")
    # the server has answered A and closed; the browser does not know yet
    ask(page, "B")
    page.wait_for_timeout(300)
    page.evaluate("release()")
    said(page, "A")
    said(page, "B")
    page.traffic.settle(page)


@pytest.mark.slow
@pytest.mark.browser
def test_an_event_answered_before_its_number_is_known_leaves_no_stream_open(browser, two_buttons):
    page = ask_and_hold(browser, two_buttons, "/queue/join")
    ask(page, "B")  # its stream brings both answers
    said(page, "B")
    page.evaluate("release()")
    said(page, "A")
    page.wait_for_timeout(500)
    assert not page.traffic.is_waiting
