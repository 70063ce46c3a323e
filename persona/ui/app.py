"""The Gradio app: the header, the navigation and the five steps, put together."""

import contextlib
import threading
import time
from collections.abc import Sequence
from functools import partial
from html import escape
from typing import Any, NamedTuple

import gradio as gr

from persona.compare import conversation
from persona.errors import PersonaError
from persona.models.adapter import MAX_ADAPTER_BYTES
from persona.store import deployment, persona_folder, workspace
from persona.train import launcher
from persona.ui import i18n, navigation
from persona.ui.i18n import localized, t
from persona.ui.middleware import visitors, workspaces
from persona.ui.navigation import COMPARE, SHARE, TEMPLATE, TRAIN, WRITE
from persona.ui.page import QUIET, Page, persona_dropdown, remove_downloads, show_errors
from persona.ui.steps import compare, share, template, train, write
from persona.ui.steps.write.pairs_tab import PairsTab
from persona.ui.theme import CSS, THEME
from persona.ui.widgets import COUNTDOWN_JS

LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "i18n": i18n.BROWSER_I18N,
    "footer_links": ["gradio"],
    "max_file_size": MAX_ADAPTER_BYTES,  # of an upload; else anyone who reaches the page could fill the disk
    "state_session_capacity": 2000,  # tabs whose state is kept, 0.6 MB each; Gradio itself drops none when it is closed
}
CACHE_SECONDS = (3600, 86_400)  # on a shared server: how often Gradio's files are deleted, and from what age on


class RestoredTab(NamedTuple):
    """What a new tab shows: components, or the values of restore_tab for them."""

    slug: Any
    steps: Any
    adapter: Any
    persona_list: Any


def restore_tab(saved: str, request: gr.Request) -> RestoredTab:
    """A new tab opens the adapter of a shared link, else the run that is active, else the persona open before."""
    try:
        launcher.restart_waiting_runs()
    except PersonaError as e:  # a full disk, for instance: what is there can still be looked at
        gr.Warning(escape(localized(e.message)))
    link = dict(request.query_params).get("persona", "")
    personas = persona_folder.list_personas()
    running = launcher.find_active_run(personas)
    slug = saved if saved in {p.slug for p in personas} else ""
    step, adapter = WRITE, gr.skip()
    if link:
        step, adapter = COMPARE, show_errors(compare.open_shared_link)(link, slug)
    elif running:
        step, slug = TRAIN, running.persona_slug
    return RestoredTab(slug, gr.Walkthrough(selected=step), adapter, persona_dropdown(slug))


def retention_notice() -> str:
    """How long a shared server keeps this visitor's work; "" where it is kept for good."""
    until = workspaces.kept_until(workspace.current_visitor())
    if until is None:
        return ""
    day = time.strftime(t("%d %b"), time.localtime(until)).lstrip("0")
    return t("Your own workspace on this server, kept until {day}. Download or push what you want to keep.", day=day)


def warm_up() -> None:
    """Open the embedded base's tokenizer in the background, so that the first preview need not wait for it."""

    def load_tokenizer() -> None:
        from persona.models import base, bundled

        with contextlib.suppress(PersonaError):  # the step that needs it shows the error
            base.load_tokenizer(base.resolve_base(bundled.DEFAULT_BASE))

    threading.Thread(target=load_tokenizer, daemon=True).start()


def build_app() -> gr.Blocks:
    """The whole page, not launched."""
    workspace.set_visitor_lookup(visitors.current_visitor)
    is_shared = deployment.is_shared_server()
    options: dict[str, Any] = {"delete_cache": CACHE_SECONDS} if is_shared else {}
    with i18n.building_page(), gr.Blocks(title="Persona", fill_width=False, analytics_enabled=False, **options) as demo:
        # a fixed secret, so that a restarted server can read it again; it protects nothing, only a folder name
        last_slug = gr.BrowserState("", storage_key="persona-open", secret="persona")
        visitor_key = gr.BrowserState(
            "", storage_key="persona-visitor", secret="persona"
        )  # whose conversations to show
        slug, shown_step = gr.State(""), gr.State(WRITE)
        persona_list, language_button = _build_header()
        if is_shared:
            demo.load(retention_notice, None, gr.HTML(elem_id="retention", elem_classes="quiet"), **QUIET)
        bar = gr.HTML(elem_id="navigation", js_on_load=navigation.NAVIGATION_JS + COUNTDOWN_JS)
        page, steps, pairs, run_status = _build_steps(slug, persona_list, visitor_key)
        _connect_navigation(demo, page, bar, shown_step, steps, pairs, run_status)
        language_button.click(None, None, None, js=i18n.SWITCH_LANGUAGE_JS, **QUIET)
        demo.load(lambda key: key or conversation.new_visitor_key(), visitor_key, visitor_key, **QUIET)
        demo.load(restore_tab, last_slug, RestoredTab(slug, page.steps, page.adapter, persona_list), **QUIET)
        slug.change(
            lambda slug: (slug, persona_dropdown(slug), 1), slug, [last_slug, persona_list, page.pair_number], **QUIET
        )
        demo.unload(remove_downloads)
        persona_list.input(lambda slug: slug or "", persona_list, slug, **QUIET)
    return demo


def _build_header() -> tuple[gr.Dropdown, gr.Button]:
    with gr.Row(elem_id="head"):
        gr.HTML(f"<h1>Persona</h1><p>{t('Teach a language model to be someone.')}</p>", elem_id="brand")
        persona_list = gr.Dropdown([(t("New or example …"), "")], value="", label=t("Persona"), elem_id="persona-list",
                                   scale=0, min_width=260)  # fmt: skip
        language_button = gr.Button(t("中文"), size="sm", scale=0, min_width=90, elem_id="language")
    return persona_list, language_button


def _build_steps(
    slug: gr.State, persona_list: gr.Dropdown, visitor_key: gr.BrowserState
) -> tuple[Page, list[gr.Step], PairsTab, gr.HTML]:
    """The shared components, the five steps, and the two components that the navigation follows."""
    pair_number = gr.State(1)
    # its own buttons are hidden (theme.css): they would close every step after the selected one
    with gr.Walkthrough(selected=WRITE, elem_id="steps") as walkthrough:
        adapter = gr.Dropdown([], label=t("Adapter"), elem_id="adapter", scale=3, min_width=260, render=False)
        page = Page(slug, persona_list, walkthrough, pair_number, template.make_template_settings(), adapter)
        with gr.Step(t("Write"), id=WRITE) as first, gr.Column(elem_id="step-write"):
            pairs = write.build(page)
        with gr.Step(t("Template"), id=TEMPLATE) as second, gr.Column(elem_id="step-template"):
            template.build(page, second)
        with gr.Step(t("Train"), id=TRAIN) as third, gr.Column(elem_id="step-train"):
            run_status = train.build(page, third)
        with gr.Step(t("Compare"), id=COMPARE) as fourth, gr.Column(elem_id="step-compare"):
            compare.build(page, fourth, visitor_key)
        with gr.Step(t("Share"), id=SHARE) as fifth, gr.Column(elem_id="step-share"):
            share.build(page, fifth)
    return page, [first, second, third, fourth, fifth], pairs, run_status


def _connect_navigation(
    demo: gr.Blocks,
    page: Page,
    bar: gr.HTML,
    shown_step: gr.State,
    steps: Sequence[gr.Step],
    pairs: PairsTab,
    run_status: gr.HTML,
) -> None:
    """The bar follows the selected step, and every change of what opens or finishes a step."""
    for number, step in enumerate(steps):
        step.select(
            show_errors(partial(navigation.mark_step_shown, number)),
            [page.slug, pairs.findings],
            [shown_step, bar],
            **QUIET,
        )
    shown_step.change(None, None, None, js=navigation.FOCUS_STEP_JS, **QUIET)
    changes = [page.slug, page.adapter, pairs.status, pairs.findings, run_status]
    gr.on(
        [*(component.change for component in changes), demo.load],
        show_errors(navigation.navigation_html),
        [page.slug, shown_step, pairs.findings],
        bar,
        trigger_mode="always_last",
        **QUIET,
    )
    bar.click(show_errors(navigation.handle_step_click), page.slug, page.steps, **QUIET)
