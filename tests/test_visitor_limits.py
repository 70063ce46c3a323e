"""What a visitor of a shared server may, and how long their work is kept there."""

import os
import threading
import time
from dataclasses import replace

import gradio as gr
import httpx
import psutil
import pytest
from waiting import wait_for

from persona.compare import conversation, conversation_store
from persona.errors import InputError
from persona.store import edit_history, persona_folder, workspace
from persona.store.edits import PairChange
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher, run_folder
from persona.train.config import RunConfig
from persona.ui import page
from persona.ui.app import retention_notice
from persona.ui.middleware import event_limits, workspaces
from persona.ui.middleware import visitors as ui_middleware_visitors
from persona.ui.middleware.stack import build_middleware
from tests.test_workspaces import ANN, BEN, PAIRS, persona_of, run_of

DAY = 86_400.0


@pytest.fixture
def shared(monkeypatch, home):
    """A shared server, on which nobody is known to ask yet."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(workspace, "_visitor_lookup", lambda: None)
    return home


# --- limits ------------------------------------------------------------------------------------------------------


def test_each_limit_is_named_when_it_is_no_number(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_PAIRS", "many")
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "-1")
    with pytest.raises(InputError) as e:
        workspaces.start_retention_sweep()
    assert "PERSONA_MAX_PAIRS='many'" in str(e.value) and "PERSONA_KEEP_DAYS='-1'" in str(e.value)


def test_more_pairs_than_a_visitor_may_are_refused_and_fewer_are_not(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_PAIRS", "7")
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    mine, owners = persona_of(ANN), persona_of("")
    add = [PairChange(6, None, Pair("one", "more"))]
    with workspace.as_visitor(ANN):
        edit_history.commit(mine, "add", add)
        with pytest.raises(InputError, match=r"8 pairs: on this server a persona may have 7.*duplicate this Space"):
            edit_history.commit(mine, "add", add)
        with pytest.raises(InputError, match="may have 7"):
            edit_history.append(mine, [Pair("a", "b"), Pair("c", "d")], "import")
        with pytest.raises(InputError, match="may have 7"):
            persona_folder.create_persona_at(persona_folder.free_path("Big"), PersonaCard(name="Big"), [*PAIRS, *PAIRS])
        assert len(mine.pairs()) == 7
        monkeypatch.setenv("PERSONA_MAX_PAIRS", "3")  # lowered meanwhile: what is there can be mended and cut down
        edit_history.commit(mine, "cut", [PairChange(6, Pair("one", "more"), None)])
    with workspace.as_visitor(""):
        assert edit_history.append(owners, [Pair(f"x{n}", "y") for n in range(20)], "import").added == 20


def test_more_characters_than_a_visitor_may_are_refused_in_words(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_CHARS", "300")
    monkeypatch.setenv("PERSONA_MAX_PAIR_CHARS", "100")
    mine, owners = persona_of(ANN), persona_of("")
    long, fitting = Pair("a", "b" * 100), Pair("a", "b" * 99)
    before = mine.pairs()
    with workspace.as_visitor(ANN):
        for refused in (
            lambda: edit_history.commit(mine, "add", [PairChange(0, before[0], long)]),
            lambda: edit_history.append(mine, [long], "import"),
            lambda: persona_folder.create_persona_at(persona_folder.free_path("Big"), PersonaCard(name="Big"), [long]),
        ):
            with pytest.raises(InputError, match=r"Pair 1 has 101 characters: on this server a pair may have 100"):
                refused()
        with pytest.raises(InputError, match=r"characters: on this server the pairs of a persona may have 300"):
            edit_history.append(
                mine, [fitting, replace(fitting, instruction="c"), replace(fitting, instruction="d")], "x"
            )
        assert mine.pairs() == before
        edit_history.commit(mine, "add", [PairChange(0, None, fitting)])
        monkeypatch.setenv("PERSONA_MAX_PAIR_CHARS", "50")  # lowered meanwhile: what is there can be cut down
        edit_history.commit(mine, "shorten", [PairChange(0, fitting, Pair("a", "b" * 80))])
    with workspace.as_visitor(""):
        edit_history.commit(owners, "add", [PairChange(0, None, Pair("a", "b" * 5000))])


def test_a_run_longer_than_a_visitor_may_is_refused_before_there_is_one(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_STEPS", "10")
    mine, owners = persona_of(ANN), persona_of("")
    with workspace.as_visitor(ANN):
        with pytest.raises(InputError, match=r"11 steps, where this server trains 10 at most.*set max_steps to 10"):
            launcher.create_run(mine, RunConfig(max_steps=11))
        with pytest.raises(InputError, match="trains 10 at most"):
            launcher.create_run(mine, RunConfig(epochs=50, batch_size=1))
        assert run_folder.list_runs(mine) == [] and launcher.create_run(mine, RunConfig(max_steps=10))
    with workspace.as_visitor(""):
        assert launcher.create_run(owners, RunConfig(max_steps=11))


def test_a_full_workspace_takes_nothing_more_until_something_is_deleted(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_MAX_DISK_MB", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    mine, other = persona_of(ANN), persona_of(ANN, "Other")
    (other.path / "large").write_bytes(b"x" * 1_100_000)
    adds = [
        lambda: persona_of(ANN, "Third"), lambda: edit_history.append(mine, [Pair("a", "b")], "x"),
        lambda: edit_history.commit(mine, "x", [PairChange(0, None, Pair("a", "b"))]),
        lambda: launcher.create_run(mine, RunConfig()), lambda: page.download_path("x.zip"),
        lambda: conversation_store.start_conversation(conversation_store.open_store(mine.path, conversation.new_browser_key()), "hello"),
    ]  # fmt: skip
    with workspace.as_visitor(ANN):
        for add in adds:
            with pytest.raises(InputError, match="fills 1 MB, where this server has 1 MB for each visitor"):
                add()
        persona_folder.trash_persona(other)  # to the trash, which makes room
        for add in adds:
            add()
    assert persona_of(BEN)


def test_files_to_save_are_the_visitors_own_and_go_after_a_day(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with workspace.as_visitor(ANN):
        file = page.download_path("x.zip")
    file.write_text("x")
    assert file.is_relative_to(tmp_path / "gradio" / ANN)
    workspaces.clear_downloads()
    assert file.exists()
    workspaces.clear_downloads(time.time() + DAY + 1)
    assert not file.exists()


def test_more_requests_in_a_minute_than_a_visitor_may(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_REQUESTS", "3")
    now = [60.0]
    house = ui_middleware_visitors.VisitorIsolation(lambda *_: None, lambda: now[0])
    for _ in range(3):
        house.count_request(ANN)
    with pytest.raises(ui_middleware_visitors.RequestRefused, match="More than 3 requests in a minute") as e:
        house.count_request(ANN)
    house.count_request(BEN)
    now[0] = 120.0
    house.count_request(ANN)
    assert e.value.status == 429


# --- how long it is kept -----------------------------------------------------------------------------------------


def age(place, days: float) -> None:
    """As if nothing had happened there for so long."""
    then = time.time() - days * DAY
    for path in [place, *place.rglob("*")]:
        os.utime(path, (then, then))


def test_idle_work_is_removed_and_no_other(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "7")
    for who in ("", ANN, BEN):
        persona_of(who)
    workspaces.mark_seen(BEN)  # the file is there, so that only its time changes below
    for who in (ANN, BEN):
        age(workspace.workspace_of(who), 8)
    age(shared / "personas", 800)
    workspaces.mark_seen(BEN)
    assert workspaces.remove_idle_workspaces() == [ANN] and workspaces.remove_idle_workspaces() == []
    left = [p.name for p in (shared / "visitors").iterdir()]
    assert left == [BEN] and (shared / "personas" / "mags").is_dir()
    assert workspaces.remove_idle_workspaces(time.time() + 6.9 * DAY) == [] and workspaces.remove_idle_workspaces(
        time.time() + 7.1 * DAY
    ) == [BEN]
    persona_of(ANN)
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "0")
    assert workspaces.remove_idle_workspaces(time.time() + 9999 * DAY) == [] and workspaces.kept_until(ANN) is None


def test_a_run_under_way_keeps_its_workspace(shared):
    run = run_of(ANN)
    age(workspace.workspace_of(ANN), 100)
    run_folder.record_worker(run, psutil.Process().pid)
    age(workspace.workspace_of(ANN), 100)
    assert workspaces.remove_idle_workspaces() == []
    (run.path / "worker.json").unlink()
    age(workspace.workspace_of(ANN), 100)
    assert workspaces.remove_idle_workspaces() == [ANN]


def test_a_removal_that_was_cut_off_is_ended_by_the_next(shared):
    gone = shared / "visitors" / f"{ANN}.gone"
    (gone / "personas").mkdir(parents=True)
    assert workspaces.remove_idle_workspaces() == [] and not gone.exists()


def test_looking_makes_no_workspace(shared):
    workspaces.mark_seen(ANN)
    assert not workspace.workspace_of(ANN).exists()


@pytest.mark.parametrize("language, day", [("en", "29 Nov"), ("zh", "11月29日")])
def test_the_page_says_until_when(language, day, shared, monkeypatch):
    monkeypatch.setattr("persona.ui.i18n.language", lambda: language)
    monkeypatch.setattr(
        "persona.ui.app.time.localtime", lambda until: time.struct_time((2026, 11, 29, 0, 0, 0, 6, 333, 0))
    )
    with workspace.as_visitor(ANN):
        assert day in retention_notice()
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "0")
    with workspace.as_visitor(ANN):
        assert retention_notice() == ""


def test_more_requests_at_a_time_than_a_visitor_may(shared, monkeypatch, tmp_path):
    """Through Gradio's own queue: what waits counts until it is done, and other visitors are not counted."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(event_limits, "MAX_EVENTS", 3)
    release = threading.Event()
    with gr.Blocks() as demo:
        asked = gr.Number()
        asked.input(lambda n: release.wait(30) and n, asked, None, trigger_mode="multiple", concurrency_limit=2)
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False,
                                    app_kwargs={"middleware": build_middleware("127.0.0.1")})  # fmt: skip

    def ask(visitor: httpx.Client, tab: str) -> httpx.Response:
        return visitor.post("gradio_api/queue/join", json={"data": [1], "fn_index": 0, "session_hash": tab})

    try:
        ann, ben = httpx.Client(base_url=url), httpx.Client(base_url=url)
        for visitor in (ann, ben):
            visitor.get("/")
        assert [ask(ann, tab).status_code for tab in ("one", "two", "one", "three")] == [200, 200, 200, 429]
        assert "More than 3 requests of yours" in ask(ann, "one").text and ask(ben, "one").status_code == 200
        release.set()
        wait_for(lambda: ask(ann, "one").status_code == 200, what="a place for one more")
    finally:
        release.set()
        demo.close()
