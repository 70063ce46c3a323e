"""Samples during training: the same few questions, answered at every evaluation.

A question is sampled with the same random numbers each time, so an answer changes only because the adapter has changed.
"""

from collections.abc import Sequence
from typing import Any

from persona.models import placement
from persona.models.generate import generate_batch
from persona.models.sampling import Sampling
from persona.store.cjk import is_chinese
from persona.store.persona_folder import PersonaCard
from persona.store.thinking import join_thinking
from persona.template.render import Renderer
from persona.train.config import SAMPLE_TOKENS
from persona.train.run_folder import Run

SAMPLE_LOG_SAMPLING = Sampling(max_new_tokens=SAMPLE_TOKENS)  # else the page's defaults; a sample is short


def choose_sample_questions(card: PersonaCard, count: int) -> tuple[str, ...]:
    """The first probes of the card. Without any: one that every persona can answer."""
    questions = card.probes or (("你是谁？" if is_chinese(card.language) else "Who are you?"),)
    return tuple(questions[:count])


def log_samples(run: Run, model: Any, renderer: Renderer, questions: Sequence[str], step: int) -> None:
    """Answer the questions with the model as it is and log the answers. The model's training mode is restored."""
    if not questions:
        return
    training = model.training
    model.eval()
    prompts = [renderer.render_prompt([], question) for question in questions]
    try:
        with placement.lora_autocast(model):
            *_, last = generate_batch(
                model, renderer.tokenizer, [p.ids for p in prompts], SAMPLE_LOG_SAMPLING, renderer.stop_id,
                thinking=prompts[0].thinking,
            )  # fmt: skip
    finally:
        model.train(training)
    # of a sample that ended within its thinking, that is all there is
    texts = [r.text or join_thinking(r.thinking, "…") for r in last]
    answers = [{"probe": q, "text": text, "ended": r.ended} for q, text, r in zip(questions, texts, last, strict=True)]
    run.log("diary", step=step, answers=answers)
