"""Jinja as transformers has it for chat templates: a conversation → its text, and the spans that are learned.

For shipped templates in this process, for any other one in a worker process (worker.py), which starts at once because
nothing but jinja2 is imported here. Tests compare it with tokenizer.apply_chat_template.
"""

import json
import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_SPANS = 8  # learned spans per message, where the output is limited


@dataclass
class RenderedChat:
    """A conversation's text. learned: (start, end) in characters of every {% generation %} block."""

    text: str = ""
    learned: list[tuple[int, int]] = field(default_factory=list)


@dataclass
class _Progress:
    """Of a rendering: characters so far, learned spans so far."""

    written: int = 0
    learned: list[tuple[int, int]] = field(default_factory=list)


_progress: ContextVar[_Progress] = ContextVar("progress of a rendering")


class _GenerationTag(Extension):
    """Notes where the text of {% generation %} … {% endgeneration %} begins and ends."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note_span"), [], [], body).set_lineno(line)

    def _note_span(self, caller: Any) -> str:
        text: str = caller()
        progress = _progress.get()
        progress.learned.append((progress.written, progress.written + len(text)))
        return text


class _Namespace(Namespace):
    """Without underscored names, which lead into Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=…)` works
        self, *values = args
        attributes = dict(*values, **kwargs)
        for name in attributes:
            _refuse_underscore(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)


def _refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}: it begins with an underscore")


class _Dict:
    """`dict` without its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Without the escapes of HTML that Jinja's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def make_environment() -> ImmutableSandboxedEnvironment:
    """No attribute that leads out, no file, no import; but any amount of time and memory."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment


def render_chat(
    template: jinja2.Template, chat: list[dict], variables: Mapping[str, Any], max_characters: float = math.inf
) -> RenderedChat:
    """Render one conversation. Raises what the template raises, MemoryError where it writes more than max_characters.

    variables: special tokens by name, add_generation_prompt and what else the template may read.
    """
    progress, pieces = _Progress(), []
    token = _progress.set(progress)
    try:
        given = {"tools": None, "documents": None, "add_generation_prompt": False, **variables}
        for piece in template.generate(messages=chat, **given):
            pieces.append(piece)
            progress.written += len(piece)
            too_many_spans = len(progress.learned) > MAX_SPANS * len(chat)
            if progress.written > max_characters or (too_many_spans and max_characters < math.inf):
                raise MemoryError
    finally:
        _progress.reset(token)
    return RenderedChat("".join(pieces), progress.learned)
