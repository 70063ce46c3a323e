"""The new file or folder of an export: written whole or not at all, without private paths or tokens."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
from safetensors import SafetensorError

from persona.errors import InputError, Message
from persona.models.model_card import escape_line, escape_markdown
from persona.share.secrets import refuse_secrets
from persona.store.files import explain_disk_error
from persona.store.workspace import TEMPLATES_DIR


def require_new(out: Path) -> None:
    """Raises InputError where something is there already."""
    if out.exists():
        raise InputError("{out}: is there already. Name a new file or folder, or delete it first.", out=out)


@contextmanager
def create_output(out: Path) -> Iterator[Path]:
    """A path to write a file or a folder to, which becomes `out` when the block ends without an error.

    Raises InputError where something is there already or the disk is full, ShareError when what was written names a
    private folder or holds a token. After an error nothing is left.
    """
    require_new(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
            path = Path(scratch) / out.name
            yield path
            files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
            refuse_secrets({file: file.name for file in files}, Message("Take it out of the persona."))
            path.rename(out)
    except OSError as e:
        raise InputError(explain_disk_error(out, e)) from e
    except SafetensorError as e:  # how safetensors says that the disk is full
        raise InputError(
            "{out}: could not be written ({reason}). Free some space and try again.", out=out, reason=e
        ) from e


def render_template_file(file: str, /, **values: Any) -> str:
    """The Jinja file templates/FILE, filled in."""
    env = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    env.filters |= {"json": lambda x: json.dumps(x, ensure_ascii=False), "plain": escape_markdown, "line": escape_line}
    return env.from_string((TEMPLATES_DIR / file).read_text(encoding="utf-8")).render(**values)
