"""The events of a run → how far it is: what page and command line show."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["starting", "running", "done", "stopped", "failed", "interrupted"]
ACTIVE = ("starting", "running")


@dataclass(frozen=True)
class Progress:
    """What the events of a run say so far. Losses are nats per learned token; `left` is in seconds."""

    status: Status = "starting"
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
    remedy: dict[str, Any] = field(default_factory=dict)  # settings that a failure proposes: remedy.py


class Replay:
    """Events → Progress."""

    def __init__(self) -> None:
        self.status: Any = "starting"
        self.message = ""
        self.time = 0.0
        self.step = self.steps = 0
        self.seconds = 0.0
        self.pace: tuple[int, float] | None = None  # step and seconds when this process began stepping
        self.plan: dict[str, Any] = {}
        self.train: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.base_nll: float | None = None
        self.result: dict[str, Any] = {}
        self.remedy: dict[str, Any] = {}

    def take(self, e: dict[str, Any]) -> None:
        kind = e.get("event")
        self.time = e.get("time", self.time)
        if kind == "state":
            self.status, self.message, self.remedy = e["state"], e.get("message", ""), e.get("remedy", {})
            if e["state"] == "starting":
                self.pace, self.result = None, {}
        elif kind == "plan":
            self.plan, self.steps = e, e["steps"]
        elif kind == "step":
            self.step, self.seconds = e["step"], e["seconds"]
            self.pace = self.pace or (e["step"], e["seconds"])
            if e.get("loss") is not None and math.isfinite(e["loss"]):
                self.train[e["step"]] = e["loss"]
        elif kind == "eval":
            self.held_out[e["step"]] = e["nll"]
            if e["step"] == 0:
                self.base_nll = e["nll"]
        elif kind == "result":
            self.result = e

    def progress(self) -> Progress:
        left = None
        if self.status == "running" and self.pace and self.step > self.pace[0]:
            per_step = (self.seconds - self.pace[1]) / (self.step - self.pace[0])
            left = per_step * (self.steps - self.step)
        return Progress(
            self.status, self.message, self.step, self.steps, self.seconds, left, self.plan,
            sorted(self.train.items()), sorted(self.held_out.items()), self.base_nll, self.result, self.remedy,
        )  # fmt: skip
