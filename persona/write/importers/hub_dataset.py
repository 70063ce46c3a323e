"""Download a data file of a Hub data set for import. Data files only: no script, no pickle."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

from persona.errors import InputError, Message
from persona.store.deployment import hub_endpoint, may_use_owner_login
from persona.store.files import explain_disk_error
from persona.store.workspace import data_root

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".xlsx")  # that can be imported, preferred first
METADATA_FILES = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")
MAX_BYTES = 200_000_000
# how files are called after their split, as the datasets library reads them; a file called after none is of train
SPLIT_WORDS = {
    "train": ("train", "training"), "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}  # fmt: skip


def download_dataset(dataset_id: str, revision: str | None = None, split: str = "") -> Path:
    """The data file of USER/NAME, or the one that USER/NAME/FILE names; in the Hub's cache under PERSONA_HOME.

    Of several files, the one of the split (default: train) at the root or in data/ is taken. Raises InputError when
    there is no such data set, none of its files can be imported, several could be meant, or it is larger than
    MAX_BYTES.
    """
    from huggingface_hub import HfApi, hf_hub_download

    repo, wanted = _parse_dataset_id(dataset_id)
    endpoint = hub_endpoint()
    token = None if may_use_owner_login() else False
    try:
        info = HfApi(endpoint=endpoint, token=token).dataset_info(repo, revision=revision, files_metadata=True)
        sizes = {f.rfilename: f.size for f in info.siblings or []}
        file = _choose_file(repo, list(sizes), wanted, split)
        size = sizes[file]
        if size is None or size > MAX_BYTES:
            large = Message("of unknown size") if size is None else f"{size / 1e6:,.0f} MB"
            raise InputError(
                "{repo}/{file}: {large}, where {limit:,.0f} MB is the limit. It was not downloaded. Take a "
                "smaller file: USER/NAME/FILE.",
                repo=repo,
                file=file,
                large=large,
                limit=MAX_BYTES / 1e6,
            )
        options: dict[str, Any] = {"cache_dir": data_root() / "hub", "endpoint": endpoint, "token": token}
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=info.sha, **options))
    except InputError:
        raise
    except Exception as e:
        raise InputError("{repo}: {reason}", repo=repo, reason=_explain_hub_error(e)) from e


def _parse_dataset_id(text: str) -> tuple[str, str]:
    """(USER/NAME, file or ""), also from the address of a page of the data set."""
    text = re.sub(r"^https?://[^/]+/datasets/", "", text.strip())
    parts = re.sub(r"^([^/]+/[^/]+)/(?:blob|resolve|tree)/[^/]+", r"\1", text).strip("/").split("/")
    good = all(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}", p) and ".." not in p for p in parts[:2])
    if len(parts) < 2 or not good:
        raise InputError("{text!r}: not a data set on the Hub. It is USER/NAME, or USER/NAME/FILE.", text=text[:120])
    return "/".join(parts[:2]), "/".join(parts[2:])


def _split_of(name: str) -> str:
    """The split that a file of a data set holds, by its name or its folder's."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return next((split for split, known in SPLIT_WORDS.items() if any(w in words for w in known)), "train")


def _choose_file(repo: str, names: list[str], wanted: str, split: str = "") -> str:
    """The file to download. Raises InputError naming the files there are."""
    usable = [n for n in names if n.lower().endswith(SUFFIXES) and PurePosixPath(n).name.lower() not in METADATA_FILES]
    if wanted:
        if wanted in usable:
            return wanted
        raise InputError(
            "{repo}: no file {wanted!r} that can be imported. It has: {usable}.",
            repo=repo,
            wanted=wanted[:120],
            usable=_list(usable),
        )
    if not usable:
        raise InputError(
            "{repo}: nothing to import: it has {names}. Only {suffixes} can be read.",
            repo=repo,
            names=_list(names),
            suffixes=", ".join(SUFFIXES),
        )

    if split:
        canonical = next((name for name, known in SPLIT_WORDS.items() if split in known), "")
        found = [n for n in usable if _split_of(n) == canonical or split in PurePosixPath(n).stem]
        if not found:
            raise InputError(
                "{repo}: no file of the split {split!r}. It has: {usable}.",
                repo=repo,
                split=split,
                usable=_list(usable),
            )
        usable = found

    def rank(name: str) -> tuple[bool, bool, bool, int]:
        path = PurePosixPath(name.lower())
        near = str(path.parent) in (".", "data")
        other = re.match(r"(test|valid|dev|eval)", path.name) is not None
        return (not near, not path.name.startswith("train"), other, SUFFIXES.index(path.suffix))

    best = min(map(rank, usable))
    found = sorted(n for n in usable if rank(n) == best)
    if len(found) > 1:
        raise InputError(
            "{repo}: which of its files? {found}. Name it: {repo}/{file}",
            repo=repo,
            found=_list(found),
            file=found[0],
        )
    return found[0]


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:10]) or Message("none")
    return Message("{shown} and {count} more", shown=shown, count=len(names) - 10) if len(names) > 10 else shown


def _explain_hub_error(e: Exception) -> str:
    """An error of the Hub's client as a message with a next step. It never contains the token."""
    from huggingface_hub import errors as hub

    known: list[tuple[Any, str]] = [
        (hub.RevisionNotFoundError, Message("no such revision. Leave it out to get the newest.")),
        (
            hub.GatedRepoError,
            Message("its owner asks you to accept terms on its page first. Then log in with: hf auth login"),
        ),
        (
            hub.RepositoryNotFoundError,
            Message("no such data set, or private. Check the name; if it is yours: hf auth login"),
        ),
        (hub.HFValidationError, Message("not a name on the Hub. It is USER/NAME.")),
        (
            hub.LocalEntryNotFoundError,
            Message("not on this machine, and the Hub cannot be reached. Try again when online."),
        ),
        (hub.OfflineModeIsEnabled, Message("the Hub is switched off (HF_HUB_OFFLINE). Import a file instead.")),
    ]
    for kind, words in known:
        if isinstance(e, kind):
            return words
    if isinstance(e, hub.HfHubHTTPError) and e.response is not None and e.response.status_code == 401:
        return known[2][1]  # without a login the Hub does not say which of the two it is
    if isinstance(e, hub.HfHubHTTPError) and e.response is not None:
        return Message("the Hub refuses (status {status}). Try again later.", status=e.response.status_code)
    if isinstance(e, OSError) and e.errno:
        return explain_disk_error(data_root() / "hub", e)
    return Message(
        "the Hub cannot be reached, or the connection broke ({kind}). Try again, or import a file.",
        kind=type(e).__name__,
    )
