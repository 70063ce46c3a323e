"""Base models from afar: of the Hugging Face Hub, or of ModelScope. Only safetensors and texts are fetched."""

import contextvars
import importlib.util
import shutil
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from persona.errors import BaseError, Message
from persona.models.bundled import DEFAULT_BASE
from persona.models.catalogue import find_known_model, format_gb
from persona.models.progress_callback import ProgressCallback, ProgressUpdate
from persona.store.deployment import is_shared_server
from persona.store.files import WRITE_ERRNOS, explain_disk_error

MODELSCOPE_PREFIX = "modelscope:"  # before an ORG/NAME
ETA_MIN_SHARE = 0.02  # of a download: the first bytes are slow and tell nothing of the rest
PROGRESS_SECONDS = 1.0  # between two texts that say how far a download is
DOWNLOAD_PATTERNS = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja", "LICENSE*")


class DownloadedBase(NamedTuple):
    """A base as base.Base takes it."""

    id: str
    folder: Path
    revision: str
    licence: str
    licence_url: str


def is_hub_id(name: str) -> bool:
    """Whether a name looks like OWNER/NAME."""
    parts = name.split("/")
    return len(parts) == 2 and all(
        p
        and not p.startswith(".")
        and p.replace("_", "a").replace("-", "a").replace(".", "a").isalnum()
        and p.isascii()
        for p in parts
    )


def find_in_hub_cache(name: str, revision: str = "") -> Path | None:
    """The folder of a Hub id that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", revision=revision or None)
    return Path(config).parent if isinstance(config, str) else None


def fetch_download_size(name: str, revision: str = "") -> int | None:
    """Bytes that opening the Hub id `name` would fetch, as the Hub says; None where it does not say."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        info = HfApi(token=_token()).model_info(name, revision=revision or None, files_metadata=True)
    except (HfHubHTTPError, HTTPError, OSError, ValueError):
        return None
    wanted = [f for f in info.siblings or [] if any(fnmatch(f.rfilename, p) for p in DOWNLOAD_PATTERNS)]
    return sum(f.size or 0 for f in wanted) or None


def _token() -> bool | None:
    """This machine's login, but for visitors: what its owner may fetch is not theirs."""
    return False if is_shared_server() else None


def download_from_hub(name: str, progress: ProgressCallback, revision: str = "") -> DownloadedBase:
    """The files of a Hub id: downloaded, or taken from the cache. Raises BaseError with what to do instead."""
    from huggingface_hub import HfApi, constants, get_token, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RevisionNotFoundError,
    )

    instead = Message("Without it, go on with the embedded base: {default!r}.", default=DEFAULT_BASE)
    known = find_known_model(name)
    if known and known.needs and importlib.util.find_spec(known.needs) is None:
        raise BaseError(
            "{name} needs a package that is not installed: pip install {needs}. {instead}",
            name=name,
            needs=known.needs,
            instead=instead,
        )
    here = find_in_hub_cache(name, revision)
    size = None if here else fetch_download_size(name, revision)
    free = shutil.disk_usage(_nearest_existing_folder(Path(constants.HF_HUB_CACHE))).free
    if size and size > free:
        raise BaseError(
            "{name}: {size} to download, {free} free. Free some space. {instead}",
            name=name,
            size=format_gb(size / 1e9),
            free=format_gb(free / 1e9),
            instead=instead,
        )
    about = known.about if known else format_gb(size / 1e9) if size else ""
    where = Message("the Hub ({about})", about=about) if about else Message("the Hub")
    progress(
        Message(
            "Opening {name} from {where} …" if here else "Downloading {name} from {where} …", name=name, where=where
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
    except GatedRepoError as e:
        page = f"https://huggingface.co/{name}"
        raise BaseError(
            "{name} is gated, and your account has no access yet. Ask for it on {page}. {instead}" if get_token() else
            "{name} is gated: accept its licence on {page}, then log in: hf auth login, or set HF_TOKEN. {instead}",
            name=name, page=page, instead=instead,
        ) from e  # fmt: skip
    except RevisionNotFoundError as e:
        raise BaseError(
            "{name}: its revision {revision} is not on the Hub any more. {instead}",
            name=name,
            revision=revision[:12],
            instead=instead,
        ) from e
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        if isinstance(e, OSError) and e.errno in WRITE_ERRNOS:
            raise BaseError(explain_disk_error(Path(e.filename or HF_HUB_CACHE), e)) from e
        status = e.response.status_code if isinstance(e, HfHubHTTPError) and e.response is not None else 0
        if status == 401 and get_token():
            raise BaseError(
                "{name}: the Hub refuses your token. Log in again: hf auth login. {instead}", name=name, instead=instead
            ) from e
        if status in (401, 403, 404):  # to who is not logged in, the Hub says 401 of what is not there
            where = Message("with your account") if get_token() else Message("without logging in (hf auth login)")
            raise BaseError(
                "{name}: not on the Hub, or private: not seen {where}. Check the name. {instead}",
                name=name,
                where=where,
                instead=instead,
            ) from e
        why = Message("is not on this machine and the Hub cannot be reached ({kind})", kind=type(e).__name__)
        raise BaseError("{name} {reason}. {instead}", name=name, reason=why, instead=instead) from e
    if not any(folder.glob("*.safetensors")):
        raise BaseError(
            "{name}: has no safetensors weights; pickled ones are not opened. {instead}", name=name, instead=instead
        )
    if known:
        return DownloadedBase(known.id, folder, folder.name, known.licence, known.licence_url)
    licence = ""
    try:
        data = HfApi(token=_token()).model_info(name).card_data
        licence = str(data.get("license") or "") if data else ""
    except Exception:  # offline with a warm cache: the model opens all the same
        pass
    return DownloadedBase(name, folder, folder.name, licence, f"https://huggingface.co/{name}")


def _make_progress_bar_class(name: str, size: int, progress: ProgressCallback) -> type:
    """The class of which snapshot_download makes its bars. They are not drawn: `progress` is told once a second how
    much is here and how long the rest will take. size: bytes of all files; 0: as the files that have begun say.
    """
    from huggingface_hub.utils import tqdm

    lock = threading.Lock()
    caller = contextvars.copy_context()  # the files come in threads, which know neither the visitor nor the language
    here, rate, before = 0.0, 0.0, time.monotonic()

    class Told(tqdm):
        def __init__(self, *given: Any, **options: Any):
            self.counts = options.get("unit") == "B"  # one bar counts what the network brings, one what is written
            super().__init__(*given, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal here, rate, before
            with lock:
                self.n += n or 0
                now, total = time.monotonic(), size or self.total or 0
                if not self.counts or now - before < PROGRESS_SECONDS or not here < self.n < total:
                    return
                fresh = (self.n - here) / (now - before)
                here, before, rate = self.n, now, 0.8 * rate + 0.2 * fresh if rate else fresh
                early, minutes = here <= total * ETA_MIN_SHARE, (total - here) / rate / 60
                far = ProgressUpdate(
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB" if early else
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB, {minutes:.0f} min left"
                    if minutes >= 1 else
                    "Downloading {name} from the Hub: {here:,.0f} of {total:,.0f} MB, less than a minute left",
                    name=name, here=here / 1e6, total=total / 1e6, minutes=minutes,
                )  # fmt: skip
                caller.run(progress, far)

    return Told


def _nearest_existing_folder(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


def download_from_modelscope(name: str, progress: ProgressCallback) -> DownloadedBase:
    """ORG/NAME of modelscope.cn, through the modelscope package where it is installed.

    Not verified: ModelScope could not be reached where this was written; the package's own signature was read.
    """
    model = name.removeprefix(MODELSCOPE_PREFIX)
    if not is_hub_id(model):
        raise BaseError(
            "{name!r}: not a model of ModelScope. It is {modelscope}ORG/NAME.", name=name, modelscope=MODELSCOPE_PREFIX
        )
    try:
        from modelscope import snapshot_download
    except ImportError as e:
        raise BaseError(
            "{name}: models of ModelScope need its package: pip install modelscope. Or name the model's Hub id.",
            name=name,
        ) from e
    known = find_known_model(model)
    where = Message("ModelScope ({about})", about=known.about) if known else Message("ModelScope")
    progress(Message("Opening {name} from {where} …", name=model, where=where))
    try:
        folder = Path(snapshot_download(model, allow_patterns=list(DOWNLOAD_PATTERNS)))
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
    return DownloadedBase(name, folder, "", *licence)
