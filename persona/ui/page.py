"""What the steps share: the page's components, notices for errors, the persona that is open, edits in order."""

import asyncio
import functools
import inspect
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import anyio.to_thread
import gradio as gr
from gradio.context import LocalContext

from persona.errors import PersonaError
from persona.models import open_renderer
from persona.store import deployment, persona_folder, quotas
from persona.template.render import MAX_LENGTH
from persona.ui.i18n import localized, t
from persona.ui.middleware import workspaces

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}  # how most events of the page behave
WRITE, TEMPLATE, TRAIN, COMPARE, SHARE = range(5)


@dataclass(frozen=True)
class Page:
    """The components that more than one step reads."""

    slug: gr.State  # folder name of the open persona, "" for none
    which: gr.Dropdown  # the user's personas
    steps: gr.Walkthrough
    pair: gr.State  # number of the pair looked at, from 1
    base: gr.Dropdown
    template: gr.Dropdown
    max_length: gr.Number
    learn_history: gr.Checkbox
    adapter: gr.Dropdown  # see compare.py for its values


def show_errors(handler: Callable) -> Callable:
    """The handler, with its PersonaErrors shown as notices on the page."""
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


def error_notice(e: PersonaError) -> gr.Error:
    text = escape(localized(e.message)).replace("\n", "<br>")
    return gr.Error(text, duration=None, title=t("That did not work"), print_exception=False)


def open_current_persona(slug: str) -> persona_folder.Persona:
    """The persona of this visitor's page. Raises InputError when none is open."""
    if not slug:
        raise PersonaError("No persona is open. Open an example or start one in the first step, Write.")
    return persona_folder.find_persona(slug)


def persona_dropdown(slug: str) -> gr.Dropdown:
    """The user's personas, by name."""
    named = []
    for persona in persona_folder.list_personas():
        try:
            named.append((persona.card().name, persona.slug))
        except PersonaError:  # a damaged card: opening it says where
            named.append((persona.slug, persona.slug))
    return gr.Dropdown([(t("New or example …"), ""), *named], value=slug)


def renderer_for(slug: str, base_name: str, template: str, max_length: float, learn_history: bool,
                 *, progress: gr.Progress | None = None) -> Any:  # fmt: skip
    """(Base, Renderer) of the page's settings."""

    def tell(text: str) -> None:
        if progress:
            progress(None, desc=localized(text))

    card = open_current_persona(slug).card()
    return open_renderer.open_renderer(
        card, base_name, template or "auto", int(max_length or MAX_LENGTH), bool(learn_history), tell
    )


def download_path(name: str) -> Path:
    """A place for a file called `name`, in a temporary folder of its own that the page may serve from."""
    within = workspaces.download_dir() if deployment.is_shared_server() else None
    if within:
        quotas.require_disk_quota(within)
    return Path(tempfile.mkdtemp(prefix="persona-", dir=within)) / name


_window_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()


# Gradio begins events in the order in which they came; but it prepares values in threads, where one can pass another
ORDERED_EVENT = {"trigger_mode": "multiple", "concurrency_limit": 16, "preprocess": False}


def run_in_order(handler: Callable) -> Callable:
    """A handler → one that does what a window asks in the order of asking; other windows do not wait for it.

    Its event must be made with IN_ORDER: every event is kept, and values come as the browser has sent them.
    """

    @functools.wraps(handler)
    async def handled(*args: Any) -> Any:
        request = LocalContext.request.get(None)
        lock = _window_locks.setdefault(str(getattr(request, "session_hash", "")), asyncio.Lock())
        async with lock:
            return await anyio.to_thread.run_sync(functools.partial(handler, *args))

    return handled
