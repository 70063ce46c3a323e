"""Gradio's own searches, shortened for the page: the same answers as the originals, in the file that is served."""

import pytest
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


def test_the_file_of_this_gradio_is_served_with_both_searches_shortened():
    """Fails for another Gradio: then look what its front end searches, and change or drop front_end.py."""
    (file,) = front_end.ASSETS.glob("core-*.js")
    page = Starlette(routes=[Route("/assets/{name}", lambda r: PlainTextResponse("Gradio's"))],
                     middleware=[Middleware(front_end.FrontEndMiddleware)])  # fmt: skip
    client = TestClient(page)
    answer = client.get(f"/assets/{file.name}")
    assert answer.headers["content-type"].startswith("text/javascript")
    original = file.read_text(encoding="utf-8")
    for search, shorter in front_end.SHORTER.items():
        assert original.count(search) == 1 and search not in answer.text and answer.text.count(shorter) == 1
    for other in ("core-none.js", "index-none.js", file.name.replace("core", "store")):
        assert client.get(f"/assets/{other}").text == "Gradio's"


def test_a_file_with_other_code_is_served_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(front_end, "ASSETS", tmp_path)
    front_end.shortened.cache_clear()
    (tmp_path / "core-next.js").write_text(front_end.FIND_NODE_JS)  # one of the two
    assert front_end.shortened("core-next.js") is None


@pytest.mark.slow
@pytest.mark.browser
def test_both_versions_answer_the_same(browser):
    texts = [text for pair in front_end.SHORTER.items() for text in pair]
    found, said = browser.new_page().evaluate(SAME_ANSWERS, texts)
    assert found == [True] * 5
    assert said == [[["click", "load", "click"]] * 2, [["change"]] * 2, [[]] * 2]
