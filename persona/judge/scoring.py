"""What an evaluation asks of the model: the NLL of rows, and answers. Through models/loss.py and compare/session.py.

Each row and each batch of answers takes a turn of its own, so that a chat beside an evaluation waits for one only.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.session import Column, LoadedModel, stream_replies
from persona.judge.probes import mentions
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
    """How far an evaluation is: share done (0 … 1), what it does, and seconds left where they can be estimated."""

    share: float
    doing: str
    seconds_left: float | None


@dataclass
class EvalWork:
    """Counts what is done against what is planned; a forward pass is 1, of whichever kind.

    visitor: whose evaluation it is, for the queue before the model.
    """

    report: Callable[[EvalProgress], None]
    visitor: str = ""
    planned: int = 0
    doing: str = ""
    done: int = 0
    started: float = 0.0

    def __post_init__(self) -> None:
        self.started = time.monotonic()

    def tick(self, steps: int = 1) -> None:
        self.done += steps
        share = min(1.0, self.done / max(1, self.planned))
        elapsed = time.monotonic() - self.started
        left = elapsed * (1 - share) / share if share > 0.02 else None  # the first passes are slow and say little
        self.report(EvalProgress(share, self.doing, left))


@dataclass(frozen=True)
class GeneralQuestion:
    """General knowledge: a pair, and the key words of a right answer (`a|b` is either)."""

    pair: Pair
    key: str

    def is_right(self, answer: str) -> bool:
        return mentions(self.key, answer.casefold())


def read_general_questions() -> list[GeneralQuestion]:
    """The shipped questions, Chinese and English in turn, so that any first few hold both."""
    rows = [json.loads(line) for line in GENERAL_QUESTIONS.read_text(encoding="utf-8").split("\n") if line]
    questions = [GeneralQuestion(Pair(r["instruction"], r["output"]), r["key"]) for r in rows]
    half = len(questions) // 2
    return [q for two in zip(questions[:half], questions[half:], strict=True) for q in two]


def score_rows(model: LoadedModel, name: str, examples: Sequence[TrainingExample], work: EvalWork) -> list[float]:
    """Nats per learned token of each row, by the base (NO_ADAPTER) or an attached adapter at strength 1."""
    collate = Collator(model.tokenizer.pad_token_id)
    nlls = []
    for example in examples:
        with (
            MODEL_QUEUE.turn(work.visitor, "scoring"),
            MixedLora(model.model, [model.adapter_weights(name)]),
        ):
            nlls.append(mean_nll(model.model, [example], collate))
        work.tick()
    return nlls


def mask_stop_token(example: TrainingExample, stop_id: int) -> TrainingExample:
    """The row without labels from its last stop token on: among few words, the stop would outweigh the text."""
    stop = max((n for n, i in enumerate(example.labels) if i == stop_id), default=len(example.labels))
    return replace(example, labels=[*example.labels[:stop], *[IGNORE_INDEX] * (len(example.labels) - stop)])


def reply_token_limit(examples: Sequence[TrainingExample]) -> int:
    """Tokens that an answer may have: twice what 95 % of the persona's own replies need, within REPLY_TOKENS."""
    lengths = sorted(e.learned for e in examples)
    usual = lengths[int(0.95 * (len(lengths) - 1))] if lengths else 64
    return min(REPLY_TOKENS[1], max(REPLY_TOKENS[0], 2 * usual))


def render_prompts(renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[tuple[Pair, ChatPrompt]]:
    """The pairs whose prompt leaves room for an answer, with the prompt."""
    rendered = [(p, renderer.render_prompt(p.history, p.instruction)) for p in pairs]
    return [(p, prompt) for p, prompt in rendered if len(prompt.ids) + limit <= MAX_CONTEXT_TOKENS]


def ask_columns(
    model: LoadedModel, columns: Sequence[Column], sampling: Sampling, stop_id: int, work: EvalWork
) -> list[Generation]:
    """The reply of each column, BATCH_COLUMNS at a time, those of like length together."""
    by_length = sorted(range(len(columns)), key=lambda n: len(columns[n].prompt.ids))
    replies: list[Generation] = [Generation()] * len(columns)
    for start in range(0, len(by_length), BATCH_COLUMNS):
        batch = by_length[start : start + BATCH_COLUMNS]
        steps = []
        with MODEL_QUEUE.turn(work.visitor, "evaluation") as ticket, ticket.held():
            for step in stream_replies(model, [columns[n] for n in batch], sampling, stop_id):
                steps.append(step)
                work.tick()
        work.tick(sampling.max_new_tokens + 1 - len(steps))  # passes that an early end has saved
        for n, reply in zip(batch, steps[-1], strict=True):
            replies[n] = reply
    return replies


def count_passes(columns: int, limit: int) -> int:
    """The forward passes that ask_columns needs at most."""
    return -(-columns // BATCH_COLUMNS) * (limit + 1)
