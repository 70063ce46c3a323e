"""Errors of the Hub's client: which are tried again, and what a user is told to do about the others."""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from persona.errors import Message, ShareError
from persona.models.download import find_status
from persona.store import deployment
from persona.store.files import explain_disk_error
from persona.store.workspace import data_root

TRIES = 4  # of an upload or a download, each with the waits of huggingface_hub's own tries within it
WAIT, MAX_WAIT = 2.0, 60.0  # seconds: 2, 4, 8 between the tries, or what the Hub asks for, at most a minute
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)
_INTERRUPTED = Message("the Hub cannot be reached, or the connection broke. Nothing is lost; try again.")
T = TypeVar("T")


def retry(call: Callable[[], T]) -> T:
    """`call()`, tried again after a wait when the failure may pass: a lost connection, a Hub that is busy or down."""
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
    if type(e) in (ConnectionError, TimeoutError):  # hf_xet's own: it has tried five times, for a minute and a half
        return False
    status = find_status(e)
    if status is not None:
        return status == 429 or status >= 500
    return not isinstance(e, OSError) or e.errno not in _DISK_ERRNOS


def _retry_after(e: BaseException) -> float | None:
    """The seconds to wait that the Hub asks for."""
    response = getattr(e, "response", None)
    value = response.headers.get("Retry-After", "") if response is not None else ""
    return float(value) if value.isdigit() else None


@contextmanager
def translate_errors(place: str, token: str | None) -> Iterator[None]:
    """Turn errors of the Hub's client into a ShareError that says what to do. place: the repository's name."""
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
    except hub.LocalEntryNotFoundError as e:
        raise ShareError(
            "{place}: not on this machine, and the Hub cannot be reached. Try again when online.", place=place
        ) from e
    except OSError as e:
        if status := find_status(e):
            raise ShareError("{place}: {reason}", place=place, reason=_explain_status(status, e, token)) from e
        if e.errno in _DISK_ERRNOS:
            raise ShareError(explain_disk_error(data_root() / "hub", e)) from e
        raise ShareError("{place}: {reason} ({kind})", place=place, reason=_INTERRUPTED, kind=type(e).__name__) from e
    except ValueError as e:
        raise ShareError(
            "{place}: the Hub refuses it: {reason}. Correct it in the adapter's folder.", place=place, reason=e
        ) from e
    except (hub.HTTPError, RuntimeError) as e:  # httpx's own; the client wraps a failed upload of weights in the other
        raise ShareError("{place}: {reason} ({kind})", place=place, reason=_INTERRUPTED, kind=type(e).__name__) from e


def _explain_status(status: int, e: Any, token: str | None) -> str:
    if status == 401 and token:
        return Message(
            "the Hub does not accept your token: it is wrong, expired or revoked. Log in again with: hf auth login"
        )
    if status == 401 and not deployment.may_use_owner_login():
        return Message(
            "not on the Hub, or private. Check the name. This server opens public personas only; a private one opens "
            "in a Persona on its owner's machine."
        )
    if status == 401:  # without a login the Hub does not say which of the two it is
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
        server_message=getattr(e, "server_message", "") or "no reason given",
    )
