"""Hand an adapter to someone else, and open what someone else hands over: a zip, a share link, the Hugging Face Hub.

Outwards, only the files of adapter.FILES leave, after a look for home paths and tokens in them. Inwards, nothing is
trusted: names in a zip never become paths, sizes are limited, pickles refused, and a folder is checked before use.
"""

import errno
import hashlib
import json
import os
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
from typing import Any
from urllib.parse import parse_qs, urlsplit

from persona.adapter import FILES, MAX_BYTES, PICKLES, Adapter, check
from persona.errors import AdapterError, ShareError
from persona.files import disk_message, home, slug

WEIGHTS = FILES[0]
MAX_TEXT_BYTES = 10_000_000
_MAX_RATIO = 100  # LoRA weights hardly compress, prose about fourfold; a bomb reaches a thousandfold
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, struct.error)


@dataclass(frozen=True)
class Link:
    """A persona on the Hub: `repo` is USER/NAME, `revision` a commit, branch or tag; empty: its newest state."""

    repo: str
    revision: str = ""

    def __post_init__(self) -> None:
        parts = self.repo.split("/")
        good = len(parts) == 2 and all(_NAME.fullmatch(p) and ".." not in p and "--" not in p for p in parts)
        if not good or self.repo.endswith(".git"):
            raise ShareError(
                f"{self.repo[:120]!r}: not a name on the Hub. It is USER/NAME: letters, digits, '-', '_' and '.', each "
                "part at most 96 long."
            )
        if self.revision and (not _REVISION.fullmatch(self.revision) or ".." in self.revision):
            raise ShareError(f"{self.revision[:120]!r}: not a revision. Use a commit, branch or tag without '/'.")

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @classmethod
    def parse(cls, text: str) -> "Link":
        """From USER/NAME, USER/NAME@REV, a link to the app with ?persona=…, or the address of a Hub page."""
        text = text.strip()
        return _parse_url(text) if "://" in text else _parse_name(text)


def _parse_name(text: str) -> Link:
    repo, at, revision = text.partition("@")
    if at and not revision:
        raise ShareError(f"{text[:120]!r}: nothing after '@'. Add the revision, or leave the '@' away.")
    return Link(repo, revision)


def _parse_url(text: str) -> Link:
    try:
        url = urlsplit(text)
        named = parse_qs(url.query, keep_blank_values=True).get("persona", [])
    except ValueError:
        raise ShareError(f"{text[:120]!r}: not a web address. Copy the link again.") from None
    if url.scheme in ("http", "https") and len(named) == 1:
        return _parse_name(named[0])
    hubs = {"huggingface.co", "hf.co", urlsplit(_endpoint()).netloc}
    parts = url.path.strip("/").split("/")
    page = len(parts) == 2 or (len(parts) == 4 and parts[2] == "tree")
    if url.scheme in ("http", "https") and url.netloc in hubs and page and parts[0] not in ("datasets", "spaces"):
        return Link("/".join(parts[:2]), parts[3] if len(parts) == 4 else "")
    raise ShareError(
        f"{text[:120]!r}: no persona in this address. A share link ends in ?persona=USER/NAME; the address of a "
        "model page on the Hub, or USER/NAME alone, will do as well."
    )


def link(app_url: str, repo: str, revision: str = "") -> str:
    """The address that opens this persona in the app at `app_url`."""
    url = urlsplit(app_url)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ShareError(f"{app_url!r}: not the address of an app. It begins with http:// or https://.")
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/?persona={Link(repo, revision)}"


def pack(adapter: Path, out: Path) -> Path:
    """Write the adapter as the zip file `out`; the same adapter gives the same bytes everywhere."""
    top = slug(_checked(adapter).card.name)
    _refuse_secrets(adapter)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as raw, zipfile.ZipFile(raw, "w") as archive:
                for file in _present(adapter):
                    # stored, not deflated: another zlib would give other bytes, and weights hardly shrink
                    info = zipfile.ZipInfo(f"{top}/{file.name}")  # dated 1980
                    info.file_size = file.stat().st_size  # above 2 GB, zipfile needs to know before it starts
                    info.external_attr = (stat.S_IFREG | 0o644) << 16
                    info.create_system = 3
                    with file.open("rb") as source, archive.open(info, "w") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
            Path(temporary).replace(out)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise ShareError(disk_message(out, e)) from e
    return out


def unpack(archive: Path, into: Path) -> Path:
    """Open a zip from anyone as a folder in `into`, and return that folder; the same zip gives the same folder."""
    if not archive.is_file():
        raise ShareError(f"{archive}: no such file. Choose the zip of an adapter.")
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".open-") as scratch:
            folder = Path(scratch) / slug(archive.stem)
            folder.mkdir()
            with zipfile.ZipFile(archive) as opened:
                for name, info in _members(opened, archive.name).items():
                    _copy(opened, info, folder / name)
            return _settle(folder, into)
    except (*_DAMAGED, OSError) as e:
        if isinstance(e, OSError) and e.errno != errno.EINVAL:  # EINVAL: a damaged zip told to seek before its start
            raise ShareError(disk_message(into, e)) from e
        raise ShareError(f"{archive.name}: damaged, incomplete, or no zip ({e}). Copy it again.") from e


def keep(folder: Path, into: Path) -> Path:
    """A copy of the adapter's files in `into`, named like an unpacked zip; an equal one that is there is returned."""
    _checked(folder)  # before the copy, which would make a file of a link
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".open-") as scratch:
            copy = Path(scratch) / folder.name
            copy.mkdir()
            for file in _present(folder):
                shutil.copyfile(file, copy / file.name)
            return _settle(copy, into)
    except OSError as e:
        raise ShareError(disk_message(into, e)) from e


def _members(archive: zipfile.ZipFile, place: str) -> dict[str, zipfile.ZipInfo]:
    """The member for each file of the adapter: those beside the weights, at most two folders deep."""
    infos = [(PurePosixPath(i.filename), i) for i in archive.infolist() if not i.filename.endswith("/")]
    for path, info in infos:
        if path.is_absolute() or ".." in path.parts or re.search(r"\\|^[A-Za-z]:", info.filename):
            raise ShareError(f"{place}: {info.filename[:80]!r} is a name that leads out of the zip. It was not opened.")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ShareError(f"{place}: {info.filename[:80]!r} is a symbolic link, not a file. It was not opened.")
        if info.flag_bits & 0x1:
            raise ShareError(f"{place}: is encrypted. Ask for it without a password.")
    folders = {path.parent for path, _ in infos if path.name == WEIGHTS and len(path.parts) <= 3}
    if not folders:
        raise _no_weights(place, (path.name for path, _ in infos))
    if len(folders) > 1:
        raise ShareError(f"{place}: holds {len(folders)} adapters. Make a zip of one of them.")
    found: dict[str, zipfile.ZipInfo] = {}
    for path, info in infos:
        if path.parent in folders and path.name in FILES:
            if path.name in found:
                raise ShareError(f"{place}: holds {path.name} twice, so nobody can know which one is meant.")
            found[path.name] = info
    return found


def _copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    size, limit = info.file_size, _limit(target.name)
    if size > limit:
        raise ShareError(f"{info.filename}: {size / 1e6:,.0f} MB, where {limit / 1e6:,.0f} MB is the limit.")
    if size > MAX_TEXT_BYTES and size > _MAX_RATIO * info.compress_size:
        raise ShareError(f"{info.filename}: would grow to over {_MAX_RATIO} times its size. It was not opened.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        # the readers for bzip2 and LZMA unpack a block of any size at once
        raise ShareError(f"{info.filename}: packed with another method than plain zip (deflate). Zip the folder again.")
    # zipfile yields no byte beyond the declared size, and then compares the checksum: a lie costs no disk
    with archive.open(info) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if target.stat().st_size != size:
        raise zipfile.BadZipFile(f"{info.filename} is shorter than declared")


def _settle(folder: Path, into: Path) -> Path:
    """Check the folder and rename it to where it stays, unless the very same is there already."""
    try:
        name = slug(_checked(folder).card.name)
    except AdapterError as e:
        raise AdapterError(str(e).replace(str(folder), folder.name)) from e  # no path of a scratch folder
    sums = _sums(folder)
    short = f"{name}-{sums[WEIGHTS][:8]}"
    every = hashlib.sha256(json.dumps(sums).encode()).hexdigest()
    # the second name is for weights that are here already with another persona.json, template or run.json
    for place in (into / short, into / f"{short}-{every[:8]}"):
        try:
            folder.rename(place)
            return place
        except OSError as e:
            if e.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if _sums(place) == sums:
            return place
    raise ShareError(f"{place}: was changed after it had been opened. Move it away, then open the zip again.")


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for file in _present(folder):
        with file.open("rb") as f:
            sums[file.name] = hashlib.file_digest(f, "sha256").hexdigest()
    return sums


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(FILES) if (folder / name).is_file()]


def _limit(name: str) -> int:
    return MAX_BYTES if name == WEIGHTS else MAX_TEXT_BYTES


def _no_weights(place: str, names: Iterable[str]) -> AdapterError:
    if pickles := sorted(n for n in names if PurePosixPath(n).suffix in PICKLES):
        return AdapterError(
            f"{place}: holds {', '.join(pickles[:5])}, but no {WEIGHTS}. A pickle can run code when opened, so it "
            "is not. Ask its author to save it as safetensors."
        )
    return AdapterError(f"{place}: holds no {WEIGHTS} (looked two folders deep), so this is no adapter.")


def _checked(folder: Path) -> Adapter:
    try:
        return check(folder)
    except (ValueError, RuntimeError) as e:  # text that is not UTF-8, brackets nested too deep, odd number formats
        raise AdapterError(f"{folder.name}: one of its files cannot be read ({type(e).__name__}: {e}).") from e


def _refuse_secrets(folder: Path, token: str = "") -> None:
    """Belt and braces: nothing writes paths or tokens into an adapter, yet people edit files and paste into prompts."""
    paths = {"your home folder": Path.home(), "the folder of PERSONA_HOME": home()}
    for file in _present(folder):
        if file.name == WEIGHTS:
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        for what, path in paths.items():
            written = {str(path), path.as_posix(), json.dumps(str(path))[1:-1]}  # the last as JSON spells it
            if path != path.parent and any(re.search(re.escape(w) + r"(?![\w-])", text) for w in written):
                raise ShareError(f"{file}: names {what}, {path}, which is nobody else's business. Remove it there.")
        if _TOKEN.search(text) or (token and token in text):
            raise ShareError(
                f"{file}: holds what looks like an access token. Remove it there, and revoke the token at "
                "https://huggingface.co/settings/tokens if anyone else has seen this file."
            )


def _login(token: str | None) -> str | None:
    """The token given, else this machine's own login. A Space serves strangers: its owner's token is not theirs."""
    from huggingface_hub import get_token

    return token or (None if os.environ.get("SPACE_ID") else get_token())


def _endpoint() -> str:
    # read on every call: huggingface_hub reads it once, when it is imported
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def push(
    adapter: Path, repo: str, *, public: bool = False, app_url: str = "http://127.0.0.1:7860", token: str | None = None
) -> dict[str, Any]:
    """Upload to the Hub as one commit; `repo` is NAME or USER/NAME. Private unless asked otherwise.

    token: else the one of the Hub's login or of HF_TOKEN. It is sent to the Hub and kept nowhere.
    Returns url (of the Hub's page), link (opens this very commit in the app), revision and private.
    """
    from huggingface_hub import HfApi

    card = _checked(adapter).card
    if public and not card.rights.strip():
        raise ShareError(
            f"{card.name} cannot be made public: 'rights' in {adapter / 'persona.json'} is empty. Write there whose "
            "text it was trained on, and under which licence or permission; or share it privately."
        )
    wanted = Link(repo if "/" in repo else f"me/{repo}").repo
    token = _login(token)
    if not token:
        raise ShareError(
            "You are not logged in to the Hub. Log in on your own machine with: hf auth login (or set HF_TOKEN). On a "
            "shared Space, take the zip instead."
        )
    _refuse_secrets(adapter, token)
    api = HfApi(endpoint=_endpoint(), token=token)
    with _in_words(repo, token):
        user = api.whoami()["name"]
        wanted = wanted if "/" in repo else Link(f"{user}/{repo}").repo
        if not api.repo_exists(wanted):  # a token may have the right to write to this repo, but not to make repos
            api.create_repo(wanted, private=not public, exist_ok=True)
        private = bool(api.repo_info(wanted).private)
        if private == public:
            there, asked = ("private", "public") if private else ("public", "private")
            raise ShareError(
                f"{wanted} is on the Hub already and is {there}, but {asked} was asked for. Nothing was sent. Choose "
                f"another name, push it as {there}, or change it at {_endpoint()}/{wanted}/settings."
            )
        names = list(FILES)  # deleting what is gone here: an old run.json must not describe new weights
        commit = api.upload_folder(
            repo_id=wanted,
            folder_path=adapter,
            allow_patterns=names,
            delete_patterns=names,
            commit_message=f"Persona adapter: {card.name}",
        )
    return {
        "url": f"{_endpoint()}/{wanted}",
        "link": link(app_url, wanted, commit.oid),
        "revision": commit.oid,
        "private": private,
    }


def pull(source: Link, token: str | None = None) -> Path:
    """Download a persona from the Hub into PERSONA_HOME/hub and return its checked folder.

    A commit that is here already is opened without the network. Private ones open with the token of this machine's
    login, never with that of a Space's owner.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    token = _login(token)
    options: dict[str, Any] = {"cache_dir": home() / "hub", "allow_patterns": list(FILES), "endpoint": _endpoint()}
    if _COMMIT.fullmatch(source.revision):
        try:
            return _checked(
                Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True, **options))
            ).path
        except LocalEntryNotFoundError:
            pass
    with _in_words(str(source), token):
        info = HfApi(endpoint=_endpoint(), token=token or False).repo_info(
            source.repo, revision=source.revision or None, files_metadata=True
        )
        sizes = {f.rfilename: f.size or 0 for f in info.siblings or []}
        if WEIGHTS not in sizes:
            raise _no_weights(str(source), sizes)
        if big := [f"{n} ({sizes[n] / 1e6:,.0f} MB)" for n in FILES if sizes.get(n, 0) > _limit(n)]:
            raise ShareError(f"{source}: {', '.join(big)} is too large for an adapter. It was not downloaded.")
        folder = Path(snapshot_download(source.repo, revision=info.sha, token=token or False, **options))
    return _checked(folder).path


@contextmanager
def _in_words(place: str, token: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into a ShareError that says what to do."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.RevisionNotFoundError as e:
        raise ShareError(f"{place}: the Hub has no such revision. Leave out what follows '@' to get the newest.") from e
    except hub.GatedRepoError as e:
        raise ShareError(f"{place}: its owner asks you to accept terms on its Hub page first. Then try again.") from e
    except hub.HfHubHTTPError as e:
        raise ShareError(f"{place}: {_status_in_words(e, token)}") from e
    except hub.LocalEntryNotFoundError as e:
        raise ShareError(f"{place}: not on this machine, and the Hub cannot be reached. Try again when online.") from e
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ShareError(disk_message(home() / "hub", e)) from e
        raise ShareError(f"{place}: {_INTERRUPTED} ({type(e).__name__})") from e
    except ValueError as e:
        raise ShareError(f"{place}: the Hub refuses it: {e}. Correct it in the adapter's folder.") from e
    except (hub.HTTPError, RuntimeError) as e:  # httpx's own; the client wraps a failed upload of weights in the other
        raise ShareError(f"{place}: {_INTERRUPTED} ({type(e).__name__})") from e


_INTERRUPTED = "the Hub cannot be reached, or the connection broke. Nothing is lost; try again."


def _status_in_words(e: Any, token: str | None) -> str:
    status = e.response.status_code
    if status == 401 and token:
        return "the Hub does not accept your token: it is wrong, expired or revoked. Log in again with: hf auth login"
    if status in (401, 404):
        return "not on the Hub, or private and not shared with you. Check the name; if it is yours: hf auth login"
    if status == 403:
        return "your token has no right to do this. Use your own user name, or a token with write access to that name."
    if status == 429:
        return "the Hub asks for patience: too many requests. Nothing is lost; try again in some minutes."
    if status >= 500:
        return f"the Hub is in trouble (status {status}). Nothing is lost; try again later."
    return f"the Hub refuses (status {status}: {e.server_message or 'no reason given'})."
