"""Two visitors of one shared server: whatever the second one calls, with whatever ids of the first, nothing comes back.

The server is Gradio's own, with the middleware that app.py gives it. Its handlers and its routes are listed from the
app, so that a new one is tried too.
"""

import json
import re
from pathlib import Path

import httpx
import pytest

from persona.compare import conversation, conversation_store
from persona.store import persona_folder, workspace
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher
from persona.train.config import RunConfig
from persona.ui import app
from persona.ui.middleware import workspaces
from persona.ui.middleware.stack import build_middleware
from tests.tiny_models import write_adapter

MARK = "BETWEEN-ADA-AND-ME"  # in everything that the first visitor has
TICKS = {"update_run_view"}  # asked for every second by every tab


class Visitor:
    """A browser with its own cookies: what it may know of itself, and how it calls."""

    def __init__(self, url: str):
        self.http = httpx.Client(base_url=url, timeout=60)
        self.page = self.http.get("/")
        secret = (self.http.cookies.get(workspaces.VISITOR_COOKIE) or "").partition(".")[0]
        self.id = workspaces.visitor_of_secret(secret) or ""

    def call(self, number: int, data: list, session: str = "tab", event: object = None) -> dict:
        """A handler by its number, as the page's own script asks for it; the last message of the stream."""
        body = {"data": data, "fn_index": number, "session_hash": session, "event_data": event}
        sent = self.http.post("gradio_api/queue/join", json=body)
        if sent.status_code != 200:
            return {"success": False, "status": sent.status_code, "output": sent.text}
        beats = 0  # one every 15 seconds, while there is no answer
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as lines:
            for line in lines.iter_lines():
                beats += "heartbeat" in line[:40]
                if beats > 8:
                    break
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
        with workspace.as_visitor(""):
            persona_folder.create_persona_at(
                persona_folder.personas_dir() / "owners", PersonaCard(name=f"{MARK} of the owner"), [Pair(MARK, MARK)]
            )
        # what a tab may choose is checked by Gradio; it is taken away here, because ours must do without it
        patch.setattr("gradio.Dropdown.preprocess", lambda self, payload: payload)
        patch.setattr("gradio.Radio.preprocess", lambda self, payload: payload)
        demo = app.build_app()
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False, show_error=True,
                                        app_kwargs={"middleware": build_middleware("127.0.0.1")}, **app.LAUNCH_OPTIONS)  # fmt: skip
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
    with workspace.as_visitor(first.id):
        mine = persona_folder.list_personas()[0]
        mine.save_pairs([Pair(f"{MARK} {n}", f"{MARK} {n}.") for n in range(4)])
        run = launcher.create_run(mine, RunConfig())
        write_adapter(base, run.adapter, card=PersonaCard(name=f"Ada {MARK}", probes=(MARK,)))
        run.log("state", state="done", message=MARK)
        key = conversation.new_browser_key()
        talk = conversation_store.start_conversation(conversation_store.open_store(mine.path, key), MARK)
    upload = first.drop("ada.jsonl", json.dumps({"instruction": MARK, "output": MARK}))
    choose_adapter(first, demo, f"run/{mine.slug}/{run.name}")
    assert first.call(numbered(demo, "offer_adapter"), [None, None])["success"]
    made = first.call(numbered(demo, "make_zip"), [None])
    assert made["success"], made
    return {"home": workspace.data_root(), "persona": mine, "run": run, "key": key, "talk": talk, "upload": upload,
            "file": made["output"]["data"][0]["path"]}  # fmt: skip


def words_of(answer: httpx.Response) -> str:
    return answer.text + answer.content.decode("latin-1")


# --- the first visitor's own -------------------------------------------------------------------------------------


def test_each_has_a_workspace_of_their_own(house):
    _, first, second, has = house
    assert first.id and second.id and first.id != second.id
    assert has["persona"].path.is_relative_to(workspace.data_root() / "visitors" / first.id)
    with workspace.as_visitor(second.id):
        assert persona_folder.list_personas() == []


def test_the_first_one_has_all_of_it(house):
    """Else none of the tests below could fail."""
    demo, first, _, has = house
    slug = has["persona"].slug
    assert MARK in json.dumps(first.call(numbered(demo, "restore_tab"), [slug]))
    assert open_persona(first, demo, slug)
    choose_adapter(first, demo, f"run/{slug}/{has['run'].name}")
    selection = [has["key"], None, f"run/{slug}/{has['run'].name}", [], None]
    first.call(choosing(demo, "conversations"), [has["talk"].id])
    assert MARK in json.dumps(first.call(numbered(demo, "show_conversation"), selection))
    assert first.http.get(f"gradio_api/file={has['file']}").content[:2] == b"PK"
    assert MARK in words_of(first.http.get(f"gradio_api/file={has['upload']['path']}"))
    assert first.call(numbered(demo, "ask_whose_voice"), [has["upload"]])["success"]


def choosing(demo, elem_id: str) -> int:
    """The handler that puts what is chosen in a list into the tab's state."""
    return next(
        n for n, fn in demo.fns.items()
        if fn.name == "<lambda>" and [b.elem_id for b in fn.inputs] == [elem_id] and len(fn.outputs) == 1
    )  # fmt: skip


def listening(demo, elem_id: str, event: str) -> int:
    """The first handler of a component's event."""
    block = next(b._id for b in demo.blocks.values() if getattr(b, "elem_id", None) == elem_id)
    return next(n for n, fn in demo.fns.items() if fn.fn and (block, event) in fn.targets)


def open_persona(visitor: Visitor, demo, slug: str) -> bool:
    """Into the state of the visitor's tab, which takes none that is not the visitor's."""
    choose = listening(demo, "persona-list", "select")
    visitor.call(choose, ["", None])  # nothing changes where the same one is chosen again
    return visitor.call(choose, [slug, None])["success"]


def choose_adapter(visitor: Visitor, demo, adapter_id: str) -> None:
    """Into the state of the visitor's tab: it takes any text."""
    assert visitor.call(listening(demo, "adapter", "input"), [adapter_id, None])["success"]


# --- what the second one tries -----------------------------------------------------------------------------------


def guesses(has: dict, block) -> list:
    """What a stranger who knows every id of the first one would send for a component."""
    slug, run = has["persona"].slug, has["run"]
    chosen = f"run/{slug}/{run.name}"
    ids = [chosen, str(has["persona"].path), has["key"]]
    return {"file": [has["upload"]], "uploadbutton": [has["upload"]], "number": [1], "slider": [1], "checkbox": [True],
            "dataframe": [None], "dataset": [0]}.get(block.get_block_name(), ids)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("guess", [0, *(pytest.param(n, marks=pytest.mark.release) for n in (1, 2))])
def test_no_handler_gives_the_second_one_anything(house, guess):
    """Every handler of the page, every component filled with what could be meant: ids first, then paths and keys."""
    demo, _, second, has = house
    slug = has["persona"].slug
    before = tree(has["persona"].path)
    tried = 0
    assert not open_persona(second, demo, slug)
    choose_adapter(second, demo, f"run/{slug}/{has['run'].name}")
    second.call(choosing(demo, "conversations"), [has["talk"].id])
    for number, fn in demo.fns.items():
        if fn.fn is None or fn.name in TICKS or "train" in fn.name:
            continue
        options = [guesses(has, block) for block in fn.inputs]
        data = [each[guess % len(each)] for each in options]
        event = {
            "index": 0,
            "value": MARK[:3],
            "do": "show",
            "key": slug,
            "step": 1,
            "row": 1,
            "page": 0,
            "persona": slug,
        }
        said = second.call(number, data, "tab", event)
        tried += 1
        assert MARK not in json.dumps(said), (fn.name, data, said)
    assert tried > 150
    assert tree(has["persona"].path) == before, "nothing was changed either"


def tree(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


@pytest.mark.slow
def test_every_route_gives_the_second_one_nothing(house):
    """Every route of the app, with the first one's tab, files and persona in its path and query."""
    demo, first, second, has = house
    tab = f"{first.id[:16]}.tab"
    first.call(numbered(demo, "start_persona"), ["Bea"], "tab")  # so that there is something to be read in this tab
    paths = [has["upload"]["path"], has["file"], str(has["persona"].path / "persona.json"), str(workspace.data_root())]
    tried, passed = 0, set()
    for route in routes_of(demo.app.routes):
        for path in filled(route.path, [tab, "tab", *paths]):
            query = {"session_hash": tab, "upload_id": "u", "deep_link": tab, "path": paths[0]}
            for method in sorted((getattr(route, "methods", None) or {"GET"}) & {"GET", "POST"}):
                body = {"session_hash": tab, "event_id": tab, "fn_index": 0, "data": [has["upload"]]}
                status, text = answer(second, method, path, query, body)
                tried += 1
                passed |= {route.path} if status < 400 else set()
                assert MARK not in text and "PK" not in text[:4], (method, path, text[:200])
    assert tried > 100
    assert not {p for p in passed if "stream" in p or "deep" in p or "call" in p or "component_server" in p}


def routes_of(routes) -> list:
    """Those of included routers too."""
    inner = [r for x in routes if not hasattr(x, "path") for r in routes_of(x.original_router.routes)]
    return [r for r in routes if hasattr(r, "path")] + inner


def filled(path: str, values: list[str]) -> list[str]:
    return [re.sub(r"\{[^}]*\}", value.strip("/"), path) for value in (values if "{" in path else ["-"])] + (
        [re.sub(r"\{[^}]*\}", value, path) for value in values if value.startswith("/")] if "{" in path else []
    )


def answer(visitor: Visitor, method: str, path: str, query: dict, body: dict) -> tuple[int, str]:
    """Status and the first of what comes; a stream is left after two seconds."""
    sent: dict = {"json": body} if method == "POST" else {}
    text = b""
    try:
        with visitor.http.stream(method, path.lstrip("/"), params=query, timeout=2, **sent) as got:
            for part in got.iter_bytes():
                text += part
                if len(text) > 1_000_000 or b"ALIVE" in text:
                    break
            return got.status_code, text.decode("utf-8", "replace")
    except httpx.HTTPError:  # it said no more, or Gradio broke off
        return 200, text.decode("utf-8", "replace")


def test_a_tab_that_two_call_alike_is_two(house):
    """What the second one reads of a tab by the first one's name for it is their own."""
    demo, first, second, has = house
    slug = has["persona"].slug
    open_persona(first, demo, slug)
    load = numbered(demo, "load_persona")
    assert MARK in json.dumps(first.call(load, [None]))
    second.call(listening(demo, "persona-list", "select"), ["", None])
    said = second.call(load, [None])
    assert said["success"] and MARK not in json.dumps(said)


def test_what_is_being_answered_cannot_be_read_by_another(house):
    """The second one asks for the first one's stream of answers while there is one to be read."""
    demo, first, second, has = house
    body = {"data": [None], "fn_index": numbered(demo, "load_persona"), "session_hash": "quiet", "event_data": None}
    open_persona(first, demo, has["persona"].slug)
    event = first.http.post("gradio_api/queue/join", json=body).json()["event_id"]
    for path, query in (("gradio_api/queue/data", {"session_hash": "quiet"}), (f"gradio_api/call/load_persona/{event}", {}),
                        ("gradio_api/queue/data", {"session_hash": f"{first.id[:16]}.quiet"})):  # fmt: skip
        assert MARK not in answer(second, "GET", path, query, {})[1]
    with first.http.stream("GET", "gradio_api/queue/data", params={"session_hash": "quiet"}) as lines:
        said = next(x for x in lines.iter_lines() if "process_completed" in x)
    assert json.loads(said[5:])["event_id"] == event, "it was still there, for the one who asked"


@pytest.mark.parametrize("what", ["upload", "file"])
def test_a_file_is_served_to_the_visitor_who_has_it(what, house):
    _, first, second, has = house
    path = has[what]["path"] if what == "upload" else has[what]
    folder_of, name = str(Path(path).parent), Path(path).name
    assert first.http.get(f"gradio_api/file={path}").status_code == 200
    for way in (
        path,
        f"{folder_of}/./{name}",
        f"{folder_of}/../{Path(folder_of).name}/{name}",
        path.replace("/", "//", 1),
    ):
        for start in ("gradio_api/file=", "gradio_api/file/", "file=", "gradio_api/stream/"):
            assert second.http.get(start + way).status_code in (403, 404), way


def test_the_same_file_dropped_by_both_is_had_by_both(house):
    _, first, second, _ = house
    mine, theirs = first.drop("x.txt", "the very same"), second.drop("x.txt", "the very same")
    assert mine["path"] == theirs["path"]
    assert {v.http.get(f"gradio_api/file={mine['path']}").status_code for v in (first, second)} == {200}


def test_a_file_of_another_is_not_read_in(house):
    demo, first, second, has = house
    number = numbered(demo, "ask_whose_voice")
    to_save = {**has["upload"], "path": has["file"]}
    for file in (has["upload"], to_save):
        said = second.call(number, [file])
        assert said.get("status") == 403 and "Upload it again" in said["output"]
    assert first.call(number, [has["upload"]])["success"]


# --- who is who --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cookie", [None, "", "x", "a" * 42, "a" * 44, "../" * 14 + "x", "%00" * 20, "{id}", "a" * 42 + "'"]
)
def test_without_a_cookie_of_ours_nothing_is_done(cookie, house):
    """The cookie is the secret, not the id that is made of it and that the disk shows."""
    demo, first, _, _ = house
    stranger = Visitor(str(first.http.base_url))
    stranger.http.cookies.clear()
    headers = {} if cookie is None else {"cookie": f"{workspaces.VISITOR_COOKIE}={cookie.format(id=first.id)}"}
    before = sorted((workspace.data_root() / "visitors").iterdir())
    for body in ({"data": ["Eve"], "fn_index": numbered(demo, "start_persona"), "session_hash": "e"},):
        said = stranger.http.post("gradio_api/queue/join", json=body, headers=headers)
        assert said.status_code == 403 and "Allow cookies" in said.json()["detail"]
    assert stranger.http.post("gradio_api/upload", files={"files": b"x"}, headers=headers).status_code == 403
    assert sorted((workspace.data_root() / "visitors").iterdir()) == before
    assert workspaces.VISITOR_COOKIE in stranger.http.get("/", headers=headers).headers.get("set-cookie", ""), (
        "a new one"
    )


def test_a_secret_of_the_right_form_that_the_server_did_not_make_is_nobody(house):
    demo, first, _, has = house
    guesser = Visitor(str(first.http.base_url))
    guesser.http.cookies.clear()
    guesser.http.cookies.set(workspaces.VISITOR_COOKIE, "A" * 43)
    assert guesser.call(numbered(demo, "restore_tab"), [has["persona"].slug])["status"] == 403


def test_the_cookie_is_out_of_reach_of_scripts_and_frames_get_theirs(house, monkeypatch):
    _, first, _, _ = house
    plain = httpx.get(first.http.base_url).headers["set-cookie"]
    assert httpx.get(first.http.base_url, headers={"x-forwarded-proto": "https"}).headers["set-cookie"].endswith("=Lax")
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    framed = httpx.get(first.http.base_url, headers={"x-forwarded-proto": "https"}).headers["set-cookie"]
    assert "HttpOnly; SameSite=Lax" in plain and "Path=/; Max-Age=31536000" in plain and "Secure" not in plain
    assert framed.endswith("HttpOnly; SameSite=None; Secure; Partitioned")
    assert "set-cookie" not in first.http.get("/").headers, "who has one keeps it"


def test_on_an_own_machine_nothing_stands_before_the_page(monkeypatch):
    from persona.ui.middleware.visitors import VisitorIsolation

    assert VisitorIsolation in [m.cls for m in build_middleware("127.0.0.1")]
    monkeypatch.setenv("PERSONA_SHARED", "0")
    assert VisitorIsolation not in [m.cls for m in build_middleware("127.0.0.1")]
