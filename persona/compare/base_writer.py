"""The base in memory as a writer of drafts (write/suggestions.py): without an adapter, without the persona's prompt."""

import itertools
from collections.abc import Callable
from dataclasses import replace

from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.session import NO_ADAPTER, Voice, open_model, stream_replies
from persona.errors import Message, PersonaError
from persona.models.base import Base
from persona.models.catalogue import is_instruction_tuned
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.template.render import Renderer
from persona.write.suggestions import Writer

SAMPLING = Sampling(temperature=0.8, top_p=0.95, repetition_penalty=1.05, max_new_tokens=512)


def open_base_writer(
    base: Base, renderer: Renderer, visitor: str = "", is_stopped: Callable[[], bool] = lambda: False
) -> Writer:
    """The base as a writer; is_stopped: asked after each token, and ends the answer.

    Raises PersonaError for a base that only continues text, and BaseError where it does not fit into memory.
    """
    if not is_instruction_tuned(base.id, renderer.template.name):
        raise PersonaError(
            "{base} has only learned to continue text, so it cannot write drafts. Choose an instruction-tuned base in "
            "step 2, or set the address of a model server.", base=base.id,
        )  # fmt: skip
    model = open_model(base)
    voice, seeds = Voice("base", NO_ADAPTER, replace(renderer, system="")), itertools.count()

    def ask(prompt: str) -> str:
        column, reply = voice.render_column((), prompt), Generation(error=Message("The base gave no answer."))
        with MODEL_QUEUE.turn(visitor, "suggestion") as ticket, ticket.held(), model.without_adapters():
            for replies in stream_replies(model, [column], replace(SAMPLING, seed=next(seeds))):
                reply = replies[0]
                if is_stopped():
                    break
        if reply.error:
            raise PersonaError(Message.of(reply.error))
        return reply.text

    return Writer(base.id, ask)
