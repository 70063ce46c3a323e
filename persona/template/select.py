"""The chat template for a base: a shipped one, or the base's own format with its replies marked.

For a base with a format, the chosen template gives the same prompts as that format, character for character.
"""

import re
from typing import Any

from persona.errors import TemplateError
from persona.store.cjk import is_chinese
from persona.template.chat_template import ChatTemplate, pin_date, shipped_templates
from persona.template.compatibility import SAMPLE_CHATS, find_incompatibilities, is_mask_exact, try_render_prompt
from persona.template.derive import derive_template, gives_same_prompts

_GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TEMPLATE_BY_EOS = {"<|im_end|>": "chatml", "<|eot_id|>": "llama-3", "<end_of_turn>": "gemma", "<turn|>": "gemma-4"}


def choose_template(tokenizer: Any, language: str = "") -> ChatTemplate:
    """The template for a base: by its own chat format, else by its special tokens, else a plain Alpaca form.

    A shipped template is taken for the base's own if both give every chat the same prompt, character for character,
    earlier replies included; a thinking model is asked not to think. Else the own format is rewritten with its replies
    marked (derive.py), and taken if that gives the same prompts. Raises TemplateError when neither works.
    """
    shipped = shipped_templates()
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several by name; a chat uses "default"
        own = own.get("default")
    if not own:
        return _select_by_tokens(tokenizer, shipped, language)
    own = ChatTemplate("own", pin_date(own))
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


def _select_by_tokens(tokenizer: Any, shipped: dict[str, ChatTemplate], language: str) -> ChatTemplate:
    """For a base without a format. Turn markers alone do not decide: a pretrained base has them too, untrained."""
    name = _TEMPLATE_BY_EOS.get(tokenizer.eos_token or "", "")
    if name and not find_incompatibilities(tokenizer, shipped[name]):
        return shipped[name]  # its end of text is a chat's end of turn: tuned for chat
    if not find_incompatibilities(tokenizer, shipped["gemma-base"]):
        return shipped["gemma-base"]
    return shipped["alpaca-zh" if is_chinese(language) else "alpaca-en"]


def _find_equivalent(tokenizer: Any, own: ChatTemplate, shipped: dict[str, ChatTemplate]) -> ChatTemplate | None:
    wanted = [try_render_prompt(tokenizer, own, chat) for chat in SAMPLE_CHATS]
    for template in shipped.values():
        if gives_same_prompts(tokenizer, template, wanted) and not find_incompatibilities(tokenizer, template):
            return template
    return None
