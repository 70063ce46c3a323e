"""Write, tab Pairs, find & replace: in all pairs at once."""

import re
from html import escape
from typing import Any

import gradio as gr

from persona.errors import Message
from persona.store import edit_history, edits
from persona.ui.i18n import t
from persona.ui.page import QUIET, SHOWING, Page, in_lane, open_current_persona, run_in_order, show_errors
from persona.ui.steps.write import pairs_tab
from persona.write.lint.finding import pair_texts


def preview_replacement(slug: str, find: str, replacement: str, match_case: bool) -> tuple[str, Any]:
    """What a find-and-replace would change, as HTML, and the button."""
    if not find:
        return "", gr.Button(t("Replace"), interactive=False)
    changes = edits.replace_in_pairs(open_current_persona(slug).scan()[0], find, replacement, match_case)
    pattern = edits.search_pattern(find, match_case)
    shown_rows = "".join(
        f"<div><span class='no'>{c.at + 1}</span><span>{_replacement_html(before, pattern, replacement)}</span></div>"
        for c in changes[:20]
        for before in _changed_texts(c)
    )
    more = ""
    if len(changes) > 20:
        more = f"<div class='quiet'>{t('… and {n} more pair(s)', n=f'{len(changes) - 20:,}')}</div>"
    return f"<div class='preview'>{shown_rows}</div>{more}", gr.Button(
        _replace_label(len(changes)), interactive=bool(changes)
    )


def _replace_label(count: int) -> str:
    if not count:
        return t("Nothing found")
    return t("Replace in {n} pair(s)", n=f"{count:,}")


def _changed_texts(change: edits.PairChange) -> list[str]:
    """The texts of a pair that change, as they are now."""
    assert change.old and change.new
    old, new = pair_texts(change.old), pair_texts(change.new)
    return [a for a, b in zip(old, new, strict=True) if a != b]


def _replacement_html(text: str, pattern: re.Pattern[str], replacement: str) -> str:
    """The text with each place that is replaced: the old, whole and crossed out, an arrow, the new."""
    new = f" → <ins>{escape(replacement)}</ins>" if replacement else ""
    pieces, end = [], 0
    for match in pattern.finditer(text):
        pieces += [escape(text[end : match.start()]), f"<del>{escape(match[0])}</del>{new}"]
        end = match.end()
    return "".join([*pieces, escape(text[end:])])


def replace_all(slug: str, find: str, replacement: str, match_case: bool) -> tuple[str, Any]:
    persona = open_current_persona(slug)
    changes = edits.replace_in_pairs(persona.scan()[0], find, replacement, match_case)
    edit_history.commit(persona, Message("replacement in {n} pair(s)", n=len(changes)), changes)
    done = t("Replaced in {n} pair(s). Undo takes it back.", n=f"{len(changes):,}")
    return f"<div class='good'>{done}</div>", gr.Button(t("Replace"), interactive=False)


def build_replace_tab(page: Page, tab: pairs_tab.PairsTab) -> None:
    with gr.Row(elem_classes="slim"):
        find = gr.Textbox(label=t("Find"), elem_id="find")
        replacement = gr.Textbox(label=t("Replace with"), elem_id="replace-with")
        match_case = gr.Checkbox(True, label=t("Match case"), scale=0, min_width=140)
        button = gr.Button(t("Replace"), interactive=False, scale=0, min_width=200, elem_id="replace-all")
    result = gr.HTML(elem_id="replace-preview")
    inputs = [page.slug, find, replacement, match_case]
    # not .input, which is silent when text is pasted or comes from an input method
    gr.on(
        [find.change, replacement.change, match_case.input],
        run_in_order(show_errors(preview_replacement), "replace"),
        inputs,
        [result, button],
        **SHOWING,
        **in_lane("replace"),
    )
    replaced = button.click(
        run_in_order(show_errors(replace_all), "replace"), inputs, [result, button], **QUIET, **in_lane("replace")
    )
    pairs_tab.redraw_after(replaced, tab, page)
