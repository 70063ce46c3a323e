"""The ledger of a persona's runs, and two runs beside each other, from runs whose events are written by hand."""

import json
import shutil
import sys

import numpy as np
import pytest
from finished_runs import CARD, PAIRS, finish, new_run

from persona.errors import InputError, RunError
from persona.judge import compare_runs, ledger, training_gain
from persona.judge.ledger import PairChanges, Share
from persona.store.pairs import Pair, write_pairs
from persona.store.persona_folder import create_persona_at, free_path
from persona.train import launcher, run_notes
from persona.train.config import make_config
from persona.train.run_folder import list_runs

pytest_plugins = ("finished_runs", "tests.cli_fixtures")


def test_a_run_in_the_table(mags):
    run = new_run(mags, epochs=6, seed=3)
    write_pairs(mags.pairs_file, [Pair("question 0", "another"), *PAIRS[2:], Pair("new", "pair")])
    (row,) = ledger.read_ledger(mags)
    f = row.figures
    assert (f.name, f.status, f.base, f.parent) == (run.name, "done", "gemma-3-270m", None)
    assert f.settings == {"epochs": 6.0, "seed": 3}
    assert (f.pairs, f.held_out, f.steps, f.chosen) == (36, 4, 4, 4)
    assert f.nll.value == pytest.approx(3.0) and 2.9 <= f.nll.low < 3.0 < f.nll.high <= 3.1
    assert (f.probes, f.stops) == (Share(kept=1, of=2), Share(kept=1, of=2))
    assert f.minutes == 7
    assert row.since == PairChanges(added=1, removed=1, changed=1)
    before = [r.pair for r in run.rows()]
    differences = ledger.diff_pairs(before, mags.scan()[0])
    assert [(d.question, d.before, d.after) for d in differences] == [
        ("question 0", "answer 0", "another"), ("new", "", "pair"), ("question 1", "answer 1", "")
    ]  # fmt: skip


def test_the_report_counts_more_than_the_samples(mags):
    run = new_run(mags)
    replies = [{"text": "x", "ended": True, "wrong": []}, {"text": "x", "ended": False, "wrong": ["lies"]}]
    (run.path / "report.json").write_text(json.dumps({"probes": [
        {"ask": "Who?", "ruled": True, "replies": replies}, {"ask": "Why?", "ruled": False, "replies": replies[:1]}]}))  # fmt: skip
    (row,) = ledger.read_ledger(mags)
    assert (row.figures.probes, row.figures.stops) == (Share(kept=1, of=2), Share(kept=2, of=3))


opened: list[str] = []
counting = False


def _count(event, args):
    if counting and event == "open":
        opened.append(str(args[0]))


@pytest.mark.slow
def test_two_hundred_runs_read_one_small_file_each(mags, monkeypatch):
    global counting
    first = new_run(mags)
    for n in range(199):
        shutil.copytree(first.path, mags.runs_dir / f"20260101-{n:06}-aaaa")
    assert len(ledger.read_ledger(mags)) == 200
    sys.addaudithook(_count)
    monkeypatch.setattr(ledger, "compute_figures", lambda run: pytest.fail("worked out again"))
    opened.clear()
    counting = True
    rows = ledger.read_ledger(mags)
    counting = False
    inside = [name for name in opened if "/runs/" in name]
    assert len(inside) == 200 and all(name.endswith("ledger.json") for name in inside)
    assert len({row.figures.name for row in rows}) == 200
    monkeypatch.undo()
    finish(first, [20.0] * 4)
    assert min(row.figures.nll.value for row in ledger.read_ledger(mags)) == 2.0, "its files changed"


def test_figures_that_an_older_version_kept_are_worked_out_again(mags):
    run = new_run(mags)
    found, file = ledger.read_figures(run), run.path / ledger.LEDGER_FILE
    kept = json.loads(file.read_text())
    kept["figures"] = {"name": run.name, "pairs": 999}
    file.write_text(json.dumps(kept))
    assert ledger.read_figures(run) == found


def test_a_damaged_run_and_one_that_trains_are_there_too(mags):
    run = new_run(mags)
    (run.path / "pairs.jsonl").write_text("[]")
    waits = launcher.create_run(mags, make_config())
    assert {r.figures.name: r.figures.status for r in ledger.read_ledger(mags)} == {
        run.name: "failed", waits.name: waits.progress().status
    }  # fmt: skip
    assert not (waits.path / "ledger.json").exists()


def test_notes_stars_and_the_trash(mags, home):
    run = new_run(mags)
    run_notes.change_note(run, note="the dry one", starred=True)
    assert run_notes.change_note(run, name="Dry").note == "the dry one"
    assert ledger.read_ledger(mags)[0].note.starred
    with pytest.raises(InputError, match="up to 80 characters"):
        run_notes.change_note(run, name="x" * 81)
    (run.path / "note.json").write_text("{")
    assert run_notes.read_note(run) == run_notes.RunNote()
    active = launcher.create_run(mags, make_config())
    with pytest.raises(RunError, match="still training"):
        run_notes.trash_run(active)
    target = run_notes.trash_run(run)
    assert target.parent == home / "trash" and (target / "run.json").is_file() and list_runs(mags) == [active]


def test_two_runs_beside_each_other(mags):
    first = new_run(mags, [30.0, 30, 30, 30, 30, 30, 30, 30], eval_fraction=0.2)
    write_pairs(mags.pairs_file, [*PAIRS, Pair("new", "pair")])
    second = new_run(mags, [20.0, 25, 26, 24, 26, 23, 25, 32], eval_fraction=0.2, epochs=6)
    (second.path / "pairs.jsonl").write_text(
        (first.path / "pairs.jsonl").read_text() + '{"instruction": "new", "output": "pair"}\n'
    )
    found = compare_runs.compare_runs(first, second)
    assert found.settings == {"epochs": (3.0, 6.0)}
    assert [(d.question, d.after) for d in found.pairs] == [("new", "pair")]
    t = found.test
    assert (t.rows, t.first.value) == (8, 3.0) and t.change.value == pytest.approx(-0.4875)
    assert t.change.high < 0 and t.p < 0.05
    assert "The second run is better on the 8 rows" in found.describe()
    assert [r.second_nll for r in found.worse] == [3.2] and len(found.better) == 5
    assert found.better[0].second_nll == 2.0 and found.better[0].reference.startswith("answer")
    assert (found.probes[0].probe, found.probes[0].first) == ("Who?", "I am Mags.")
    assert found.losses["second_held_out"][-1] == (4, pytest.approx(2.5125))
    again = compare_runs.compare_runs(second, first)
    assert "is worse" in again.describe() and again.test.p == pytest.approx(t.p, abs=0.02)


def test_only_rows_that_both_held_out_are_tested(mags):
    first, second = new_run(mags, seed=1), new_run(mags, seed=2)
    shared = {r.pair for r in first.rows() if r.held_out} & {r.pair for r in second.rows() if r.held_out}
    found = compare_runs.compare_runs(first, second)
    assert (found.test.rows if found.test else 0) == len(shared) < 4
    assert found.test is None or found.test.p is None
    finish(second, [30.0, 31, 29, 30], chosen=3)
    assert compare_runs.compare_runs(first, second).test is None
    assert "nothing can be tested" in compare_runs.compare_runs(first, second).describe()


def test_nothing_is_said_of_a_few_rows():
    few, enough = ([10.0] * n for n in (4, 5))
    for rows, told in ((few, False), (enough, True)):
        change = training_gain.compare_rows(rows, [12.0 + n for n in range(len(rows))], [5.0] * len(rows))
        assert change.change.low > 0 and change.is_worse == told
        assert ("too few to tell" in training_gain.describe_change(change)) != told


def test_the_permutation_test_is_right_under_the_null_and_sees_a_shift():
    rng = np.random.default_rng(1)
    nulls = [compare_runs.permutation_p(rng.normal(size=20), seed=n) for n in range(200)]
    assert 0.01 < np.mean(np.array(nulls) < 0.05) < 0.1
    assert compare_runs.permutation_p(rng.normal(1.5, 1, 20)) < 0.001


def test_the_command_line(mags, value):
    first, second = new_run(mags), new_run(mags, epochs=1)
    run_notes.change_note(first, note="kept")
    rows = value("runs", mags.path)["runs"]
    assert [r["name"] for r in rows] == [r.name for r in list_runs(mags)]
    mine = next(r for r in rows if r["name"] == first.name)
    assert mine["note"]["note"] == "kept" and mine["pairs_since"] == {"added": 0, "removed": 0, "changed": 0}
    found = value("compare", first.path, f"mags/{second.name}")
    assert found["settings"] == {"epochs": [3.0, 1.0]} and "too few to tell" in found["said"]
    assert value("compare", first.name, second.name) == found


def test_the_command_line_in_words(mags, call):
    first, second = new_run(mags), new_run(mags, epochs=1)
    write_pairs(mags.pairs_file, PAIRS[1:])
    status, out, _ = call("runs", mags.path)
    assert status == 0 and "NLL 3.000" in out and "epochs=1.0" in out and "(since then -1)" in out
    assert "epochs: 3.0 → 1.0" in call("compare", first.path, second.path)[1]
    assert call("compare", first.path, "nowhere")[0] == 1
    assert "No runs yet" in call("runs", create_persona_at(free_path("otto"), CARD, PAIRS).path)[1]
