"""Whether a reply answers its question: how much likelier the base finds it after the question than without one."""

from collections.abc import Sequence
from dataclasses import replace

from persona.compare.session import NO_ADAPTER, LoadedModel
from persona.judge.scoring import EvalWork, score_rows
from persona.store.pairs import Pair
from persona.template.render import Renderer

NO_QUESTION = "…"  # in the question's place; a template wants something there


def measure_context_fit(
    model: LoadedModel, renderer: Renderer, pairs: Sequence[Pair], work: EvalWork
) -> dict[int, float]:
    """Index of a pair → nats per token of the reply that question and earlier turns save.

    Near 0 or below: the reply is as likely without them, so it may be about something that is not there. Pairs that
    cannot be rendered are left out. `work` plans two rows a pair; its report may raise to stop.
    """
    plain = replace(renderer, system="")
    alone = [replace(pair, instruction=NO_QUESTION, history=()) for pair in pairs]
    rows = list(zip(plain.iterate_examples(pairs), plain.iterate_examples(alone), strict=True))
    fit = [n for n, two in enumerate(rows) if not any(example.problems for example in two)]
    work.planned["scoring"] += 2 * len(fit)
    gains = {}
    for n in fit:
        with_question, without = score_rows(model, NO_ADAPTER, rows[n], work)
        gains[n] = without - with_question
    return gains
