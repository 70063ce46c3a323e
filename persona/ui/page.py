"""What every step needs: the shared components, errors as notices, the open persona, the order of a window's edits."""

import asyncio
import functools
import inspect
import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import anyio.to_thread
import gradio as gr
from gradio.context import LocalContext

from persona.errors import InputError, PersonaError, TemplateError
from persona.judge.report_model import NextStep
from persona.models import open_renderer
from persona.models.base import Base
from persona.store import deployment, persona_folder, quotas, workspace
from persona.store.pairs import own_exchanges
from persona.template.render import MAX_LENGTH, MAX_LENGTH_RANGE, Renderer
from persona.ui.chosen import ChosenView
from persona.ui.i18n import localized
from persona.ui.middleware import workspaces

# Options of most events. Progress is shown on no component: Gradio 6.31 covers every target of it with "Error" when the
# event fails, and the outputs are the targets unless others are named. An event that takes long names a gr.HTML.
# Besides, a component that is hidden while an event of its own is pending animates a hidden clock for ever.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
# Of an event that shows what was chosen or typed: one that comes while another is on its way is handled after it. By
# default Gradio drops it, which is right for a button that is pressed twice.
SHOWING: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}


NOTICE_SECONDS, READ_CHARACTERS = 8, 15  # an error stays so long, and a second more for each so many characters


class RenderSettings(NamedTuple):
    """How pairs are rendered: the components of step 2, or the values that Gradio hands a handler for them.

    A named tuple for both keeps the order of an event's inputs or outputs in one place.
    """

    base: Any
    template: Any
    max_length: Any
    learn_history: Any
    thinking: Any = "none"


@dataclass(frozen=True)
class Page:
    """The components that more than one step reads."""

    chosen: gr.State  # a Chosen (chosen.py): slug and adapter are its parts and change with it
    slug: gr.State  # folder name of the open persona, "" for none
    persona_list: gr.Dropdown
    steps: gr.Walkthrough
    shown_step: gr.State  # number of the selected step
    pair_number: gr.State  # of the selected pair, from 1
    write_tab: gr.Textbox  # hidden: a tab of step 1 that another step opens, and what makes each time another value
    previewed_pair: gr.Number  # of step 2
    pair_role: gr.HTML  # in step 2: what a run that goes on from an adapter does with that pair
    untrainable: gr.State  # how many pairs step 2 has found that cannot be trained on
    render_settings: RenderSettings
    adapter: gr.State  # an id of voice_picker.py, "" for none
    adapter_list: gr.Dropdown
    shown_run: gr.State  # name of the run that step 3 shows, "" for the newest
    vote_again: gr.Button  # in step 3, after a run on preferences: opens the blind vote of step 4
    next_steps: dict[NextStep, gr.Button]  # in step 4, what the verdict offers; each opens another step

    def chosen_view(self) -> ChosenView:
        """The components that change together when another persona or adapter is chosen."""
        return ChosenView(self.chosen, self.slug, self.adapter, self.persona_list, self.adapter_list)


def on_latest(triggers: Any, fn: Callable, inputs: Any = None, outputs: Any = None, **options: Any) -> Any:
    """Run fn for the latest of these events: one that comes while it runs is handled after it. Returns its event.

    Gradio 6.31, when an event of a component has waited for its predecessor, dispatches all that listens to it again:
    two listeners that wait ("always_last", the default of .change) wake each other, without end on a slow machine.
    Behind a step that the browser takes alone, a listener is dispatched by itself. One per component and event needs
    no such step.
    """
    passed = gr.on(triggers, None, None, None, js="() => {}", **QUIET)
    return passed.then(fn, inputs, outputs, **{"trigger_mode": "always_last", **options})


def show_errors(handler: Callable) -> Callable:
    """Make a handler show its PersonaErrors as notices on the page."""
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any) -> Any:
            try:
                yield from handler(*args)
            except PersonaError as e:
                raise error_notice(e) from e

        return stream

    @functools.wraps(handler)
    def call(*args: Any) -> Any:
        try:
            return handler(*args)
        except PersonaError as e:
            raise error_notice(e) from e

    return call


def error_notice(e: PersonaError, stays: bool = False) -> gr.Error:
    """stays: until it is closed."""
    text = escape(localized(e.message)).replace("\n", "<br>")
    duration = None if stays else NOTICE_SECONDS + len(text) / READ_CHARACTERS
    return gr.Error(text, duration=duration, print_exception=False)


def open_current_persona(slug: str) -> persona_folder.Persona:
    """The persona of this visitor's page. Raises PersonaError when none is open."""
    if not slug:
        raise PersonaError("No persona is open. Open an example or start one in the first step, Write.")
    return persona_folder.find_persona(slug)


def open_page_renderer(
    slug: str, settings: RenderSettings, progress: gr.Progress | None = None
) -> tuple[Base, Renderer]:
    """The base and the renderer of the open persona by the settings of step 2. Raises BaseError, TemplateError."""

    def show_progress(text: str) -> None:
        if progress:
            progress(None, desc=localized(text))

    persona = open_current_persona(slug)
    max_length, (lowest, highest) = int(settings.max_length or MAX_LENGTH), MAX_LENGTH_RANGE
    if not lowest <= max_length <= highest:
        raise TemplateError("The longest row, {n} tokens: at least {lowest}, at most {highest}.", n=max_length,
                            lowest=lowest, highest=f"{highest:,}")  # fmt: skip
    base, renderer = open_renderer.open_renderer(
        persona.card(), settings.base, settings.template or "auto", max_length, bool(settings.learn_history),
        show_progress, thinking=settings.thinking or "none",
    )  # fmt: skip
    if renderer.learn_history:
        renderer = replace(renderer, learned_elsewhere=own_exchanges(persona.scan()[0]))
    return base, renderer


_downloads: dict[str, list[Path]] = {}  # browser window → folders of what it downloads


def download_path(name: str) -> Path:
    """The path of a new file called `name` to download, in a folder that lasts as long as the browser window.

    It lies below the folder that Gradio serves from, so that no second copy is made.
    Raises InputError when a visitor's disk quota is used up.
    """
    parent = workspaces.download_dir()
    if deployment.is_shared_server():
        quotas.require_disk_quota(parent)
    folder = Path(tempfile.mkdtemp(prefix="persona-", dir=parent))
    request = LocalContext.request.get(None)
    _downloads.setdefault(str(getattr(request, "session_hash", "")), []).append(folder)
    return folder / name


def remove_downloads(request: gr.Request) -> None:
    """Remove what a browser window that was closed has made to download."""
    for folder in _downloads.pop(str(request.session_hash), []):
        shutil.rmtree(folder, ignore_errors=True)


_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()  # by window, or by visitor


def in_lane(lane: str) -> dict[str, Any]:
    """Options of the events that run_in_order(…, lane) handles.

    Gradio starts the events of one concurrency_id in the order they came in, those of two in any order; and it prepares
    their values in threads, where one can overtake another, so values arrive as the browser sent them.
    """
    return {"concurrency_id": lane, "concurrency_limit": 16, "preprocess": False}


ORDERED_EVENT = {**in_lane("pairs"), "trigger_mode": "multiple"}  # no event is dropped


def run_in_order(handler: Callable, lane: str = "pairs") -> Callable:
    """Make a handler carry out the events of one browser window and lane in their order; other windows do not wait.

    What shows the same thing is in one lane: of two answers the later one is that to the later question. Each event
    needs in_lane(lane).
    """
    return _one_at_a_time(handler, lambda: f"{lane}:{_window_key()}")


def run_one_at_a_time(handler: Callable) -> Callable:
    """Make a handler wait while another one of its visitor works that is marked so: for what keeps a core busy.

    Its event needs WAITING_EVENT, so that those who wait take no place of another visitor.
    """
    return _one_at_a_time(handler, lambda: f"visitor:{visitor_key()}")


WAITING_EVENT = {"concurrency_limit": None}


def _window_key() -> str:
    return str(getattr(LocalContext.request.get(None), "session_hash", "") or "")


def visitor_key() -> str:
    """Who asks: the visitor of a shared server, else the browser window."""
    try:
        return workspace.current_visitor() or _window_key()
    except InputError:  # not known: the handler says so
        return _window_key()


def _one_at_a_time(handler: Callable, key: Callable[[], str]) -> Callable:
    @functools.wraps(handler)
    async def handled(*args: Any) -> Any:
        async with _locks.setdefault(key(), asyncio.Lock()):
            return await anyio.to_thread.run_sync(functools.partial(handler, *args))

    return handled
