"""Rehearsal (Robins 1995): general prompts with the base's own answers are learned beside the pairs.

    rehearsal.jsonl        in the run folder: the pairs that a run rehearses, so that it resumes with the same
    rehearsal/DIGEST.jsonl in the workspace: all that a base has answered so far, so that later runs need not ask again

The prompts are persona/train/rehearsal_prompts.jsonl. The answers are the base's own (Huang et al. 2024), so nothing
foreign is taught, and less of what it knew is forgotten. The rows are no pairs of the persona: none is held out, and
none counts in its data_sha256.
"""

import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rapidfuzz import fuzz

from persona.errors import InputError, Message
from persona.models import placement
from persona.models.catalogue import is_instruction_tuned
from persona.models.generate import Generation, generate_batch
from persona.models.sampling import Sampling
from persona.store import jsonl
from persona.store.files import write_atomic
from persona.store.pairs import Pair, parse_pair
from persona.store.workspace import owner_of, workspace_of
from persona.template.render import Renderer, TrainingExample, render_examples
from persona.train import distributed
from persona.train.config import count_rehearsal
from persona.train.duration import REHEARSAL_BATCH, REHEARSAL_TOKENS
from persona.train.prepare import PreparedRun
from persona.train.run_folder import Run

PROMPTS_FILE = Path(__file__).with_name("rehearsal_prompts.jsonl")
RUN_FILE = "rehearsal.jsonl"
# with the page's temperature and penalty, 20 of 24 answers of the pretrained Gemma 3 270M went round in circles
SAMPLING = Sampling(temperature=0.7, repetition_penalty=1.2, max_new_tokens=REHEARSAL_TOKENS)
LOG_SECONDS = 3.0  # between two notes on how far it is
ECHO = 80  # of 100: an answer so similar to its prompt only repeats it
MIN_DISTINCT = 0.6  # of an answer's runs of CIRCLE_CHARACTERS: with fewer different ones it goes round in circles
CIRCLE_CHARACTERS = 4
SENTENCE_END = re.compile(r"[。！？!?…\n]|(?<!\d)\.(?=\s|$)")  # "2." may be the next line of a list


class AnsweringStopped(Exception):
    """The run was asked to stop while the base answered; what it has answered is kept."""


def read_prompts() -> list[str]:
    """The shipped prompts: everyday questions, facts, arithmetic, translation, code … in English and Chinese."""
    lines = PROMPTS_FILE.read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["prompt"] for line in lines if line]


def render_rehearsal(prepared: PreparedRun, model: Any, is_stopped: Callable[[], bool]) -> list[TrainingExample]:
    """The general rows of an epoch; where there are fewer good answers than rows, some stand several times.

    model: the base, as yet without an adapter; it answers where the run has no answers yet. Raises AnsweringStopped,
    and InputError where none of its answers can be learned.
    """
    count = count_rehearsal(prepared.config, len(prepared.train))
    if not count:
        return []
    system = prepared.renderer.system if prepared.config.rehearsal_system else ""
    renderer = replace(prepared.renderer, system=system, character=None)
    file = prepared.run.path / RUN_FILE
    done = distributed.run_on_main(
        lambda: file.is_file() or _write_answers(prepared, renderer, model, count, is_stopped)
    )
    if not done:
        raise AnsweringStopped
    rows = render_examples(renderer, [parse_pair(row) for row in jsonl.read_rows(file)[0]])
    return [rows[n % len(rows)] for n in range(count)]


def _write_answers(
    prepared: PreparedRun, renderer: Renderer, model: Any, count: int, is_stopped: Callable[[], bool]
) -> bool:
    """Write the run's file, from what is kept of the base and what it answers now; False where that was stopped."""
    run, prompts = prepared.run, read_prompts()
    random.Random(prepared.config.seed).shuffle(prompts)
    prompts = prompts[:count]
    kept = _kept_file(prepared, renderer)
    known = {row["prompt"]: row for row in jsonl.read_rows(kept)[0] if {"prompt", "answer", "ended"} <= row.keys()}
    new, start = [p for p in prompts if p not in known], time.monotonic()
    for first in range(0, len(new), REHEARSAL_BATCH):
        batch = new[first : first + REHEARSAL_BATCH]
        replies = _answer(prepared, renderer, model, batch, _Notes(run, len(new), first, start), is_stopped)
        if is_stopped():
            break
        known |= {p: {"prompt": p, "answer": r.text, "ended": r.ended} for p, r in zip(batch, replies, strict=True)}
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, (jsonl.encode_row(row).decode() for row in known.values()))
    if new:
        seconds, answered = round(time.monotonic() - start, 3), sum(p in known for p in new)
        run.log("rehearsal", answered=answered, seconds=seconds)
    if not all(p in known for p in prompts):
        return False
    pairs = [Pair(p, text) for p in prompts if (text := whole_answer(p, known[p]["answer"], known[p]["ended"]))]
    rows = [pair for pair, e in zip(pairs, renderer.iterate_examples(pairs), strict=True) if not e.problems]
    if not rows:
        raise InputError(
            "rehearsal_fraction={share}: the base answered {count} general prompts, and none of its answers can be "
            "learned. Set it to 0 for this base.", share=prepared.config.rehearsal_fraction, count=len(prompts),
        )  # fmt: skip
    write_atomic(run.path / RUN_FILE, (jsonl.encode_row(row.to_dict()).decode() for row in rows))
    return True


def _kept_file(prepared: PreparedRun, renderer: Renderer) -> Path:
    """Where the answers of this base to these prompts are kept. All that changes an answer is in the name."""
    base = prepared.base
    weights = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in sorted(base.path.glob("*.safetensors"))]
    key = [base.id, base.revision, str(base.path.resolve()), weights, prepared.plan.train_dtype,
           prepared.config.quantization, renderer.template.text, renderer.system, asdict(SAMPLING)]  # fmt: skip
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    return workspace_of(owner_of(prepared.run.path)) / "rehearsal" / f"{digest}.jsonl"


def _answer(
    prepared: PreparedRun, renderer: Renderer, model: Any, prompts: Sequence[str], notes: "_Notes",
    is_stopped: Callable[[], bool],
) -> list[Generation]:  # fmt: skip
    """The base's reply to each prompt; one that only continues text is left off after its first line."""
    one_line = not is_instruction_tuned(prepared.base.id, renderer.template.name)
    replies = [Generation() for _ in prompts]

    def is_answered(reply: Generation) -> bool:
        return reply.ended or (one_line and "\n" in reply.text.strip())

    def is_halted(row: int) -> bool:
        return is_stopped() or is_answered(replies[row])

    with ExitStack() as stack:
        stack.callback(model.train, model.training)
        model.eval()
        stack.enter_context(placement.lora_autocast(model))
        if hasattr(model, "disable_adapter"):  # Unsloth has added the LoRA already
            stack.enter_context(model.disable_adapter())
        ids = [renderer.render_prompt([], prompt).ids for prompt in prompts]
        tokenizer, stop = renderer.tokenizer, renderer.stop_id
        for replies in generate_batch(model, tokenizer, ids, SAMPLING, stop, is_halted=is_halted):
            notes.log(max(r.tokens for r in replies), sum(map(is_answered, replies)))
    return [_first_line(r) for r in replies] if one_line else replies


def _first_line(reply: Generation) -> Generation:
    first, line_break, _ = reply.text.strip().partition("\n")
    return replace(reply, text=first, ended=reply.ended or bool(line_break))


class _Notes:
    """Says in the run's events how many of `count` prompts are answered, and about how long the rest takes."""

    def __init__(self, run: Run, count: int, answered: int, start: float) -> None:
        self.run, self.count, self.answered, self.start, self.last = run, count, answered, start, 0.0

    def log(self, tokens: int, answered: int) -> None:
        """tokens: of the longest answer of the present batch so far. answered: of its prompts."""
        now = time.monotonic()
        if now - self.last < LOG_SECONDS:
            return
        self.last, answered = now, self.answered + answered
        steps = self.answered / REHEARSAL_BATCH * REHEARSAL_TOKENS + tokens
        left = (-(-self.count // REHEARSAL_BATCH) * REHEARSAL_TOKENS - steps) / max(1, steps)
        if answered:  # shorter answers than there may be
            left = min(left, (self.count - answered) / answered)
        text = Message(
            "Answering {count} general prompts with the base: {answered} of {count}, about {seconds} s left …",
            count=self.count, answered=answered, seconds=max(1, round(left * (now - self.start))),
        )  # fmt: skip
        self.run.log("state", state="starting", message=text)


def whole_answer(prompt: str, text: str, ended: bool) -> str:
    """What can be learned of an answer: up to its last whole sentence where it was cut.

    "" for one without a whole sentence, that only repeats its prompt, or that goes round in circles.
    """
    text = text.strip()
    if not ended:
        text = text[: max((end.end() for end in SENTENCE_END.finditer(text)), default=0)].rstrip()
    runs = [text[n : n + CIRCLE_CHARACTERS] for n in range(len(text) - CIRCLE_CHARACTERS + 1)]
    is_circle = bool(runs) and len(set(runs)) < MIN_DISTINCT * len(runs)
    is_echo = text.startswith(prompt) or fuzz.ratio(prompt, text) >= ECHO
    return "" if is_circle or is_echo else text
