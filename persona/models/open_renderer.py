"""The renderer for a base and a persona: the base's tokenizer and the chat template that fits it."""

from functools import lru_cache

from persona.errors import InputError, TemplateError
from persona.models.base import Base, load_tokenizer, resolve_base
from persona.models.progress_callback import ProgressCallback, ignore_progress
from persona.store.persona_folder import Persona, PersonaCard
from persona.store.thinking import MODES
from persona.template.character_prompt import CharacterPrompt
from persona.template.chat_template import ChatTemplate, read_template
from persona.template.mask_html import RenderedPair
from persona.template.render import MAX_LENGTH, Renderer
from persona.template.select import choose_template, require_same_thinking


def open_renderer(
    card: PersonaCard,
    name: str = "",
    template: str = "auto",
    max_length: int = MAX_LENGTH,
    learn_history: bool = False,
    progress: ProgressCallback = ignore_progress,
    revision: str = "",
    thinking: str = "none",
) -> tuple[Base, Renderer]:
    """The base called `name` and its renderer. Preview, trainer and command line all open them here.

    template: the name of a shipped one, a file, or "auto": chosen for the base. revision: as in resolve_base().
    thinking: as RunConfig.thinking. Raises BaseError, InputError or TemplateError.
    """
    if thinking not in MODES:
        raise InputError("thinking={thinking}: choose one of {known}.", thinking=thinking, known=", ".join(MODES))
    base = resolve_base(name, progress, revision)
    tokenizer, language = load_tokenizer(base), card.language
    chosen = _choose_template(base, None if template == "auto" else read_template(template), language, thinking)
    return base, Renderer(tokenizer, chosen, card.system, max_length, learn_history, character=CharacterPrompt.of(card))


def render_pair(
    persona: Persona, number: int = 1, base: str = "", template: str = "auto",
    progress: ProgressCallback = ignore_progress, thinking: str = "none",
) -> tuple[Base, RenderedPair]:  # fmt: skip
    """Pair `number`, from 1, of a persona as the model reads it. base, template, thinking: as in open_renderer().

    Raises InputError where there is no such pair, BaseError or TemplateError.
    """
    pairs = persona.pairs()
    if not 1 <= number <= len(pairs):
        raise InputError(
            "{path}: has {count} pair(s), there is no pair {pair}.",
            path=persona.pairs_file,
            count=len(pairs),
            pair=number,
        )
    opened, renderer = open_renderer(persona.card(), base, template, progress=progress, thinking=thinking)
    return opened, RenderedPair(renderer, renderer.render_example(pairs[number - 1]))


def can_think(base: Base, renderer: Renderer) -> bool:
    """Whether RunConfig.thinking can be something else than none for this base and template."""
    if renderer.template.shows_thinking:
        return True
    if not renderer.template.thinking:
        return False
    try:
        _choose_template(base, None, "", "keep")
    except TemplateError:
        return False
    return True


@lru_cache(maxsize=64)
def _choose_template(base: Base, named: ChatTemplate | None, language: str, thinking: str) -> ChatTemplate:
    """Cached: the page asks at every key press, and choosing searches a tokenizer of 262,144 tokens."""
    tokenizer = load_tokenizer(base)
    if named:
        return require_same_thinking(tokenizer, named, thinking)
    return choose_template(tokenizer, language, thinking)
