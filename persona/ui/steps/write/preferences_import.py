"""Write, tab Import: a file of preferences, two answers to each question, can be kept as such; the page asks first."""

from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.errors import InputError, PersonaError
from persona.store import preferences
from persona.store.preferences import Preference
from persona.ui.i18n import localized, t
from persona.ui.page import QUIET, SHOWING, WAITING_EVENT, Page, open_current_persona, run_one_at_a_time, show_errors
from persona.ui.steps.write.row_choice import open_given_source
from persona.ui.widgets import problems_html
from persona.write.importers import json_reader
from persona.write.importers.text_source import SourceFile

SHOWN = 2  # preferences of a file
MAX_LISTED = 5  # rows that are left out


class PreferencesView(NamedTuple):
    """The components, or the values for them."""

    question: Any  # what the file holds
    keep: Any
    kept: Any  # how many the persona has
    remove: Any


def ask(file: str | None, pasted: str, dataset: str, member: str | None = "") -> tuple[str, gr.Button]:
    """What a source of preferences holds, and the button that keeps them; nothing of any other source."""
    hidden = gr.Button(visible=False)
    try:
        with open_given_source(file, pasted, dataset, member=member or "") as source:
            return _ask_about(source) or ("", hidden)
    except PersonaError:  # nothing is given, of an archive no file is chosen yet, or the preview says what is wrong
        return "", hidden


def _ask_about(source: SourceFile) -> tuple[str, gr.Button] | None:
    if not json_reader.score_first_rows(source, preferences.is_preference_row):
        return None
    try:
        found = preferences.read_preferences(source.path)
    except InputError as e:
        return problems_html([e.message]), gr.Button(visible=False)
    text = t(
        "Each of these rows has two answers, a better and a worse one: {n} preferences. Keep them as preferences, on "
        "which step 4 trains an adapter further, or add only the better answers, as pairs, below.",
        n=f"{len(found.preferences):,}",
    )
    examples = "".join(map(_preference_html, found.preferences[:SHOWN]))
    return f"<div class='card'>{text}{examples}</div>{_left_out_html(found.left_out)}", gr.Button(visible=True)


def _preference_html(p: Preference) -> str:
    return (
        f"<p><b>{escape(p.pair.instruction[:300])}</b><br>✓ {escape(p.pair.output[:300])}<br>"
        f"<span class='quiet'>✗ {escape(p.rejected[:300])}</span></p>"
    )


def _left_out_html(left_out: tuple[str, ...]) -> str:
    if not left_out:
        return ""
    lines = "".join(f"<li>{escape(localized(text))}</li>" for text in left_out[:MAX_LISTED])
    more = len(left_out) - MAX_LISTED
    lines += f"<li>{t('… and {n} more', n=more)}</li>" if more > 0 else ""
    return f"<div class='hint'>{t('{n} skipped:', n=f'{len(left_out):,}')}<ul>{lines}</ul></div>"


def keep(slug: str, file: str | None, pasted: str, dataset: str, member: str | None = "") -> PreferencesView:
    """Add the source's preferences to those of the open persona."""
    persona = open_current_persona(slug)
    with open_given_source(file, pasted, dataset, member=member or "") as source:
        found = preferences.read_preferences(source.path)
    added = preferences.add_preferences(persona, found.preferences)
    text = t("<b>{n} preferences kept.</b> {known} were there already.", n=f"{added:,}",
             known=f"{len(found.preferences) - added:,}")  # fmt: skip
    return PreferencesView(f"<div class='good'>{text}</div>", gr.Button(visible=False), *count_kept(slug))


def count_kept(slug: str) -> tuple[str, gr.Button]:
    """How many imported preferences the persona has, and the button that removes them."""
    count = len(preferences.load_preferences(open_current_persona(slug)).preferences) if slug else 0
    text = t("Imported preferences: {n}. “Train on my votes” in step 4 learns from them too.", n=f"{count:,}")
    return f"<div class='quiet'>{text}</div>" if count else "", gr.Button(visible=bool(count))


def remove(slug: str) -> tuple[str, gr.Button]:
    """Move them to the trash."""
    preferences.trash_preferences(open_current_persona(slug))
    return count_kept(slug)


def build() -> PreferencesView:
    question = gr.HTML(elem_id="import-preferences")
    keep_button = gr.Button(t("Keep them as preferences"), variant="primary", visible=False, elem_id="keep-preferences")
    with gr.Row(equal_height=True):
        kept = gr.HTML(elem_id="kept-preferences")
        remove_button = gr.Button(t("Remove them"), size="sm", scale=0, min_width=150, visible=False)
    return PreferencesView(question, keep_button, kept, remove_button)


def connect(page: Page, tab: gr.Tab, view: PreferencesView, source: list[Any], surveyed: Any) -> None:
    """source: the components that name it. surveyed: the event of a new source."""
    surveyed.then(run_one_at_a_time(show_errors(ask)), source, [view.question, view.keep], **SHOWING, **WAITING_EVENT)
    view.keep.click(run_one_at_a_time(show_errors(keep)), [page.slug, *source], view, **QUIET, **WAITING_EVENT)
    count: dict[str, Any] = {"inputs": page.slug, "outputs": [view.kept, view.remove], **QUIET}
    tab.select(show_errors(count_kept), **{**count, **SHOWING})
    view.remove.click(show_errors(remove), **count)
