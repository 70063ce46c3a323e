"""Two visitors of one shared server: whatever the second one calls, with whatever ids of the first, nothing comes back.

The server is Gradio's own, with the middleware that app.py gives it. Its handlers and its routes are listed from the
app, so that a new one is tried too.
"""

import json
from pathlib import Path

import httpx
import pytest

from persona import files, folder, runs, shelf, talks, ui, visitors
from persona.config import RunConfig
from persona.folder import Card
from persona.pairs import Pair
from persona.ui.hosts import middleware
from tests.tiny import write_adapter

MARK = "BETWEEN-ADA-AND-ME"  # in everything that the first visitor has
TICKS = {"watch"}  # asked for every second by every tab


class Visitor:
    """A browser with its own cookies: what it may know of itself, and how it calls."""

    def __init__(self, url: str):
        self.http = httpx.Client(base_url=url, timeout=60)
        self.page = self.http.get("/")
        self.id = visitors.of_secret(self.http.cookies.get(visitors.COOKIE) or "") or ""

    def call(self, number: int, data: list, session: str = "tab", event: object = None) -> dict:
        """A handler by its number, as the page's own script asks for it; the last message of the stream."""
        body = {"data": data, "fn_index": number, "session_hash": session, "event_data": event}
        sent = self.http.post("gradio_api/queue/join", json=body)
        if sent.status_code != 200:
            return {"success": False, "status": sent.status_code, "output": sent.text}
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                if line.startswith("data:") and (said := json.loads(line[5:]))["msg"] == "process_completed":
                    return said
        raise AssertionError("no answer")

    def drop(self, name: str, text: str) -> dict:
        """A file, uploaded as the page does it; what the page then sends of it."""
        place = self.http.post("gradio_api/upload", files={"files": (name, text.encode())}).json()[0]
        return {"path": place, "orig_name": name, "meta": {"_type": "gradio.FileData"}}


@pytest.fixture(scope="module")
def house(tmp_path_factory, tiny_llama):
    """(the page, the first visitor, the second one, what the first one has)."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("shared")
        patch.setenv("PERSONA_HOME", str(home))
        patch.setenv("PERSONA_SHARED", "1")
        patch.setenv("PERSONA_MAX_REQUESTS", "0")
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        with files.asking(""):
            folder.create(folder.personas_dir() / "owners", Card(name=f"{MARK} of the owner"), [Pair(MARK, MARK)])
        # what a tab may choose is checked by Gradio; it is taken away here, because ours must do without it
        patch.setattr("gradio.Dropdown.preprocess", lambda self, payload: payload)
        patch.setattr("gradio.Radio.preprocess", lambda self, payload: payload)
        demo = ui.build()
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, show_error=True,
                                        app_kwargs={"middleware": middleware("127.0.0.1")}, **ui.LAUNCH)  # fmt: skip
        first, second = Visitor(url), Visitor(url)
        yield demo, first, second, belongings(first, demo, tiny_llama)
        demo.close()
        for one in (first, second):
            one.http.close()


@pytest.fixture(autouse=True)
def at_home(house, home, monkeypatch):
    """conftest.py gives every test a home of its own; the server has one for them all."""
    monkeypatch.setenv("PERSONA_HOME", str(house[3]["home"]))


def numbered(demo, name: str) -> int:
    return next(n for n, fn in demo.fns.items() if fn.name == name)


def belongings(first: Visitor, demo, base: Path) -> dict:
    """A persona made over the page, a run with an adapter, a conversation, an upload, a file to save."""
    said = first.call(numbered(demo, "start_persona"), [f"Ada {MARK}"])
    assert said["success"], said
    with files.asking(first.id):
        mine = folder.list_personas()[0]
        mine.save_pairs([Pair(f"{MARK} {n}", f"{MARK} {n}.") for n in range(4)])
        run = runs.create_run(mine, RunConfig())
        write_adapter(base, run.adapter, card=Card(name=f"Ada {MARK}", probes=(MARK,)))
        run.log("state", state="done", message=MARK)
        key = talks.new_key()
        talk = shelf.start(shelf.open_shelf(mine.path, key), MARK)
    upload = first.drop("ada.jsonl", json.dumps({"instruction": MARK, "output": MARK}))
    made = first.call(numbered(demo, "zipped"), [f"run/{mine.slug}/{run.name}"])
    assert made["success"], made
    return {"home": files.root(), "persona": mine, "run": run, "key": key, "talk": talk, "upload": upload,
            "file": made["output"]["data"][0]["path"]}  # fmt: skip


def words_of(answer: httpx.Response) -> str:
    return answer.text + answer.content.decode("latin-1")


# --- the first visitor's own -------------------------------------------------------------------------------------


def test_each_has_a_workspace_of_their_own(house):
    _, first, second, has = house
    assert first.id and second.id and first.id != second.id
    assert has["persona"].path.is_relative_to(files.root() / "visitors" / first.id)
    with files.asking(second.id):
        assert folder.list_personas() == []


def test_the_first_one_has_all_of_it(house):
    """Else none of the tests below could fail."""
    demo, first, _, has = house
    slug = has["persona"].slug
    assert MARK in json.dumps(first.call(numbered(demo, "arrive"), [slug]))
    open_persona(first, demo, slug)
    talk = [None, f"run/{slug}/{has['run'].name}", [], has["key"], None]
    first.call(choosing(demo, "conversations"), [has["talk"].id])
    assert MARK in json.dumps(first.call(numbered(demo, "shown_talk"), talk))
    assert first.http.get(f"gradio_api/file={has['file']}").content[:2] == b"PK"
    assert MARK in words_of(first.http.get(f"gradio_api/file={has['upload']['path']}"))
    assert first.call(numbered(demo, "start_from"), [has["upload"]])["success"]


def choosing(demo, elem_id: str) -> int:
    """The handler that puts what is chosen in a list into the tab's state."""
    return next(
        n for n, fn in demo.fns.items()
        if fn.name == "<lambda>" and [b.elem_id for b in fn.inputs] == [elem_id] and len(fn.outputs) == 1
    )  # fmt: skip


def open_persona(visitor: Visitor, demo, slug: str) -> None:
    """Into the state of the visitor's tab: it takes any text."""
    assert visitor.call(choosing(demo, "which"), [slug])["success"]


# --- what the second one tries -----------------------------------------------------------------------------------


def guesses(has: dict, block) -> list:
    """What a stranger who knows every id of the first one would send for a component."""
    slug, run = has["persona"].slug, has["run"]
    chosen = f"run/{slug}/{run.name}"
    ids = [chosen, str(has["persona"].path), has["key"]]
    return {"file": [has["upload"]], "uploadbutton": [has["upload"]], "number": [1], "slider": [1], "checkbox": [True],
            "dataframe": [None], "dataset": [0]}.get(block.get_block_name(), ids)  # fmt: skip


def test_no_handler_gives_the_second_one_anything(house):
    """Every handler of the page, every component filled with what could be meant, in the first one's tab too."""
    demo, first, second, has = house
    slug = has["persona"].slug
    before = tree(has["persona"].path)
    tried = 0
    open_persona(second, demo, slug)
    second.call(choosing(demo, "conversations"), [has["talk"].id])
    for number, fn in demo.fns.items():
        if fn.fn is None or fn.name in TICKS or "train" in fn.name:
            continue
        filled = [guesses(has, block) for block in fn.inputs]
        for n in range(max(map(len, filled), default=1)):
            data = [options[n % len(options)] for options in filled]
            event = {"index": 0, "value": MARK[:3], "do": "show", "key": slug, "step": 1, "row": 1, "page": 0}
            said = second.call(number, data, "tab", event)
            tried += 1
            assert MARK not in json.dumps(said), (fn.name, data, said)
    assert tried > 150
    assert tree(has["persona"].path) == before, "nothing was changed either"


def tree(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
