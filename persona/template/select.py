"""The chat template for a base: a shipped one, or the base's own format with its replies marked.

For a base with a format, the chosen template gives the same prompts as that format, character for character.
"""

import itertools
import re
from typing import Any

from persona.errors import TemplateError
from persona.store.cjk import is_chinese
from persona.template.chat_template import ChatTemplate, pin_date, shipped_templates
from persona.template.compatibility import SAMPLE_CHATS, find_incompatibilities, is_mask_exact, try_render_prompt
from persona.template.derive import derive_template, gives_same_prompts, thinks_in_blocks

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TEMPLATE_BY_EOS = {"<|im_end|>": "chatml", "<|eot_id|>": "llama-3", "<end_of_turn>": "gemma", "<turn|>": "gemma-4"}


def choose_template(tokenizer: Any, language: str = "", thinking: str = "none") -> ChatTemplate:
    """The template for a base: by its own chat format, else by its special tokens, else a plain Alpaca form.

    A shipped template is taken for the base's own if both give every chat the same prompt, character for character,
    earlier replies included; a thinking model is asked not to think. Else the own format is rewritten with its replies
    marked (derive.py), and taken if that gives the same prompts. Raises TemplateError when neither works.

    thinking: as RunConfig.thinking; with keep and train the base is asked to think, which TemplateError refuses for
    one that cannot.
    """
    if thinking != "none":
        return _choose_thinking(tokenizer, thinking)
    shipped, own = shipped_templates(), own_format(tokenizer)
    if not own:
        return _select_by_tokens(tokenizer, shipped, language)
    if found := _find_equivalent(tokenizer, own, shipped):
        return found
    if (
        _GENERATION_TAG.search(own.text)
        and not find_incompatibilities(tokenizer, own)
        and is_mask_exact(tokenizer, own)
    ):
        return own
    derived = derive_template(tokenizer, own)
    if derived and not find_incompatibilities(tokenizer, derived) and is_mask_exact(tokenizer, derived):
        return _find_equivalent(tokenizer, derived, shipped) or derived
    raise TemplateError(
        "This base has a chat format of its own that no shipped template reproduces. Choose a template by "
        "hand ({shipped}), or give the base's own with {{% generation %}} around the reply as a .jinja "
        "file.",
        shipped=", ".join(shipped),
    )


def own_format(tokenizer: Any) -> ChatTemplate | None:
    """The base's own chat format, as its tokenizer has it."""
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several by name; a chat uses "default"
        own = own.get("default")
    return ChatTemplate("own", pin_date(own)) if own else None


def _choose_thinking(tokenizer: Any, thinking: str) -> ChatTemplate:
    """The template that asks the base to think, exactly as its own format does."""
    own = own_format(tokenizer)
    if not own or not thinks_in_blocks(tokenizer, own):
        raise _cannot_think(thinking)
    shipped = {n: t.with_thinking(thinking) for n, t in shipped_templates().items() if t.thinking}
    if found := _find_equivalent(tokenizer, own, shipped, think=True):
        return found
    derived = derive_template(tokenizer, own, thinking)
    if derived and not find_incompatibilities(tokenizer, derived) and is_mask_exact(tokenizer, derived):
        return derived
    raise TemplateError(
        "thinking={thinking}: this base thinks, but how its chat format writes that could not be read off it. Set "
        "thinking to none.",
        thinking=thinking,
    )


def _cannot_think(thinking: str) -> TemplateError:
    return TemplateError(
        "thinking={thinking}: this base's chat format has no <think> block, so there is no thinking to keep or train. "
        "Set thinking to none, or choose a base that reasons, such as Qwen3.",
        thinking=thinking,
    )


def require_same_thinking(tokenizer: Any, template: ChatTemplate, thinking: str) -> ChatTemplate:
    """A named template in this mode. Raises TemplateError unless it asks the base to think exactly as the base's own
    format does: else thinking would appear, or vanish, by the training.
    """
    if thinking == "none":
        return template.with_thinking(thinking)
    own = own_format(tokenizer)
    if not own or not thinks_in_blocks(tokenizer, own):
        raise _cannot_think(thinking)
    chosen = template.with_thinking(thinking)
    if not chosen.thinking or not is_mask_exact(tokenizer, chosen):
        raise TemplateError(
            "thinking={thinking}: template {template} does not write the block of thinking. Set template to auto, or "
            "thinking to none.",
            thinking=thinking, template=template.name,
        )  # fmt: skip
    for chat in SAMPLE_CHATS:
        wanted, got = (try_render_prompt(tokenizer, t, chat, think=True) for t in (own, chosen))
        if wanted is not None and wanted != got:
            equal = itertools.takewhile(lambda two: two[0] == two[1], zip(wanted, got or "", strict=False))
            at = sum(1 for _ in equal)
            raise TemplateError(
                "Template {template} does not ask this base to think as its own format does: where that writes "
                "{own!r}, it has {other!r}. Set template to auto, or thinking to none.",
                template=template.name, own=wanted[at:][:60], other=(got or "")[at:][:60],
            )  # fmt: skip
    return chosen


def _select_by_tokens(tokenizer: Any, shipped: dict[str, ChatTemplate], language: str) -> ChatTemplate:
    """For a base without a format. Turn markers alone do not decide: a pretrained base has them too, untrained."""
    name = _TEMPLATE_BY_EOS.get(tokenizer.eos_token or "", "")
    if name and not find_incompatibilities(tokenizer, shipped[name]):
        return shipped[name]  # its end of text is a chat's end of turn: tuned for chat
    if not find_incompatibilities(tokenizer, shipped["gemma-base"]):
        return shipped["gemma-base"]
    return shipped["alpaca-zh" if is_chinese(language) else "alpaca-en"]


def _find_equivalent(
    tokenizer: Any, own: ChatTemplate, shipped: dict[str, ChatTemplate], think: bool = False
) -> ChatTemplate | None:
    wanted = [try_render_prompt(tokenizer, own, chat, think) for chat in SAMPLE_CHATS]
    for template in shipped.values():
        if gives_same_prompts(tokenizer, template, wanted) and not find_incompatibilities(tokenizer, template):
            return template
    return None
