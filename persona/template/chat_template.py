"""Chat templates: read a shipped or a user's one, and apply it to a conversation.

A template is Jinja text with {% generation %} around what the model learns. A .jinja file in templates/chat adds one.
The tokenizer is passed in, so this module needs neither torch nor transformers.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from persona.errors import TemplateError
from persona.store import thinking
from persona.store.files import expand_home, is_file
from persona.store.workspace import TEMPLATES_DIR, is_for_visitor, may_name
from persona.template.jinja_engine import RenderedChat, make_environment, render_chat
from persona.template.worker_pool import render_in_worker

_THINKING_LINE = re.compile(rf"\{{%-?\s*set thinking = '({'|'.join(thinking.MODES)})'\s*-?%\}}")


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template: Jinja text with {% generation %} around what the model learns.

    That of a base that thinks in <think> blocks has a line {%- set thinking = 'none' -%}, by which it writes prompts
    and rows: none, keep or train, as RunConfig.thinking says.
    """

    name: str
    text: str

    @property
    def about(self) -> str:
        """The header comment: where the template comes from and what was changed."""
        found = re.match(r"\s*\{#-?(.*?)-?#\}", self.text, re.S)
        return " ".join(found[1].split()) if found else ""

    @property
    def plain_text_markers(self) -> frozenset[str]:
        """Markers that are plain text in this family, as its header says: 'Plain text: [INST] [/INST]'."""
        found = re.search(r"Plain text:\s*((?:[<\[]\S+[>\]][\s,]*)+)", self.about)
        return frozenset(re.findall(r"[<\[]\S+[>\]]", found[1])) if found else frozenset()

    @property
    def thinking(self) -> str:
        """What it does with thinking: none, keep or train; "" for a format that knows none."""
        found = _THINKING_LINE.search(self.text)
        return found[1] if found else ""

    @property
    def shows_thinking(self) -> bool:
        """Whether the model thinks before it replies."""
        return self.thinking in ("keep", "train")

    def with_thinking(self, mode: str) -> "ChatTemplate":
        """The same with another thinking mode; as it is where the format knows no thinking."""
        return replace(self, text=_THINKING_LINE.sub(f"{{%- set thinking = '{mode}' -%}}", self.text, count=1))


def shipped_templates() -> dict[str, ChatTemplate]:
    """Every file of templates/chat by name."""
    files = sorted((TEMPLATES_DIR / "chat").glob("*.jinja"))
    return {f.stem: ChatTemplate(f.stem, f.read_text(encoding="utf-8")) for f in files}


def read_template(name: str) -> ChatTemplate:
    """A shipped template by name, or a .jinja file by path."""
    shipped = shipped_templates()
    if name in shipped:
        return shipped[name]
    path = Path(name) if is_for_visitor() else expand_home(name)
    if path.suffix == ".jinja" and may_name(path) and is_file(path):
        return ChatTemplate(path.stem, path.read_text(encoding="utf-8"))
    raise TemplateError(
        "{name!r}: no such template. Choose one of {shipped}, or name a .jinja file.",
        name=name[:200],
        shipped=", ".join(shipped),
    )


def build_messages(
    system: str, history: Iterable[Sequence[str]], instruction: str, reply: str | None = None, late_system: str = ""
) -> list[dict]:
    """The conversation as role/content messages; an empty system prompt is left out.

    late_system: a system message between `instruction` and `reply`; not every template takes one.
    """
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for user, answer in history:
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": instruction})
    turns += [{"role": "system", "content": late_system}] if late_system.strip() else []
    return turns if reply is None else [*turns, {"role": "assistant", "content": reply}]


def render_chats(
    tokenizer: Any, template: ChatTemplate, chats: Iterable[list[dict]], **variables: Any
) -> Iterator[RenderedChat]:
    """The only place where a chat template runs: chats → texts, one by one. Raises TemplateError naming the template.

    A shipped template renders here, any other one in a process with limits of time and memory (worker_pool.py).
    variables: what the template may read beside messages and special tokens, e.g. add_generation_prompt.
    """
    variables = {**tokenizer.special_tokens_map, **variables}
    with _naming(template):
        if template.text in _shipped_texts():
            compiled = _compile_shipped(template.text)
            yield from (render_chat(compiled, chat, variables) for chat in chats)
        else:
            yield from render_in_worker(template.text, chats, variables)


def apply_template(
    tokenizer: Any,
    template: ChatTemplate,
    chat: list[dict],
    *,
    tokenize: bool = True,
    return_dict: bool = True,
    return_assistant_tokens_mask: bool = False,
    **variables: Any,
) -> Any:
    """tokenizer.apply_chat_template with these options, limited as render_chats() is. Raises TemplateError."""
    rendered = next(render_chats(tokenizer, template, [chat], **variables))
    if not tokenize:
        return rendered.text
    encoded = encode_chat(tokenizer, template, rendered)
    if return_assistant_tokens_mask:
        encoded["assistant_masks"] = mask_learned(encoded, rendered)
    return encoded if return_dict else encoded["input_ids"]


def encode_chat(tokenizer: Any, template: ChatTemplate, rendered: RenderedChat, **options: Any) -> Any:
    """The tokenizer's encoding of a rendered chat, whose special tokens the template has written."""
    with _naming(template):
        return tokenizer(rendered.text, add_special_tokens=False, **options)


def mask_learned(encoded: Any, rendered: RenderedChat) -> list[int]:
    """1 for each token that has characters of a {% generation %} block, as transformers masks them; else 0."""
    mask = [0] * len(encoded["input_ids"])
    for start, end in rendered.learned:
        first, last = encoded.char_to_token(start), encoded.char_to_token(end - 1)
        if first is None:
            break
        stop = last + 1 if last else len(mask)
        mask[first:stop] = [1] * max(0, stop - first)
    return mask


def encode_sanitized(tokenizer: Any, template: ChatTemplate, chat: list[dict], **variables: Any) -> list[int]:
    """Token ids of a chat in which the messages' control tokens are plain text: only the template writes real ones.

    As tokenizer.apply_chat_template(sanitize_control_tokens=True) does, but the template is not read in this process:
    its control tokens are those that stand in its source.
    """
    with _naming(template):
        tokens = [t.content for t in tokenizer.added_tokens_decoder.values() if t.content in template.text]
        source = "".join("{{ " + json.dumps(token, ensure_ascii=False) + " }}" for token in tokens)
        marked = tokenizer._mark_chat_inputs(source, [chat], None, None, {}, True, False)[0]
    rendered = next(render_chats(tokenizer, template, marked, **variables))
    encoded = encode_chat(tokenizer, template, rendered, sanitize_control_tokens=True)
    return list(encoded["input_ids"])


@contextmanager
def _naming(template: ChatTemplate) -> Iterator[None]:
    """Errors are TemplateErrors that name the template."""
    try:
        yield
    except TemplateError as e:
        raise TemplateError("Template {template}: {reason}", template=template.name, reason=e) from e
    except Exception as e:  # Jinja, sandbox, raise_exception and tokenizer errors have no common base class
        raise TemplateError(
            "Template {template}: {kind}: {reason}", template=template.name, kind=type(e).__name__, reason=e
        ) from e


@lru_cache
def _shipped_texts() -> frozenset[str]:
    return frozenset(t.with_thinking(mode).text for t in shipped_templates().values() for mode in thinking.MODES)


@lru_cache
def _compile_shipped(text: str) -> jinja2.Template:
    return make_environment().from_string(text)


# ---- the date


def pin_date(text: str, day: str = "26") -> str:
    """`text` with today's date replaced by 26 July 2024, the date of Llama's published template: a chat tomorrow must
    read what was trained today. A Jinja macro stands before the function of the same name.
    """
    if "strftime_now" not in text or re.search(r"macro\s+strftime_now", text):
        return text
    parts = {"%d": day, "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%m": "07", "%A": "Friday", "%a": "Fri",
             "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%j": "208"}  # fmt: skip
    replaced = "".join(f" | replace('{name}', '{value}')" for name, value in parts.items())
    return "{%- macro strftime_now(form) -%}{{- form" + replaced + " -}}{%- endmacro -%}" + text
