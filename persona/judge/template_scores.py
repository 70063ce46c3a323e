"""What a model makes of the pairs: so far, which template suits a base, by how likely it finds the replies under it."""

from collections.abc import Sequence
from dataclasses import replace

from persona.compare.session import LoadedModel
from persona.errors import TemplateError
from persona.models.loss import mean_nll
from persona.store.pairs import Pair
from persona.template.chat_template import ChatTemplate, shipped_templates
from persona.template.compatibility import find_incompatibilities
from persona.template.render import Renderer
from persona.train.collator import Collator

SCORED_PAIRS = 16  # pairs that a template is scored on; enough for a difference that matters, and seconds on a CPU


def base_nll(voices: LoadedModel, renderer: Renderer, pairs: Sequence[Pair]) -> float:
    """The base's held-out-style NLL: nats per learned token of these pairs, without any adapter.

    Raises TemplateError when none of the pairs can be trained on with this template.
    """
    examples = [e for e in map(renderer.render_example, pairs) if e.learned and not e.problems]
    if not examples:
        raise TemplateError(
            "Template {template}: none of the pairs can be rendered with it.", template=renderer.template.name
        )
    with voices.lock, voices.without_adapters():
        return mean_nll(voices.model, examples, Collator(renderer.tokenizer.pad_token_id))


def rival_templates(renderer: Renderer, own: ChatTemplate) -> list[ChatTemplate]:
    """The templates to hold the chosen one against: the base's own, and the plain forms."""
    shipped = shipped_templates()
    names = [own.name, "alpaca-zh", "alpaca-en"]
    others = [own, *(shipped[n] for n in names[1:] if n in shipped)]
    return [t for t in others if t.text != renderer.template.text and not find_incompatibilities(renderer.tokenizer, t)]


def score_templates(
    voices: LoadedModel, renderer: Renderer, own: ChatTemplate, pairs: Sequence[Pair]
) -> list[tuple[str, float]]:
    """(template, nats per learned token) of the chosen template and its rivals on the same pairs, best first.

    Spread evenly over the set, ROWS of them. A wrong template shows itself by a higher number before any training.
    """
    some = pairs[:: max(1, len(pairs) // SCORED_PAIRS)][:SCORED_PAIRS]
    scored = []
    for template in [renderer.template, *rival_templates(renderer, own)]:
        try:
            scored.append((template.name, base_nll(voices, replace(renderer, template=template), some)))
        except TemplateError:
            if template is renderer.template:
                raise
    return sorted(scored, key=lambda x: x[1])
