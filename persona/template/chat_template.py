"""Chat templates: read a shipped or a user's one, and apply it to a conversation.

A template is Jinja text with {% generation %} around what the model learns. A .jinja file in templates/chat adds one.
The tokenizer is passed in, so this module needs neither torch nor transformers.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona.errors import TemplateError
from persona.store.workspace import TEMPLATES_DIR, require_in_workspace
from persona.template import sandbox

_lock = threading.Lock()  # transformers keeps one generation-span tracker per template, without a lock of its own


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template: Jinja text with {% generation %} around what the model learns."""

    name: str
    text: str

    @property
    def about(self) -> str:
        """The header comment: where the template comes from and what was changed."""
        found = re.match(r"\s*\{#-?(.*?)-?#\}", self.text, re.S)
        return " ".join(found[1].split()) if found else ""

    @property
    def plain(self) -> frozenset[str]:
        """Markers that are plain text in this family, as its header says: 'Plain text: [INST] [/INST]'."""
        found = re.search(r"Plain text:\s*((?:[<\[]\S+[>\]][\s,]*)+)", self.about)
        return frozenset(re.findall(r"[<\[]\S+[>\]]", found[1])) if found else frozenset()


def shipped_templates() -> dict[str, ChatTemplate]:
    """Every file of templates/chat by name."""
    files = sorted((TEMPLATES_DIR / "chat").glob("*.jinja"))
    return {f.stem: ChatTemplate(f.stem, f.read_text(encoding="utf-8")) for f in files}


def read_template(name: str) -> ChatTemplate:
    """A shipped template by name, or a .jinja file by path."""
    shipped = shipped_templates()
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.suffix == ".jinja" and path.is_file():
        require_in_workspace(path)
        return ChatTemplate(path.stem, path.read_text(encoding="utf-8"))
    raise TemplateError(
        "{name!r}: no such template. Choose one of {shipped}, or name a .jinja file.",
        name=name,
        shipped=", ".join(shipped),
    )


def build_messages(
    system: str, history: Iterable[Sequence[str]], instruction: str, reply: str | None = None
) -> list[dict]:
    """The conversation as role/content messages; an empty system prompt is left out."""
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for user, answer in history:
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": instruction})
    return turns if reply is None else [*turns, {"role": "assistant", "content": reply}]


def apply_template(tokenizer: Any, template: ChatTemplate, chat: list[dict], **options: Any) -> Any:
    """The only call of `apply_chat_template`. Raises TemplateError naming the template.

    A template that is not shipped with Persona is inspected before it runs and limited while it runs (sandbox.py).
    """
    try:
        untrusted = _is_untrusted(template.text)
        with _lock, sandbox.limit_rendering() if untrusted else nullcontext():
            return tokenizer.apply_chat_template(chat, chat_template=template.text, **options)
    except TemplateError as e:
        raise TemplateError("Template {template}: {reason}", template=template.name, reason=e) from e
    except Exception as e:  # Jinja, sandbox and raise_exception errors have no common base class
        raise TemplateError(
            "Template {template}: {kind}: {reason}", template=template.name, kind=type(e).__name__, reason=e
        ) from e


@lru_cache(maxsize=256)
def _is_untrusted(text: str) -> bool:
    """Whether the text is not a shipped one. Raises TemplateError when it holds what no chat template needs."""
    if text in {t.text for t in shipped_templates().values()}:
        return False
    sandbox.inspect_template(text)
    return True


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
