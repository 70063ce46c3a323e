"""YAML files: ChatterBot's conversations and lists of rows, as rows; others, Rasa's among them, are named."""

import re
from typing import Any

import yaml

from persona.errors import InputError
from persona.write.importers.row_shapes import find_rows, write_rows
from persona.write.importers.text_source import SourceFile

SUFFIXES = (".yml", ".yaml")
MAX_BYTES = 5_000_000  # read as a whole, about a megabyte a second
RASA_KEYS = frozenset({"nlu", "stories", "rules", "intents", "responses", "domain"})
_BEGINS = re.compile(
    r"(?:[#%-][^\n]*\n|[ \t\r\f\v]*\n)*+[ \t]*(?:categories|conversations|version|nlu|intents)\s*:\s*(?:[\"'\d]|\n\s*-)"
)


class _PlainLoader(yaml.SafeLoader):
    """safe_load without aliases, by which a small file may mean billions of values; every value is text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # "yes" and "1.0" are what somebody says

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name)")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        made = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            raise yaml.YAMLError("a key stands there twice")
        return made


def is_yaml(source: SourceFile) -> bool:
    return source.suffix in SUFFIXES or bool(_BEGINS.match(source.head(4_000)))


def open_yaml(source: SourceFile) -> SourceFile:
    """The rows in a temporary file that lasts as long as that. Raises InputError where it holds none."""
    if source.path.stat().st_size > MAX_BYTES:
        raise InputError("{source}: larger than {limit:,.0f} MB, the limit of a YAML file. Save it as JSON.",
                         source=source.name, limit=MAX_BYTES / 1e6)  # fmt: skip
    try:
        value = yaml.load("\n".join(text for _, text in source.lines()), _PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as e:
        raise InputError("{source}: no YAML that can be read ({reason}). Save it as JSON.", source=source.name,
                         reason=f"{e!s:.200}") from e  # fmt: skip
    if isinstance(value, dict) and value.keys() & RASA_KEYS and "conversations" not in value:
        raise InputError(
            "{source}: it seems to be Rasa's training data, which is not read: its intents have no replies of a "
            "character. Save questions and answers as CSV or JSON.",
            source=source.name,
        )
    if not (rows := _find_rows(value)):
        raise InputError(
            "{source}: YAML without a list of conversations, or of questions and answers. Save it as JSON or CSV.",
            source=source.name,
        )
    return write_rows(source, rows)


def _find_rows(value: Any) -> list[dict[str, Any]]:
    talks = value.get("conversations") if isinstance(value, dict) else None
    if isinstance(talks, list) and all(isinstance(talk, list) for talk in talks):
        return [{"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(talk)]}
                for talk in talks if all(isinstance(text, str) for text in talk)]  # fmt: skip
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return value
    return find_rows(value)
