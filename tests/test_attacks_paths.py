"""Names, ids and folders that try to lead elsewhere, to hang, or to touch what is not theirs."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from cases import check_each

from persona.compare import blind_votes, conversation, conversation_store
from persona.errors import InputError, PersonaError, RunError
from persona.models import adapter as adapters
from persona.share import archive, hub
from persona.store import pairs, persona_folder
from persona.store.files import read_json, safe_join, slugify
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.train import launcher, queue
from persona.train.config import make_config
from persona.train.run_folder import Run
from persona.ui import voice_picker
from persona.ui.steps.train import run_view
from persona.write.importers.text_source import open_source
from tests.tiny_models import write_adapter

NAMES = [
    "", ".", "..", "../x", "x/../../y", "/etc", "/etc/passwd", "a/b", "a\\b", "..\\x", "C:x", "C:\\x", "x:stream", "\0",
    "a\0b", "x" * 10_000, "甄" * 200, "\ud800", "~", "~root/x",
]  # fmt: skip
FIFO = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
PAIRS = [Pair(f"Question {n}?", f"Answer {n}.") for n in range(12)]


@pytest.fixture
def mine():
    return persona_folder.create_persona_at(persona_folder.personas_dir() / "mags", PersonaCard(name="Mags"), PAIRS)


@pytest.fixture
def run(mine) -> Run:
    return launcher.create_run(mine, make_config())


def test_a_name_leads_nowhere_else(tmp_path):
    def check(name):
        with pytest.raises(InputError) as refused:
            safe_join(tmp_path, name)
        assert len(str(refused.value)) < 300

    check_each([n for n in NAMES if n != "~"], check)


def test_a_slug_is_a_plain_name_on_every_system():
    cases = [*NAMES, "con", "NUL", "Com1", "\u202egpj.exe", "a\u202eb", "a\nb", " ", "💥" * 80]

    def check(name):
        made = slugify(name)
        assert made and len(made) <= 68 and made not in ("con", "nul", "com1", "..", ".")
        assert all(c.isalnum() or c == "-" for c in made)

    check_each(cases, check)


def test_an_adapter_id_from_a_browser_leads_nowhere_else(mine, home):
    """A whole adapter lies just outside each place that an id may name; none is found, and nothing else is raised."""
    shapes = ["{}", "run/{}", "run/{}/x", "run/mags/{}", "run/mags/{}@3", "opened/{}", "blend/0.5/{}", "blend/{}"]

    def check(name, shape):
        chosen = shape.format(name)
        for call in (lambda: voice_picker.find_adapter(chosen), lambda: voice_picker.conversation_dir("", chosen).stat(),
                     lambda: voice_picker.voice_label(chosen, chosen)):  # fmt: skip
            with pytest.raises((PersonaError, FileNotFoundError)):
                call()

    check_each(itertools.product(NAMES, shapes), check)


def test_a_step_is_a_number_of_nine_digits_at_most(run):
    cases = ["²", "٣", "-1", "1" * 5_000, "1e3", "0x1", "../..", " 3", "3\n"]

    def check(step):
        with pytest.raises(PersonaError):
            voice_picker.find_adapter(f"run/mags/{run.name}@{step}")

    check_each(cases, check)


def test_a_blend_is_a_share_and_an_id():
    cases = ["blend/", "blend/x/run/a/b", "blend/nan/run/a/b", "blend/9/run/a/b", "blend/0.5/" * 3_000 + "run/a/b"]

    def check(voice):
        with pytest.raises(PersonaError, match="not a blend"):
            voice_picker.voice_label(voice, "run/mags/x")

    check_each(cases, check)


def test_an_address_that_is_none_is_refused_in_words():
    cases = ["x" * 10_000, "~nobody-of-this-name/x", "\0", "../../etc", "file:///etc"]

    def check(text):
        with pytest.raises(PersonaError):
            voice_picker.add_link(text)

    check_each(cases, check)


def test_an_address_of_the_page_opens_no_folder_of_this_machine(tiny_llama, tmp_path, monkeypatch):
    """http://127.0.0.1:7860/?persona=… is written by others: on Windows \\\\HOST\\SHARE would even be asked for."""
    import gradio as gr

    from persona.ui import app

    write_adapter(tiny_llama, tmp_path / "there" / "adapter")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "pull_adapter", lambda link: pytest.fail(f"asked the Hub for {link}"))
    request = type("Request", (), {"query_params": {"persona": str(tmp_path / "there" / "adapter")}})
    with pytest.raises(gr.Error, match="USER/NAME"):
        app.restore_tab("", request)  # type: ignore[arg-type]
    asked = []
    monkeypatch.setattr(hub, "pull_adapter", lambda link: asked.append(str(link)) or tmp_path / "nowhere")
    request.query_params["persona"] = "there/adapter"  # type: ignore[attr-defined]  # there is such a folder
    with pytest.raises(gr.Error):
        app.restore_tab("", request)  # type: ignore[arg-type]
    assert asked == ["there/adapter"]


# --- files that never end, links ---------------------------------------------------------------------------------


@FIFO
@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "zero"])
def test_a_pipe_or_a_device_is_refused_and_not_read(kind, tmp_path):
    place = tmp_path / "x.json"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
    for read in (lambda: read_json(place, "x"), lambda: pairs.scan_pairs(place), lambda: open_source(place)):
        with pytest.raises(InputError, match="a pipe or a device"):
            read()


def test_a_file_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("persona.store.files.MAX_JSON_BYTES", 1_000)
    monkeypatch.setattr("persona.write.importers.text_source.MAX_SOURCE_BYTES", 1_000)
    (tmp_path / "x.json").write_text(" " * 2_000 + "{}")
    for read in (lambda: read_json(tmp_path / "x.json", "x"), lambda: open_source(tmp_path / "x.json")):
        with pytest.raises(InputError, match="is the limit"):
            read()


@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja", "run.json", "persona.json"])
def test_a_link_in_an_adapter_takes_no_private_file_along(name, tiny_llama, tmp_path):
    place, private = tmp_path / "adapter", tmp_path / "private"
    write_adapter(tiny_llama, place)
    (place / name).replace(private)
    (place / name).symlink_to(private)
    for send in (lambda: archive.pack_adapter(place, tmp_path / "x.zip"), lambda: archive.copy_adapter(place, tmp_path / "kept"),
                 lambda: adapters.read_adapter(place)):  # fmt: skip
        with pytest.raises(PersonaError, match="link to another place"):
            send()
    assert not (tmp_path / "x.zip").exists() and not list((tmp_path / "kept").glob("*"))


def test_the_links_of_a_hub_cache_are_its_own(tiny_llama, tmp_path):
    place = tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    write_adapter(tiny_llama, place)
    (tmp_path / "models--a--b" / "blobs").mkdir()
    for n, file in enumerate(sorted(place.iterdir())):
        file.replace(tmp_path / "models--a--b" / "blobs" / str(n))
        file.symlink_to(f"../../blobs/{n}")
    assert adapters.read_adapter(place).card.name == "Mags"
    shared = tmp_path / "blobs" / "ab"  # of all repositories, for files that came through Xet
    shared.mkdir(parents=True)
    for blob in (tmp_path / "models--a--b" / "blobs").iterdir():
        blob.replace(shared / blob.name)
        blob.symlink_to(f"../../blobs/ab/{blob.name}")
    assert adapters.read_adapter(place).card.name == "Mags"
    elsewhere = tmp_path / "models--a--b" / "revisions" / ("0" * 40)
    place.parent.rename(elsewhere.parent)
    with pytest.raises(PersonaError, match="link to another place"):
        adapters.read_adapter(elsewhere)


# --- folders from outside ----------------------------------------------------------------------------------------

WRONG = ["null", "7", "[]", '"x"', "[[[[", "[" * 100_000, '{"a": ' * 100_000, "1" * 5_000, "\xff", '{"name": NaN}',
         '{"name": "\\ud800"}', '{"name": ["x"]}', '{"name": "x", "probes": {"a": 1}}', '{"name": "x", "system": 1e999}']  # fmt: skip


def test_a_persona_json_of_anything_is_refused_in_words(mine):
    def check(text):
        (mine.path / "persona.json").write_text(text, encoding="latin-1")
        with pytest.raises(InputError) as refused:
            persona_folder.find_persona("mags").card()
        assert "persona.json" in str(refused.value)
        assert persona_folder.list_personas() == [mine]  # and the list still opens

    check_each(WRONG, check)


def test_a_line_of_pairs_that_is_anything_is_set_aside(mine):
    good_lines = mine.pairs_file.read_bytes()

    def check(text):
        mine.pairs_file.write_bytes(good_lines + text.encode("latin-1") + b"\n")
        good, bad = mine.scan()
        assert good == PAIRS and [b.line for b in bad] == [13]

    check_each([*WRONG, '{"instruction": "a", "output": NaN}'], check)


EVENTS = [
    *WRONG,
    '{"event": "state"}', '{"event": "state", "state": 7}', '{"event": "state", "state": "<b>"}',
    '{"event": "state", "state": "failed", "message": 7}', '{"event": "state", "state": "failed", "remedy": [1]}',
    '{"event": "step"}', '{"event": "step", "step": "1", "seconds": 1}', '{"event": "step", "step": 1, "seconds": "x"}',
    '{"event": "step", "step": 1, "seconds": 1, "loss": "x"}', '{"event": "step", "step": 1, "seconds": 1, "tokens": []}',
    '{"event": "step", "step": 1' + "0" * 400 + ', "seconds": 1}', '{"event": "step", "step": -5, "seconds": 1}',
    '{"event": "step", "step": 1, "seconds": 1' + "0" * 400 + "}", '{"event": "plan", "steps": "many"}',
    '{"event": "eval", "step": 1, "nll": "low"}', '{"event": "eval", "step": 0, "nll": 1e300}',
    '{"event": "diary", "step": 1, "answers": ["x"]}', '{"event": "diary", "step": 1, "answers": [{"text": 7}]}',
    '{"event": "diary", "step": [1], "answers": []}', '{"event": "result", "tokens_per_s": "x"}',
    '{"event": "chosen", "step": {}}', '{"event": ["state"]}', '{"time": "noon", "event": "state", "state": "done"}',
    '{"event": "result", "tokens_per_s": 1, "adapter_nll": "x"}',
]  # fmt: skip


def test_an_event_of_anything_neither_ends_the_page_nor_hides_the_others(run):
    def check(text):
        log = run.path / "events.jsonl"
        sound = [{"event": "plan", "steps": 9}, {"event": "step", "step": 2, "seconds": 3, "loss": 1.5},
                 {"event": "eval", "step": 0, "nll": 5.0}, {"event": "eval", "step": 2, "nll": 4.0}]  # fmt: skip
        end = [{"event": "result", "tokens_per_s": 9.0, "adapter_nll": 4.0}, {"event": "state", "state": "done"}]
        said = "".join(json.dumps(e) + "\n" for e in sound) + text + "\n" + "".join(json.dumps(e) + "\n" for e in end)
        log.write_text(said, encoding="latin-1")
        seen = run.progress()
        assert (seen.status, seen.steps, seen.train, seen.base_nll) == ("done", 9, [(2, 1.5)], 5.0)
        assert "It learned" in run_view.run_status_html(run, seen)
        run_view.samples_html(run, seen)

    check_each(EVENTS, check)


def test_a_run_whose_rows_are_anything_is_refused_in_words(run):
    def check(text):
        (run.path / "pairs.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises((RunError, InputError)):
            run.rows()

    check_each(WRONG, check)


def test_a_run_json_of_anything_is_refused_in_words(run):
    def check(text):
        (run.path / "run.json").write_text(text, encoding="latin-1")
        for read in (run.config, run.card):
            with pytest.raises(PersonaError):
                read()

    check_each(WRONG, check)


@pytest.fixture
def stranger():
    """A process that is none of ours."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def test_a_worker_json_of_anything_is_no_process(run):
    cases = ["null", "[]", '{"pid": "1", "started": 0}', '{"pid": [1], "started": 0}', '{"pid": -1, "started": 0}',
         '{"pid": 1e400, "started": 0}', '{"pid": ' + "9" * 400 + ', "started": 0}', '{"pid": 1, "started": "x"}',
         '{"pid": 1, "started": NaN}', '{"pid": 1, "started": Infinity}', "[" * 100_000]  # fmt: skip

    def check(worker):
        (run.path / "worker.json").write_text(worker)
        assert run.process() is None and not run.alive()

    check_each(cases, check)


def test_a_foreign_process_is_neither_killed_nor_signalled(run, stranger):
    """A persona from outside may bring runs whose worker.json names any process of this machine."""
    worker = run.path / "worker.json"
    worker.write_text(json.dumps({"pid": stranger.pid, "started": stranger.create_time()}))
    assert launcher.stop_run(run) is False  # it has no ticket in this machine's line, so nothing is ended
    assert stranger.is_running() and stranger.status() != psutil.STATUS_ZOMBIE
    with queue.lock_queue():
        queue.enqueue_run(run)
    worker.write_text(json.dumps({"pid": stranger.pid, "started": stranger.create_time() - 100}))  # a pid used again
    assert launcher.stop_run(run) is True
    assert stranger.is_running() and stranger.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("ticket", ["null", "[]", "7", '{"run": 7}', '{"run": ["x"]}', '{"run": "/nowhere"}', "{"])
def test_a_ticket_of_anything_is_passed_over(ticket, run):
    with queue.lock_queue():
        queue.enqueue_run(run)
    (queue.queue_dir() / "000000.json").write_text(ticket)
    (queue.queue_dir() / "now.json").write_text(ticket)
    assert [t.run for t in queue.list_tickets()] == [run]
    assert queue.find_training_run() is None


# --- other visitors' conversations and votes ---------------------------------------------------------------------


def test_nobody_reads_changes_or_deletes_what_another_visitor_said(mine):
    ann, ben = (conversation_store.open_store(mine.path, conversation.new_browser_key()) for _ in range(2))
    talk = conversation_store.start_conversation(ann, "Between us.")
    for n in (f"../{ann.path.name}/{talk.id}", talk.id, "*", f"{talk.id}\0", "", "../" * 9 + "etc/passwd"):
        for act in (conversation_store.read_conversation, conversation_store.delete_conversation):
            with pytest.raises(InputError):
                act(ben, n)
    assert (
        conversation_store.list_conversations(ben) == []
        and conversation_store.read_conversation(ann, talk.id).turns[0].said == "Between us."
    )


def test_a_key_is_long_and_plain_and_never_told(mine):
    cases = ["", "x", "a" * 21, "../" * 10, "*" * 30, "a" * 201, "\0" * 30, None, 7, ["x"] * 30]

    def check(key):
        for opened in (conversation_store.open_store, blind_votes.open_vote_log):
            with pytest.raises(InputError) as refused:
                opened(mine.path, key)
            assert not key or len(str(key)) < 9 or str(key) not in str(refused.value)

    check_each(cases, check)


def test_the_place_on_disk_tells_no_key(mine):
    key = conversation.new_browser_key()
    conversation_store.start_conversation(conversation_store.open_store(mine.path, key), "Hello")
    written = list((mine.path / "talks").rglob("*"))
    assert written and not any(key in str(p) or (p.is_file() and key in p.read_text()) for p in written)
    assert len({conversation.new_browser_key() for _ in range(100)}) == 100


def test_a_space_opens_no_folder_of_the_server(tiny_llama, tmp_path, monkeypatch):
    write_adapter(tiny_llama, tmp_path / "adapter")
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / "home"))
    with pytest.raises(PersonaError):
        voice_picker.add_link(str(tmp_path / "adapter"))
    assert not (Path(tmp_path) / "home" / "adapters").exists()
