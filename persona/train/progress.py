"""The events of a run → how far it is: what page and command line show."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from persona.errors import Message

RunStatus = Literal["queued", "starting", "running", "done", "stopped", "failed", "interrupted"]
ACTIVE_STATUSES = (
    "queued",
    "starting",
    "running",
)  # a process of the run's own lives: it waits for its turn, or trains


@dataclass(frozen=True)
class RunProgress:
    """What the events of a run say so far. Losses are nats per learned token; `left` is in seconds.

    curves: learning_rate, tokens_per_s (of unpadded tokens, step by step) and memory (bytes) as (step, value).
    diary: (step, answers), an answer being {"probe", "text", "ended"}. chosen: the step whose adapter is the run's.
    """

    status: RunStatus = "starting"
    message: str = ""
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    left: float | None = None
    plan: dict[str, Any] = field(default_factory=dict)
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    base_nll: float | None = None
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    diary: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    chosen: int | None = None
    remedy: dict[str, Any] = field(default_factory=dict)  # settings that a failure proposes: remedy.py

    @property
    def adapter_nll(self) -> float | None:
        """Of the adapter that is the run's now."""
        known = dict(self.held_out)
        return known.get(self.chosen) if self.chosen in known else self.result.get("adapter_nll")


_NEEDS = {"state": ("state",), "plan": ("steps",), "step": ("step", "seconds"), "eval": ("step", "nll"),
          "diary": ("step", "answers"), "chosen": ("step",)}  # fmt: skip
_WHOLE = ("step", "steps", "tokens")
_NUMBERS = ("time", "seconds", "nll", "loss", "learning_rate", "memory", "tokens_per_s", "adapter_nll")


def _is_valid_event(e: dict[str, Any]) -> bool:
    """Whether an event has what its kind needs, and each value is of the right type and size."""
    return (
        all(name in e for name in _NEEDS.get(str(e.get("event")), ()))
        and all(type(e[n]) is int and 0 <= e[n] < 1 << 53 for n in _WHOLE if n in e)
        and all(e[n] is None or _is_number(e[n]) for n in _NUMBERS if n in e)
        and e.get("state", "done") in get_args(RunStatus)
        and isinstance(e.get("message", ""), str)
        and isinstance(e.get("remedy", {}), dict)
        and isinstance(e.get("answers", []), list)
        and all(isinstance(a, dict) and all(isinstance(a.get(k, ""), str) for k in ("probe", "text"))
                for a in e.get("answers", []))
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and not abs(value) > 1e18  # NaN passes: a run that diverged says so


class EventReplay:
    """Events → Progress."""

    def __init__(self) -> None:
        self.status: Any = "starting"
        self.message = ""
        self.time = 0.0
        self.step = self.steps = 0
        self.seconds = 0.0
        self.pace: tuple[int, float] | None = None  # step and time when this process began stepping
        self.last: tuple[float, int] = (0.0, 0)  # seconds and tokens of the step before
        self.curves: dict[str, dict[int, float]] = {"learning_rate": {}, "tokens_per_s": {}, "memory": {}}
        self.diary: dict[int, list[dict[str, Any]]] = {}
        self.chosen: int | None = None
        self.plan: dict[str, Any] = {}
        self.train: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.base_nll: float | None = None
        self.result: dict[str, Any] = {}
        self.remedy: dict[str, Any] = {}

    def take(self, e: dict[str, Any]) -> None:
        """One event; what no run of ours would say is passed over, since the folder may come from anywhere."""
        if _is_valid_event(e):
            self._take(e)

    def _take(self, e: dict[str, Any]) -> None:
        kind = e.get("event")
        self.time = e.get("time", self.time)
        if kind == "state":
            self.status, self.remedy = e["state"], e.get("remedy", {})
            self.message = Message.from_json(e.get("message", ""), e.get("message_template"))
            if e["state"] == "starting":
                self.pace, self.result, self.chosen, self.last = None, {}, None, (0.0, 0)
        elif kind == "plan":
            self.plan, self.steps = e, e["steps"]
        elif kind == "step":
            self.step, self.seconds = e["step"], e["seconds"]
            self.pace = self.pace or (e["step"], self.time)
            self._draw(e)
            if e.get("loss") is not None and math.isfinite(e["loss"]):
                self.train[e["step"]] = e["loss"]
        elif kind == "eval":
            self.held_out[e["step"]] = e["nll"]
            if e["step"] == 0:
                self.base_nll = e["nll"]
        elif kind == "diary":
            self.diary[e["step"]] = e["answers"]
        elif kind == "chosen":
            self.chosen = e["step"]
        elif kind == "result":
            self.result = e

    def _draw(self, e: dict[str, Any]) -> None:
        for name in ("learning_rate", "memory"):
            if isinstance(e.get(name), int | float):
                self.curves[name][e["step"]] = e[name]
        seconds, tokens = e["seconds"] - self.last[0], e.get("tokens", 0) - self.last[1]
        if self.last[1] and seconds > 0 and tokens > 0:
            self.curves["tokens_per_s"][e["step"]] = tokens / seconds
        self.last = e["seconds"], e.get("tokens", 0)

    def progress(self) -> RunProgress:
        left = None
        if self.status == "running" and self.pace and self.step > self.pace[0]:
            # by the clock on the wall, so that evaluations and the diary count too
            left = (self.time - self.pace[1]) / (self.step - self.pace[0]) * (self.steps - self.step)
        return RunProgress(
            self.status, self.message, self.step, self.steps, self.seconds, left, self.plan,
            sorted(self.train.items()), sorted(self.held_out.items()), self.base_nll, self.result,
            {name: sorted(points.items()) for name, points in self.curves.items()}, sorted(self.diary.items()),
            self.chosen, self.remedy,
        )  # fmt: skip
