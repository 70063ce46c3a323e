"""Write, above the tabs: how many pairs there are, whether they can be trained on, and the undo and redo buttons."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from persona.errors import PersonaError
from persona.judge import verdict
from persona.store import pairs
from persona.store.pairs import BadLine, Pair
from persona.ui.i18n import localized, t
from persona.write.importers.registry import count_conversations, describe_replies

ENOUGH_PAIRS = 100  # from about here on a persona begins to show
MAX_SHOWN = 5  # unfinished pairs, or damaged lines
MAX_LABEL = 34  # characters of a button


def undo_button(label: str) -> gr.Button:
    """label: of the edit that Undo would take back; "" for none."""
    return _edit_button(t("Undo: {edit}", edit=localized(label)) if label else t("Undo"), bool(label))


def redo_button(label: str) -> gr.Button:
    return _edit_button(t("Redo: {edit}", edit=localized(label)) if label else t("Redo"), bool(label))


def _edit_button(text: str, interactive: bool) -> gr.Button:
    return gr.Button(text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 1] + "…", interactive=interactive)


def pairs_status_html(items: Sequence[Pair], bad_lines: Sequence[BadLine] = ()) -> str:
    """How many pairs there are, whether that is enough, what is unfinished, and the damaged lines of the file."""
    count = len(items)
    if not count:
        return f'<div class="hint">{t("No pairs yet.")}</div>' + rejected_html(bad_lines)
    # pairs_table.js shows one of these texts while it saves, and after the third the reason
    saved = t("saved.")
    refused = t("not saved.")
    state = (
        f'<span class="saving" role="status" data-saving="{t("Saving …")}" data-saved="{saved}" '
        f'data-refused="{refused}">{saved}</span>'
    )
    told = localized(describe_replies(count, count_conversations(items)))
    told = told or t("{n} pair(s)", n=f"{count:,}")
    lines = [t("<b>{count}</b>, {state}", count=told, state=state)]
    if unfinished := pairs.find_unfinished(items):
        rows = ", ".join(f"#{row}: {missing_text(why)}" for row, why in unfinished[:MAX_SHOWN])
        text = t("Not ready to train: {rows}.", rows=rows)
        if len(unfinished) > MAX_SHOWN:
            text = t("Not ready to train: {rows} and {n} more.", rows=rows, n=len(unfinished) - MAX_SHOWN)
        lines.append(f'<div class="problem">{text}</div>')
    if count < verdict.FEW_PAIRS:
        few = t("Too few to train on: a persona begins to show from about 100 pairs, and with fewer than 50 nobody can "
                "measure whether it learned.")  # fmt: skip
        lines.append(f'<div class="hint">{few}</div>')
    elif count < ENOUGH_PAIRS:
        enough = t("A persona begins to show from about 100 pairs; 200 to 500 are better.")
        lines.append(f'<div class="hint">{enough}</div>')
    return " ".join(lines) + rejected_html(bad_lines)


def missing_text(why: str) -> str:
    """What a pair lacks, by the names of the table's columns. why: of pairs.find_unfinished, which names the fields."""
    columns = {"instruction": t("“Someone says” is empty"), "output": t("“The persona answers” is empty"),
               "history": t("an earlier turn is empty")}  # fmt: skip
    return next((text for field, text in columns.items() if why.startswith(f"'{field}'")), escape(localized(why)))


def refusal_text(error: PersonaError) -> str:
    """Why an edit of a pair was refused, with its fields by the names of the table's columns."""
    message = error.message
    for field, column in (("instruction", t("Someone says")), ("output", t("The persona answers"))):
        message = message.replaced(field, column)
    return localized(message)


def rejected_html(bad_lines: Sequence[BadLine]) -> str:
    """Lines of pairs.jsonl that are no pairs, which the next save keeps in another file."""
    if not bad_lines:
        return ""
    texts = [t("pairs.jsonl line {line}: {why}", line=b.line, why=escape(localized(b.why)))
             for b in bad_lines[:MAX_SHOWN]]  # fmt: skip
    if len(bad_lines) > MAX_SHOWN:
        texts.append(t("… and {n} more", n=len(bad_lines) - MAX_SHOWN))
    lines = "".join(f'<div class="problem">{text}</div>' for text in texts)
    aside = t("The next save moves such lines to pairs.rejected.txt; nothing is lost.")
    return f"{lines}<div class='quiet'>{aside}</div>"


def replies_text(replies: int, conversations: int) -> str:
    """A sentence on the conversations that the replies are of, where these have several; else nothing."""
    told = localized(describe_replies(replies, conversations))
    return t("{replies}. ", replies=told) if told else ""
