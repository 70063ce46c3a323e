"""The tree of error types, and messages for the user that can be translated.

    PersonaError                 a message for the user: place, value, next step
    ├── InputError (ValueError)  pairs, settings or names that cannot be right
    ├── BaseError                a base model that cannot be opened
    ├── TemplateError            a chat template that does not fit the model or the pairs
    ├── RunError                 a training run that cannot start or did not end well
    ├── AdapterError             an adapter that is broken, unsafe or made for another base
    └── ShareError               a zip, link or Hub transfer that failed

The library raises these; the command line turns them into exit status 1, the page into a notice. A template is a format
string, `InputError("{path}: no such file.", path=path)`, and the key of its translation in the page's catalogue.
"""

import re
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

MAX_NESTING = 20  # levels of messages within messages that are read from a file


_COUNTED = re.compile(r"\{(?P<value>\w+)[^{}]*\}|(?<=\w)\(s\)|\((?P<one>\w+)\|(?P<more>\w+)\)")


def format_counts(template: str, values: Mapping[str, Any]) -> str:
    """str.format, which also words counts: "{n} pair(s) (is|are) left" → "1 pair is left", "2 pairs are left".

    Each such word goes by the last value before it; one without a value before it stays as it is.
    """
    is_one: bool | None = None

    def choose(found: re.Match[str]) -> str:
        nonlocal is_one
        if found["value"]:
            is_one = str(values.get(found["value"])) == "1"
        elif is_one is not None:
            return ("" if is_one else "s") if found["one"] is None else found["one" if is_one else "more"]
        return found[0]

    return _COUNTED.sub(choose, template).format(**values)


class Message(str):
    """An English text that keeps the template and the values it was made from.

    A value that is a Message, or an error with one, is translated with the text; any other value stays as it is.
    """

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> "Message":
        values = {name: _value(value) for name, value in values.items()}
        return cls._make(cls._format(template, values), template, values)

    @staticmethod
    def of(text: str) -> "Message":
        """A text from elsewhere as a message. It is not translated, and its braces stay."""
        return text if isinstance(text, Message) else Message("{text}", text=text)

    @classmethod
    def _make(cls, text: str, template: str, values: dict[str, Any]) -> "Message":
        message = str.__new__(cls, text)
        message.template, message.values = template, values
        return message

    @staticmethod
    def _format(template: str, values: Mapping[str, Any]) -> str:
        return format_counts(template, values)

    def translated(self, catalogue: Mapping[str, str]) -> str:
        """The text by `catalogue`: template → translation. A template that it lacks stays English."""
        if (template := self._translation(catalogue)) is None:
            return str(self)
        values = {k: v.translated(catalogue) if isinstance(v, Message) else v for k, v in self.values.items()}
        try:
            return self._format(template, values)
        except (LookupError, TypeError, ValueError, ArithmeticError):  # values of a file that another version wrote
            return str(self)

    def _translation(self, catalogue: Mapping[str, str]) -> str | None:
        return catalogue.get(self.template)

    def replaced(self, old: str, new: str) -> "Message":
        """The message with `old` replaced by `new` in every value."""
        values = {
            k: v.replaced(old, new) if isinstance(v, Message) else v.replace(old, new) if isinstance(v, str) else v
            for k, v in self.values.items()
        }
        return self._make(self._format(self.template, values), self.template, values)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self)._make, (str(self), self.template, self.values)

    def to_json(self) -> dict[str, Any]:
        """What is stored beside the text, so that it can be translated later."""
        kind = {"joined": True} if isinstance(self, _Joined) else {}
        values = {k: v.to_json() if isinstance(v, Message) else v for k, v in self.values.items()}
        return {"text": str(self), "template": self.template, "values": values, **kind}

    @staticmethod
    def from_json(text: str, data: Any, depth: int = 0) -> str:
        """`text` with the template and values in `data`; plain `text` where `data` is none or of another text.

        A file may come from anyone: its template is only ever looked up, never formatted.
        """
        match data:
            case {"text": str(own), "template": str(template), "values": dict(values)} if (
                own == text and depth < MAX_NESTING
            ):
                messages = {
                    str(name): Message.from_json(str(v.get("text")), v, depth + 1) if isinstance(v, dict) else _value(v)
                    for name, v in values.items()
                }
                return (_Joined if data.get("joined") else Message)._make(text, template, messages)
        return text


class _Joined(Message):
    """Several texts with a separator between them, which is the template."""

    @staticmethod
    def _format(template: str, values: Mapping[str, Any]) -> str:
        return template.join(map(str, values.values()))

    def _translation(self, catalogue: Mapping[str, str]) -> str:
        return catalogue.get(self.template, self.template)


def join(separator: str, parts: Iterable[str]) -> Message:
    """The parts as one text, each translated on its own. Empty parts are left out."""
    return _Joined(separator, **{str(n): part for n, part in enumerate(filter(None, parts))})


def with_templates(row: dict[str, Any]) -> dict[str, Any]:
    """A row to be stored: beside each Message, under NAME_template, its template and values."""
    return row | {f"{name}_template": v.to_json() for name, v in row.items() if isinstance(v, Message)}


def _value(value: Any) -> Any:
    if isinstance(value, Exception) and value.args and isinstance(value.args[0], Message):
        return value.args[0]  # of a PersonaError, or of another library's error that we raised
    if isinstance(value, Real) and not isinstance(value, int | float):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    return value if isinstance(value, str | int | float) else str(value)


class PersonaError(Exception):
    """A message that a user can act on. Never carries a token.

    template: a format string for the values, or a finished Message without any.
    """

    def __init__(self, template: str, /, **values: Any) -> None:
        self.message = template if isinstance(template, Message) else Message(template, **values)
        super().__init__(self.message)


class InputError(PersonaError, ValueError):
    """The user's input is wrong; the message says where, what is wrong and what to do."""


class BaseError(PersonaError):
    """A base model cannot be opened."""


class TemplateError(PersonaError):
    """A chat template does not fit the model or the pairs."""


class RunError(PersonaError):
    """A run cannot start, or has failed."""


class AdapterError(PersonaError):
    """An adapter is broken, unsafe, or belongs to another base."""


class ShareError(PersonaError):
    """A zip, link or Hub transfer failed."""


def describe_validation_error(error: Any) -> Message:
    """A pydantic error about one value, as a message that can be translated."""
    text = str(error["msg"])
    last = text.rpartition(" ")[2]
    match error["type"]:
        case "greater_than":
            return Message("Input should be greater than {limit}", limit=last)
        case "greater_than_equal":
            return Message("Input should be greater than or equal to {limit}", limit=last)
        case "less_than":
            return Message("Input should be less than {limit}", limit=last)
        case "less_than_equal":
            return Message("Input should be less than or equal to {limit}", limit=last)
        case "extra_forbidden":
            return Message("Extra inputs are not permitted")
        case "literal_error" if " or " in text:
            choices = text.removeprefix("Input should be ").rpartition(" or ")
            return Message("Input should be {choices} or {last}", choices=choices[0], last=choices[2])
    kind, comma, detail = text.partition(", ")
    if comma and kind == "Input should be a valid integer":
        return Message("Input should be a valid integer, {detail}", detail=detail)
    if comma and kind == "Input should be a valid number":
        return Message("Input should be a valid number, {detail}", detail=detail)
    if comma and kind == "Input should be a valid boolean":
        return Message("Input should be a valid boolean, {detail}", detail=detail)
    return Message.of(text)
