"""The events of a run → its progress: what page and command line show."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from persona.errors import Message

RunStatus = Literal["queued", "starting", "running", "done", "stopped", "failed", "interrupted"]
PACE_STEPS = 4  # steps after the first: fewer say less of a run's pace than what was expected before it
STEADY_SHARE, STEADY_SECONDS = 0.2, 20.0  # an end that moves by less than this, of the time left, is taken not to move
ACTIVE_STATUSES = ("queued", "starting", "running")  # those of a run whose process waits for its turn, or trains


@dataclass(frozen=True)
class RunProgress:
    """What the events of a run say so far. Losses are nats per learned token, times are seconds.

    curves: name → (step, value): tokens_per_s (of unpadded tokens, step by step), and of CURVES those that were logged.
    Of a run on preferences also held_out_accuracy, the share of held-out preferences whose better answer is the
    likelier one, and chosen_nll, the held-out NLL of the better answers; at step 0 of the adapter that it goes on from.
    expected: what the plan said, as in Run.expected().
    samples: (step, answers to the probes), an answer being {"probe", "text", "ended"}.
    rehearsal: `answered`, general prompts that the base has answered for this run, and in how many `seconds`.
    """

    status: RunStatus = "starting"
    message: str = ""
    step: int = 0
    steps: int = 0
    seconds: float = 0.0  # of training
    elapsed: float = 0.0  # from its starts to its ends or now, with what is not training: loading, evaluations, samples
    left: float | None = None  # seconds from the last event to the end; 0 only when nothing is left to do
    time: float = 0.0  # of the last event, in seconds since 1970
    evaluation_seconds: float | None = None  # of one evaluation with its samples and what it saves
    plan: dict[str, Any] = field(default_factory=dict)
    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    base_nll: float | None = None
    held_out_rows: dict[int, list[float]] = field(default_factory=dict)  # step → NLL of each held-out pair, in nats
    result: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    samples: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    chosen: int | None = None  # the step whose adapter is the run's
    chosen_at: float = 0.0  # since when, in seconds since 1970
    smaller_settings: dict[str, Any] = field(default_factory=dict)  # that a failure proposes (oom_recovery.py)
    start_nll: float | None = None  # of the adapter that the run goes on from
    start_rows: list[float] = field(default_factory=list)  # its NLL of each held-out pair, in nats
    expected: dict[str, float] = field(default_factory=dict)
    rehearsal: dict[str, float] = field(default_factory=dict)

    @property
    def learns_preferences(self) -> bool:
        """Whether it is a run on preferences, as far as it has logged."""
        return not self.curves.keys().isdisjoint(("held_out_accuracy", "reward_margin"))

    @property
    def ends(self) -> float | None:
        """When the run will be done, in seconds since 1970: the one source of every time left that is shown."""
        return None if self.left is None else self.time + self.left

    @property
    def adapter_nll(self) -> float | None:
        """Held-out NLL of the run's adapter."""
        nll_by_step = dict(self.held_out)
        return nll_by_step.get(self.chosen) if self.chosen in nll_by_step else self.result.get("adapter_nll")


_REQUIRED_KEYS = {"state": ("state",), "plan": ("steps",), "step": ("step", "seconds"), "eval": ("step", "nll"),
          "start": ("nll",), "diary": ("step", "answers"), "chosen": ("step",),
          "rehearsal": ("answered", "seconds")}  # fmt: skip
# fields of a step that are drawn: its rate, and the figures of monitor.py
CURVES = ("learning_rate", "memory", "peak_memory", "cpu_load", "machine_load", "gpu_memory", "gpu_load",
          "gpu_temperature", "reward_margin", "reward_chosen")  # fmt: skip
_INTEGERS = ("step", "steps", "tokens", "answered", "rehearsal", "rehearsal_tokens")
_NUMBERS = ("time", "seconds", "nll", "loss", "tokens_per_s", "adapter_nll", "accuracy", *CURVES)


def _is_valid_event(e: dict[str, Any]) -> bool:
    """Whether an event has what its kind needs, and each value is of the right type and size."""
    return (
        all(name in e for name in _REQUIRED_KEYS.get(str(e.get("event")), ()))
        and all(type(e[n]) is int and 0 <= e[n] < 1 << 53 for n in _INTEGERS if n in e)
        and all(e[n] is None or is_number(e[n]) for n in _NUMBERS if n in e)
        and e.get("state", "done") in get_args(RunStatus)
        and isinstance(e.get("message", ""), str)
        and isinstance(e.get("remedy", {}), dict)
        and isinstance(e.get("answers", []), list)
        and (e.get("event") not in ("eval", "start") or _is_list_of_numbers(e.get("rows", [])))
        and all(isinstance(a, dict) and all(isinstance(a.get(k, ""), str) for k in ("probe", "text"))
                for a in e.get("answers", []))
    )  # fmt: skip


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def is_number(value: Any) -> bool:
    """Whether a value from a file is a number of a size that can be shown."""
    return type(value) in (int, float) and not abs(value) > 1e18  # NaN passes: a run that diverged logs it


class EventReplay:
    """Events, one after the other → RunProgress.

    expected: as in Run.expected(); its seconds count until the run's own pace is known.
    """

    def __init__(self, expected: dict[str, float] | None = None) -> None:
        self.expected = expected or {}
        self.status: Any = "starting"
        self.message = ""
        self.time = 0.0
        self.step = self.steps = 0
        self.seconds = 0.0
        self.elapsed = 0.0
        # step, time and training seconds of the first step since the last start
        self.first_step: tuple[int, float, float] | None = None
        self.planned_at = 0.0  # time of the last plan
        self.evaluations = 0  # since that first step
        self.evaluation_seconds: float | None = None  # of one of them; before any, of the base's
        self.started: float | None = None  # time of the last start
        self.last: tuple[float, int] = (0.0, 0)  # seconds and tokens up to the last step
        self.curves: defaultdict[str, dict[int, float]] = defaultdict(dict)
        self.samples: dict[int, list[dict[str, Any]]] = {}
        self.chosen: int | None = None
        self.chosen_at = 0.0
        self.plan: dict[str, Any] = {}
        self.train: dict[int, float] = {}
        self.held_out: dict[int, float] = {}
        self.held_out_rows: dict[int, list[float]] = {}
        self.base_nll: float | None = None
        self.result: dict[str, Any] = {}
        self.smaller_settings: dict[str, Any] = {}
        self.start_nll: float | None = None
        self.start_rows: list[float] = []
        self.rehearsal: dict[str, float] = {}
        self.ends: float | None = None  # as in RunProgress

    def add(self, e: dict[str, Any]) -> None:
        """One event. An invalid one is skipped, since the folder may come from anywhere."""
        if _is_valid_event(e):
            self._add(e)
            self._renew_end()

    def _add(self, e: dict[str, Any]) -> None:
        kind, before = e.get("event"), self.time
        if kind == "start" or (kind == "eval" and e["step"]):  # an evaluation of step 0 is that of the base
            self._add_accuracy(e)
        self.time = e.get("time", self.time)
        is_new_start = e.get("state") == "queued" or (e.get("state") == "starting" and self.status != "starting")
        if self.status in ("starting", "running") and before and not is_new_start:  # between two starts nothing ran
            self.elapsed += max(0.0, self.time - before)
        if kind == "state":
            previous, self.status, self.smaller_settings = self.status, e["state"], e.get("remedy", {})
            self.message = Message.from_json(e.get("message", ""), e.get("message_template"))
            if e["state"] == "starting":
                self.started = self.time if previous != "starting" or self.started is None else self.started
                self.evaluations = 0
                self.first_step, self.result, self.chosen, self.last = None, {}, None, (0.0, 0)
            elif e["state"] == "running" and 0 in self.held_out and self.evaluation_seconds is None:
                self.evaluation_seconds = self.time - self.planned_at  # what is between the two is that of the base
        elif kind == "plan":
            self.plan, self.steps, self.planned_at = e, e["steps"], self.time
        elif kind == "step":
            self.step, self.seconds = e["step"], e["seconds"]
            self.first_step = self.first_step or (e["step"], self.time, e["seconds"])
            if self.evaluations:  # what the wall clock says beyond the training clock
                _, time, seconds = self.first_step
                self.evaluation_seconds = max(0.0, (self.time - time) - (e["seconds"] - seconds)) / self.evaluations
            self._add_to_curves(e)
            if e.get("loss") is not None and math.isfinite(e["loss"]):
                self.train[e["step"]] = e["loss"]
        elif kind == "eval":
            self.held_out[e["step"]] = e["nll"]
            self.evaluations += self.first_step is not None
            if "rows" in e:
                self.held_out_rows[e["step"]] = e["rows"]
            if e["step"] == 0:
                self.base_nll = e["nll"]
        elif kind == "start":
            self.start_nll, self.start_rows = e["nll"], e.get("rows", [])
        elif kind == "diary":
            self.samples[e["step"]] = e["answers"]
        elif kind == "rehearsal":  # each time that it answered: a stop may have come between
            self.rehearsal = {n: self.rehearsal.get(n, 0) + e[n] for n in ("answered", "seconds")}
        elif kind == "chosen":
            self.chosen, self.chosen_at = e["step"], self.time
        elif kind == "result":
            self.result = e

    def _add_to_curves(self, e: dict[str, Any]) -> None:
        for name in CURVES:
            if isinstance(e.get(name), int | float):
                self.curves[name][e["step"]] = e[name]
        seconds, tokens = e["seconds"] - self.last[0], e.get("tokens", 0) - self.last[1]
        if self.last[1] and seconds > 0 and tokens > 0:
            self.curves["tokens_per_s"][e["step"]] = tokens / seconds
        self.last = e["seconds"], e.get("tokens", 0)

    def _add_accuracy(self, e: dict[str, Any]) -> None:
        if e.get("accuracy") is not None:
            self.curves["held_out_accuracy"][e.get("step", 0)] = e["accuracy"]
            self.curves["chosen_nll"][e.get("step", 0)] = e["nll"]

    def _renew_end(self) -> None:
        """The estimate of the end; small changes are not followed, else the time left would go up and down."""
        left = self._estimate_left()
        ends = None if left is None else self.time + left
        if ends and left and self.ends and self.ends > self.time:
            moved = abs(ends - self.ends)
            ends = self.ends if moved < max(STEADY_SECONDS, STEADY_SHARE * left) else ends
        self.ends = ends

    def _estimate_left(self) -> float | None:
        """Seconds until the run is done: by its own pace, and while few steps say little of it, also by the plan.

        The longer of the two counts then. None before the first step where the plan's time is not known, or has passed.
        """
        measured, expected = self._measured_left(), self._expected_left()
        if expected is None:
            return measured if self.first_step else None
        is_steady = self.first_step is not None and self.step - self.first_step[0] >= PACE_STEPS
        return measured if is_steady and measured is not None else max(measured or 0.0, expected)

    def _measured_left(self) -> float | None:
        """By the steps at their mean pace, and the evaluations between them; before any step by the latter alone."""
        if self.status != "running":
            return None
        pace = 0.0
        if self.first_step and self.step > self.first_step[0]:  # the first one is slow
            pace = (self.seconds - self.first_step[2]) / (self.step - self.first_step[0])
        elif self.first_step:
            pace = self.seconds / max(1, self.step)
        evaluated = [s for s in self.held_out if s]
        between = min(evaluated, default=max(1, math.ceil(self.steps / 10)))
        evaluations_left = math.ceil(self.steps / between) - len(evaluated) if self.held_out else 0
        left = (self.steps - self.step) * pace + max(0, evaluations_left) * (self.evaluation_seconds or 0.0)
        return max(0.0, left)

    def _expected_left(self) -> float | None:
        """By what was expected before the start; None where nothing was, it has passed, or the run is not at work."""
        seconds = self.expected.get("seconds")
        if self.status not in ("starting", "running") or seconds is None or self.started is None:
            return None
        share = 1 - self.step / self.steps if self.steps else 1.0  # of a resumed run
        left = seconds * share - (self.time - self.started)
        return left if left > 0 else None

    def progress(self) -> RunProgress:
        return RunProgress(
            self.status, self.message, self.step, self.steps, self.seconds, self.elapsed,
            None if self.ends is None else self.ends - self.time, self.time, self.evaluation_seconds, self.plan,
            sorted(self.train.items()), sorted(self.held_out.items()), self.base_nll, self.held_out_rows,
            self.result,
            {name: sorted(points.items()) for name, points in self.curves.items()}, sorted(self.samples.items()),
            self.chosen, self.chosen_at, self.smaller_settings, self.start_nll, self.start_rows, self.expected,
            self.rehearsal,
        )  # fmt: skip
