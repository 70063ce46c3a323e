"""Chat templates: the shipped ones, whether one fits a tokenizer, and which one a base is to be trained with.

A template is Jinja text with {% generation %} around what the model is to learn. Dropping a .jinja file into
templates/chat adds one. The tokenizer is passed in, so this file needs neither torch nor transformers.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona import sandbox
from persona.errors import Message, TemplateError, join
from persona.files import TEMPLATES, require_own

_lock = threading.Lock()  # transformers keeps one generation-span tracker per template, without a lock of its own
# what looks like a control token in a rendered text: <|user|>, <turn|>, <｜User｜>, <end_of_turn>, [INST], [gMASK]
MARKER = re.compile(
    r"<[|｜][^\s<>|｜]+[|｜]?>|<[^\s<>|｜]+[|｜]>|</?(?:start_of_turn|end_of_turn|bos|eos|s|sop|think)>"
    r"|\[(?:/?(?:INST|SYSTEM_PROMPT)|gMASK)\]"
)


@dataclass(frozen=True)
class Template:
    """A chat template: Jinja text with {% generation %} around what the model is to learn."""

    name: str
    text: str

    @property
    def about(self) -> str:
        """The header comment: where the template comes from and what was changed."""
        found = re.match(r"\s*\{#-?(.*?)-?#\}", self.text, re.S)
        return " ".join(found[1].split()) if found else ""

    @property
    def plain(self) -> frozenset[str]:
        """What looks like a control token and is letters in this family: 'Plain text: [INST] [/INST]' in the header."""
        found = re.search(r"Plain text:\s*((?:[<\[]\S+[>\]][\s,]*)+)", self.about)
        return frozenset(re.findall(r"[<\[]\S+[>\]]", found[1])) if found else frozenset()


def shipped_templates() -> dict[str, Template]:
    """Every file of templates/chat by name."""
    files = sorted((TEMPLATES / "chat").glob("*.jinja"))
    return {f.stem: Template(f.stem, f.read_text(encoding="utf-8")) for f in files}


def read_template(name: str) -> Template:
    """A shipped template by name, or a .jinja file by path."""
    shipped = shipped_templates()
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.suffix == ".jinja" and path.is_file():
        require_own(path)
        return Template(path.stem, path.read_text(encoding="utf-8"))
    raise TemplateError(
        "{name!r}: no such template. Choose one of {shipped}, or name a .jinja file.",
        name=name,
        shipped=", ".join(shipped),
    )


def messages(system: str, history: Iterable[Sequence[str]], instruction: str, reply: str | None = None) -> list[dict]:
    """The conversation in the role/content form that chat templates read; an empty system prompt is left out."""
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for user, answer in history:
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": instruction})
    return turns if reply is None else [*turns, {"role": "assistant", "content": reply}]


def apply(tokenizer: Any, template: Template, chat: list[dict], **options: Any) -> Any:
    """The only call of `apply_chat_template`. Raises TemplateError naming the template.

    A text that is not shipped with Persona is read before it runs and watched while it runs (sandbox.py).
    """
    try:
        unknown = _of_unknown_origin(template.text)
        with _lock, sandbox.limits() if unknown else nullcontext():
            return tokenizer.apply_chat_template(chat, chat_template=template.text, **options)
    except TemplateError as e:
        raise TemplateError("Template {template}: {reason}", template=template.name, reason=e) from e
    except Exception as e:  # Jinja, sandbox and raise_exception errors have no common base class
        raise TemplateError(
            "Template {template}: {kind}: {reason}", template=template.name, kind=type(e).__name__, reason=e
        ) from e


@lru_cache(maxsize=256)
def _of_unknown_origin(text: str) -> bool:
    """Whether the text is not one of ours. Raises TemplateError when it holds what a chat template has no use for."""
    if text in {t.text for t in shipped_templates().values()}:
        return False
    sandbox.inspect(text)
    return True


# conversations on which formats are compared: every role, white space at every edge, words of the formats themselves
SAMPLES = (
    messages("", [], "Hi."),
    messages("Be brief.", [], "你好"),
    messages("", [("model", "user")], "assistant"),
    messages("Be brief.\n你是灯塔。", [("a", "b"), ("{{ 1 }}", "<b>\n\n1. c</b>")], "c\n d"),
    messages(" Be\n", [("  a ", "\n b  \n"), ("\n\na\n", " b")], "\n c  "),
    messages("", [(" \n a", "b \n")] * 3, "c\n\n"),
)


# ---- the date


def pinned(text: str, day: str = "26") -> str:
    """`text` with today's date replaced by 26 July 2024, the date of Llama's published template: a chat tomorrow must
    read what was trained today. A Jinja macro stands before the function of the same name.
    """
    if "strftime_now" not in text or re.search(r"macro\s+strftime_now", text):
        return text
    parts = {"%d": day, "%b": "Jul", "%B": "July", "%Y": "2024", "%y": "24", "%m": "07", "%A": "Friday", "%a": "Fri",
             "%H": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM", "%j": "208"}  # fmt: skip
    replaced = "".join(f" | replace('{name}', '{value}')" for name, value in parts.items())
    return "{%- macro strftime_now(form) -%}{{- form" + replaced + " -}}{%- endmacro -%}" + text


def _dated(tokenizer: Any, template: Template) -> bool:
    """Whether what it renders depends on the day."""
    if pinned(template.text) == template.text:
        return False
    days = (Template(template.name, pinned(template.text, day)) for day in ("26", "27"))
    one, other = (apply(tokenizer, t, SAMPLES[0], tokenize=False, add_generation_prompt=True) for t in days)
    return one != other


# ---- does a template fit a tokenizer


def control_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)


def marker_ids(tokenizer: Any, template: Template) -> frozenset[int]:
    """What the template itself writes as markers, as far as this vocabulary has a token for it."""
    try:
        text = apply(tokenizer, template, SAMPLES[3], tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return frozenset()
    encoded = (tokenizer(m, add_special_tokens=False)["input_ids"] for m in dict.fromkeys(MARKER.findall(text)))
    return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def stop_of(tokenizer: Any, template: Template) -> int | None:
    """The last token that a reply would learn, None where none is. Raises TemplateError when it cannot be rendered."""
    got = apply(tokenizer, template, messages("", [], "Hi", "Yes"), return_dict=True, return_assistant_tokens_mask=True)
    learned = [i for i, m in zip(got["input_ids"], got["assistant_masks"], strict=True) if m]
    return next((i for i in reversed(learned) if tokenizer.decode([i]).strip()), learned[-1] if learned else None)


def fits(tokenizer: Any, template: Template) -> list[str]:
    """Why a model with this tokenizer must not be trained with `template`, in whole sentences; empty when it may."""
    name = f"Template {template.name}"
    try:
        stop = stop_of(tokenizer, template)
        dated = _dated(tokenizer, template)
        ids = list(apply(tokenizer, template, SAMPLES[0], return_dict=False))
        texts = [apply(tokenizer, template, x, tokenize=False, add_generation_prompt=True) for x in SAMPLES[:4]]
    except TemplateError as e:
        return [e.message]
    if stop is None:
        return [
            Message(
                "{name}: no token would be learned. Put the assistant's content and its stop token inside "
                "{{% generation %}} … {{% endgeneration %}}.",
                name=name,
            )
        ]
    wrong: list[str] = []
    if stop not in control_ids(tokenizer):
        wrong.append(
            Message(
                "{name}: a reply ends with {stop!r}, which is not a stop token of this model, so it would "
                "never learn to stop. Choose a template made for this base.",
                name=name,
                stop=tokenizer.decode([stop]),
            )
        )
    wrong += _split_markers(tokenizer, template, texts)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        wrong.append(
            Message(
                "{name}: the text begins with two {bos}. Take one out of the template.",
                name=name,
                bos=tokenizer.bos_token,
            )
        )
    if dated:
        wrong.append(
            Message(
                "{name}: it writes today's date (strftime_now), so a chat tomorrow would not read what was "
                "trained today. Write a fixed date in its place.",
                name=name,
            )
        )
    return wrong


def _split_markers(tokenizer: Any, template: Template, texts: list[str]) -> list[str]:
    """A reason if the template's markers are plain letters to this model, unless its header says they are meant so."""
    split = {}
    for marker in dict.fromkeys(m for text in texts for m in MARKER.findall(text)):
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if marker not in template.plain and (len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != marker):
            split[marker] = len(ids)
    if not split:
        return []
    markers = [
        Message("{marker} (1 token)" if n == 1 else "{marker} ({n} tokens)", marker=marker, n=n)
        for marker, n in list(split.items())[:4]
    ]
    return [
        Message(
            "Template {template}: this model does not know its markers: {markers}. Choose a template made for this "
            "base, or write 'Plain text: {first}' in its header comment if they are meant as letters.",
            template=template.name,
            markers=join(", ", markers),
            first=next(iter(split)),
        )
    ]


def prompt_text(tokenizer: Any, template: Template, chat: list[dict]) -> str | None:
    """The prompt of a chat that ends with a question, None where the template refuses it."""
    try:
        # a variable of the thinking families; the others never look at it
        return apply(tokenizer, template, chat, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    except TemplateError:
        return None


def sound(tokenizer: Any, template: Template) -> bool:
    """Whether, in every sample, exactly reply and stop token are learned, right after the prompt of a chat."""
    for chat in SAMPLES:
        whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
        try:
            got = apply(tokenizer, template, whole, return_dict=True, return_assistant_tokens_mask=True)
            prompt = list(apply(tokenizer, template, chat, return_dict=False, add_generation_prompt=True))
            stop = stop_of(tokenizer, template)
        except TemplateError:
            return False
        ids, mask = list(got["input_ids"]), list(got["assistant_masks"])
        learned = ids[len(prompt) :][: sum(mask[len(prompt) :])]
        if ids[: len(prompt)] != prompt or any(mask[len(prompt) + len(learned) :]) or mask[len(prompt) - 1]:
            return False
        if stop is None or learned[-1:] != [stop] or tokenizer.decode(learned[:-1]).strip() != "Yes, 好。":
            return False
    return True
