"""What docs/reliability.md promises, in small: the code of the benchmarks, with a base of two layers."""

import pytest

from benchmarks import ask, disks, faults, load
from benchmarks.page import drawn_adapter, opened, put_tiny_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """One page for all that does not kill it, and the zip of an adapter."""
    home = tmp_path_factory.mktemp("reliable")
    zipped = drawn_adapter(put_tiny_base(home), home / "mags.zip")
    with opened(home) as running:
        yield running, zipped


@pytest.mark.release
def test_five_visitors_at_once(page):
    """No error, no lost edit, no answer in the wrong window; and each of them has really done something."""
    running, zipped = page
    value = load.load(running, zipped, visitors=5, seconds=5, pause=0.5)
    assert value["broken"] == [] and value["errors"] == value["lost_edits"] == value["wrong_windows"] == 0
    assert value["edits"] >= 5 and value["answers"] >= 1


@pytest.mark.release
def test_three_who_ask_at_once(page):
    """Each window shows its own answer, what is on disk, and what is said to one who asks alone."""
    value = ask.ask_together(*page, visitors=3)
    assert (
        value["broken"] == [] and value["answers"] == value["latency_ms"]["the first word of an answer"]["count"] == 3
    )


@pytest.mark.release
def test_nothing_grows_in_fifty_edits(page):
    running, zipped = page
    value = load.soak(running, zipped, edits=50, turns=10)
    assert value["broken"] == [] and value["turns"] == 10


@pytest.mark.release
def test_two_windows_on_one_persona(page):
    running, _ = page
    assert faults.windows(running, rounds=4) == {"rounds": 4, "broken": []}


def test_a_process_that_may_write_nothing(page):
    """As a quota that is used up; real full and read-only disks need a mount, see benchmarks/disks.py."""
    running, zipped = page
    spoil, mend = disks.limited(running)
    assert disks.through(running, running.home, zipped, spoil, mend, disks.LIMITED) == []


@pytest.mark.release
def test_five_kills(tmp_path):
    """Page, trainer or both, five times: every acknowledged edit is there, and the adapter that of an unhurt run."""
    value = faults.kills(tmp_path, 5)
    assert value["broken"] == [] and value["edits"] >= 5 and value["runs_ended"] >= 1
    assert value["page"] + value["trainer"] + value["both"] == 5
