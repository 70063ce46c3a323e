"""The page: Write → Template → Train → Compare → Share, one file a step."""

import contextlib
import threading
import time
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from persona.compare import conversation
from persona.errors import PersonaError
from persona.models.adapter import MAX_ADAPTER_BYTES
from persona.store import deployment, persona_folder, workspace
from persona.train import launcher
from persona.ui import i18n, navigation
from persona.ui.i18n import localized, t
from persona.ui.middleware import visitors as ui_middleware_visitors
from persona.ui.middleware import workspaces
from persona.ui.page import COMPARE, QUIET, SHARE, TEMPLATE, TRAIN, WRITE, Page, persona_dropdown, show_errors
from persona.ui.steps import compare, share, template, train, write
from persona.ui.theme import CSS, THEME

# uploads: as large as an adapter may be; without a limit anyone who reaches the page could fill the disk with one
LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "i18n": i18n.BROWSER_I18N,
    "footer_links": ["gradio"],
    "max_file_size": MAX_ADAPTER_BYTES,
}


def restore_tab(saved: str, request: gr.Request) -> tuple[str, Any, Any, Any]:
    """What a fresh tab shows: a shared persona from the link, a training that is under way, or where one left off.

    Returns slug, walkthrough, adapter list, persona list.
    """
    try:
        launcher.restart_waiting_runs()
    except PersonaError as e:  # a full disk, say: what is there can be looked at all the same
        gr.Warning(escape(localized(e.message)))
    link = dict(request.query_params).get("persona", "")
    running = launcher.find_active_run(persona_folder.list_personas())
    slug = saved if saved in {p.slug for p in persona_folder.list_personas()} else ""
    if link:
        chosen = show_errors(compare.open_shared_link)(link, slug)
        return slug, gr.Walkthrough(selected=COMPARE), chosen, persona_dropdown(slug)
    if running:
        slug = running.path.parent.parent.name
        return slug, gr.Walkthrough(selected=TRAIN), gr.skip(), persona_dropdown(slug)
    return slug, gr.Walkthrough(selected=WRITE), gr.skip(), persona_dropdown(slug)


def retention_notice() -> str:
    """How long a shared server keeps this visitor's work, "" where it keeps it for good."""
    until = workspaces.kept_until(workspace.current_visitor())
    if until is None:
        return ""
    day = time.strftime(t("%d %b"), time.localtime(until)).lstrip("0")
    return t(("Your own workspace on this server, kept until {day}. Download or push what you want to keep."), day=day)


def warm_up() -> None:
    """Open the embedded base's tokenizer in the background, so that the first preview need not wait for it."""

    def work() -> None:
        from persona.models import base, bundled

        with contextlib.suppress(PersonaError):  # the step that needs it will say so
            base.load_tokenizer(base.resolve_base(bundled.DEFAULT_BASE))

    threading.Thread(target=work, daemon=True).start()


def build_app() -> gr.Blocks:
    """The whole page, not launched."""
    workspace.set_visitor_lookup(ui_middleware_visitors.current_visitor)
    shared: dict[str, Any] = (
        {"delete_cache": (3600, 86_400)} if deployment.is_shared_server() else {}
    )  # seconds: every, older than
    with i18n.building_page(), gr.Blocks(title="Persona", fill_width=False, analytics_enabled=False, **shared) as demo:
        # the key is fixed, so that a restart of the server finds it again; it guards nothing, a folder name
        remembered = gr.BrowserState("", storage_key="persona-open", secret="persona")
        key = gr.BrowserState("", storage_key="persona-visitor", secret="persona")  # whose conversations these are
        slug, pair = gr.State(""), gr.State(1)
        with gr.Row(elem_id="head"):
            gr.HTML(f"<h1>Persona</h1><p>{t('Teach a language model to be someone.')}</p>", elem_id="brand")
            which = gr.Dropdown([(t("New or example …"), "")], value="", label=t("Persona"), elem_id="which",
                                scale=0, min_width=260)  # fmt: skip
            other = gr.Button(t("中文"), size="sm", scale=0, min_width=90, elem_id="language")
        if shared:
            demo.load(retention_notice, None, gr.HTML(elem_id="kept", elem_classes="quiet"), **QUIET)
        at = gr.State(WRITE)  # the step that is shown
        steps_html = gr.HTML(elem_id="way", js_on_load=navigation.NAVIGATION_JS)
        # its own buttons stay hidden (looks.css): they close every step beyond the chosen one
        with gr.Walkthrough(selected=WRITE, elem_id="steps") as steps:
            base, chosen, max_length, learn_history = template.make_template_settings()
            adapter = gr.Dropdown([], label=t("Adapter"), elem_id="adapter", scale=3, min_width=260, render=False)
            page = Page(slug, which, steps, pair, base, chosen, max_length, learn_history, adapter)
            with gr.Step(t("Write"), id=WRITE) as first, gr.Column(elem_id="step-write"):
                desk = write.build(page)
            with gr.Step(t("Template"), id=TEMPLATE) as second, gr.Column(elem_id="step-template"):
                template.build(page, second)
            with gr.Step(t("Train"), id=TRAIN) as third, gr.Column(elem_id="step-train"):
                status = train.build(page, third)
            with gr.Step(t("Compare"), id=COMPARE) as fourth, gr.Column(elem_id="step-compare"):
                compare.build(page, fourth, key)
            with gr.Step(t("Share"), id=SHARE) as fifth, gr.Column(elem_id="step-share"):
                share.build(page, fifth)
        for n, step in enumerate((first, second, third, fourth, fifth)):
            step.select(
                show_errors(partial(navigation.mark_step_shown, n)), [slug, desk.findings], [at, steps_html], **QUIET
            )
        at.change(None, None, None, js=navigation.FOCUS_STEP_JS, **QUIET)
        moved = [slug.change, adapter.change, desk.status.change, desk.findings.change, status.change]
        gr.on([*moved, demo.load], show_errors(navigation.navigation_html), [slug, at, desk.findings], steps_html,
              trigger_mode="always_last", **QUIET)  # fmt: skip
        steps_html.click(show_errors(navigation.handle_step_click), slug, steps, **QUIET)
        other.click(None, None, None, js=i18n.SWITCH_LANGUAGE_JS, **QUIET)
        demo.load(lambda known: known or conversation.new_visitor_key(), key, key, **QUIET)
        demo.load(restore_tab, remembered, [slug, steps, adapter, which], **QUIET)
        slug.change(lambda s: (s, persona_dropdown(s), 1), slug, [remembered, which, pair], **QUIET)
        which.input(lambda s: s or "", which, slug, **QUIET)
    return demo
