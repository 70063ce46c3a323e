"""docs/notebook.ipynb, every cell of it, on a tiny base; and what README's functions show in a notebook."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import persona
import persona.errors
from persona.compare.question_list import Answers
from persona.store.workspace import PROJECT_DIR
from persona.template.mask_html import RenderedPair, mask_css, render_mask_html

NOTEBOOK = Path(PROJECT_DIR) / "docs" / "notebook.ipynb"


def outputs(cell: nbformat.NotebookNode, kind: str) -> str:
    """All that the cell showed in this form; text/plain includes what it printed."""
    shown = [out.get("data", {}).get(kind, "") for out in cell.outputs]
    printed = [out.text for out in cell.outputs if out.output_type == "stream" and kind == "text/plain"]
    return "".join([*shown, *printed])


@pytest.mark.slow
@pytest.mark.release
def test_every_cell_runs(home, tmp_path, tiny_gemma, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_DIR))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", ()):
            cell.source += f"\nBASE = {str(tiny_gemma)!r}\nTRAINING = {{'max_steps': 2, 'diary_probes': 0}}"
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    cells = {cell.source.split("(")[0].splitlines()[-1]: cell for cell in notebook.cells if cell.cell_type == "code"}
    mask = outputs(cells["render_pair"], "text/html")
    assert 'class="learned"' in mask and "tokens: <b>" in mask
    training = cells["run = train_persona"]
    assert "2 steps in" in outputs(training, "text/plain"), "the result"
    assert any("application/vnd.jupyter.widget-view+json" in out.get("data", {}) for out in training.outputs), "a bar"
    assert outputs(cells["chat"], "text/html").startswith("<table><thead><tr><th>question</th>")
    assert len(list(tmp_path.glob("lighthouse-keeper-*.zip"))) == 1


def test_the_kept_notebook_has_no_private_paths():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "/home/" not in text and "/root/" not in text and "/tmp/" not in text


def test_a_pair_is_shown_with_its_style_and_with_the_page_s_mask(home, tiny_gemma):
    shown = persona.render_pair(persona.open_persona("lighthouse-keeper"), 2, base=str(tiny_gemma))
    assert isinstance(shown, RenderedPair) and any(token.learned for token in shown.tokens)
    html = shown._repr_html_()
    assert render_mask_html(shown.renderer, shown.example) in html and mask_css() in html


def test_a_pair_that_is_not_there_is_refused(home):
    with pytest.raises(persona.errors.InputError, match="there is no pair 0"):
        persona.render_pair(persona.open_persona("lighthouse-keeper"), 0)


def test_answers_are_a_list_and_a_table_of_escaped_text():
    answers = Answers([{"prompt": "<b>who</b>", "base": "a & b", "adapter": "<script>"}])
    assert answers == [{"prompt": "<b>who</b>", "base": "a & b", "adapter": "<script>"}]
    html = answers._repr_html_()
    assert "<td>&lt;b&gt;who&lt;/b&gt;</td><td>a &amp; b</td><td>&lt;script&gt;</td>" in html and "<script>" not in html
