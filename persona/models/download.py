"""Download base models from the Hugging Face Hub or ModelScope: safetensors and text files only."""

import contextvars
import importlib.util
import re
import shutil
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from persona.errors import BaseError, Message
from persona.models.bundled import DEFAULT_BASE
from persona.models.catalogue import KnownModel, find_known_model, format_gb, load_catalogue
from persona.models.progress_callback import ProgressCallback, ProgressUpdate
from persona.store.deployment import is_shared_server
from persona.store.files import WRITE_ERRNOS, explain_disk_error

_HUB_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*/[A-Za-z0-9_-][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9_.-]{0,100}")
_XET_STATUS = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
MAX_HUB_ID = 96  # characters that the Hub allows
MODELSCOPE_PREFIX = "modelscope:"  # of an ORG/NAME there, which may end in @REVISION
REFUSALS = (401, 403, 404)  # answers of the Hub that another try would not change
MIN_SIMILARITY = 75.0  # of a Hub id that is not there to one of the catalogue that is proposed, in percent
ETA_MIN_SHARE = 0.02  # of a download, from which the time left is shown: the first bytes are slow
PROGRESS_SECONDS = 1.0  # between two progress texts
DOWNLOAD_PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "LICENSE*")


class DownloadedBase(NamedTuple):
    """Where a base was downloaded to and what is known of it: the fields of base.Base, in its order."""

    id: str
    folder: Path
    revision: str
    licence: str
    licence_url: str


def is_hub_id(name: str) -> bool:
    """Whether a name looks like OWNER/NAME."""
    return len(name) <= MAX_HUB_ID and bool(_HUB_ID.fullmatch(name))


def split_modelscope_name(name: str) -> tuple[str, str]:
    """modelscope:ORG/NAME@REVISION → (ORG/NAME, REVISION), which is "" where there is none."""
    model, _, revision = name.removeprefix(MODELSCOPE_PREFIX).partition("@")
    return model, revision


def is_modelscope_name(name: str) -> bool:
    """Whether a name looks like modelscope:ORG/NAME, with or without a revision: a branch, tag or commit."""
    model, revision = split_modelscope_name(name)
    return name.startswith(MODELSCOPE_PREFIX) and is_hub_id(model) and bool(_REVISION.fullmatch(revision))


def find_in_hub_cache(name: str, revision: str = "") -> Path | None:
    """The snapshot folder of a Hub id in the Hub's cache; None where it was not downloaded."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def fetch_download_size(name: str, revision: str = "") -> int | None:
    """Bytes that opening a Hub id would download; None where the Hub does not say, or cannot be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        info = HfApi(token=_token()).model_info(name, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return None
    files = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, p) for p in DOWNLOAD_PATTERNS)]
    return sum(f.size or 0 for f in files) or None


def check_on_hub(name: str) -> str:
    """Refuse a Hub id that cannot be opened; it is in the cache, or the Hub is asked. Raises BaseError.

    Returns a note where the Hub is not reached, or answers with an error of its own.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HTTPError

    _check_needed_package(name, find_known_model(name))
    if find_in_hub_cache(name):
        return ""
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), token=_token())
    except EntryNotFoundError as e:
        raise BaseError(
            "{name}: has no config.json, so it is not a model in Hugging Face format. {instead}", name=name,
            instead=_instead(),
        ) from e  # fmt: skip
    except (HfHubHTTPError, HTTPError, OSError) as e:
        if isinstance(e, HfHubHTTPError) and e.response is not None and e.response.status_code in REFUSALS:
            raise _explain_hub_error(name, "", e) from e
        return Message(
            "{name}: not on this machine, and the Hub cannot be asked now whether it has it. The run downloads it when "
            "it starts, or fails then.", name=name,
        )  # fmt: skip
    return ""


def _token() -> bool | None:
    """The Hub's token argument: None, this machine's login; False, none, since visitors must not use the owner's."""
    return False if is_shared_server() else None


def download_from_hub(name: str, progress: ProgressCallback, revision: str = "") -> DownloadedBase:
    """The files of a Hub id: downloaded, or from the cache. Raises BaseError with what to do instead."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    known = find_known_model(name)
    _check_needed_package(name, known)
    cached = find_in_hub_cache(name, revision)
    size = None if cached else fetch_download_size(name, revision)
    _check_disk_space(name, size or 0)
    about = known.about if known else format_gb(size / 1e9) if size else ""
    where = Message("the Hub ({about})", about=about) if about else Message("the Hub")
    progress(
        Message(
            "Opening {name} from {where} …" if cached else "Downloading {name} from {where} …", name=name, where=where
        )
    )
    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision or None,
                allow_patterns=list(DOWNLOAD_PATTERNS),
                token=_token(),
                tqdm_class=_make_progress_bar_class(name, size or 0, progress),
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, RuntimeError, OSError) as e:  # RuntimeError: hf_xet's
        raise _explain_hub_error(name, revision, e) from e
    if not any(folder.glob("*.safetensors")):
        raise BaseError(
            "{name}: has no safetensors weights; pickled ones are not opened. {instead}", name=name, instead=_instead()
        )
    if known:
        return DownloadedBase(known.id, folder, folder.name, known.licence, known.licence_url)
    now, licence = _fetch_name_and_licence(name)
    if now.lower() != name.lower():
        progress(Message("{name} has been renamed on the Hub: it is {now} now.", name=name, now=now))
    return DownloadedBase(name, folder, folder.name, licence, f"https://huggingface.co/{now}")


def _instead() -> Message:
    """What every refusal of the Hub's ends with: the base that needs no download."""
    return Message("Without it, go on with the embedded base: {default!r}.", default=DEFAULT_BASE)


def _check_needed_package(name: str, known: KnownModel | None) -> None:
    if known and known.needs and importlib.util.find_spec(known.needs) is None:
        raise BaseError(
            "{name} needs a package that is not installed: pip install {needs}. {instead}",
            name=name,
            needs=known.needs,
            instead=_instead(),
        )


def _check_disk_space(name: str, size: int) -> None:
    """Raise BaseError if the Hub's cache has no room for `size` more bytes."""
    from huggingface_hub import constants

    free = shutil.disk_usage(_nearest_existing_folder(Path(constants.HF_HUB_CACHE))).free
    if size > free:
        raise BaseError(
            "{name}: {size} to download, {free} free. Free some space. {instead}",
            name=name,
            size=format_gb(size / 1e9),
            free=format_gb(free / 1e9),
            instead=_instead(),
        )


def find_status(e: BaseException) -> int | None:
    """The HTTP status of an error of the Hub's client, or of one that caused it; None where the Hub did not answer."""
    response = getattr(e, "response", None)
    if response is not None:
        return int(response.status_code)
    if found := _XET_STATUS.search(str(e)):  # hf_xet has no response to show
        return int(found[1])
    return find_status(e.__cause__) if e.__cause__ is not None else None


def _explain_hub_error(name: str, revision: str, e: Exception) -> BaseError:
    """What went wrong with a download, and what to do: for people."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RevisionNotFoundError

    if isinstance(e, LocalEntryNotFoundError) and isinstance(e.__cause__, HfHubHTTPError):
        e = e.__cause__  # the Hub did answer
    instead = _instead()
    if isinstance(e, GatedRepoError):
        page = f"https://huggingface.co/{name}"
        return BaseError(
            "{name} is gated, and your account has no access yet. Ask for it on {page}. {instead}" if get_token() else
            "{name} is gated: accept its licence on {page}, then log in: hf auth login, or set HF_TOKEN. {instead}",
            name=name, page=page, instead=instead,
        )  # fmt: skip
    if isinstance(e, RevisionNotFoundError):
        return BaseError(
            "{name}: its revision {revision} is not on the Hub any more. {instead}",
            name=name,
            revision=revision[:12],
            instead=instead,
        )
    if isinstance(e, OSError) and e.errno in WRITE_ERRNOS:
        return BaseError(explain_disk_error(Path(e.filename or constants.HF_HUB_CACHE), e))
    status = find_status(e)
    if status == 401 and get_token():
        return BaseError(
            "{name}: the Hub refuses your token. Log in again: hf auth login. {instead}", name=name, instead=instead
        )
    if status in REFUSALS:  # without a login the Hub answers 401 for a model that does not exist
        where = Message("with your account") if get_token() else Message("without logging in (hf auth login)")
        if nearest := _find_similar_name(name):
            return BaseError(
                "{name}: not on the Hub, or private: not seen {where}. Did you mean {nearest}? {instead}",
                name=name,
                where=where,
                nearest=nearest,
                instead=instead,
            )
        return BaseError(
            "{name}: not on the Hub, or private: not seen {where}. Check the name. {instead}",
            name=name,
            where=where,
            instead=instead,
        )
    if status:
        return BaseError(
            "{name}: the Hub answers with an error ({status}). Try again later. {instead}",
            name=name,
            status=status,
            instead=instead,
        )
    return BaseError(
        "{name}: not on this machine, and the Hub cannot be reached. Check the name and the connection. {instead}",
        name=name,
        instead=instead,
    )


def _find_similar_name(name: str) -> str:
    """The id in the catalogue that is most like a name that is not on the Hub; "" where none is."""
    from rapidfuzz import fuzz, process

    if find_known_model(name):
        return ""
    ids = [known.id for known in load_catalogue()]
    found = process.extractOne(name, ids, scorer=fuzz.ratio, processor=str.lower, score_cutoff=MIN_SIMILARITY)
    return str(found[0]) if found else ""


def _fetch_name_and_licence(name: str) -> tuple[str, str]:
    """A model's present name, and the licence on its card: (name, "") where the Hub does not say."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(token=_token()).model_info(name)
    except Exception:  # the model in the cache opens all the same
        return name, ""
    return info.id or name, str(info.card_data.get("license") or "") if info.card_data else ""


def _make_progress_bar_class(name: str, size: int, progress: ProgressCallback) -> type:
    """The tqdm class of snapshot_download's bars. They draw nothing, and call `progress` once a second.

    size: bytes of all files; 0: the sum of the files whose download has begun.
    """
    from huggingface_hub.utils import tqdm

    lock = threading.Lock()
    caller = contextvars.copy_context()  # files are fetched in threads, which know neither visitor nor language
    received, rate, last_update = 0.0, 0.0, time.monotonic()

    class ProgressBar(tqdm):
        def __init__(self, *args: Any, **options: Any):
            # one bar counts the bytes from the network, another the files that are written
            self.counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal received, rate, last_update
            with lock:
                self.n += n or 0
                now, total = time.monotonic(), size or self.total or 0
                if not self.counts_bytes or now - last_update < PROGRESS_SECONDS or not received < self.n < total:
                    return
                current_rate = (self.n - received) / (now - last_update)
                rate = 0.8 * rate + 0.2 * current_rate if rate else current_rate
                received, last_update = self.n, now
                early, minutes = received <= total * ETA_MIN_SHARE, (total - received) / rate / 60
                message = ProgressUpdate(
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB" if early else
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB, {minutes:.0f} min left"
                    if minutes >= 1 else
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB, less than a minute left",
                    name=name, here=received / 1e6, total=total / 1e6, minutes=minutes,
                )  # fmt: skip
                caller.run(progress, message)

    return ProgressBar


def _nearest_existing_folder(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists())


def require_modelscope(name: str) -> None:
    """Raise BaseError for what is no name of a model there, or where the modelscope package is not installed."""
    if not is_modelscope_name(name):
        raise BaseError(
            "{name!r}: not a model of ModelScope. It is {modelscope}ORG/NAME.", name=name, modelscope=MODELSCOPE_PREFIX
        )
    try:
        import modelscope  # noqa: F401
    except ImportError as e:
        raise BaseError(
            "{name}: models of ModelScope need its package: pip install modelscope. Or name the model's Hub id.",
            name=name,
        ) from e


def download_from_modelscope(name: str, progress: ProgressCallback) -> DownloadedBase:
    """The files of modelscope:ORG/NAME or …@REVISION, through the modelscope package. Raises BaseError.

    They lie where that package keeps them: in MODELSCOPE_CACHE, else ~/.cache/modelscope.
    Not verified: ModelScope could not be reached while this was written; it follows the package's signature.
    """
    require_modelscope(name)
    from modelscope import snapshot_download

    model, revision = split_modelscope_name(name)
    known = find_known_model(model)
    where = Message("ModelScope ({about})", about=known.about) if known else Message("ModelScope")
    progress(Message("Opening {name} from {where} …", name=model, where=where))
    try:
        folder = Path(snapshot_download(model, revision or None, allow_patterns=list(DOWNLOAD_PATTERNS)))
    except Exception as e:  # its errors have no common base class
        raise BaseError(
            "{name}: ModelScope does not give it ({kind}: {reason}). Check the name and the connection.",
            name=name,
            kind=type(e).__name__,
            reason=e,
        ) from e
    if not any(folder.glob("*.safetensors")):
        raise BaseError("{name}: has no safetensors weights; pickled ones are not opened.", name=name)
    licence = (known.licence, known.licence_url) if known else ("", f"https://modelscope.cn/models/{model}")
    return DownloadedBase(name, folder, revision, *licence)


def find_in_modelscope_cache(name: str) -> Path | None:
    """The folder of modelscope:ORG/NAME in ModelScope's cache (MODELSCOPE_CACHE); None where it was not downloaded.

    Not verified, as download_from_modelscope.
    """
    try:
        from modelscope import snapshot_download

        model, revision = split_modelscope_name(name)
        folder = Path(snapshot_download(model, revision or None, local_files_only=True))
    except Exception:  # its errors have no common base class
        return None
    return folder if (folder / "config.json").is_file() else None
