"""What README, the documents and the requirements promise, and that no file grows long."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_formats_are_all_described():
    from persona import adapter, folder, progress

    text = (PROJECT / "docs/formats.md").read_text(encoding="utf-8")
    named = {*folder.Card.model_fields, *folder.Manner.model_fields, *folder.ProbeRule.model_fields,
             *adapter.FILES, *progress._NEEDS}  # fmt: skip
    assert sorted(name for name in named if f"`{name}`" not in text and f'"{name}"' not in text) == []


MANY_LINES = 400


def test_no_file_is_long():
    files = [f.relative_to(PROJECT) for ext in ("py", "js", "css") for f in PROJECT.rglob(f"*.{ext}")]
    ours = [f for f in files if not any(part.startswith(".") for part in f.parts)]  # not .venv, not what tools leave
    lines = {str(f): len((PROJECT / f).read_text(encoding="utf-8").splitlines()) for f in ours}
    assert {name: count for name, count in lines.items() if count > MANY_LINES} == {}


def test_readme_shows_the_two_commands_first():
    start = README.split("---", 2)[2][:1500]
    assert "make run" in start and "make test" in start and "python app.py" in start


def test_pictures_are_there():
    paths = re.findall(r"\]\((docs/[^)]+)\)", README)
    assert paths and [p for p in paths if not (PROJECT / p).is_file()] == []


def test_readme_is_a_space_card():
    """The front matter makes the repository a Space; its Gradio must be the one that is installed."""
    from huggingface_hub import RepoCard

    data = RepoCard(README).data.to_dict()
    assert data["sdk"] == "gradio" and data["app_file"] == "app.py" and (PROJECT / data["app_file"]).is_file()
    pins = (PROJECT / "requirements.txt").read_text()
    assert f"=={data['sdk_version']}" in re.search(r"^gradio.*$", pins, re.M)[0]
    assert len(data["short_description"]) <= 60


def test_direct_dependencies_are_pinned():
    for name in ("requirements.txt", "requirements-dev.txt"):
        for line in (PROJECT / name).read_text().splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[\w.\-\[\]]+==[\w.]+", line), f"{name}: {line}"
