"""What needs the model: how likely rows are, what is answered. Everything goes through loss.py and chat.stream."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from persona.chat import Column, Voices, stream
from persona.decode import Reply
from persona.files import PROJECT
from persona.loss import Collator, mean_nll
from persona.mixed import Mixed
from persona.pairs import Pair
from persona.render import IGNORED, Example, Prompt, Renderer
from persona.sampling import CONTEXT, Sampling

GENERAL = PROJECT / "persona" / "general.jsonl"
COLUMNS = 24  # of one batch: a step costs little more than with two, since reading the weights is most of it
LENGTHS = (48, 256)  # tokens, the least and the most that an answer may have
SHORT = 32  # tokens of an answer to a general question: enough to name what is right


@dataclass(frozen=True)
class Progress:
    """How far an evaluation is: 0 … 1, what it does, and seconds left where that can be said."""

    share: float
    doing: str
    seconds_left: float | None


@dataclass
class Work:
    """Counts what is done against what is planned; a forward pass is 1, of whichever kind."""

    planned: int
    report: Callable[[Progress], None]
    doing: str = ""
    done: int = 0
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def tick(self, steps: int = 1) -> None:
        self.done += steps
        share = min(1.0, self.done / max(1, self.planned))
        gone = time.monotonic() - self.started
        left = gone * (1 - share) / share if share > 0.02 else None  # the first passes are slow and say little
        self.report(Progress(share, self.doing, left))


@dataclass(frozen=True)
class Question:
    """General knowledge: a pair, and what a right answer holds (`a|b` is either)."""

    pair: Pair
    key: str

    def right(self, answer: str) -> bool:
        return any(k.casefold() in answer.casefold() for k in self.key.split("|"))


def general() -> list[Question]:
    """The shipped questions, Chinese and English in turn, so that any first few hold both."""
    rows = [json.loads(line) for line in GENERAL.read_text(encoding="utf-8").split("\n") if line]
    read = [Question(Pair(r["instruction"], r["output"]), r["key"]) for r in rows]
    half = len(read) // 2
    return [q for two in zip(read[:half], read[half:], strict=True) for q in two]


def row_nlls(voices: Voices, name: str, examples: Sequence[Example], work: Work) -> list[float]:
    """Nats per learned token of each row, by the base (name BASE) or an attached adapter at strength 1."""
    collate = Collator(voices.tokenizer.pad_token_id)
    found = []
    for example in examples:  # row by row: a chat beside it waits for one row only
        with (
            voices.lock,
            Mixed(voices.model, [voices.mix(name)]),
        ):
            found.append(mean_nll(voices.model, [example], collate))
        work.tick()
    return found


def without_stop(example: Example, stop_id: int) -> Example:
    """The row with its text alone learned: whether it stops is measured by itself, and would drown the few words."""
    at = max((n for n, i in enumerate(example.labels) if i == stop_id), default=len(example.labels))
    return replace(example, labels=[*example.labels[:at], *[IGNORED] * (len(example.labels) - at)])


def reply_limit(examples: Sequence[Example]) -> int:
    """Tokens that an answer may have: twice what 95 % of her own replies need."""
    lengths = sorted(e.learned for e in examples)
    usual = lengths[int(0.95 * (len(lengths) - 1))] if lengths else 64
    return min(LENGTHS[1], max(LENGTHS[0], 2 * usual))


def prompts_of(renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[tuple[Pair, Prompt]]:
    """The pairs whose prompt leaves room for an answer."""
    asked = [(p, renderer.prompt(p.history, p.instruction)) for p in pairs]
    return [(p, prompt) for p, prompt in asked if len(prompt.ids) + limit <= CONTEXT]


def ask(voices: Voices, columns: Sequence[Column], sampling: Sampling, stop_id: int, work: Work) -> list[Reply]:
    """The reply of each column, COLUMNS at a time, those of like length together."""
    order = sorted(range(len(columns)), key=lambda n: len(columns[n].prompt.ids))
    replies: list[Reply] = [Reply()] * len(columns)
    for start in range(0, len(order), COLUMNS):
        some = order[start : start + COLUMNS]
        steps = []
        for heard in stream(voices, [columns[n] for n in some], sampling, stop_id):
            steps.append(heard)
            work.tick()
        work.tick(sampling.max_new_tokens + 1 - len(steps))  # what an early end has saved
        for n, reply in zip(some, steps[-1], strict=True):
            replies[n] = reply
    return replies


def passes(columns: int, limit: int) -> int:
    """The forward passes that `ask` needs at most."""
    return -(-columns // COLUMNS) * (limit + 1)
