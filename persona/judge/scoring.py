"""What an evaluation asks of the model: the NLL of rows, and answers. Through models/loss.py and compare/session.py.

Each row and each batch of answers takes a turn of its own, so that a chat beside an evaluation waits for one only.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
THINKING_TOKENS = 512  # tokens of the thinking before an answer; one that thinks longer has no reply
GENERAL_REPLY_TOKENS = 32  # tokens of an answer to a general question: enough to name what is right


@dataclass(frozen=True)
class EvalProgress:
    """How far an evaluation is: share done (0 … 1), what it does, and seconds left where they can be estimated.

    seconds_left: of the whole evaluation, never more than before. part: the number of what it does, of `parts`; 0
    before the first.
    """

    share: float
    doing: str
    seconds_left: float | None
    part: int = 0
    parts: int = 0


PACE_PASSES = 3  # of a kind, before its pace is known: the first ones are slow


@dataclass
class EvalWork:
    """Counts what is done against what is planned, in passes, and estimates the time left: each kind has its own pace.

    Kinds: "scoring" (a row), "answering" (a token of a batch of answers), "judging" (an answer, by another model).
    visitor: whose evaluation it is, for the queue before the model.
    """

    report: Callable[[EvalProgress], None]
    visitor: str = ""
    planned: Counter[str] = field(default_factory=Counter)
    parts: int = 0
    part: int = 0
    doing: str = ""
    done: Counter[str] = field(default_factory=Counter)
    left: float | None = None
    _timed: Counter[str] = field(default_factory=Counter)  # passes that were computed, and their seconds
    _seconds: dict[str, float] = field(default_factory=dict)
    _last: float = 0.0

    def __post_init__(self) -> None:
        self._last = time.monotonic()

    def tick(self, kind: str, saved: int = 0) -> None:
        """One pass is done, or `saved` passes turned out not to be needed."""
        now = time.monotonic()
        self.done[kind] += saved or 1
        if not saved:
            self._timed[kind] += 1
            self._seconds[kind] = self._seconds.get(kind, 0.0) + now - self._last
        planned, self._last = max(1, self.planned.total()), now
        self.left = self._estimate_left()
        self.report(EvalProgress(min(1.0, self.done.total() / planned), self.doing, self.left, self.part, self.parts))

    def _estimate_left(self) -> float | None:
        """Seconds for all passes that are left, each kind at its pace; None until all of these are known."""
        left = {kind: n - self.done[kind] for kind, n in self.planned.items() if n > self.done[kind]}
        if any(self._timed[kind] < PACE_PASSES for kind in left):
            return self.left
        seconds = sum(n * self._seconds[kind] / self._timed[kind] for kind, n in left.items())
        return seconds if self.left is None else min(self.left, seconds)


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
        work.tick("scoring")
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


def thinking_room(renderer: Renderer) -> int:
    """Tokens that an answer has for its thinking, beside those of the reply."""
    return THINKING_TOKENS if renderer.template.shows_thinking else 0


def render_prompts(renderer: Renderer, pairs: Sequence[Pair], limit: int) -> list[tuple[Pair, ChatPrompt]]:
    """The pairs whose prompt leaves room for an answer, with the prompt."""
    rendered = [(p, renderer.render_prompt(p.history, p.instruction, p.system)) for p in pairs]
    return [(p, prompt) for p, prompt in rendered if len(prompt.ids) + limit <= MAX_CONTEXT_TOKENS]


def ask_columns(
    model: LoadedModel, columns: Sequence[Column], sampling: Sampling | Sequence[Sampling], stop_id: int, work: EvalWork
) -> list[Generation]:
    """The reply of each column, BATCH_COLUMNS at a time, those of like length together.

    sampling: of all columns, or one a column, all of the same length of replies.
    """
    samplings = [sampling] * len(columns) if isinstance(sampling, Sampling) else sampling
    by_length = sorted(range(len(columns)), key=lambda n: len(columns[n].prompt.ids))
    replies: list[Generation] = [Generation()] * len(columns)
    for start in range(0, len(by_length), BATCH_COLUMNS):
        batch = by_length[start : start + BATCH_COLUMNS]
        steps = []
        with MODEL_QUEUE.turn(work.visitor, "evaluation") as ticket, ticket.held():
            for step in stream_replies(model, [columns[n] for n in batch], [samplings[n] for n in batch], stop_id):
                steps.append(step)
                work.tick("answering")
        if saved := samplings[batch[0]].max_new_tokens + 1 - len(steps):  # passes that an early end has saved
            work.tick("answering", saved)
        for n, reply in zip(batch, steps[-1], strict=True):
            replies[n] = reply
    return replies


def count_passes(columns: int, limit: int) -> int:
    """The forward passes that ask_columns needs at most."""
    return -(-columns // BATCH_COLUMNS) * (limit + 1)
