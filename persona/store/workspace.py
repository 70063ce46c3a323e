"""PERSONA_HOME and the workspace of the visitor who asks; templates and examples that come with the code."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import platformdirs

from persona.errors import InputError, Message
from persona.store.deployment import is_hf_space, is_shared_server

PROJECT_DIR = Path(__file__).resolve().parents[2]  # of a checkout; site-packages for an installed copy
_INSTALLED_DATA = Path(__file__).resolve().parents[1] / "_data"  # where the wheel puts them (pyproject.toml)
IS_INSTALLED = _INSTALLED_DATA.is_dir()


def shipped_dir(folder: str) -> Path:
    """`templates` or `datasets`, as they come with the code: at the top of a checkout, or in the installed package."""
    return (_INSTALLED_DATA if IS_INSTALLED else PROJECT_DIR) / folder


EXAMPLES_DIR = shipped_dir("datasets")
TEMPLATES_DIR = shipped_dir("templates")


def data_root() -> Path:
    """What all who use this machine share (bases, the line of runs, downloads), and the workspace of its owner.

    PERSONA_HOME, else a Space's persistent /data, else the platform's data folder."""
    if chosen := os.environ.get("PERSONA_HOME"):
        return Path(chosen).expanduser().resolve()
    if is_hf_space() and os.access("/data", os.W_OK):
        return Path("/data/persona")
    return Path(platformdirs.user_data_dir("persona", appauthor=False))


_VISITOR_ID = re.compile(r"[0-9a-f]{40}|")  # visitors.py makes them; "" is the owner
_active_visitor: ContextVar[str | None] = ContextVar("active_visitor", default=None)
_visitor_lookup: Callable[[], str | None] = lambda: None  # noqa: E731  (the page puts its own in its place)
UNKNOWN_VISITOR = Message(
    "This server keeps each visitor's work apart and does not know whose request this is. Allow cookies for "
    "this page and reload it, or open it in a window of its own."
)


def set_visitor_lookup(who: Callable[[], str | None]) -> None:
    """Let `who` say from now on which visitor asks: their id; None where it does not know."""
    global _visitor_lookup
    _visitor_lookup = who


@contextmanager
def as_visitor(visitor: str) -> Iterator[None]:
    """While this thread works for a visitor whom nothing else tells; "" is the owner, as on the command line."""
    token = _active_visitor.set(visitor)
    try:
        yield
    finally:
        _active_visitor.reset(token)


def _identify_visitor() -> str | None:
    said = _active_visitor.get()
    return _visitor_lookup() if said is None else said


def current_visitor() -> str:
    """The id of the visitor who asks; "" for the owner. Raises InputError on a shared server that cannot tell."""
    if not is_shared_server():
        return ""
    said = _identify_visitor()
    if said is None or not _VISITOR_ID.fullmatch(said):
        raise InputError(UNKNOWN_VISITOR)
    return said


def workspace_of(visitor: str) -> Path:
    return data_root() / "visitors" / visitor if visitor else data_root()


def current_workspace() -> Path:
    """The workspace of who asks: personas, opened adapters, trash. Raises InputError where `visitor` does."""
    return workspace_of(current_visitor())


def owner_of(path: Path) -> str:
    """The visitor in whose workspace `path` lies, "" for the owner's."""
    path, top = path.resolve(), data_root().resolve()
    parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
    return parts[1] if len(parts) > 2 and parts[0] == "visitors" else ""


def require_in_workspace(path: Path) -> None:
    """Raises InputError when a visitor names a place of this machine that is not in their own workspace."""
    who = _identify_visitor() if is_shared_server() else ""
    if who and not path.expanduser().resolve().is_relative_to(workspace_of(who).resolve()):
        raise InputError(
            "{path}: this server opens none of its own folders for visitors. Name a Hub id.", path=f"{str(path)!r:.200}"
        )
