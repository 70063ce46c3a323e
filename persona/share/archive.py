"""An adapter as a zip, written and opened.

Going out: only the files of ADAPTER_FILES, from a sealed copy, after a search for private folders and tokens. Coming
in: nothing is trusted. Names in a zip never become paths, sizes are limited, pickles are refused, and a folder is
checked before use.
"""

import errno
import hashlib
import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from persona.errors import AdapterError, Message, ShareError
from persona.models.adapter import (
    ADAPTER_FILES,
    MAX_ADAPTER_BYTES,
    PICKLE_SUFFIXES,
    WEIGHTS_FILE,
    Adapter,
    open_adapter_file,
    read_adapter,
)
from persona.share.secrets import refuse_secrets
from persona.store import quotas
from persona.store.files import (
    explain_disk_error,
    hash_file,
    open_atomic,
    read_json,
    slugify,
    to_json,
    write_atomic,
)
from persona.store.zip_limits import MAX_RATIO, ShortReads
from persona.template.chat_template import ChatTemplate

MAX_TEXT_BYTES = 10_000_000
SEAL_TRIES = 5  # a copy is made again when the adapter was changed meanwhile
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, struct.error)


@dataclass(frozen=True)
class Supplement:
    """What the user says of an adapter that does not say it itself, as one trained by another program.

    template: it was trained with. base_id: its base, where the folder names none or a path of another machine.
    """

    template: ChatTemplate | None = None
    base_id: str = ""

    def write(self, folder: Path) -> None:
        """Add it to a copy of the adapter."""
        if self == Supplement():
            return
        file = folder / "run.json"
        run = read_json(file, Message("a run")) if file.is_file() else {}
        if self.template:
            run["template"] = self.template.name
            write_atomic(folder / "chat_template.jinja", self.template.text)
        if self.base_id:
            run["base"] = {"id": self.base_id}
        write_atomic(file, to_json(run))


NO_SUPPLEMENT = Supplement()


def pack_adapter(adapter: Path, out: Path) -> Path:
    """Write the adapter folder as the zip file `out`; the same adapter gives the same bytes on every machine.

    Raises AdapterError, or ShareError for a secret in it or a disk that refuses.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with seal_adapter(adapter, out.parent) as sealed:
            top = slugify(sealed.card.name)
            refuse_secrets_in(sealed.path, adapter)
            with open_atomic(out) as raw, zipfile.ZipFile(raw, "w") as archive:
                for file in list_adapter_files(sealed.path):
                    # stored, not deflated: another zlib would give other bytes, and weights hardly shrink
                    info = zipfile.ZipInfo(f"{top}/{file.name}")  # dated 1980
                    info.external_attr = (stat.S_IFREG | 0o644) << 16
                    info.create_system = 3
                    info.file_size = file.stat().st_size  # above 2 GB, zipfile needs to know before it starts
                    with file.open("rb") as source, archive.open(info, "w") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
    except OSError as e:
        raise ShareError(explain_disk_error(out, e)) from e
    return out


@contextmanager
def seal_adapter(adapter: Path, scratch: Path | None = None) -> Iterator[Adapter]:
    """A checked copy of the adapter's files that nobody else writes to: what leaves this machine is read from it.

    All its files are of one moment. scratch: the folder in which the copy lies for as long as the block runs.
    Raises AdapterError, ShareError when the adapter keeps changing, or OSError.
    """
    check_adapter_folder(adapter)  # before the copy, which would turn a link into a file
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".sealed-") as folder:
        copy = Path(folder) / adapter.name
        for _ in range(SEAL_TRIES):
            shutil.rmtree(copy, ignore_errors=True)
            copy.mkdir()
            before = _file_versions(adapter)
            try:
                for name in before:
                    _copy_file(adapter / name, copy / name)
            except (FileNotFoundError, AdapterError):
                if _file_versions(adapter) == before:
                    raise
                continue  # replaced meanwhile
            if _file_versions(adapter) == before:
                yield check_adapter_folder(copy)
                return
        raise ShareError(
            "{adapter}: its files are being written all the time. Wait until the training is done, then share it.",
            adapter=adapter.name,
        )


def _copy_file(file: Path, target: Path) -> None:
    with open_adapter_file(file) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _file_versions(adapter: Path) -> dict[str, tuple[int, int, int]]:
    """File name → (inode, size, time of the last change): another one after every write."""
    return {f.name: ((s := f.stat()).st_ino, s.st_size, s.st_mtime_ns) for f in list_adapter_files(adapter)}


def unpack_adapter(archive: Path, into: Path, supplement: Supplement = NO_SUPPLEMENT) -> Path:
    """Unpack an untrusted zip into a folder of `into` and return that folder; the same zip gives the same folder.

    Raises ShareError or AdapterError.
    """
    if not archive.is_file():
        raise ShareError("{archive}: no such file. Choose the zip of an adapter.", archive=archive)
    quotas.require_disk_quota()
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".open-") as scratch:
            folder = Path(scratch) / slugify(archive.stem)
            folder.mkdir()
            with ShortReads(archive) as raw, zipfile.ZipFile(raw) as opened:
                for name, info in _find_members(opened, archive.name).items():
                    _extract(opened, info, folder / name)
            supplement.write(folder)
            return _move_into_place(folder, into)
    except (*_DAMAGED, OSError) as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: a damaged zip seeks before its start
            raise ShareError(explain_disk_error(into, e)) from e
        raise ShareError(
            "{archive}: damaged, incomplete, or no zip ({reason}). Copy it again.", archive=archive.name, reason=e
        ) from e


def copy_adapter(folder: Path, into: Path, supplement: Supplement = NO_SUPPLEMENT) -> Path:
    """Copy the adapter's files to a folder in `into`, named as by `unpack_adapter`; returns an equal one there."""
    quotas.require_disk_quota()
    check_adapter_folder(folder, supplement.template)  # before the copy, which would turn a link into a file
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".open-") as scratch:
            copy = Path(scratch) / folder.name
            copy.mkdir()
            for file in list_adapter_files(folder):
                _copy_file(file, copy / file.name)
            supplement.write(copy)
            return _move_into_place(copy, into)
    except OSError as e:
        raise ShareError(explain_disk_error(into, e)) from e


def _find_members(archive: zipfile.ZipFile, archive_name: str) -> dict[str, zipfile.ZipInfo]:
    """File name → zip member, for the adapter's files beside the weights, at most two folders deep."""
    members = [(PurePosixPath(i.filename), i) for i in archive.infolist() if not i.filename.endswith("/")]
    for path, info in members:
        if path.is_absolute() or ".." in path.parts or re.search(r"\\|^[A-Za-z]:", info.filename):
            raise ShareError(
                "{place}: {file!r} is a name that leads out of the zip. It was not opened.",
                place=archive_name,
                file=info.filename[:80],
            )
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ShareError(
                "{place}: {file!r} is a symbolic link, not a file. It was not opened.",
                place=archive_name,
                file=info.filename[:80],
            )
        if info.flag_bits & 0x1:
            raise ShareError("{place}: is encrypted. Ask for it without a password.", place=archive_name)
    folders = {path.parent for path, _ in members if path.name == WEIGHTS_FILE and len(path.parts) <= 3}
    if not folders:
        raise no_weights_error(archive_name, (path.name for path, _ in members))
    if len(folders) > 1:
        raise ShareError(
            "{place}: holds {count} adapters. Make a zip of one of them.", place=archive_name, count=len(folders)
        )
    chosen: dict[str, zipfile.ZipInfo] = {}
    for path, info in members:
        if path.parent in folders and path.name in ADAPTER_FILES:
            if path.name in chosen:
                raise ShareError(
                    "{place}: holds {path} twice, so it is unclear which one is meant.",
                    place=archive_name,
                    path=path.name,
                )
            chosen[path.name] = info
    return chosen


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    size, limit = info.file_size, max_file_bytes(target.name)
    if size > limit:
        raise ShareError(
            "{file}: {size:,.0f} MB, where {limit:,.0f} MB is the limit.",
            file=info.filename,
            size=size / 1e6,
            limit=limit / 1e6,
        )
    if size > MAX_TEXT_BYTES and size > MAX_RATIO * info.compress_size:
        raise ShareError(
            "{file}: would grow to over {limit} times its size. It was not opened.",
            file=info.filename,
            limit=MAX_RATIO,
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # the readers for bzip2 and LZMA unpack a block of any size at once
        raise ShareError(
            "{file}: packed with another method than plain zip (deflate). Zip the folder again.", file=info.filename
        )
    # zipfile reads no byte beyond the declared size, then compares the checksum: a wrong size costs no disk
    with archive.open(info) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if target.stat().st_size != size:
        raise zipfile.BadZipFile(Message("{file} is shorter than declared", file=info.filename))


def _move_into_place(folder: Path, into: Path) -> Path:
    """Check the folder and move it into `into`, unless an equal one is there already; returns where it is."""
    try:
        name = slugify(check_adapter_folder(folder).card.name)
    except AdapterError as e:
        raise AdapterError(e.message.replaced(str(folder), folder.name)) from e  # without the path of a scratch folder
    checksums = _checksums(folder)
    short = f"{name}-{checksums[WEIGHTS_FILE][:8]}"
    every = hashlib.sha256(json.dumps(checksums).encode()).hexdigest()
    # the longer name is for weights that are here already with another persona.json, template or run.json
    for place in (into / short, into / f"{short}-{every[:8]}"):
        try:
            folder.rename(place)
            return place
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _checksums(place) == checksums:
            return place
    raise ShareError(
        "{place}: was changed after it had been opened. Move it away, then open the zip again.", place=place
    )


def _checksums(folder: Path) -> dict[str, str]:
    return {file.name: hash_file(file) for file in list_adapter_files(folder)}


def list_adapter_files(folder: Path) -> list[Path]:
    """The files of the adapter that may be shared: those of the allow-list that are there."""
    return [folder / name for name in sorted(ADAPTER_FILES) if (folder / name).is_file()]


def max_file_bytes(name: str) -> int:
    return MAX_ADAPTER_BYTES if name == WEIGHTS_FILE else MAX_TEXT_BYTES


def no_weights_error(place: str, names: Iterable[str]) -> AdapterError:
    if pickles := sorted(n for n in names if PurePosixPath(n).suffix in PICKLE_SUFFIXES):
        return AdapterError(
            "{place}: holds {pickles}, but no {weights}. A pickle can run code when opened, so it is not. "
            "Ask its author to save it as safetensors.",
            place=place,
            pickles=", ".join(pickles[:5]),
            weights=WEIGHTS_FILE,
        )
    return AdapterError(
        "{place}: holds no {weights} (looked two folders deep), so this is no adapter.",
        place=place,
        weights=WEIGHTS_FILE,
    )


def check_adapter_folder(folder: Path, template: ChatTemplate | None = None) -> Adapter:
    """The checked adapter; errors of damaged files become an AdapterError too. template: as for read_adapter()."""
    try:
        return read_adapter(folder, template)
    except (ValueError, RuntimeError) as e:  # text that is not UTF-8, brackets nested too deep, odd number formats
        raise AdapterError(
            "{folder}: one of its files cannot be read ({kind}: {reason}).",
            folder=folder.name,
            kind=type(e).__name__,
            reason=e,
        ) from e


def refuse_secrets_in(sealed: Path, adapter: Path, token: str = "") -> None:
    """Raises ShareError where a text file of `sealed` names a private folder or holds a token (see secrets.py).

    adapter: the folder that it is a copy of, which the error names.
    """
    texts = (file for file in list_adapter_files(sealed) if file.name != WEIGHTS_FILE)
    refuse_secrets({file: str(adapter / file.name) for file in texts}, Message("Remove it there."), token)
