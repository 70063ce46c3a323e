"""Which template suits a base: its NLL of the replies under each."""

from collections.abc import Sequence
from dataclasses import replace

from persona.compare.model_queue import MODEL_QUEUE
from persona.compare.session import LoadedModel
from persona.errors import TemplateError
from persona.models.loss import mean_nll
from persona.store.pairs import Pair
from persona.template.chat_template import ChatTemplate, shipped_templates
from persona.template.compatibility import find_incompatibilities
from persona.template.render import Renderer
from persona.train.collator import Collator

SCORED_PAIRS = 16  # pairs that a template is scored on; enough for a difference that matters, and seconds on a CPU


def base_nll(model: LoadedModel, renderer: Renderer, pairs: Sequence[Pair]) -> float:
    """The base's NLL: nats per learned token of these pairs, without any adapter.

    Raises TemplateError when none of the pairs can be trained on with this template.
    """
    examples = [e for e in renderer.iterate_examples(pairs) if e.learned and not e.problems]
    if not examples:
        raise TemplateError(
            "Template {template}: none of the pairs can be rendered with it.", template=renderer.template.name
        )
    with MODEL_QUEUE.turn(kind="template"), model.without_adapters():
        return mean_nll(model.model, examples, Collator(renderer.tokenizer.pad_token_id))


def rival_templates(renderer: Renderer, own: ChatTemplate) -> list[ChatTemplate]:
    """The templates to compare the chosen one with: the base's own, and the plain Alpaca forms."""
    shipped = shipped_templates()
    others = [own, *(shipped[n] for n in ("alpaca-zh", "alpaca-en") if n != own.name)]
    return [t for t in others if t.text != renderer.template.text and not find_incompatibilities(renderer.tokenizer, t)]


def score_templates(
    model: LoadedModel, renderer: Renderer, own: ChatTemplate, pairs: Sequence[Pair]
) -> list[tuple[str, float]]:
    """(template, nats per learned token) of the chosen template and its rivals on the same pairs, best first.

    SCORED_PAIRS pairs, spread evenly over the set. A wrong template has a higher NLL before any training.
    """
    sample = pairs[:: max(1, len(pairs) // SCORED_PAIRS)][:SCORED_PAIRS]
    scored = []
    for template in [renderer.template, *rival_templates(renderer, own)]:
        try:
            scored.append((template.name, base_nll(model, replace(renderer, template=template), sample)))
        except TemplateError:
            if template is renderer.template:
                raise
    return sorted(scored, key=lambda x: x[1])
