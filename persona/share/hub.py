"""The Hugging Face Hub: upload an adapter, download one, and the share links that open it in the app.

Uploads are one commit of the files that archive.py allows. Downloads are the same files and no others, of limited size,
never a pickle, and checked before use. A share link pins the commit; base, template, system prompt and sampling are
pinned by the files of that commit.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from persona.errors import AdapterError, Message, ShareError
from persona.models import base as bases
from persona.models import bundled, download, model_card
from persona.models.adapter import ADAPTER_FILES, WEIGHTS_FILE, Adapter
from persona.share import archive
from persona.share.archive import check_adapter_folder, list_adapter_files, refuse_secrets_in
from persona.share.hub_errors import retry, translate_errors
from persona.store import deployment
from persona.store.workspace import data_root
from persona.template.chat_template import ChatTemplate

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRef:
    """A persona on the Hub. repo: USER/NAME; revision: a commit, branch or tag, or "" for the newest state."""

    repo: str
    revision: str = ""

    def __post_init__(self) -> None:
        _require_name(self.repo, self.repo)
        if self.revision and (not _REVISION.fullmatch(self.revision) or ".." in self.revision):
            raise ShareError(
                "{revision!r}: not a revision. Use a commit, branch or tag without '/'.", revision=self.revision[:120]
            )

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo

    @classmethod
    def parse(cls, text: str) -> "HubRef":
        """From USER/NAME, USER/NAME@REV, a share link (?persona=…), or the address of a Hub page. Raises ShareError."""
        text = text.strip()
        return _parse_url(text) if "://" in text else _parse_name(text)


def _require_name(shown: str, repo: str) -> None:
    """Raises ShareError, which names it as `shown`, for what is no USER/NAME."""
    parts = repo.split("/")
    good = len(parts) == 2 and all(_NAME.fullmatch(p) and ".." not in p and "--" not in p for p in parts)
    if not good or repo.endswith(".git"):
        raise ShareError(
            "{repo!r}: not a name on the Hub. It is USER/NAME: letters, digits, '-', '_' and '.', each part at most 96 "
            "long.",
            repo=shown[:120],
        )


def _parse_name(text: str) -> HubRef:
    repo, at, revision = text.partition("@")
    if at and not revision:
        raise ShareError("{text!r}: nothing after '@'. Add the revision, or leave the '@' out.", text=text[:120])
    return HubRef(repo, revision)


def _parse_url(text: str) -> HubRef:
    try:
        url = urlsplit(text)
        shared = parse_qs(url.query, keep_blank_values=True).get("persona", [])
    except ValueError:
        raise ShareError("{text!r}: not a web address. Copy the link again.", text=text[:120]) from None
    if url.scheme in ("http", "https") and len(shared) == 1:
        return _parse_name(shared[0])
    hubs = {"huggingface.co", "hf.co", urlsplit(deployment.hub_endpoint()).netloc}
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
    """The share link that opens this persona in the app at `app_url`. Raises ShareError."""
    url = urlsplit(app_url)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise ShareError("{app_url!r}: not the address of an app. It begins with http:// or https://.", app_url=app_url)
    return f"{url.scheme}://{url.netloc}{url.path.rstrip('/')}/?persona={HubRef(repo, revision)}"


def _resolve_token(token: str | None) -> str | None:
    """The token given, else this machine's login; on a shared server no login, since it is the owner's."""
    from huggingface_hub import get_token

    return token or (get_token() if deployment.may_use_owner_login() else None)


def push_adapter(
    adapter: Path, repo: str, *, public: bool = False, app_url: str = "http://127.0.0.1:7860", token: str | None = None
) -> dict[str, Any]:
    """Upload the adapter folder to the Hub as one commit; `repo` is NAME or USER/NAME. Private unless `public`.

    token: default: that of the Hub's login or HF_TOKEN. It is sent to the Hub and not stored.
    Returns url (the Hub's page), link (opens this commit in the app), revision and private. Raises ShareError.
    """
    from huggingface_hub import HfApi

    card = check_adapter_folder(adapter).card
    if public and not card.rights.strip():
        raise ShareError(
            "{adapter} cannot be made public: it does not say whose text it was trained on. Write that, and under "
            "which licence or permission, as its rights (step 1, tab Who it is, or 'rights' in its persona.json); or "
            "share it privately.",
            adapter=card.name,
        )
    if not repo:
        raise ShareError("It needs a name on the Hub first: NAME, or USER/NAME.")
    _require_name(repo, repo if "/" in repo else f"me/{repo}")  # before anything is sent
    token = _resolve_token(token)
    if not token:
        raise ShareError(
            "You are not logged in to the Hub. Log in on your own machine with: hf auth login (or set "
            "HF_TOKEN). On a shared Space, sign in there, or take the zip instead."
        )
    api = HfApi(endpoint=deployment.hub_endpoint(), token=token)
    with archive.seal_adapter(adapter) as sealed:
        refuse_secrets_in(sealed.path, adapter, token)
        with translate_errors(repo, token):
            user = retry(api.whoami)["name"]
            full_name = repo if "/" in repo else HubRef(f"{user}/{repo}").repo
            _ensure_repo(api, full_name, public)
            commit = retry(lambda: _commit_files(api, full_name, sealed.path, f"Persona adapter: {card.name}"))
    return {
        "url": f"{deployment.hub_endpoint()}/{full_name}",
        "link": share_url(app_url, full_name, commit),
        "revision": commit,
        "private": not public,
    }


def _ensure_repo(api: Any, repo: str, public: bool) -> None:
    """Make the repository unless it is there. Raises ShareError when it is there and not as visible as asked for."""

    def is_private() -> bool:
        if not api.repo_exists(repo):  # a token may have the right to write to this repo, but not to make repos
            api.create_repo(repo, private=not public, exist_ok=True)
        return bool(api.repo_info(repo).private)

    private = retry(is_private)
    if private == public:
        there, asked = (Message("private"), Message("public"))[:: 1 if private else -1]
        raise ShareError(
            "{wanted} is on the Hub already and is {there}, but {asked} was asked for. Nothing was "
            "sent. Choose another name, push it as {there}, or change it at "
            "{endpoint}/{wanted}/settings.",
            wanted=repo,
            there=there,
            asked=asked,
            endpoint=deployment.hub_endpoint(),
        )


def _commit_files(api: Any, repo: str, adapter: Path, message: str) -> str:
    """Send a sealed adapter's files as one commit; returns its id. A second call sends only what has not arrived.

    Not upload_folder, which may make several commits: a link could then pin half an adapter.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    add = {file.name: CommitOperationAdd(file.name, file) for file in list_adapter_files(adapter)}
    readme = adapter / "README.md"
    if readme.is_file():
        text = model_card.adapt_card_for_hub(readme.read_text(encoding="utf-8"), repo)
        add["README.md"] = CommitOperationAdd("README.md", text.encode())
    # a file that is no longer here is deleted there: an old run.json must not describe new weights
    delete = [
        CommitOperationDelete(name) for name in api.list_repo_files(repo) if name in ADAPTER_FILES and name not in add
    ]
    return str(api.create_commit(repo, [*delete, *add.values()], commit_message=message).oid)


def pull_adapter(source: HubRef, token: str | None = None, template: ChatTemplate | None = None) -> Path:
    """Download a persona from the Hub into PERSONA_HOME/hub and return its checked folder.

    A commit that is here already is opened without the network. token: default: that of this machine's login; on a
    shared server none. template: as for read_adapter(). Raises ShareError or AdapterError.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    token = _resolve_token(token)
    options: dict[str, Any] = {
        "cache_dir": data_root() / "hub",
        "allow_patterns": list(ADAPTER_FILES),
        "endpoint": deployment.hub_endpoint(),
    }
    if _COMMIT.fullmatch(source.revision):
        try:
            kept = snapshot_download(source.repo, revision=source.revision, local_files_only=True, **options)
            return _check_pulled(Path(kept), source, template)
        except LocalEntryNotFoundError:
            pass
    api = HfApi(endpoint=deployment.hub_endpoint(), token=token or False)
    with translate_errors(str(source), token):
        info = retry(lambda: api.repo_info(source.repo, revision=source.revision or None, files_metadata=True))
        sizes = {f.rfilename: f.size or 0 for f in info.siblings or []}
        if WEIGHTS_FILE not in sizes:
            raise archive.no_weights_error(str(source), sizes)
        too_large = [
            f"{n} ({sizes[n] / 1e6:,.0f} MB)" for n in ADAPTER_FILES if sizes.get(n, 0) > archive.max_file_bytes(n)
        ]
        if too_large:
            raise ShareError(
                "{source}: {big} is too large for an adapter. It was not downloaded.",
                source=source,
                big=", ".join(too_large),
            )
        folder = retry(lambda: snapshot_download(source.repo, revision=info.sha, token=token or False, **options))
    return _check_pulled(Path(folder), source, template)


def _check_pulled(folder: Path, source: HubRef, template: ChatTemplate | None) -> Path:
    """The folder. Raises AdapterError by the name that was asked for: the folder's own is a commit."""
    try:
        return check_adapter_folder(folder, template).path
    except AdapterError as e:
        if folder.name in e.message:
            raise AdapterError(e.message.replaced(folder.name, str(source))) from e
        raise AdapterError("{place}: {reason}", place=source, reason=e.message) from e


def describe_download(adapter: Adapter) -> str:
    """What the first answer will need, as a sentence: "" where the base is here, else the size of its download."""
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
