"""Atomic writes, JSON files, folder locks, and names that are safe as file names."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from persona.errors import InputError, Message


def write_atomic(path: Path, text: str | Iterable[str]) -> None:
    """Replace `path` by `text` (UTF-8) so that readers see the old or the new file, never a part, even after a crash.

    A text in pieces is written as it comes, so that it need not fit into memory.

    Raises InputError when the disk is full or the folder cannot be written; the old file is then untouched.
    """
    try:
        with open_atomic(path) as out:
            out.writelines(piece.encode() for piece in ([text] if isinstance(text, str) else text))
    except OSError as e:
        raise InputError(explain_disk_error(path, e)) from e
    except UnicodeEncodeError as e:
        raise InputError(
            "{path}: the text holds half a character (a lone surrogate, {character}). Retype it; what was "
            "saved before is untouched.",
            path=path,
            character=f"{e.object[e.start]!a}",
        ) from e


@contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to write beside `path`, which replaces it when the block ends without an error: no reader sees a part.

    Raises OSError; the old file is then untouched, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        Path(temporary).replace(path)
        with contextlib.suppress(OSError):  # the new name, too, is on the disk; not every file system can say so
            fsync_folder(path.parent, files=False)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


DISK_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT)
NO_PERMISSION_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS)
WRITE_ERRNOS = (*DISK_FULL_ERRNOS, *NO_PERMISSION_ERRNOS)


def fsync_folder(path: Path, files: bool = True) -> None:
    """Flush a folder and the files in it to the disk."""
    for target in [*(f for f in path.iterdir() if files and f.is_file()), path]:
        if target.is_file() or os.name == "posix":  # elsewhere a folder cannot be opened
            handle = os.open(target, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def hash_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def replace_folder(scratch: Path, target: Path) -> None:
    """Put the folder `scratch`, written beside `target`, in its place. Raises OSError."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    scratch.rename(target)
    fsync_folder(target.parent, files=False)
    shutil.rmtree(old, ignore_errors=True)


def explain_disk_error(path: Path, e: OSError) -> str:
    """A failed write as a message with a next step."""
    if e.errno in DISK_FULL_ERRNOS:
        return Message(
            "{path}: the disk is full. Free some space and save again; what was saved before is untouched.", path=path
        )
    if e.errno in NO_PERMISSION_ERRNOS:
        return Message(
            "{path}: no permission to write here. Choose another folder with PERSONA_HOME, or change its rights.",
            path=path,
        )
    return Message(
        "{path}: could not be written ({reason}). What was saved before is untouched.",
        path=path,
        reason=e.strerror or e,
    )


MAX_JSON_BYTES = 100_000_000  # bytes of one JSON file; what Persona writes has thousands


def require_regular_file(path: Path, limit: int | None = None) -> None:
    """Raises InputError for a pipe or a device, which would never end, and for more than `limit` bytes.

    A path that does not exist or cannot be examined is left to the code that opens it.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise InputError("{path}: a pipe or a device, not a file. Copy what it gives into a file first.", path=path)
    if limit is not None and status.st_size > limit:
        size = Message(
            "{size:,.0f} MB, where {limit:,.0f} MB is the limit", size=status.st_size / 1e6, limit=limit / 1e6
        )
        raise InputError("{path}: {size}. Split it, or check whether it is the file you meant.", path=path, size=size)


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`. Raises InputError naming file, line and column.

    what: what the file describes, for the message when it is missing."""
    require_regular_file(path, MAX_JSON_BYTES)
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


_WINDOWS_DEVICE = re.compile(r"con|prn|aux|nul|conin|conout|(com|lpt)\d")  # names of devices on Windows


def slugify(name: str) -> str:
    """A folder name from any name: letters (of any script) and digits, joined by '-', at most 60 characters."""
    plain = unicodedata.normalize("NFKC", name).lower()
    made = re.sub(r"[^\w]+", "-", plain).replace("_", "-").strip("-.")[:60].strip("-") or "persona"
    return f"{made}-persona" if _WINDOWS_DEVICE.fullmatch(made) else made


def expand_home(text: str | Path) -> Path:
    """A path as someone typed it, with ~ and ~NAME replaced by the home folder; ~NAME of no user stays as it is."""
    with contextlib.suppress(RuntimeError):
        return Path(text).expanduser()
    return Path(text)


# pathlib's own raise for a name that is too long, and for what may not be looked at


def path_exists(path: Path) -> bool:
    """Whether there is anything at a path that someone typed, and this process may see it. Never raises."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: Path) -> bool:
    """As path_exists(), for a file."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path) -> bool:
    """As path_exists(), for a folder."""
    return os.path.isdir(path)  # noqa: PTH112


def is_plain_name(name: str) -> bool:
    """Whether `name` can only mean something directly inside a folder."""
    long = len(name.encode("utf-8", "surrogatepass")) > 255  # bytes; to ask a file system for more is an error
    # ':' separates drives, and streams of a file, on Windows
    return bool(name) and not long and name not in (".", "..") and not re.search(r"[/\\:\0\ud800-\udfff]", name)


def safe_join(root: Path, name: str) -> Path:
    """`root/name`, refused unless it is a plain name directly inside `root`."""
    if not is_plain_name(name):
        raise InputError(
            "{name}: not a name of something in {root}. Use a plain name without slashes.",
            name=f"{name!r:.80}",
            root=root.name,
        )
    return root / name


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder` (created if needed), so that one process at a time writes there.

    Raises InputError where the lock cannot be written.
    """
    lock = FileLock(folder / ".lock", timeout=30)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as e:
        raise InputError(explain_disk_error(folder, e)) from e
    try:
        yield
    finally:
        lock.release()
