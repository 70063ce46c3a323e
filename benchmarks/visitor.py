"""A visitor of the page without a browser: Gradio's HTTP protocol, and what a browser does with the answers.

It keeps the value of every component, fills the inputs of an event from them, stores the outputs, and runs the chained
events: .then, .success, .failure, and the change events of components whose value changed. JavaScript is skipped, so
events of JavaScript alone only trigger the next. Cookies and browser states survive a reload.
"""

import json
import re
import secrets
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
from gradio_client.utils import apply_diff

from persona.ui.navigation import STEP_NAMES

PREFIX = "/gradio_api"
TIMEOUT = httpx.Timeout(600, connect=30)  # seconds; the server sends a heartbeat every 15
# the server closes connections that were idle for 5 s: none may be reused at that moment
LIMITS = httpx.Limits(max_connections=4, keepalive_expiry=3)
PAIRS, SAY = "pairs", "say"  # elem_ids: the table, the text box of a chat


class Refused(Exception):
    """The page answered an event with an error; the message is the one shown to the visitor."""


class Visitor:
    """One window of the page. `times` records what was done: (name of the handler, seconds)."""

    def __init__(self, url: str):
        self.url = url
        self.http = httpx.Client(base_url=url, timeout=TIMEOUT, limits=LIMITS)
        self.times: list[tuple[str, float]] = []
        self.first_words: list[float] = []  # seconds from each question until the first column showed a word
        self.refusals: list[str] = []  # failures of chained events; an event's own failure is raised
        self.kept: dict[int, Any] = {}  # browser states, which survive a reload
        self.heart: httpx.Response | None = None

    # ---- a window

    def open(self, assets: bool = False) -> None:
        """Open or reload the page. assets: fetch its scripts and styles too, as a browser does on its first visit."""
        start = time.perf_counter()
        page = self.http.get("/").raise_for_status().text
        self.times.append(("GET /", time.perf_counter() - start))
        for path in sorted(set(re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', page))) if assets else ():
            if urljoin(self.url, path).startswith(self.url):  # only those served by the page
                start = time.perf_counter()
                self.http.get(path).raise_for_status()
                self.times.append(("GET assets", time.perf_counter() - start))
        config = self.http.get("/config").raise_for_status().json()
        self.session = secrets.token_hex(6)
        self.events: list[dict[str, Any]] = config["dependencies"]
        self.ids = {c["props"]["elem_id"]: c["id"] for c in config["components"] if c["props"].get("elem_id")}
        steps = [c["id"] for c in config["components"] if c["type"] == "walkthroughstep"]
        # a step's events are its own component's
        self.ids |= {f"step-{name}": i for name, i in zip(STEP_NAMES, steps, strict=True)}
        self.values = {c["id"]: c["props"].get("value") for c in config["components"]}
        stored = [c for c in config["components"] if c["type"] == "browserstate"]
        self.kept = {c["id"]: self.kept.get(c["id"], c["props"].get("default_value")) for c in stored}
        self.values |= self.kept
        self._live()
        self.run([e for e in self.events if any(t[1] == "load" for t in e["targets"])])

    def _live(self) -> None:
        """Open the connection by which the server knows that this window is still open."""
        if self.heart:
            self.heart.close()
        asked = self.http.build_request("GET", f"{PREFIX}/heartbeat/{self.session}")
        self.heart = self.http.send(asked, stream=True)

    def close(self) -> None:
        with suppress(httpx.HTTPError):
            if self.heart:
                self.heart.close()
        self.http.close()

    # ---- events

    def fill(self, elem_id: str, value: Any) -> None:
        """Type or choose something; the caller fires the change event."""
        self.values[self.ids[elem_id]] = value

    def value(self, elem_id: str) -> Any:
        return self.values[self.ids[elem_id]]

    def fire(self, elem_id: str, event: str, data: Any = None) -> list[Any]:
        """Fire an event and wait for all chained events. Returns the outputs of the first handler.

        Raises Refused with the page's message if that handler fails, httpx.HTTPError if there is no answer.
        """
        wanted = [self.ids[elem_id], event]
        found = [e for e in self.events if wanted in e["targets"]]
        assert found, f"nothing listens to {event} of {elem_id}"
        return self.run(found, data)

    def run(self, events: list[dict[str, Any]], data: Any = None) -> list[Any]:
        """Run events of the page (from `events`) and all chained events; see fire."""
        todo: deque[tuple[dict[str, Any], Any]] = deque((e, data) for e in events)
        first: list[Any] | None = None
        while todo:
            event, data = todo.popleft()
            changed: set[int] = set()
            try:
                out = self._call(event, data, changed) if event["backend_fn"] else []
                good = True
            except Refused as e:
                if first is None:
                    raise
                self.refusals.append(f"{event['api_name']}: {e}")
                out, good = [], False
            first = out if first is None else first
            self._follow(event, good, changed, todo)
        return first or []

    def _follow(self, event: dict[str, Any], good: bool, changed: set[int], todo: deque) -> None:
        waiting = {e["id"] for e, _ in todo}
        for e in self.events:
            after = e["trigger_after"] == event["id"] and not (
                (e["trigger_only_on_success"] and not good) or (e["trigger_only_on_failure"] and good)
            )
            if (after or any(t[0] in changed and t[1] == "change" for t in e["targets"])) and e["id"] not in waiting:
                todo.append((e, None))

    def _call(self, event: dict[str, Any], data: Any, changed: set[int]) -> list[Any]:
        body = {
            "fn_index": event["id"], "session_hash": self.session, "event_data": data,
            "trigger_id": event["targets"][0][0] if event["targets"] else None,
            "data": [self.values.get(i) for i in event["inputs"]],
        }  # fmt: skip
        start = time.perf_counter()
        if event["queue"]:
            answer = self._queued(event, body, changed)
        else:
            answer = self.http.post(f"{PREFIX}/run/predict", json=body).raise_for_status().json()
        self.times.append((re.sub(r"_\d+$", "", event["api_name"]), time.perf_counter() - start))
        changed.update(answer.get("changed_state_ids") or [])
        self._take(event, answer["data"], changed)
        return answer["data"]

    def _queued(self, event: dict[str, Any], body: dict[str, Any], changed: set[int]) -> dict[str, Any]:
        """Join the queue and read the stream until this event is done, storing intermediate outputs."""
        joined = self.http.post(f"{PREFIX}/queue/join", json=body).raise_for_status().json()["event_id"]
        done: dict[str, Any] = {}
        start, waits = time.perf_counter(), [self.ids[SAY], "submit"] in event["targets"]  # for a first word
        frame: list[Any] = []  # outputs of a streaming event; messages after the first are diffs
        with self.http.stream("GET", f"{PREFIX}/queue/data", params={"session_hash": self.session}) as stream:
            stream.raise_for_status()
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "unexpected_error":
                    raise httpx.RemoteProtocolError(f"the stream ended: {message['message']}")
                if message.get("event_id") != joined:
                    continue
                if message["msg"] == "process_generating":
                    sent = message["output"]["data"]
                    frame = [apply_diff(a, b) for a, b in zip(frame, sent, strict=True)] if frame else sent
                    self._take(event, frame, changed)
                    if waits and any(reply not in ("", "…") for _, reply in self._exchanges()):
                        self.first_words.append(time.perf_counter() - start)
                        waits = False
                elif message["msg"] == "process_completed":
                    done = message
        if not done:
            raise httpx.RemoteProtocolError("the stream ended before the answer")
        if not done["success"]:
            raise Refused(str(done["output"].get("error") or done["output"]))
        return done["output"]

    def _take(self, event: dict[str, Any], data: list[Any], changed: set[int]) -> None:
        """Store outputs in their components; adds those whose value changed to `changed`."""
        for place, got in zip(event["outputs"], data, strict=True):
            if isinstance(got, dict) and got.get("__type__") == "update":
                if "value" not in got:
                    continue
                got = got["value"]
            if self.values.get(place) != got:
                self.values[place] = got
                changed.add(place)
            if place in self.kept:
                self.kept[place] = got

    # ---- actions of a person

    def start_persona(self, name: str) -> None:
        self.fill("new-name", name)
        self.fire("start", "click")

    def choose_persona(self, slug: str) -> None:
        self.fill("persona-list", slug)
        self.fire("persona-list", "select")

    def go(self, step: str) -> None:
        """By the bar's button. step: template, train, compare, share."""
        self.fire("navigation", "click", {"step": STEP_NAMES.index(step)})

    def act(self, **done: Any) -> None:
        """An action in the table of pairs: do, row, and for an edit also field, old, text. Raises Refused."""
        *_, refusal = self.fire(PAIRS, "input", done)
        if refusal:
            raise Refused(refusal)

    def mask(self, row: int, instruction: str, output: str) -> str:
        """The label mask of the text typed so far, as HTML."""
        return self.fire(PAIRS, "key_up", {"row": row, "texts": {"instruction": instruction, "output": output}})[0]

    def open_zip(self, file: Path) -> str:
        """Open an adapter; returns its id."""
        sent = self.http.post(f"{PREFIX}/upload", files={"files": (file.name, file.read_bytes())})
        path = sent.raise_for_status().json()[0]
        self.fill("open-zip", {"path": path, "orig_name": file.name, "meta": {"_type": "gradio.FileData"}})
        self.fire("open-zip", "upload")
        return self.value("adapter")

    def settle_chat(self, temperature: float, longest: int) -> None:
        """longest: tokens of a reply."""
        self.fill("temperature", temperature)
        self.fill("longest", longest)

    def say(self, text: str) -> list[tuple[str, str]]:
        """Send a question to all voices; returns the last exchange shown in each column: (question, reply)."""
        self.fill(SAY, text)
        self.fire(SAY, "submit")
        return self._exchanges()

    def _exchanges(self) -> list[tuple[str, str]]:
        shown = [self.value(c) for c in ("chat-base", "chat-persona", "chat-third", "chat-fourth")]
        return [(_plain(m[-2]), _plain(m[-1])) for m in shown if m]

    def new_talk(self) -> None:
        self.fire("new-talk", "click")


def _plain(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
