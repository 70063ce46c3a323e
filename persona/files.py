"""Files that survive a crash: atomic writes, safe names, and whose folder it is."""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import platformdirs

from persona.errors import InputError, Message

PROJECT = Path(__file__).resolve().parent.parent  # of a checkout; site-packages for an installed copy
_DATA = Path(__file__).resolve().parent / "_data"  # where the wheel puts them (pyproject.toml)
INSTALLED = _DATA.is_dir()


def shipped(folder: str) -> Path:
    """`templates` or `datasets`, as they come with the code: at the top of a checkout, or in the installed package."""
    return (_DATA if INSTALLED else PROJECT) / folder


SHIPPED_PERSONAS = shipped("datasets")
TEMPLATES = shipped("templates")


def root() -> Path:
    """What all who use this machine share (bases, the line of runs, downloads), and the workspace of its owner.

    PERSONA_HOME, else a Space's persistent /data, else the platform's data folder."""
    if chosen := os.environ.get("PERSONA_HOME"):
        return Path(chosen).expanduser().resolve()
    if os.environ.get("SPACE_ID") and os.access("/data", os.W_OK):
        return Path("/data/persona")
    return Path(platformdirs.user_data_dir("persona", appauthor=False))


_VISITOR = re.compile(r"[0-9a-f]{40}|")  # visitors.py makes them; "" is the owner
_asking: ContextVar[str | None] = ContextVar("asking", default=None)
_ask: Callable[[], str | None] = lambda: None  # noqa: E731  (the page puts its own in its place)
UNKNOWN = Message(
    "This server keeps each visitor's work apart and does not know whose request this is. Allow cookies for "
    "this page and reload it, or open it in a window of its own."
)


def public_link() -> bool:
    """Whether Gradio is to give the page a public address (app.py --share), as Gradio reads its own variable."""
    return os.environ.get("GRADIO_SHARE", "").lower() == "true"


def shared() -> bool:
    """Whether strangers use this server, each with a workspace: as PERSONA_SHARED says (1 or 0), else on a Space and
    with a public link."""
    said = os.environ.get("PERSONA_SHARED", "").strip()
    if said not in ("", "0", "1"):
        raise InputError("PERSONA_SHARED={said}: set it to 1 to keep visitors apart, else to 0.", said=f"{said!r:.40}")
    return said == "1" or (not said and (bool(os.environ.get("SPACE_ID")) or public_link()))


def ask(who: Callable[[], str | None]) -> None:
    """Let `who` say from now on which visitor asks: their id; None where it does not know."""
    global _ask
    _ask = who


@contextmanager
def asking(visitor: str) -> Iterator[None]:
    """While this thread works for a visitor whom nothing else tells; "" is the owner, as on the command line."""
    token = _asking.set(visitor)
    try:
        yield
    finally:
        _asking.reset(token)


def _known() -> str | None:
    said = _asking.get()
    return _ask() if said is None else said


def visitor() -> str:
    """The id of the visitor who asks; "" for the owner. Raises InputError on a shared server that cannot tell."""
    if not shared():
        return ""
    said = _known()
    if said is None or not _VISITOR.fullmatch(said):
        raise InputError(UNKNOWN)
    return said


def workspace(visitor: str) -> Path:
    return root() / "visitors" / visitor if visitor else root()


def home() -> Path:
    """The workspace of who asks: personas, opened adapters, trash. Raises InputError where `visitor` does."""
    return workspace(visitor())


def owner_of(path: Path) -> str:
    """The visitor in whose workspace `path` lies, "" for the owner's."""
    path, top = path.resolve(), root().resolve()
    parts = path.relative_to(top).parts if path.is_relative_to(top) else ()
    return parts[1] if len(parts) > 2 and parts[0] == "visitors" else ""


def require_own(path: Path) -> None:
    """Raises InputError when a visitor names a place of this machine that is not in their own workspace."""
    who = _known() if shared() else ""
    if who and not path.expanduser().resolve().is_relative_to(workspace(who).resolve()):
        raise InputError(
            "{path}: this server opens none of its own folders for visitors. Name a Hub id.", path=f"{str(path)!r:.200}"
        )


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text` (UTF-8) so that a reader, or a crash, sees the old or the new file, never a part.

    A text in pieces is written as it comes, so that it need not fit into memory.

    Raises InputError when the disk is full or the folder cannot be written; the old file is then untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as out:
                out.writelines([text] if isinstance(text, str) else text)
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).replace(path)
            with contextlib.suppress(OSError):  # the new name, too, is on the disk; not every file system can say so
                flush_folder(path.parent, files=False)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise InputError(disk_message(path, e)) from e
    except UnicodeEncodeError as e:
        raise InputError(
            "{path}: the text holds half a character (a lone surrogate, {character}). Retype it; what was "
            "saved before is untouched.",
            path=path,
            character=f"{e.object[e.start]!a}",
        ) from e


CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def flush_folder(path: Path, files: bool = True) -> None:
    """Wait until a folder, and the files in it, are on the disk and not only on their way there."""
    for target in [*(f for f in path.iterdir() if files and f.is_file()), path]:
        if target.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            handle = os.open(target, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def replace_folder(scratch: Path, target: Path) -> None:
    """Let a folder that was written beside `target` take its place at once. Raises OSError."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    flush_folder(target.parent, files=False)
    shutil.rmtree(old, ignore_errors=True)


def disk_message(path: Path, e: OSError) -> str:
    """What a failed write means to the person at the keyboard."""
    if e.errno in (errno.ENOSPC, errno.EDQUOT):
        return Message(
            "{path}: the disk is full. Free some space and save again; what was saved before is untouched.", path=path
        )
    if e.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return Message(
            "{path}: no permission to write here. Choose another folder with PERSONA_HOME, or change its rights.",
            path=path,
        )
    return Message(
        "{path}: could not be written ({reason}). What was saved before is untouched.",
        path=path,
        reason=e.strerror or e,
    )


MAX_JSON = 100_000_000  # bytes of one JSON file; what Persona writes has thousands


def require_plain(path: Path, limit: int | None = None) -> None:
    """Raises InputError for a pipe or a device, which would never end, and for more than `limit` bytes.

    What is not there at all, or cannot be asked about, is left to whoever opens it.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise InputError("{path}: a pipe or a device, not a file. Copy what it gives into a file first.", path=path)
    if limit is not None and found.st_size > limit:
        size = Message(
            "{size:,.0f} MB, where {limit:,.0f} MB is the limit", size=found.st_size / 1e6, limit=limit / 1e6
        )
        raise InputError("{path}: {size}. Split it, or check whether it is the file you meant.", path=path, size=size)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in `path`. Raises InputError naming file, line and column when there is none."""
    require_plain(path, MAX_JSON)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError("{path}: no such file. A folder needs it to be {what}.", path=path, what=what) from None
    except json.JSONDecodeError as e:
        raise InputError(
            "{path} line {line}, column {column}: not JSON ({reason}). Correct it there.",
            path=path,
            line=e.lineno,
            column=e.colno,
            reason=e.msg,
        ) from e
    except (OSError, ValueError, RecursionError) as e:  # ValueError: not UTF-8, or a number of thousands of digits
        raise InputError("{path}: cannot be read ({reason}).", path=path, reason=e) from e
    if not isinstance(value, dict):
        raise InputError(
            "{path}: holds a {kind}, but {what} is a JSON object {{…}}.",
            path=path,
            kind=type(value).__name__,
            what=what,
        )
    return value


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


_RESERVED = re.compile(r"con|prn|aux|nul|conin|conout|(com|lpt)\d")  # names of devices on Windows


def slug(name: str) -> str:
    """A folder name from any name: letters (of any script) and digits, joined by '-', at most 60 characters."""
    plain = unicodedata.normalize("NFKC", name).lower()
    made = re.sub(r"[^\w]+", "-", plain).replace("_", "-").strip("-.")[:60].strip("-") or "persona"
    return f"{made}-persona" if _RESERVED.fullmatch(made) else made


def inside(root: Path, name: str) -> Path:
    """`root/name`, refused unless it is a plain name directly inside `root`."""
    long = len(name.encode("utf-8", "surrogatepass")) > 255  # bytes; to ask a file system for more is an error
    # ':' separates drives, and streams of a file, on Windows
    if not name or long or name in (".", "..") or re.search(r"[/\\:\0\ud800-\udfff]", name):
        raise InputError(
            "{name}: not a name of something in {root}. Use a plain name without slashes.",
            name=f"{name!r:.80}",
            root=root.name,
        )
    return root / name
