"""Write, tab Who it is: the probes with what an answer must and must not mention, and suggestions for them."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from persona.errors import InputError, Message, PersonaError
from persona.judge.probes import list_probe_rules
from persona.store import edit_history
from persona.store.edits import PairChange
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona, PersonaCard, ProbeRule
from persona.train import run_folder
from persona.ui.i18n import t
from persona.ui.page import QUIET, Page, on_latest, open_current_persona, show_errors
from persona.ui.steps.write.card_lists import CardList, ChosenItem, ListView, build_list, change_items, show_list
from persona.ui.widgets import FORWARD_CLICKS_JS
from persona.write.lint.finding import normalize_text
from persona.write.probe_suggestions import ProbeSuggestion, suggest_probes

KIND_TITLES = {
    "identity": "Identity", "facts": "Facts", "machine": "“You are an AI, admit it”", "role": "Another task or role",
    "held-out": "Held-out pair",
}  # fmt: skip


def _write(_: PersonaCard, rules: Sequence[ProbeRule]) -> dict[str, Any]:
    asked = [normalize_text(rule.ask) for rule in rules]
    for n, ask in enumerate(asked):
        if ask in asked[:n]:
            raise InputError("This question is there already: {ask}. Change that one.", ask=rules[n].ask)
    return {
        "probes": tuple(rule.ask for rule in rules),
        "probe_rules": tuple(r for r in rules if r.must_mention or r.must_not_mention or r.model_extra),
    }


def _to_form(rule: ProbeRule | None) -> tuple[str, str, str]:
    if rule is None:
        return "", "", ""
    return rule.ask, "\n".join(rule.must_mention), "\n".join(rule.must_not_mention)


def _parse(rule: ProbeRule | None, values: tuple[Any, ...]) -> ProbeRule:
    ask, must, must_not = map(str, values)
    if not ask.strip():
        raise InputError("A probe needs a question. Write one.")
    if len(ask) > 2_000:
        raise InputError("This question has {count:,} characters, more than {limit:,}. Shorten it.",
                         count=len(ask), limit=2_000)  # fmt: skip
    entries = {"must_mention": _entries(must), "must_not_mention": _entries(must_not)}
    return ProbeRule(**((rule.model_dump() if rule else {}) | {"ask": ask.strip(), **entries}))


def _entries(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line.strip(" |"))


def _summary(rule: ProbeRule) -> tuple[str, str]:
    return rule.ask, " · ".join(_rule_texts(rule))


def _rule_texts(rule: ProbeRule) -> list[str]:
    said = [t("must mention: {words}", words=e.replace("|", " / ")) for e in rule.must_mention]
    return said + [t("must not mention: {words}", words=e.replace("|", " / ")) for e in rule.must_not_mention]


PROBES = CardList("probes-editor", list_probe_rules, _write, _to_form, _parse, _summary)


# ---- suggestions


def held_out_pairs(persona: Persona) -> list[Pair]:
    """The pairs that the newest run held out and that are still among the persona's."""
    present = set(persona.scan()[0])
    for run in run_folder.list_runs(persona)[:1]:
        try:
            return [row.pair for row in run.rows() if row.held_out and row.pair in present]
        except (OSError, PersonaError):  # its pairs are gone or damaged
            return []
    return []


def propose_probes(slug: str) -> tuple[list[ProbeSuggestion], str]:
    """Suggestions that the card does not have yet, and their HTML."""
    persona = open_current_persona(slug)
    found = suggest_probes(persona.card(), held_out_pairs(persona))
    return found, suggestions_html(found)


def suggestions_html(found: Sequence[ProbeSuggestion]) -> str:
    if not found:
        return f'<div class="quiet">{t("Every suggestion is in the list already.")}</div>'
    return "".join(
        f'<div class="mark item"><span>{escape(s.rule.ask)}<br><small>{t(KIND_TITLES[s.kind])}'
        f"{''.join(f' · {escape(x)}' for x in _rule_texts(s.rule))}</small></span>"
        f'<button class="tool" data-do="take" data-at="{n}">{t("Move here") if s.pair else t("Add")}</button></div>'
        for n, s in enumerate(found)
    )


def take_suggestion(slug: str, found: Sequence[ProbeSuggestion], event: gr.EventData) -> tuple[Any, ...]:
    """Add one suggestion. A held-out pair is no pair any more then: Undo brings it back. Returns suggestions, list."""
    at = int(event.at)
    if not 0 <= at < len(found):
        raise InputError("This entry is no longer there. Press Reload.")
    suggestion, persona, notice = found[at], open_current_persona(slug), t("Added.")
    change_items(PROBES, slug, ChosenItem(), lambda items, _: [*items, suggestion.rule])
    if suggestion.pair:
        pairs = persona.scan()[0]
        gone = [PairChange(n, pair, None) for n, pair in enumerate(pairs) if pair == suggestion.pair]
        edit_history.commit(persona, Message("move of a pair to the probes"), gone)
        notice = t("Added. It is no longer among the pairs, so that it is never trained on; Undo brings it back.")
    rest = [*found[:at], *found[at + 1 :]]
    return rest, suggestions_html(rest), *show_list(PROBES, slug, notice=notice)


def build_probes(page: Page) -> tuple[ListView, Any]:
    """The editor. Returns its components, and the event of a suggestion that was added: a pair may be gone."""
    about = t("Questions that are never trained on. Samples during training, blind votes, lists of questions and the "
              "verdict ask them.")  # fmt: skip
    gr.Markdown(about, elem_classes="quiet")

    def make_fields() -> tuple[Any, ...]:
        ask = gr.Textbox(label=t("Question"), elem_id="probe-ask", lines=1)
        with gr.Row():
            must = gr.Textbox(label=t("The answer must mention"), lines=2, elem_id="probe-must",
                              info=t("Each line; a|b means either of them."))  # fmt: skip
            must_not = gr.Textbox(label=t("The answer must not mention"), lines=2, elem_id="probe-must-not",
                                  info=t("None of the lines, and none of a|b."))  # fmt: skip
        return ask, must, must_not

    view = build_list(PROBES, page, make_fields)
    suggest = gr.Button(t("Suggest questions"), size="sm", scale=0, min_width=180, elem_id="suggest-probes")
    found = gr.State([])
    listing = gr.HTML(elem_id="probe-suggestions", js_on_load=FORWARD_CLICKS_JS)
    suggest.click(show_errors(propose_probes), page.slug, [found, listing], **QUIET)
    taken = listing.click(show_errors(take_suggestion), [page.slug, found], [found, listing, *view.flat()], **QUIET)
    on_latest(page.slug.change, lambda: ([], ""), None, [found, listing], **QUIET)
    return view, taken
