"""Who visits a shared server, and how long their work is kept there.

    visitors/<id>/        a workspace: what PERSONA_HOME is to an owner
    visitors/<id>/seen    its time is when the visitor last did something

<id> is a hash: of the account on the Hub that the visitor has signed in with, else of a secret that only their browser
has, in a cookie. Who reads the disk learns no secret, and who brings another secret finds an empty workspace.
"""

import contextlib
import hashlib
import logging
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from gradio.utils import get_upload_folder

from persona.store import deployment, persona_folder, quotas, workspace
from persona.train import run_folder

VISITOR_COOKIE = "persona-visitor"
MARK_SEEN_SECONDS = 60.0  # seconds; more often, `seen` is not touched
SWEEP_SECONDS = 3600.0  # seconds
DAY_SECONDS = 86_400.0
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes of base64

log = logging.getLogger(__name__)


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def visitor_of_secret(secret: str) -> str | None:
    """The visitor whose browser has this secret; None where it is none of ours."""
    return _hash_id(f"cookie:{secret}") if _SECRET.fullmatch(secret) else None


def visitor_of_account(account: str) -> str:
    """The visitor who signed in. account: the Hub's own id of it, which outlives a change of name."""
    return _hash_id(f"hub:{account}")


def _hash_id(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def mark_seen(visitor: str) -> None:
    """Note that the visitor is here; a workspace is not made for it."""
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
    """When something last happened in a workspace: its visitor was there, or one of its runs went on. Since 1970."""
    marks = [place, place / "seen", *place.glob("personas/*/runs/*/events.jsonl")]
    return max((m.stat().st_mtime for m in marks if m.exists()), default=0.0)


def kept_until(visitor: str, now: float | None = None) -> float | None:
    """When the work of a visitor who goes now will be removed; None where it never is. Seconds since 1970."""
    days = quotas.read_quotas().keep_days
    return (time.time() if now is None else now) + days * DAY_SECONDS if days and visitor else None


def remove_idle_workspaces(now: float | None = None) -> list[str]:
    """Remove the workspaces that have been idle for too long; none with a run under way. Returns their ids."""
    days = quotas.read_quotas().keep_days
    gone: list[str] = []
    if not days:
        return gone
    now = time.time() if now is None else now
    for place in sorted((workspace.data_root() / "visitors").glob("*")):
        if place.name.endswith(".gone"):  # the server was stopped while it removed this one
            shutil.rmtree(place, ignore_errors=True)
        elif now - last_seen(place) > days * DAY_SECONDS and not has_active_run(place):
            out = place.with_name(f"{place.name}.gone")
            try:
                place.rename(out)  # at once: a visitor who comes back finds all of it or nothing
            except OSError as e:
                log.warning("%s: could not be removed (%s)", place.name, e.strerror)
                continue
            shutil.rmtree(out, ignore_errors=True)
            gone.append(place.name)
    return gone


def has_active_run(place: Path) -> bool:
    """Whether a run in this folder, a workspace or a persona, trains or waits for its turn."""
    return any(run_folder.Run(worker.parent).alive() for worker in place.rglob("runs/*/worker.json"))


def sweep_in_background(also: Callable[[], None]) -> None:
    """Sweep now and every hour, in the background. also: what else is to be swept."""

    def work() -> None:
        while True:
            try:
                remove_idle_workspaces()
                also()
            except Exception:  # a full disk, say: the next hour tries again
                log.exception("The idle workspaces could not be swept")
            time.sleep(SWEEP_SECONDS)

    threading.Thread(target=work, name="persona-sweep", daemon=True).start()


def move_to_account(before: str, now: str) -> None:
    """Bring what a visitor made before signing in to the account's workspace; a run under way stays until it ends."""
    old, new = workspace.workspace_of(before), workspace.workspace_of(now)
    if not old.is_dir():
        return
    for name in ("personas", "adapters"):
        for item in sorted((old / name).glob("*")):
            if has_active_run(item) or item.name.startswith("."):
                continue
            with workspace.as_visitor(now):
                target = persona_folder.free_path(item.name) if name == "personas" else new / name / item.name
            with contextlib.suppress(OSError):  # what cannot be moved stays where it was made
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    item.rename(target)
    mark_seen(now)


DOWNLOAD_SECONDS = 86_400.0  # seconds that a file to save is kept


def download_dir() -> Path:
    """Where files to save are made for the visitor who asks, in the folder that Gradio serves from."""
    place = Path(get_upload_folder()) / workspace.current_visitor()
    place.mkdir(parents=True, exist_ok=True)
    return place


def clear_downloads(now: float | None = None) -> None:
    """Remove files to save that are a day old."""
    old = (time.time() if now is None else now) - DOWNLOAD_SECONDS
    for place in Path(get_upload_folder()).glob("[0-9a-f]" * 40 + "/*"):
        if place.stat().st_mtime < old:
            shutil.rmtree(place, ignore_errors=True)


def start_retention_sweep() -> None:
    """Sweep what is idle, on a shared server; raises InputError when one of its variables is wrong."""
    quotas.read_quotas()
    if deployment.is_shared_server():
        sweep_in_background(clear_downloads)
