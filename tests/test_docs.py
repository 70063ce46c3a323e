"""What README, the documents and the requirements promise, and that no file grows long."""

import re
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_formats_are_all_described():
    from persona.models import adapter
    from persona.store import persona_folder
    from persona.train import progress

    text = (PROJECT / "docs/formats.md").read_text(encoding="utf-8")
    named = {*persona_folder.PersonaCard.model_fields, *persona_folder.SamplingDefaults.model_fields, *persona_folder.ProbeRule.model_fields,
             *adapter.ADAPTER_FILES, *progress._REQUIRED_KEYS}  # fmt: skip
    assert sorted(name for name in named if f"`{name}`" not in text and f'"{name}"' not in text) == []


def test_what_leaves_is_counted_right():
    from persona.models import adapter

    counted = {8: "eight", 7: "seven", 6: "six"}[len(adapter.ADAPTER_FILES)]
    assert f"only {counted} named files leave" in (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
    assert f"These {counted} and nothing else" in (PROJECT / "docs/formats.md").read_text(encoding="utf-8")


def test_the_result_of_a_run_is_described_whole():
    from persona.cli.train import RESULT_KEYS

    (row,) = re.findall(r"^\| `result` .*$", (PROJECT / "docs/formats.md").read_text(encoding="utf-8"), re.M)
    assert [name for name in RESULT_KEYS if f"`{name}`" not in row] == []


def test_every_address_that_is_contacted_is_named():
    """SECURITY.md names the variables that hold addresses and secrets."""
    code = "".join(p.read_text(encoding="utf-8") for p in (PROJECT / "persona").rglob("*.py"))
    found = set(re.findall(r"PERSONA_[A-Z]+_(?:URL|KEYS?)", code))
    text = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")
    assert found and sorted(name for name in found if f"`{name}`" not in text) == []


def test_readme_counts_the_bases_right():
    from persona.models import base, bundled

    assert int(re.search(r"Step 2 lists (\d+) more", README)[1]) == len(base.list_base_choices()) - len(
        bundled.BUNDLED_MODELS
    )


MANY_LINES = 400
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)\)")
MODULE = re.compile(r"`([a-z_]+/[a-z_/]+\.py)`")


def test_no_file_is_long():
    files = [f.relative_to(PROJECT) for ext in ("py", "js", "css") for f in PROJECT.rglob(f"*.{ext}")]
    ours = [f for f in files if not any(part.startswith(".") for part in f.parts)]  # not .venv, not what tools leave
    lines = {str(f): len((PROJECT / f).read_text(encoding="utf-8").splitlines()) for f in ours}
    assert {name: count for name, count in lines.items() if count > MANY_LINES} == {}


def test_readme_shows_how_to_start_first():
    start = README.split("---", 2)[2][:1800]
    assert "`make run`" in start and "`pip install .`" in start and "`persona page`" in start


def test_links_between_documents_lead_somewhere():
    documents = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("benchmarks/*.md")]
    paths = [(doc, link) for doc in documents for link in LINK.findall(doc.read_text(encoding="utf-8"))]
    assert len(paths) > 30
    assert [(d.name, link) for d, link in paths if not (d.parent / link).is_file()] == []


def test_documents_name_modules_that_exist():
    """`package/module.py` in a document is a file of persona/, or of the project."""
    named = {(doc.name, name) for doc in [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("benchmarks/*.md")]
             for name in MODULE.findall(doc.read_text(encoding="utf-8"))}  # fmt: skip
    assert len(named) > 20
    assert [x for x in sorted(named) if not any((PROJECT / top / x[1]).is_file() for top in ("", "persona"))] == []


def test_readme_is_a_space_card():
    """The front matter makes the repository a Space; its Gradio must be the one that is installed."""
    from huggingface_hub import RepoCard

    data = RepoCard(README).data.to_dict()
    assert data["sdk"] == "gradio" and data["app_file"] == "app.py" and (PROJECT / data["app_file"]).is_file()
    pins = (PROJECT / "requirements.txt").read_text()
    assert f"=={data['sdk_version']}" in re.search(r"^gradio.*$", pins, re.M)[0]
    assert len(data["short_description"]) <= 60
