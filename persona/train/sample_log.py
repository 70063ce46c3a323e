"""The diary of a run: the same few questions, answered at every evaluation while she learns.

The same question gets the same dice each time, so an answer changes because the adapter has changed.
"""

from collections.abc import Sequence
from typing import Any

from persona.models import loss
from persona.models.generate import generate_batch
from persona.models.sampling import Sampling
from persona.store.persona_folder import PersonaCard
from persona.template.render import Renderer
from persona.train.run_folder import Run

SAMPLE_LOG_SAMPLING = Sampling(max_new_tokens=48)  # the page's way of drawing; a line of the diary is short


def choose_sample_questions(card: PersonaCard, count: int) -> tuple[str, ...]:
    """The first probes of the card. Without any: one that every persona can answer."""
    asked = card.probes or (("你是谁？" if card.language.startswith("zh") else "Who are you?"),)
    return tuple(asked[:count])


def log_samples(run: Run, model: Any, renderer: Renderer, asked: Sequence[str], step: int) -> None:
    """Answer `asked` with the model as it is and log the answers. The model comes back in the mode it was in."""
    if not asked:
        return
    training = model.training
    model.eval()
    prompts = [renderer.render_prompt([], question) for question in asked]
    try:
        with loss.cpu_autocast(model):
            *_, last = generate_batch(
                model, renderer.tokenizer, [p.ids for p in prompts], SAMPLE_LOG_SAMPLING, renderer.stop_id
            )
    finally:
        model.train(training)
    answers = [{"probe": q, "text": r.text, "ended": r.ended} for q, r in zip(asked, last, strict=True)]
    run.log("diary", step=step, answers=answers)
