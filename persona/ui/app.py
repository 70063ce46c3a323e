"""The Gradio app: the header, the navigation and the five steps, put together."""

import contextlib
import threading
import time
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl

import gradio as gr

from persona.compare import conversation
from persona.errors import PersonaError
from persona.models import zerogpu
from persona.models.adapter import MAX_ADAPTER_BYTES
from persona.store import deployment, persona_folder, workspace
from persona.train import launcher
from persona.ui import chosen, i18n, navigation, next_steps, voice_picker
from persona.ui.chosen import Chosen, ChosenView
from persona.ui.i18n import localized, t
from persona.ui.middleware import visitors, workspaces
from persona.ui.navigation import COMPARE, SHARE, TEMPLATE, TRAIN, WRITE
from persona.ui.notices import show_info, show_warning
from persona.ui.page import QUIET, SHOWING, Page, error_notice, on_latest, remove_downloads, show_errors
from persona.ui.steps import compare, share, template, train, write
from persona.ui.steps.compare.loading import open_ahead
from persona.ui.steps.write.pairs_tab import PairsTab
from persona.ui.theme import CSS, THEME
from persona.ui.widgets import COUNTDOWN_JS
from persona.write.lint.finding import Finding

LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "i18n": i18n.BROWSER_I18N,
    "footer_links": ["gradio"],
    "max_file_size": MAX_ADAPTER_BYTES,  # of an upload; else anyone who reaches the page could fill the disk
    "state_session_capacity": 2000,  # tabs whose state is kept, 0.6 MB each; Gradio itself drops none when it is closed
    # else Gradio asks the page for itself and gives up after three seconds, on a busy machine or behind a proxy
    "_frontend": False,
}
# One after the other, each with what the one before has changed: they choose, or draw who is chosen and which step is
# shown. Of two at a time, the slower would show what was before, and put it into the address.
CHOOSING: dict[str, Any] = {**SHOWING, "concurrency_id": "choosing", "concurrency_limit": 1}
# of events that carry data: one that waited would be sent with the data of the one before
CHOOSING_BY_DATA: dict[str, Any] = {**CHOOSING, "trigger_mode": "multiple"}
MAX_ADDRESS, MAX_SHOWN_LINK = 2000, 120  # characters
CACHE_SECONDS = (3600, 86_400)  # on a shared server: how often Gradio's files are deleted, and from what age on


class RestoredTab(NamedTuple):
    """What a tab shows of an address: components, or the values for them."""

    chosen: Any  # a ChosenView, and its fields
    slug: Any
    adapter: Any
    persona_list: Any
    adapter_list: Any
    steps: Any
    shown_step: Any
    asked: Any  # "start", or the number of the Back or Forward that this answers, for the navigation's script
    awaited: Any  # an AwaitedLink

    @classmethod
    def unchanged(cls) -> Self:
        return cls(*[gr.skip() for _ in cls._fields])


class AwaitedLink(NamedTuple):
    """A share link that Back or Forward has led to, and what the page showed then. The last one that was asked for."""

    asked: str = ""  # as in RestoredTab, "" for none
    address: str = ""
    chosen: Chosen = Chosen()
    step: int = WRITE

    @property
    def link(self) -> str:
        return _read_query(self.address).get("persona", "").strip()


def restore_tab(saved: str | None, request: gr.Request) -> RestoredTab:
    """A new tab opens what its address names, else what was open last in this browser, else who was edited last.

    saved: the persona that was open, "" for the start page, None where nothing was.
    """
    try:
        launcher.restart_waiting_runs()
    except PersonaError as e:  # a full disk, for instance: what is there can still be looked at
        show_warning(localized(e.message))
    query = dict(request.query_params)
    if query.get("persona") or query.get("adapter"):
        return show_address(query, "start")
    personas = persona_folder.list_personas()
    slug = saved
    if slug is None or slug not in {"", *(p.slug for p in personas)}:
        slug = personas[0].slug if personas else ""
    running = launcher.find_active_run([p for p in personas if p.slug == slug])
    return _show_tab(Chosen.newest_of(slug), TRAIN if running else WRITE, "start")


def show_address(query: dict[str, str], asked: str) -> RestoredTab:
    """Who and what an address of the page names. asked: as in RestoredTab.

    Raises gr.Error for a share link that cannot be opened.
    """
    if chosen.is_share_link(query):
        return _show_named(_open_share_link(query["persona"].strip()), query, asked)
    return _show_named(chosen.read_address(query), query, asked)


def _show_named(who: Chosen, query: dict[str, str], asked: str) -> RestoredTab:
    step = COMPARE if who.link else WRITE
    if (name := query.get("step", "")) in navigation.STEP_NAMES:
        step = navigation.STEP_NAMES.index(name)
    if navigation.closed_reason(step, navigation.read_persona_state(who, [])):
        step = WRITE
    return _show_tab(who, step, asked)


def _open_share_link(link: str) -> Chosen:
    """The adapter that a link names. Raises gr.Error, which stays: who has clicked looks away while it is fetched."""
    show_info(t("Opening {name} from the Hub …", name=link[:MAX_SHOWN_LINK]))
    try:
        adapter_id = voice_picker.add_hub_adapter(link)
        open_ahead(adapter_id)
        return Chosen(adapter=adapter_id, by_hand=True, link=link)
    except PersonaError as e:
        raise error_notice(e, stays=True) from e


def show_history_entry(event: gr.EventData) -> RestoredTab:
    """What the address names that Back or Forward has led to."""
    return show_address(_read_query(str(event.address)), str(event.asked))


def await_link(
    who: Chosen, step: int, findings: list[Finding], answered: str, untrainable: int, event: gr.EventData
) -> tuple[AwaitedLink, str]:
    """What show_history_entry does, for a share link, in three steps: a slow Hub holds nobody up who chooses meanwhile.

    Returns what is fetched next, and the navigation, which says so.
    """
    awaited = AwaitedLink(str(event.asked), str(event.address), who, step)
    opening = awaited.link[:MAX_SHOWN_LINK]
    return awaited, navigation.navigation_html(who, step, findings, answered, untrainable, opening)


def fetch_link(awaited: AwaitedLink) -> tuple[str, Chosen]:
    """What was asked, and whom the link names. Raises gr.Error for one that cannot be opened."""
    is_open = awaited.chosen.link == awaited.link  # another step of it was shown
    return awaited.asked, awaited.chosen if is_open else _open_share_link(awaited.link)


def show_link(fetched: tuple[str, Chosen], awaited: AwaitedLink, who: Chosen, step: int) -> RestoredTab:
    """Whom the link names; nothing where another address, persona or step was asked for meanwhile."""
    asked, linked = fetched
    if asked != awaited.asked:
        return RestoredTab.unchanged()
    if (who, step) != (awaited.chosen, awaited.step):
        return RestoredTab.unchanged()._replace(asked=asked)
    return _show_named(linked, _read_query(awaited.address), asked)


def _read_query(address: str) -> dict[str, str]:
    return dict(parse_qsl(address[:MAX_ADDRESS].removeprefix("?")))


def _show_tab(who: Chosen, step: int, asked: str) -> RestoredTab:
    return RestoredTab(*ChosenView.showing(who), gr.Walkthrough(selected=step), step, asked, AwaitedLink())


def draw_at_start(
    who: Chosen, step: int, findings: list[Finding], asked: str, untrainable: int, request: gr.Request
) -> str:
    """The navigation of a new tab, before restore_tab has answered."""
    query = dict(request.query_params)
    link = query["persona"][:MAX_SHOWN_LINK] if chosen.is_share_link(query) else ""
    return navigation.navigation_html(who, step, findings, asked, untrainable, link)


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
    zerogpu.carry(i18n.language, i18n.as_language)
    is_shared = deployment.is_shared_server()
    options: dict[str, Any] = {"delete_cache": CACHE_SECONDS} if is_shared else {}
    with i18n.building_page(), gr.Blocks(title="Persona", fill_width=False, analytics_enabled=False, **options) as demo:
        # a fixed secret, so that a restarted server can read it again; it protects nothing, only a folder name
        last_slug = gr.BrowserState(None, storage_key="persona-open", secret="persona")
        # whose conversations to show
        browser_key = gr.BrowserState("", storage_key="persona-visitor", secret="persona")
        who, slug, asked = gr.State(Chosen()), gr.State(""), gr.State("")
        persona_list, language_button = _build_header()
        if is_shared:
            demo.load(retention_notice, None, gr.HTML(elem_id="retention", elem_classes="quiet"), **QUIET)
        bar = gr.HTML(elem_id="navigation", js_on_load=navigation.NAVIGATION_JS + COUNTDOWN_JS)
        page, pairs, run_status = _build_steps(who, slug, persona_list, browser_key)
        navigated = _connect_navigation(page, _Navigation(bar, asked), pairs, run_status)
        language_button.click(None, None, None, js=i18n.SWITCH_LANGUAGE_JS, **QUIET)
        demo.load(lambda key: key or conversation.new_browser_key(), browser_key, browser_key, **QUIET)
        awaited = gr.State(AwaitedLink())
        tab = RestoredTab(*page.chosen_view(), page.steps, page.shown_step, asked, awaited)
        demo.load(**{**navigated, "fn": show_errors(draw_at_start)})
        restored = demo.load(show_errors(restore_tab), last_slug, tab, **QUIET)
        restored.success(**navigated)
        restored.failure(lambda: "start", None, asked, **QUIET).then(**navigated)
        bar.input(show_errors(show_history_entry), None, tab, **CHOOSING_BY_DATA).then(**navigated)
        _connect_links(page, bar, tab, navigated)
        _connect_choices(page, last_slug)
        demo.unload(remove_downloads)
    return demo


def _connect_links(page: Page, bar: gr.HTML, tab: RestoredTab, navigated: dict[str, Any]) -> None:
    """Back or Forward to a share link."""
    fetched = gr.State(("", Chosen()))
    begun = bar.submit(show_errors(await_link), navigated["inputs"], [tab.awaited, bar], **CHOOSING_BY_DATA)
    link = begun.then(fetch_link, tab.awaited, fetched, concurrency_limit=None, **QUIET)
    inputs = [fetched, tab.awaited, page.chosen, page.shown_step]
    link.success(show_errors(show_link), inputs, tab, **CHOOSING_BY_DATA).then(**navigated)
    link.failure(lambda awaited: awaited.asked, tab.awaited, tab.asked, **QUIET).then(**navigated)


def choose_in_list(slug: str | None, who: Chosen) -> tuple[Any, ...]:
    """choose_persona; "New or example …" also opens the start page."""
    start = (gr.skip(), gr.skip()) if slug else (gr.Walkthrough(selected=WRITE), WRITE)
    return *chosen.choose_persona(slug, who), *start


def _connect_choices(page: Page, last_slug: gr.BrowserState) -> None:
    """Who is chosen: in the header, by a step that opens a persona, or in the list of adapters."""
    view, choose = page.chosen_view(), show_errors(chosen.choose_persona)
    page.persona_list.select(
        show_errors(choose_in_list), [page.persona_list, page.chosen], [*view, page.steps, page.shown_step], **CHOOSING
    )
    on_latest(page.slug.change, choose, [page.slug, page.chosen], view, **CHOOSING)
    on_latest(page.slug.change, lambda slug: (slug, 1), page.slug, [last_slug, page.pair_number], **QUIET)
    page.adapter_list.input(show_errors(chosen.choose_adapter), [page.adapter_list, page.chosen], view, **CHOOSING)


def _build_header() -> tuple[gr.Dropdown, gr.Button]:
    with gr.Row(elem_id="head"):
        gr.HTML(f"<h1>Persona</h1><p>{t('Teach a language model to be someone.')}</p>", elem_id="brand")
        persona_list = gr.Dropdown([(t("New or example …"), "")], value="", label=t("Persona"), elem_id="persona-list",
                                   scale=0, min_width=260)  # fmt: skip
        language_button = gr.Button(t("中文"), size="sm", scale=0, min_width=90, elem_id="language")
    return persona_list, language_button


def _build_steps(
    who: gr.State, slug: gr.State, persona_list: gr.Dropdown, browser_key: gr.BrowserState
) -> tuple[Page, PairsTab, gr.HTML]:
    """The shared components, and the two components that the navigation follows."""
    pair_number = gr.State(1)
    # its own buttons are hidden (theme.css): they would close every step after the selected one
    with gr.Walkthrough(selected=WRITE, elem_id="steps") as walkthrough:
        adapter_list = gr.Dropdown([], label=t("Adapter"), elem_id="adapter", scale=3, min_width=260, render=False)
        page = Page(
            chosen=who,
            slug=slug,
            persona_list=persona_list,
            steps=walkthrough,
            shown_step=gr.State(WRITE),
            pair_number=pair_number,
            write_tab=gr.Textbox("", visible="hidden"),
            previewed_pair=gr.Number(
                1, label=t("Pair"), precision=0, elem_id="pair-number", scale=0, min_width=80, render=False
            ),
            pair_role=gr.HTML(elem_id="pair-role", padding=False, render=False),
            untrainable=gr.State(0),
            render_settings=template.make_template_settings(),
            adapter=gr.State(""),
            adapter_list=adapter_list,
            shown_run=gr.State(""),
            vote_again=gr.Button(t("Vote again blind"), visible=False, render=False, elem_id="vote-again"),
            next_steps=next_steps.make_buttons(),
        )
        with gr.Step(t("Write"), id=WRITE), gr.Column(elem_id="step-write"):
            pairs = write.build(page)
        with gr.Step(t("Template"), id=TEMPLATE), gr.Column(elem_id="step-template"):
            template.build(page)
        with gr.Step(t("Train"), id=TRAIN), gr.Column(elem_id="step-train"):
            run_status, go_on_from = train.build(page)
        with gr.Step(t("Compare"), id=COMPARE), gr.Column(elem_id="step-compare"):
            compare.build(page, browser_key, go_on_from)
        with gr.Step(t("Share"), id=SHARE), gr.Column(elem_id="step-share"):
            share.build(page)
    return page, pairs, run_status


class _Navigation(NamedTuple):
    bar: gr.HTML
    asked: gr.State  # of a RestoredTab: what was answered last


def _connect_navigation(page: Page, nav: _Navigation, pairs: PairsTab, run_status: gr.HTML) -> dict[str, Any]:
    """The bar follows the selected step, and every change of what opens or finishes a step.

    Returns the event that draws it.
    """
    inputs = [page.chosen, page.shown_step, pairs.findings, nav.asked, page.untrainable]
    renewing: dict[str, Any] = {
        "inputs": inputs, "outputs": [nav.bar, *page.chosen_view()], **CHOOSING,
    }  # fmt: skip
    page.shown_step.change(show_errors(navigation.mark_step_shown), **renewing)
    run_status.change(show_errors(navigation.follow_run), **renewing)
    page.shown_step.change(None, None, None, js=navigation.FOCUS_STEP_JS, **QUIET)
    draw: dict[str, Any] = {
        "fn": show_errors(navigation.navigation_html), "outputs": nav.bar,
        "inputs": inputs, **CHOOSING,
    }  # fmt: skip
    changes = [page.chosen, page.untrainable, pairs.status, pairs.findings]
    gr.on([component.change for component in changes], **draw)
    nav.bar.click(
        show_errors(navigation.handle_step_click), page.chosen, [page.steps, page.shown_step], **CHOOSING_BY_DATA
    )
    return draw
