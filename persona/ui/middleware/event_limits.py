"""How much of the server's memory a visitor's events and tabs may take at a time.

Gradio holds the body of every event that waits, and for every tab a copy of the settings of all components (about
0.6 MB, made in some 0.1 s in which no other request is answered).
"""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

from starlette.types import Message, Receive, Scope

from persona.ui.i18n import t
from persona.ui.middleware.refusal import RequestRefused

MAX_EVENT_BYTES = 32_000_000  # of an event; files are uploaded by another route
MAX_EVENTS_BYTES = 64_000_000  # of a visitor's events that arrive, wait or are handled
MAX_EVENTS = 50  # of those, at a time: a switch of persona takes some twenty
MAX_TABS = 50  # of a visitor whose state is kept: the one used longest ago is forgotten for another
TAB_REQUESTS = 20  # that a new tab counts for in PERSONA_MAX_REQUESTS


@dataclass
class VisitorLoad:
    """Events of a visitor that Gradio's queue does not have yet, the size of their bodies, and the visitor's tabs."""

    events: int = 0
    bytes: int = 0
    tabs: OrderedDict[str, None] = field(default_factory=OrderedDict)  # the one used longest ago first


class EventLimits:
    """The load of each visitor."""

    def __init__(self) -> None:
        self.loads: dict[str, VisitorLoad] = {}

    @contextlib.contextmanager
    def arriving(self, scope: Scope, visitor: str, prefix: str) -> Iterator[None]:
        """Count an event from its first byte on. Raises RequestRefused for one too many. prefix: of the tabs' names."""
        load = self.loads.setdefault(visitor, VisitorLoad())
        if len(_queued_events(scope, prefix)) + load.events >= MAX_EVENTS:
            raise RequestRefused(
                429, t("More than {n} requests of yours are being handled. Wait until some are done.", n=MAX_EVENTS)
            )
        load.events += 1
        scope["persona.event_bytes"] = 0
        try:
            yield
        finally:
            load.events -= 1
            load.bytes -= scope["persona.event_bytes"]

    async def read_body(self, scope: Scope, receive: Receive, visitor: str, prefix: str) -> bytes:
        """The body of an event. Raises RequestRefused when it is too large by itself or with the visitor's others."""
        load, raw = self.loads[visitor], bytearray()
        queued = sum(event.request.scope.get("persona.event_bytes", 0) for event in _queued_events(scope, prefix))
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestRefused(400, "The request ended early.")
            part = message.get("body", b"")
            raw += part
            load.bytes += len(part)
            scope["persona.event_bytes"] += len(part)
            if len(raw) > MAX_EVENT_BYTES or queued + load.bytes > MAX_EVENTS_BYTES:
                most = f"{MAX_EVENT_BYTES / 1e6:.0f}"
                raise RequestRefused(413, t("More than {n} MB at once. Upload it as a file, or paste less.", n=most))
            if not message.get("more_body"):
                return bytes(raw)

    def use_tab(self, scope: Scope, visitor: str, tab: str) -> bool:
        """Whether the tab is new. The state of a tab too many is deleted, of one that has no events in the queue."""
        tabs = self.loads[visitor].tabs
        is_new = tab not in tabs
        tabs[tab] = None
        tabs.move_to_end(tab)
        if len(tabs) > MAX_TABS:
            blocks = scope["app"].get_blocks()
            busy = {event.session_hash for event in _queued_events(scope, "")}
            if idle := next((name for name in tabs if name not in busy and name != tab), None):
                del tabs[idle]
                for kept in (blocks.state_holder.session_data, blocks.state_holder.time_last_used):
                    kept.pop(idle, None)
        return is_new


def _queued_events(scope: Scope, prefix: str) -> list:
    """The events that wait or are handled in Gradio's queue, of the tabs whose names begin with `prefix`."""
    events = list(scope["app"].get_blocks()._queue.event_ids_to_events.values())
    return [event for event in events if str(event.session_hash).startswith(prefix)]
