"""The Hugging Face Hub: put an adapter there, fetch one from there, and the links that open it in the app.

What leaves is what share.py lets out, as one commit. What comes in are the same files and no others, of limited size,
never a pickle, and checked before use. The links pin the commit; base, template, system prompt and sampling are pinned
in the files of that commit.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from persona.errors import Message, ShareError
from persona.models import base as bases
from persona.models import bundled, download, model_card
from persona.models.adapter import ADAPTER_FILES, Adapter
from persona.share import archive
from persona.share.archive import WEIGHTS_FILE, check_adapter_folder, list_adapter_files, refuse_secrets_in
from persona.store import deployment
from persona.store.deployment import is_shared_server
from persona.store.files import explain_disk_error
from persona.store.workspace import data_root

TRIES = 4  # of an upload or a download, each with the waits of huggingface_hub's own tries within it
WAIT, MAX_WAIT = 2.0, 60.0  # seconds: 2, 4, 8 between the tries, or what the Hub asks for, at most a minute
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")


@dataclass(frozen=True)
class HubRef:
    """A persona on the Hub: `repo` is USER/NAME, `revision` a commit, branch or tag; empty: its newest state."""

    repo: str
    revision: str = ""

    def __post_init__(self) -> None:
        parts = self.repo.split("/")
        good = len(parts) == 2 and all(_NAME.fullmatch(p) and ".." not in p and "--" not in p for p in parts)
        if not good or self.repo.endswith(".git"):
            raise ShareError(
                "{repo!r}: not a name on the Hub. It is USER/NAME: letters, digits, '-', '_' and '.', each "
                "part at most 96 long.",
                repo=self.repo[:120],
            )
        if self.revision and (not _REVISION.fullmatch(self.revision) or ".." in self.revision):
            raise ShareError(
                "{revision!r}: not a revision. Use a commit, branch or tag without '/'.", revision=self.revision[:120]
            )

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @classmethod
    def parse(cls, text: str) -> "HubRef":
        """From USER/NAME, USER/NAME@REV, a link to the app with ?persona=…, or the address of a Hub page."""
        text = text.strip()
        return _parse_url(text) if "://" in text else _parse_name(text)


def _parse_name(text: str) -> HubRef:
    repo, at, revision = text.partition("@")
    if at and not revision:
        raise ShareError("{text!r}: nothing after '@'. Add the revision, or leave the '@' out.", text=text[:120])
    return HubRef(repo, revision)


def _parse_url(text: str) -> HubRef:
    try:
        url = urlsplit(text)
        named = parse_qs(url.query, keep_blank_values=True).get("persona", [])
    except ValueError:
        raise ShareError("{text!r}: not a web address. Copy the link again.", text=text[:120]) from None
    if url.scheme in ("http", "https") and len(named) == 1:
        return _parse_name(named[0])
    hubs = {"huggingface.co", "hf.co", urlsplit(_endpoint()).netloc}
    parts = url.path.strip("/").split("/")
    page = len(parts) == 2 or (len(parts) == 4 and parts[2] == "tree")
    if url.scheme in ("http", "https") and url.netloc in hubs and page and parts[0] not in ("datasets", "spaces"):
        return HubRef("/".join(parts[:2]), parts[3] if len(parts) == 4 else "")
    raise ShareError(
        "{text!r}: no persona in this address. A share link ends in ?persona=USER/NAME; the address of a "
        "model page on the Hub, or USER/NAME alone, will do as well.",
        text=text[:120],
    )


def share_url(app_url: str, repo: str, revision: str = "") -> str:
    """The address that opens this persona in the app at `app_url`."""
    url = urlsplit(app_url)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ShareError("{app_url!r}: not the address of an app. It begins with http:// or https://.", app_url=app_url)
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/?persona={HubRef(repo, revision)}"


def _resolve_token(token: str | None) -> str | None:
    """The token given, else this machine's own login. Where strangers are served, its owner's token is not theirs."""
    from huggingface_hub import get_token

    return token or (None if deployment.is_hf_space() or is_shared_server() else get_token())


def _endpoint() -> str:
    # read on every call: huggingface_hub reads it once, when it is imported
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def push_adapter(
    adapter: Path, repo: str, *, public: bool = False, app_url: str = "http://127.0.0.1:7860", token: str | None = None
) -> dict[str, Any]:
    """Upload to the Hub as one commit; `repo` is NAME or USER/NAME. Private unless asked otherwise.

    token: else the one of the Hub's login or of HF_TOKEN. It is sent to the Hub and kept nowhere.
    Returns url (of the Hub's page), link (opens this very commit in the app), revision and private.
    """
    from huggingface_hub import HfApi

    card = check_adapter_folder(adapter).card
    if public and not card.rights.strip():
        raise ShareError(
            "{adapter} cannot be made public: 'rights' in {file} is empty. Write there whose text it "
            "was trained on, and under which licence or permission; or share it privately.",
            adapter=card.name,
            file=adapter / "persona.json",
        )
    wanted = HubRef(repo if "/" in repo else f"me/{repo}").repo
    token = _resolve_token(token)
    if not token:
        raise ShareError(
            "You are not logged in to the Hub. Log in on your own machine with: hf auth login (or set "
            "HF_TOKEN). On a shared Space, sign in there, or take the zip instead."
        )
    refuse_secrets_in(adapter, token)
    api = HfApi(endpoint=_endpoint(), token=token)
    with _translate_errors(repo, token):
        user = _retry(api.whoami)["name"]
        wanted = wanted if "/" in repo else HubRef(f"{user}/{repo}").repo
        private = _retry(lambda: _ensure_repo(api, wanted, not public))
        if private == public:
            there, asked = ("private", "public") if private else ("public", "private")
            raise ShareError(
                "{wanted} is on the Hub already and is {there}, but {asked} was asked for. Nothing was "
                "sent. Choose another name, push it as {there}, or change it at "
                "{endpoint}/{wanted}/settings.",
                wanted=wanted,
                there=there,
                asked=asked,
                endpoint=_endpoint(),
            )
        commit = _retry(lambda: _commit_files(api, wanted, adapter, f"Persona adapter: {card.name}"))
    return {
        "url": f"{_endpoint()}/{wanted}",
        "link": share_url(app_url, wanted, commit),
        "revision": commit,
        "private": private,
    }


def _ensure_repo(api: Any, repo: str, private: bool) -> bool:
    """Make the repo unless it is there. Returns whether it is private."""
    if not api.repo_exists(repo):  # a token may have the right to write to this repo, but not to make repos
        api.create_repo(repo, private=private, exist_ok=True)
    return bool(api.repo_info(repo).private)


def _commit_files(api: Any, repo: str, adapter: Path, message: str) -> str:
    """Send the files as one commit; returns its id. Sent again, it sends only what has not arrived.

    Not upload_folder: that may make several commits, and a link could then pin half an adapter.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    add = {file.name: CommitOperationAdd(file.name, file) for file in list_adapter_files(adapter)}
    readme = adapter / "README.md"
    if readme.is_file():
        text = model_card.adapt_card_for_hub(readme.read_text(encoding="utf-8"), repo)
        add["README.md"] = CommitOperationAdd("README.md", text.encode())
    # what is gone here goes there: an old run.json must not describe new weights
    gone = [
        CommitOperationDelete(name) for name in api.list_repo_files(repo) if name in ADAPTER_FILES and name not in add
    ]
    return str(api.create_commit(repo, [*gone, *add.values()], commit_message=message).oid)


def pull_adapter(source: HubRef, token: str | None = None) -> Path:
    """Download a persona from the Hub into PERSONA_HOME/hub and return its checked folder.

    A commit that is here already is opened without the network. Private ones open with the token of this machine's
    login, never with that of a Space's owner.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    token = _resolve_token(token)
    options: dict[str, Any] = {
        "cache_dir": data_root() / "hub",
        "allow_patterns": list(ADAPTER_FILES),
        "endpoint": _endpoint(),
    }
    if _COMMIT.fullmatch(source.revision):
        try:
            return check_adapter_folder(
                Path(snapshot_download(source.repo, revision=source.revision, local_files_only=True, **options))
            ).path
        except LocalEntryNotFoundError:
            pass
    api = HfApi(endpoint=_endpoint(), token=token or False)
    with _translate_errors(str(source), token):
        info = _retry(lambda: api.repo_info(source.repo, revision=source.revision or None, files_metadata=True))
        sizes = {f.rfilename: f.size or 0 for f in info.siblings or []}
        if WEIGHTS_FILE not in sizes:
            raise archive.no_weights_error(str(source), sizes)
        if big := [
            f"{n} ({sizes[n] / 1e6:,.0f} MB)" for n in ADAPTER_FILES if sizes.get(n, 0) > archive.max_file_bytes(n)
        ]:
            raise ShareError(
                "{source}: {big} is too large for an adapter. It was not downloaded.", source=source, big=", ".join(big)
            )
        folder = _retry(lambda: snapshot_download(source.repo, revision=info.sha, token=token or False, **options))
    return check_adapter_folder(Path(folder)).path


def describe_download(adapter: Adapter) -> str:
    """What opening it will take, in a sentence: "" where its base is here, else how much will be downloaded."""
    if not adapter.base_id:
        return Message("It does not say which base it was trained on, so it cannot answer.")
    if bases.find_local_base(adapter.base_id, adapter.base_revision):
        return ""
    if bundled.find_bundled(adapter.base_id):
        return Message(
            "Its base {base} is here and is unpacked for the first answer, in about a minute.", base=adapter.base_id
        )
    size = download.fetch_download_size(adapter.base_id, adapter.base_revision)
    much = f"{size / 1e9:.1f} GB" if size else Message("its files, of a size not known beforehand,")
    return Message(
        "Its base {base} is not on this machine: the first answer downloads {much} from the Hub. Its own "
        "terms apply; they are on its page there.",
        base=adapter.base_id,
        much=much,
    )


def _retry(call: Callable[[], T]) -> T:
    """`call()`, and again after a wait where what failed may pass: a lost connection, a Hub that is busy or down."""
    from huggingface_hub import errors as hub

    for n in range(TRIES):
        try:
            return call()
        except (hub.HfHubHTTPError, hub.HTTPError, hub.LocalEntryNotFoundError, RuntimeError, OSError) as e:
            if n + 1 == TRIES or not _is_transient(e):
                raise
            time.sleep(min(MAX_WAIT, _retry_after(e) or WAIT * 2**n))
    raise AssertionError  # the last try returns or raises


def _is_transient(e: BaseException) -> bool:
    status = _status(e)
    if status is not None:
        return status == 429 or status >= 500
    return not isinstance(e, OSError) or e.errno not in _DISK


def _status(e: BaseException) -> int | None:
    """The Hub's status, of the error or of one that it came from; None where the Hub did not answer."""
    response = getattr(e, "response", None)
    if response is not None:
        return int(response.status_code)
    return _status(e.__cause__) if e.__cause__ is not None else None


def _retry_after(e: BaseException) -> float | None:
    """Seconds that the Hub asks for."""
    response = getattr(e, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isdigit() else None


@contextmanager
def _translate_errors(place: str, token: str | None) -> Iterator[None]:
    """Turn what the Hub's client raises into a ShareError that says what to do."""
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.RevisionNotFoundError as e:
        raise ShareError(
            "{place}: the Hub has no such revision (any more). Leave out what follows '@' to get the "
            "newest, or ask for a new link.",
            place=place,
        ) from e
    except hub.GatedRepoError as e:
        raise ShareError(
            "{place}: its owner asks you to accept terms on its Hub page first. Then try again.", place=place
        ) from e
    except hub.HfHubHTTPError as e:
        raise ShareError("{place}: {reason}", place=place, reason=_explain_status(e, token)) from e
    except hub.LocalEntryNotFoundError as e:
        raise ShareError(
            "{place}: not on this machine, and the Hub cannot be reached. Try again when online.", place=place
        ) from e
    except OSError as e:
        if e.errno in _DISK:
            raise ShareError(explain_disk_error(data_root() / "hub", e)) from e
        raise ShareError("{place}: {reason} ({kind})", place=place, reason=_INTERRUPTED, kind=type(e).__name__) from e
    except ValueError as e:
        raise ShareError(
            "{place}: the Hub refuses it: {reason}. Correct it in the adapter's folder.", place=place, reason=e
        ) from e
    except (hub.HTTPError, RuntimeError) as e:  # httpx's own; the client wraps a failed upload of weights in the other
        raise ShareError("{place}: {reason} ({kind})", place=place, reason=_INTERRUPTED, kind=type(e).__name__) from e


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_INTERRUPTED = Message("the Hub cannot be reached, or the connection broke. Nothing is lost; try again.")


def _explain_status(e: Any, token: str | None) -> str:
    status = e.response.status_code
    if status == 401 and token:
        return Message(
            "the Hub does not accept your token: it is wrong, expired or revoked. Log in again with: hf auth login"
        )
    if status == 401:  # who is not logged in is not told which of the two it is
        return Message(
            "not on the Hub, or private. Check the name; if it is yours or shared with you, log in: hf auth login"
        )
    if status == 404:
        return Message(
            "not on the Hub (any more), or private and not shared with your account. Check the name, or ask its owner."
        )
    if status == 403:
        return Message(
            "your token has no right to do this. Use your own user name, or a token with write access to that name."
        )
    if status == 429:
        return Message("the Hub asks for patience: too many requests. Nothing is lost; try again in some minutes.")
    if status >= 500:
        return Message("the Hub is in trouble (status {status}). Nothing is lost; try again later.", status=status)
    return Message(
        "the Hub refuses (status {status}: {server_message}).",
        status=status,
        server_message=e.server_message or "no reason given",
    )
