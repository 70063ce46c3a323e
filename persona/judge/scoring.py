"""What needs the model: how likely rows are, what is answered. Everything goes through loss.py and chat.stream."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from persona.compare.session import Column, LoadedModel, stream_replies
from persona.models.generate import Generation
from persona.models.loss import mean_nll
from persona.models.mixed_lora import MixedLora
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.store.pairs import Pair
from persona.store.workspace import PROJECT_DIR
from persona.template.render import IGNORE_INDEX, ChatPrompt, Renderer, TrainingExample
from persona.train.collator import Collator

GENERAL_QUESTIONS = PROJECT_DIR / "persona" / "judge" / "general_questions.jsonl"
BATCH_COLUMNS = 24  # of one batch: a step costs little more than with two, since reading the weights is most of it
REPLY_TOKENS = (48, 256)  # tokens, the least and the most that an answer may have
GENERAL_REPLY_TOKENS = 32  # tokens of an answer to a general question: enough to name what is right


@dataclass(frozen=True)
class EvalProgress:
    """How far an evaluation is: 0 … 1, what it does, and seconds left where that can be said."""

    share: float
    doing: str
    seconds_left: float | None


@dataclass
class EvalWork:
    """Counts what is done against what is planned; a forward pass is 1, of whichever kind."""

    planned: int
    report: Callable[[EvalProgress], None]
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
        self.report(EvalProgress(share, self.doing, left))


@dataclass(frozen=True)
class GeneralQuestion:
    """General knowledge: a pair, and what a right answer holds (`a|b` is either)."""

    pair: Pair
    key: str

    def right(self, answer: str) -> bool:
        return any(k.casefold() in answer.casefold() for k in self.key.split("|"))


def read_general_questions() -> list[GeneralQuestion]:
    """The shipped questions, Chinese and English in turn, so that any first few hold both."""
    rows = [json.loads(line) for line in GENERAL_QUESTIONS.read_text(encoding="utf-8").split("\n") if line]
    read = [GeneralQuestion(Pair(r["instruction"], r["output"]), r["key"]) for r in rows]
    half = len(read) // 2
    return [q for two in zip(read[:half], read[half:], strict=True) for q in two]


def score_rows(voices: LoadedModel, name: str, examples: Sequence[TrainingExample], work: EvalWork) -> list[float]:
    """Nats per learned token of each row, by the base (name BASE) or an attached adapter at strength 1."""
    collate = Collator(voices.tokenizer.pad_token_id)
    found = []
    for example in examples:  # row by row: a chat beside it waits for one row only
        with (
            voices.lock,
            MixedLora(voices.model, [voices.adapter_weights(name)]),
        ):
            found.append(mean_nll(voices.model, [example], collate))
        work.tick()
    return found


def mask_stop_token(example: TrainingExample, stop_id: int) -> TrainingExample:
    """The row with its text alone learned: whether it stops is measured by itself, and would drown the few words."""
    at = max((n for n, i in enumerate(example.labels) if i == stop_id), default=len(example.labels))
    return replace(example, labels=[*example.labels[:at], *[IGNORE_INDEX] * (len(example.labels) - at)])


def reply_token_limit(examples: Sequence[TrainingExample]) -> int:
    """Tokens that an answer may have: twice what 95 % of her own replies need."""
    lengths = sorted(e.learned for e in examples)
    usual = lengths[int(0.95 * (len(lengths) - 1))] if lengths else 64
    return min(REPLY_TOKENS[1], max(REPLY_TOKENS[0], 2 * usual))


def render_prompts(renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[tuple[Pair, ChatPrompt]]:
    """The pairs whose prompt leaves room for an answer."""
    asked = [(p, renderer.render_prompt(p.history, p.instruction)) for p in pairs]
    return [(p, prompt) for p, prompt in asked if len(prompt.ids) + limit <= MAX_CONTEXT_TOKENS]


def ask_columns(
    voices: LoadedModel, columns: Sequence[Column], sampling: Sampling, stop_id: int, work: EvalWork
) -> list[Generation]:
    """The reply of each column, COLUMNS at a time, those of like length together."""
    order = sorted(range(len(columns)), key=lambda n: len(columns[n].prompt.ids))
    replies: list[Generation] = [Generation()] * len(columns)
    for start in range(0, len(order), BATCH_COLUMNS):
        some = order[start : start + BATCH_COLUMNS]
        steps = []
        for heard in stream_replies(voices, [columns[n] for n in some], sampling, stop_id):
            steps.append(heard)
            work.tick()
        work.tick(sampling.max_new_tokens + 1 - len(steps))  # what an early end has saved
        for n, reply in zip(some, steps[-1], strict=True):
            replies[n] = reply
    return replies


def count_passes(columns: int, limit: int) -> int:
    """The forward passes that `ask` needs at most."""
    return -(-columns // BATCH_COLUMNS) * (limit + 1)
