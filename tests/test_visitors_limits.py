"""What a visitor of a shared server may, and how long their work is kept there."""

import os
import time

import psutil
import pytest

from persona import files, folder, journal, runs, shelf, talks, visitors
from persona.config import RunConfig
from persona.edits import Change
from persona.errors import InputError
from persona.folder import Card
from persona.pairs import Pair
from persona.ui import common, guests, kept
from tests.test_visitors import ANN, BEN, PAIRS, persona_of, run_of

DAY = 86_400.0


@pytest.fixture
def shared(monkeypatch, home):
    """A shared server, on which nobody is known to ask yet."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(files, "_ask", lambda: None)
    return home


# --- limits ------------------------------------------------------------------------------------------------------


def test_each_limit_is_named_when_it_is_no_number(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_PAIRS", "many")
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "-1")
    with pytest.raises(InputError) as e:
        guests.open_house()
    assert "PERSONA_MAX_PAIRS='many'" in str(e.value) and "PERSONA_KEEP_DAYS='-1'" in str(e.value)


def test_more_pairs_than_a_visitor_may_are_refused_and_fewer_are_not(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_PAIRS", "7")
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    mine, owners = persona_of(ANN), persona_of("")
    add = [Change(6, None, Pair("one", "more"))]
    with files.asking(ANN):
        journal.commit(mine, "add", add)
        with pytest.raises(InputError, match=r"8 pairs: on this server a persona may have 7.*duplicate this Space"):
            journal.commit(mine, "add", add)
        with pytest.raises(InputError, match="may have 7"):
            journal.append(mine, [Pair("a", "b"), Pair("c", "d")], "import")
        with pytest.raises(InputError, match="may have 7"):
            folder.create(folder.free_path("Big"), Card(name="Big"), [*PAIRS, *PAIRS])
        assert len(mine.pairs()) == 7
        monkeypatch.setenv("PERSONA_MAX_PAIRS", "3")  # lowered meanwhile: what is there can be mended and cut down
        journal.commit(mine, "cut", [Change(6, Pair("one", "more"), None)])
    with files.asking(""):
        assert journal.append(owners, [Pair(f"x{n}", "y") for n in range(20)], "import").added == 20


def test_a_run_longer_than_a_visitor_may_is_refused_before_there_is_one(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_STEPS", "10")
    mine, owners = persona_of(ANN), persona_of("")
    with files.asking(ANN):
        with pytest.raises(InputError, match=r"11 steps, where this server trains 10 at most.*set max_steps to 10"):
            runs.create_run(mine, RunConfig(max_steps=11))
        with pytest.raises(InputError, match="trains 10 at most"):
            runs.create_run(mine, RunConfig(epochs=50, batch_size=1))
        assert runs.list_runs(mine) == [] and runs.create_run(mine, RunConfig(max_steps=10))
    with files.asking(""):
        assert runs.create_run(owners, RunConfig(max_steps=11))


def test_a_full_workspace_takes_nothing_more_until_something_is_deleted(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_MAX_DISK_MB", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    mine, other = persona_of(ANN), persona_of(ANN, "Other")
    (other.path / "large").write_bytes(b"x" * 1_100_000)
    adds = [
        lambda: persona_of(ANN, "Third"), lambda: journal.append(mine, [Pair("a", "b")], "x"),
        lambda: journal.commit(mine, "x", [Change(0, None, Pair("a", "b"))]),
        lambda: runs.create_run(mine, RunConfig()), lambda: common.to_save("x.zip"),
        lambda: shelf.start(shelf.open_shelf(mine.path, talks.new_key()), "hello"),
    ]  # fmt: skip
    with files.asking(ANN):
        for add in adds:
            with pytest.raises(InputError, match="fills 1 MB, where this server has 1 MB for each visitor"):
                add()
        folder.delete(other)  # to the trash, which makes room
        for add in adds:
            add()
    assert persona_of(BEN)


def test_files_to_save_are_the_visitors_own_and_go_after_a_day(shared, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with files.asking(ANN):
        file = common.to_save("x.zip")
    file.write_text("x")
    assert file.is_relative_to(tmp_path / "gradio" / ANN)
    guests.clear_handed()
    assert file.exists()
    guests.clear_handed(time.time() + DAY + 1)
    assert not file.exists()


def test_more_requests_in_a_minute_than_a_visitor_may(shared, monkeypatch):
    monkeypatch.setenv("PERSONA_MAX_REQUESTS", "3")
    now = [60.0]
    house = guests.Guests(lambda *_: None, lambda: now[0])
    for _ in range(3):
        house.count(ANN)
    with pytest.raises(guests.Refused, match="More than 3 requests in a minute") as e:
        house.count(ANN)
    house.count(BEN)
    now[0] = 120.0
    house.count(ANN)
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
    visitors.seen(BEN)  # the file is there, so that only its time changes below
    for who in (ANN, BEN):
        age(files.workspace(who), 8)
    age(shared / "personas", 800)
    visitors.seen(BEN)
    assert visitors.sweep() == [ANN] and visitors.sweep() == []
    left = [p.name for p in (shared / "visitors").iterdir()]
    assert left == [BEN] and (shared / "personas" / "mags").is_dir()
    assert visitors.sweep(time.time() + 6.9 * DAY) == [] and visitors.sweep(time.time() + 7.1 * DAY) == [BEN]
    persona_of(ANN)
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "0")
    assert visitors.sweep(time.time() + 9999 * DAY) == [] and visitors.kept_until(ANN) is None


def test_a_run_under_way_keeps_its_workspace(shared):
    run = run_of(ANN)
    age(files.workspace(ANN), 100)
    runs.note_worker(run, psutil.Process().pid)
    age(files.workspace(ANN), 100)
    assert visitors.sweep() == []
    (run.path / "worker.json").unlink()
    age(files.workspace(ANN), 100)
    assert visitors.sweep() == [ANN]


def test_a_removal_that_was_cut_off_is_ended_by_the_next(shared):
    gone = shared / "visitors" / f"{ANN}.gone"
    (gone / "personas").mkdir(parents=True)
    assert visitors.sweep() == [] and not gone.exists()


def test_looking_makes_no_workspace(shared):
    visitors.seen(ANN)
    assert not files.workspace(ANN).exists()


@pytest.mark.parametrize("language, day", [("en", "29 Nov"), ("zh", "11月29日")])
def test_the_page_says_until_when(language, day, shared, monkeypatch):
    monkeypatch.setattr("persona.ui.words.language", lambda: language)
    monkeypatch.setattr("persona.ui.time.localtime", lambda until: time.struct_time((2026, 11, 29, 0, 0, 0, 6, 333, 0)))
    with files.asking(ANN):
        assert day in kept()
    monkeypatch.setenv("PERSONA_KEEP_DAYS", "0")
    with files.asking(ANN):
        assert kept() == ""
