"""Run folders: rows that can be trained on, events that survive a crash."""

import json
import os
import re
import subprocess
import sys
import time

import psutil
import pytest
from waiting import wait_for

from persona.errors import InputError, RunError
from persona.store.pairs import Pair, hash_pairs
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.workspace import PROJECT_DIR
from persona.train import launcher, run_folder
from persona.train.config import RunConfig
from persona.train.launcher import create_run
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run, open_run
from persona.train.split import split_held_out

CARD = PersonaCard(name="Mags", system="Be dry.")
PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(20)]
# a table of their own in the docs
EVENT_KINDS = {"state", "plan", "step", "eval", "start", "diary", "result", "chosen", "worker", "rehearsal"}


@pytest.fixture
def persona(tmp_path):
    return create_persona_at(tmp_path / "mags", CARD, PAIRS)


@pytest.fixture
def run(persona):
    return create_run(persona, RunConfig())


# ---- a new run


def test_a_run_keeps_what_it_was_started_with(persona, run):
    """Pairs edited later do not change the run."""
    persona.save_pairs([])
    assert [r.pair for r in run.rows()] == PAIRS
    assert sum(r.held_out for r in run.rows()) == 2
    assert run.rows() == split_held_out(PAIRS, 0.1, 0)
    assert (run.config(), run.card()) == (RunConfig(), CARD)
    assert run.manifest()["data_sha256"] == hash_pairs(PAIRS)
    assert open_run(run.path) == run and run_folder.list_runs(persona) == [run]


@pytest.mark.parametrize(
    "text", ["a\u2028b", "a\u2029b", "a\x85b", "a\x0bb\x0cc", "a\x1cb\x1db\x1ec", "a\r\nb\rc", "𠮷\u0000"]
)
def test_any_line_separator_may_stand_in_a_pair(tmp_path, text):
    """Text pasted from the web or from Word is full of them, and none of them ends a line of JSON."""
    pairs = [Pair(text, text, ((text, text),)), Pair("b", "c")]
    run = create_run(create_persona_at(tmp_path / "p", CARD, pairs), RunConfig())
    assert [r.pair for r in run.rows()] == pairs


def test_two_runs_in_one_second_have_two_folders(persona):
    assert len({create_run(persona, RunConfig()).path for _ in range(5)}) == 5


@pytest.mark.parametrize(
    "pairs, why",
    [
        ([], r"pairs\.jsonl: no pairs\. A run needs at least 2"),
        ([Pair("a", "b")], r"pairs\.jsonl: one pair\. A run needs at least 2"),
        ([Pair("a", "b"), Pair(" ", "b"), Pair("a", "")], r"pair 2: 'instruction' is empty\.\npair 3: 'output' is"),
        ([Pair("a", "b"), Pair("a", "b", (("", "x"),))], r"pair 2: 'history' has an empty turn"),
    ],
)
def test_pairs_that_make_no_run_are_refused(tmp_path, pairs, why):
    persona = create_persona_at(tmp_path / "p", CARD, pairs)
    with pytest.raises(InputError, match=why):
        create_run(persona, RunConfig())
    assert run_folder.list_runs(persona) == [] and not persona.runs_dir.exists()


def test_a_broken_line_is_refused_and_not_left_out(persona):
    with persona.pairs_file.open("a") as f:
        f.write("{oops\n")
    with pytest.raises(InputError, match=r"pairs\.jsonl line 21: "):
        create_run(persona, RunConfig())


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a training run"):
        open_run(tmp_path)


def test_damaged_settings_are_named(run):
    run.update_manifest(config={"lora_r": 0})
    with pytest.raises(RunError, match=r"run\.json: its 'config' is damaged \(.*\n?lora_r"):
        run.config()


# ---- events


def alive(run: Run) -> Run:
    """As if this very process were the run's worker."""
    run_folder.record_worker(run, os.getpid())
    return run


def replay(run: Run, *events: tuple[str, dict]) -> RunProgress:
    for event, facts in events:
        run.log(event, **facts)
    return run.progress()


RUNNING = (
    ("plan", {"steps": 100, "rows": 18}),
    ("eval", {"step": 0, "nll": 4.0}),
    ("state", {"state": "running"}),
    ("step", {"step": 1, "loss": 3.5, "seconds": 10.0, "tokens": 500, "time": 1010.0}),
    (
        "step",
        {"step": 2, "loss": 3.0, "seconds": 12.0, "tokens": 1100, "time": 1012.5, "learning_rate": 2e-4, "memory": 9},
    ),
    ("eval", {"step": 2, "nll": 3.2, "time": 1013.0}),
)


def test_events_replayed(run):
    seen = replay(alive(run), *RUNNING)
    assert (seen.status, seen.step, seen.steps, seen.seconds) == ("running", 2, 100, 12.0)
    assert seen.train == [(1, 3.5), (2, 3.0)] and seen.held_out == [(0, 4.0), (2, 3.2)]
    assert seen.base_nll == 4.0 and seen.plan["rows"] == 18
    steps, evaluations = 98 * 2.0, 49  # the first step is slow and does not count; the base's evaluation took no time
    assert seen.left == pytest.approx(steps, abs=1)
    seen = replay(run, ("step", {"step": 3, "seconds": 14.0, "time": 1020.0}))
    assert seen.evaluation_seconds == pytest.approx(10.0 - 4.0)
    assert (seen.left, seen.ends) == pytest.approx((97 * 2.0 + evaluations * 6.0, 1020.0 + seen.left))
    assert seen.curves == {"learning_rate": [(2, 2e-4)], "tokens_per_s": [(2, 300.0)], "memory": [(2, 9)]}


def test_the_diary_and_the_chosen_adapter_are_replayed(run):
    page = [{"probe": "Who?", "text": "Me.", "ended": True}]
    ended = (("result", {"adapter_nll": 3.2}), ("chosen", {"step": 2, "nll": 3.2}), ("state", {"state": "done"}))
    seen = replay(run, *RUNNING, ("diary", {"step": 2, "answers": page}), ("diary", {"step": 0, "answers": []}), *ended)
    assert seen.samples == [(0, []), (2, page)] and (seen.chosen, seen.adapter_nll) == (2, 3.2)
    assert replay(run, ("chosen", {"step": 0, "nll": 4.0})).adapter_nll == 4.0
    assert replay(run, ("state", {"state": "starting"})).chosen is None, "a resumed run chooses anew"


def test_a_resumed_run_goes_on_with_its_pace_of_now(run):
    """Steps of before the crash stay, a step done again is counted once, and no result of before is shown."""
    resumed = (
        ("state", {"state": "starting"}),
        ("plan", {"steps": 100}),
        ("eval", {"step": 0, "nll": 4.0}),
        ("state", {"state": "running"}),
        ("step", {"step": 2, "loss": 3.1, "seconds": 50.0, "time": 2000.0}),
        ("step", {"step": 3, "loss": 2.9, "seconds": 51.0, "time": 2001.0}),
    )
    seen = replay(alive(run), *RUNNING, ("result", {"adapter_nll": 1.0}), *resumed)
    assert seen.train == [(1, 3.5), (2, 3.1), (3, 2.9)]
    assert seen.left == pytest.approx(97.0, abs=1) and seen.result == {}


def test_what_was_expected_counts_until_a_pace_is_known(run):
    run.update_manifest(expected_seconds=600.0)
    start = (("state", {"state": "queued", "time": 100.0}), ("state", {"state": "starting", "time": 500.0}))
    seen = replay(alive(run), *start, ("state", {"state": "starting", "message": "Loading …", "time": 520.0}))
    assert (seen.left, seen.ends) == (580.0, 1100.0)
    seen = replay(run, ("plan", {"steps": 100, "time": 530.0}), ("state", {"state": "running", "time": 540.0}))
    assert seen.ends == 1100.0


def test_a_finished_run_says_so_without_a_process(run):
    seen = replay(run, *RUNNING, ("result", {"adapter_nll": 1.5}), ("state", {"state": "done"}))
    assert (seen.status, seen.left) == ("done", None)
    assert seen.result["adapter_nll"] == 1.5


def test_a_failed_run_keeps_its_message_whatever_is_in_it(run):
    message = "out of memory\nnext\u2028line\x85 “你”"
    assert replay(run, ("state", {"state": "failed", "message": message})).message == message


def test_a_loss_that_is_not_a_number_is_left_out_of_the_curve(run):
    seen = replay(alive(run), *RUNNING, ("step", {"step": 3, "loss": float("nan"), "seconds": 14.0}))
    assert seen.step == 3 and seen.train == [(1, 3.5), (2, 3.0)]


@pytest.mark.parametrize(
    "half", ['{"time": 1, "event": "st', '{"time": 1, "event": "state", "state": "', "{", "你"[:1]]
)
def test_a_half_written_last_line_is_left_out(run, half):
    before = replay(alive(run), *RUNNING)
    file = run.path / "events.jsonl"
    with file.open("ab") as f:
        f.write(half.encode()[: max(1, len(half.encode()) - 1)])
    assert run.progress() == before


def test_what_follows_a_half_written_line_is_not_lost(run):
    """A full disk cuts a line short; the event of the resumed run must not be glued to it."""
    replay(alive(run), *RUNNING)
    with (run.path / "events.jsonl").open("a") as f:
        f.write('{"time": 1, "event": "st')
    assert replay(run, ("state", {"state": "failed", "message": "The disk is full."})).status == "failed"


def test_no_events_is_a_run_that_never_began(run):
    (run.path / "events.jsonl").unlink()
    assert list(run.events()) == []
    assert run.progress().status == "interrupted"


# ---- alive, interrupted, stopped


@pytest.fixture
def child():
    """A process that waits."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    process.stdin.close()


@pytest.mark.parametrize("state", ACTIVE_STATUSES)
def test_a_run_whose_process_is_gone_was_interrupted(run, child, state):
    run_folder.record_worker(run, child.pid)
    assert replay(run, ("state", {"state": state})).status == state
    child.kill()
    child.wait()
    seen = run.progress()
    says = "its place is kept" if state == "queued" else "can be resumed"
    assert seen.status == "interrupted" and says in seen.message and seen.left is None


def test_a_run_between_its_first_event_and_its_process_is_starting(run):
    """The page polls in that moment too; a call of "interrupted" would offer to resume what has only begun."""
    assert replay(run, ("state", {"state": "starting"})).status == "starting"
    line = json.dumps({"time": time.time() - 60, "event": "state", "state": "starting"})
    (run.path / "events.jsonl").write_text(line + "\n")
    assert run.progress().status == "interrupted"


def test_a_killed_process_that_nobody_has_collected_is_not_alive(run, child):
    """A zombie has the pid and the start time still."""
    run_folder.record_worker(run, child.pid)
    child.kill()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not run.alive()


def test_a_pid_used_again_by_another_process_is_not_the_run(run):
    alive(run)
    assert run.alive()
    worker = json.loads((run.path / "worker.json").read_text())
    (run.path / "worker.json").write_text(json.dumps({**worker, "started": worker["started"] - 60}))
    assert not run.alive() and run.progress().status == "interrupted"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"pid": 1}', '{"pid": 999999999, "started": 1.0}'])
def test_a_damaged_worker_file_means_not_alive(run, content):
    (run.path / "worker.json").write_text(content)
    assert not run.alive()


def test_a_worker_that_is_gone_before_it_is_noted(run, child):
    child.kill()
    child.wait()
    run_folder.record_worker(run, child.pid)
    assert not run.alive()


def test_stop_leaves_a_file_and_start_takes_it_away(run, monkeypatch):
    run.stop()
    assert (run.path / "stop").is_file()
    real, asked = subprocess.Popen, []

    def waiting(command, **options):
        asked.append((command, options["cwd"], options["start_new_session"]))
        return real([sys.executable, "-c", "pass"], **options)

    monkeypatch.setattr(subprocess, "Popen", waiting)
    launcher.start_run(run)
    assert not (run.path / "stop").exists()
    assert asked == [([sys.executable, "-m", "persona.train", str(run.path), "--wait"], run.path, True)]
    child = launcher._children[run.path]
    child.wait()
    launcher.reap_children()
    assert run.path not in launcher._children
    assert run.progress().status == "interrupted"


def test_a_run_is_not_started_twice(run):
    with pytest.raises(RunError, match="already running"):
        launcher.start_run(alive(run))


def test_the_active_run_is_found_among_all(persona, run):
    assert launcher.find_active_run([persona]) is None
    alive(run)
    assert launcher.find_active_run([persona]) == run
    run.log("state", state="done")
    assert launcher.find_active_run([persona]) is None


def test_runs_are_listed_newest_first(persona):
    made = []
    for name in ("20250101-000000-aaaa", "20250102-000000-aaaa", "20250101-120000-aaaa"):
        run = create_run(persona, RunConfig())
        made.append(run.path.rename(persona.runs_dir / name))
    (persona.runs_dir / "something-else").mkdir()
    assert [r.path for r in run_folder.list_runs(persona)] == [made[1], made[2], made[0]]


def test_of_several_processes_only_the_main_one_writes(run, monkeypatch):
    before = {f.name: f.read_bytes() for f in run.path.iterdir()}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run.log("state", state="running")
    run.update_manifest(dtype="float32")
    run_folder.record_worker(run, os.getpid())
    assert {f.name: f.read_bytes() for f in run.path.iterdir()} == before
    monkeypatch.setenv("RANK", "0")
    run.log("state", state="running")
    assert (run.path / "events.jsonl").read_bytes() != before["events.jsonl"]


def test_the_docstring_and_the_docs_list_the_same_names():
    section = (PROJECT_DIR / "docs" / "formats.md").read_text("utf-8").split("\n## A run")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    in_docs = {name.split("/")[0] for row in rows for name in re.findall(r"`([^`]+)`", row)} - EVENT_KINDS
    in_docstring = set(re.findall(r"^    ([a-z.]+)/?  ", run_folder.__doc__, re.MULTILINE))
    assert in_docs == in_docstring and "events.jsonl" in in_docs


# ---- layers


def test_a_light_module_stays_light():
    """The page opens, and `persona new` answers, without the seconds that torch takes."""
    modules = ["errors", "store.pairs", "store.persona_folder", "template.render", "models.base", "models.hardware",
               "train.run_folder", "train.launcher", "train.queue", "train.validate", "train.plan"]  # fmt: skip
    heavy = {"torch", "transformers", "gradio", "trl", "peft", "datasets", "huggingface_hub"}
    lines = [f"import persona.{m}; print('{m}', *{heavy} & set(sys.modules))" for m in modules]
    env = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    code = "\n".join(["import sys", *lines])
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=PROJECT_DIR, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == modules
