"""The workspaces of a shared server's visitors: ids, retention, downloads, and the move after signing in.

    visitors/<id>/        a workspace, as PERSONA_HOME is for an owner
    visitors/<id>/seen    its modification time is when the visitor was last active

<id> is a hash: of the account on the Hub that the visitor has signed in with, else of a secret in a cookie of their
browser. So the disk holds no secret, and another secret opens an empty workspace.
"""

import contextlib
import hashlib
import logging
import re
import secrets
import shutil
import threading
import time
from pathlib import Path

from gradio.utils import get_upload_folder

from persona.store import deployment, persona_folder, quotas, workspace
from persona.train import run_folder

VISITOR_COOKIE = "persona-visitor"
MARK_SEEN_SECONDS = 60.0  # `seen` is touched at most that often
SWEEP_SECONDS = 3600.0
DAY_SECONDS = 86_400.0
DOWNLOAD_SECONDS = 86_400.0  # how long a file to download is kept
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes of base64

log = logging.getLogger(__name__)


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def visitor_of_secret(secret: str) -> str | None:
    """The id of the visitor with this secret; None when it is not one that new_secret makes."""
    return _hash_id(f"cookie:{secret}") if _SECRET.fullmatch(secret) else None


def visitor_of_account(account: str) -> str:
    """The id of a signed-in visitor. account: the Hub's id of it, which stays when the account is renamed."""
    return _hash_id(f"hub:{account}")


def _hash_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def mark_seen(visitor: str) -> None:
    """Record that the visitor is active. Creates no workspace."""
    place = workspace.workspace_of(visitor)
    mark = place / "seen"
    try:
        if time.time() - mark.stat().st_mtime < MARK_SEEN_SECONDS:
            return
    except OSError:
        pass
    if place.is_dir():
        mark.touch()


def last_seen(place: Path) -> float:
    """When the visitor or one of their runs was last active, in seconds since 1970."""
    marks = [place, place / "seen", *place.glob("personas/*/runs/*/events.jsonl")]
    return max((m.stat().st_mtime for m in marks if m.exists()), default=0.0)


def kept_until(visitor: str, now: float | None = None) -> float | None:
    """When a workspace last used now will be removed, in seconds since 1970; None where it never is."""
    days = quotas.read_quotas().keep_days
    return (time.time() if now is None else now) + days * DAY_SECONDS if days and visitor else None


def remove_idle_workspaces(now: float | None = None) -> list[str]:
    """Remove workspaces that have been idle for too long and have no active run. Returns their ids."""
    days = quotas.read_quotas().keep_days
    removed: list[str] = []
    if not days:
        return removed
    now = time.time() if now is None else now
    for place in sorted((workspace.data_root() / "visitors").glob("*")):
        if place.name.endswith(".gone"):  # the server stopped while it removed this one
            shutil.rmtree(place, ignore_errors=True)
        elif now - last_seen(place) > days * DAY_SECONDS and not has_active_run(place):
            renamed = place.with_name(f"{place.name}.gone")
            try:
                place.rename(renamed)  # first: a visitor who comes back finds all of it or nothing
            except OSError as e:
                log.warning("%s: could not be removed (%s)", place.name, e.strerror)
                continue
            shutil.rmtree(renamed, ignore_errors=True)
            removed.append(place.name)
    return removed


def has_active_run(place: Path) -> bool:
    """Whether a run below this folder trains or is queued."""
    return any(run_folder.Run(worker.parent).alive() for worker in place.rglob("runs/*/worker.json"))


def move_to_account(guest: str, account: str) -> None:
    """Move what a visitor made before signing in to the account's workspace; a persona with an active run stays."""
    old, new = workspace.workspace_of(guest), workspace.workspace_of(account)
    if not old.is_dir():
        return
    for name in ("personas", "adapters"):
        for item in sorted((old / name).glob("*")):
            if item.is_symlink() or item.name.startswith(".") or has_active_run(item):
                continue
            with workspace.as_visitor(account):
                target = persona_folder.free_path(item.name) if name == "personas" else new / name / item.name
            with contextlib.suppress(OSError):  # what cannot be moved stays where it is
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    item.rename(target)
    mark_seen(account)


def download_dir() -> Path:
    """The folder for files that the current visitor downloads, below the one that Gradio serves from."""
    place = Path(get_upload_folder()) / workspace.current_visitor()
    place.mkdir(parents=True, exist_ok=True)
    return place


def clear_downloads(now: float | None = None) -> None:
    """Remove files to download that are older than DOWNLOAD_SECONDS."""
    limit = (time.time() if now is None else now) - DOWNLOAD_SECONDS
    for place in Path(get_upload_folder()).glob("[0-9a-f]" * 40 + "/*"):
        if place.stat().st_mtime < limit:
            shutil.rmtree(place, ignore_errors=True)


def start_retention_sweep() -> None:
    """On a shared server, remove idle workspaces and old downloads now and every hour, in a thread.

    Raises InputError when a variable of the quotas is wrong.
    """
    quotas.read_quotas()
    if deployment.is_shared_server():
        threading.Thread(target=_sweep, name="persona-sweep", daemon=True).start()


def _sweep() -> None:
    while True:
        try:
            remove_idle_workspaces()
            clear_downloads()
        except Exception:  # a full disk, for instance: the next hour tries again
            log.exception("The idle workspaces could not be swept")
        time.sleep(SWEEP_SECONDS)
