"""Folders: the code's own data, PERSONA_HOME, and the workspace of the visitor whose request is handled.

Who asks is the only thing about a request that the library knows. It is a context variable: `as_visitor` sets it for
the command line, the API and worker threads, and the page registers a lookup of its own, since Gradio knows whose
event a thread handles. In which language to answer is the page's matter (ui/i18n.py): the library speaks in Messages.
"""

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
    """The folder `templates` or `datasets` that ships with the code: of a checkout, or of the installed package."""
    return (_INSTALLED_DATA if IS_INSTALLED else PROJECT_DIR) / folder


def child_environment() -> dict[str, str]:
    """This process's environment, in which `python -m persona.…` finds the code from any folder."""
    environment = dict(os.environ)
    # an installed copy is found anyway, and site-packages must not come before the standard library
    if not IS_INSTALLED:
        environment["PYTHONPATH"] = os.pathsep.join([str(PROJECT_DIR), os.environ.get("PYTHONPATH", "")])
    return environment


EXAMPLES_DIR = shipped_dir("datasets")
TEMPLATES_DIR = shipped_dir("templates")


def data_root() -> Path:
    """The folder that all users of this machine share (bases, queue, downloads), and the workspace of its owner.

    PERSONA_HOME, else a Space's persistent /data, else the platform's data folder.
    """
    if chosen := os.environ.get("PERSONA_HOME"):
        return Path(chosen).expanduser().resolve()
    if is_hf_space() and os.access("/data", os.W_OK):
        return Path("/data/persona")
    return Path(platformdirs.user_data_dir("persona", appauthor=False))


_VISITOR_ID = re.compile(r"[0-9a-f]{40}|")  # made by ui/middleware; "" is the owner
_active_visitor: ContextVar[str | None] = ContextVar("active_visitor", default=None)
_visitor_lookup: Callable[[], str | None] = lambda: None  # noqa: E731  (the page sets its own)
UNKNOWN_VISITOR = Message(
    "This server keeps each visitor's work apart and does not know whose request this is. Allow cookies for "
    "this page and reload it, or open it in a window of its own."
)


def set_visitor_lookup(lookup: Callable[[], str | None]) -> None:
    """Use `lookup` to find the id of the current visitor where as_visitor() has not set it; None: not known."""
    global _visitor_lookup
    _visitor_lookup = lookup


@contextmanager
def as_visitor(visitor: str) -> Iterator[None]:
    """Work for this visitor inside the `with`; "" is the owner, as on the command line."""
    token = _active_visitor.set(visitor)
    try:
        yield
    finally:
        _active_visitor.reset(token)


def _identify_visitor() -> str | None:
    visitor = _active_visitor.get()
    return _visitor_lookup() if visitor is None else visitor


def current_visitor() -> str:
    """The id of the current visitor; "" for the owner. Raises InputError where a shared server does not know it."""
    if not is_shared_server():
        return ""
    visitor = _identify_visitor()
    if visitor is None or not _VISITOR_ID.fullmatch(visitor):
        raise InputError(UNKNOWN_VISITOR)
    return visitor


def workspace_of(visitor: str) -> Path:
    return data_root() / "visitors" / visitor if visitor else data_root()


def current_workspace() -> Path:
    """The current visitor's folder of personas, opened adapters, trash. Raises InputError as current_visitor() does."""
    return workspace_of(current_visitor())


def owner_of(path: Path) -> str:
    """The visitor in whose workspace `path` lies, "" for the owner's."""
    path, top = path.resolve(), data_root().resolve()
    parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
    return parts[1] if len(parts) > 2 and parts[0] == "visitors" else ""


def is_for_visitor() -> bool:
    """Whether a visitor of a shared server is served, who may name nothing of its disk but their own workspace."""
    return is_shared_server() and bool(_identify_visitor())


def may_name(path: Path) -> bool:
    """Whether whoever is served may name this path. Outside a visitor's workspace the disk is not looked at."""
    if not is_for_visitor():
        return True
    home = workspace_of(_identify_visitor() or "").resolve()
    return Path(os.path.abspath(path)).is_relative_to(home) and path.resolve().is_relative_to(home)  # noqa: PTH100
