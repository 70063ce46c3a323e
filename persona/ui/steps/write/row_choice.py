"""Write, tab Import: the source that is read, and which of its rows, as components and as a RowSelection."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError
from persona.ui.i18n import t
from persona.write.importers import hub_dataset, row_selection, text_source
from persona.write.importers.row_selection import ALL_ROWS, RowSelection, parse_selection
from persona.write.importers.text_source import SourceFile


class RowChoice(NamedTuple):
    """The components, or their values."""

    split: Any = ""
    rows: Any = 0  # 0: all; Gradio shows an empty number as 0
    seed: Any = ""
    where: Any = ""
    member: Any = ""  # a file in an archive of several

    def selection(self) -> RowSelection:
        """Raises InputError for a value that cannot be read. where: conditions, one a line."""
        conditions = [line for line in (self.where or "").splitlines() if line.strip()]
        seed = (self.seed or "").strip()
        if seed and not re.fullmatch(r"\d{1,9}", seed):
            raise InputError("Seed {seed!r}: a whole number, or empty for the first rows.", seed=seed)
        return parse_selection(self.split or "", conditions, int(self.rows or 0) or None, int(seed) if seed else None)

    def typed(self) -> tuple[Any, ...]:
        """The components whose text is read when it is complete."""
        return self.split, self.seed, self.where


def build_row_choice(member: gr.Dropdown) -> RowChoice:
    with gr.Accordion(t("Only some of the rows"), open=False, elem_id="import-rows"), gr.Row(elem_classes="slim"):
        return RowChoice(
            gr.Textbox(label=t("Split or slice"), placeholder="train[:1000]", elem_id="import-split", min_width=150,
                       info=t("[:1000] the first thousand, [10%:20%] a tenth")),
            gr.Number(0, label=t("Rows"), precision=0, min_width=110, elem_id="import-row-count",
                      info=t("at most; 0: all")),
            gr.Textbox(label=t("Seed"), min_width=110, elem_id="import-seed", placeholder="42",
                       info=t("picks them at random; empty: the first")),
            gr.Textbox(label=t("Only rows where"), placeholder="len(output)>50", lines=1, max_lines=4, scale=2,
                       elem_id="import-where", info=t("mood=sad, score>3 or len(output)>50; one condition a line")),
            member,
        )  # fmt: skip


@contextlib.contextmanager
def open_given_source(
    file: str | None, pasted: str, dataset: str, selection: RowSelection = ALL_ROWS, member: str = ""
) -> Iterator[SourceFile]:
    """The file, the pasted text or the split of a Hub dataset, whichever is given first. member: of an archive.

    Raises InputError when none is.
    """
    if file:
        row_selection.require_file_split(Path(file).name, selection)
        yield text_source.open_source(Path(file), member=member)
    elif pasted.strip():
        with text_source.save_pasted(pasted) as path:
            yield text_source.open_source(path)
    elif dataset.strip():
        yield text_source.open_source(hub_dataset.download_dataset(dataset.strip(), split=selection.split))
    else:
        raise InputError("Drop a file, paste some text, or name a Hub dataset first.")
