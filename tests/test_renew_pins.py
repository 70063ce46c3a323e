"""Pins are renewed by pip's own resolver: here with wheels made for the test, and the real pip."""

import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from persona.store.workspace import PROJECT_DIR
from scripts import renew_pins


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        info = f"{name}-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", "Provides-Extra: oauth"]
        z.writestr(f"{info}/METADATA", "\n".join([*lines, *(f"Requires-Dist: {n}" for n in needs), ""]))
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/RECORD", "")


@pytest.fixture
def project(tmp_path):
    """One that pins three packages, and an index of theirs: the newest trainer cannot go with the newest gradio."""
    index = tmp_path / "index"
    index.mkdir()
    for version in ("6.0.0", "6.1.0"):
        wheel(index, "gradio", version)
    wheel(index, "Some_Trainer", "1.0")
    wheel(index, "Some_Trainer", "1.5", "gradio<7")
    wheel(index, "Some_Trainer", "2.0", "gradio<6")
    wheel(index, "checker", "3.1")
    (tmp_path / "requirements.txt").write_text(
        "# why\ngradio[oauth]==6.0.0;python_version>'3'\nsome-trainer==1.0  # the trainer\n"
    )
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\nchecker==3.1\n")
    (tmp_path / "README.md").write_text("---\nsdk_version: 6.0.0\n---\nsdk_version: stays\n")
    return tmp_path, ["--no-index", "--find-links", str(index)]


@pytest.mark.release
@pytest.mark.slow
def test_the_newest_that_go_together(project):
    folder, options = project
    assert renew_pins.renew(folder, options) == ["gradio 6.0.0 → 6.1.0", "some-trainer 1.0 → 1.5"]
    assert (
        folder / "requirements.txt"
    ).read_text() == "# why\ngradio[oauth]==6.1.0;python_version>'3'\nsome-trainer==1.5  # the trainer\n"
    assert (folder / "requirements-dev.txt").read_text() == "-r requirements.txt\nchecker==3.1\n"
    assert (folder / "README.md").read_text() == "---\nsdk_version: 6.1.0\n---\nsdk_version: stays\n"
    assert renew_pins.renew(folder, options) == []


@pytest.mark.release
@pytest.mark.slow
def test_where_nothing_goes_together_nothing_is_written(project, capfd):
    folder, options = project
    (folder / "requirements-dev.txt").write_text("nowhere==1.0\n")
    before = (folder / "requirements.txt").read_text()
    with pytest.raises(subprocess.CalledProcessError):
        renew_pins.renew(folder, options)
    assert (folder / "requirements.txt").read_text() == before and "nowhere" in capfd.readouterr().err


def test_every_requirement_is_pinned_and_is_what_runs_here():
    for name in renew_pins.FILES:
        text = (PROJECT_DIR / name).read_text()
        lines = [x for x in text.splitlines() if x and not x.startswith(("#", "-r"))]
        pins = [m for x in lines if (m := renew_pins.PIN.match(x))]
        assert len(pins) == len(lines), f"{name}: not pinned: {set(lines) - {p[0] for p in pins}}"
        here = {p["name"]: distribution(p["name"]).version.split("+")[0] for p in pins}
        assert here == {p["name"]: p["version"] for p in pins}, sys.executable
