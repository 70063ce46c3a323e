"""The cookie of a visitor who has not signed in: SECRET.SIGNATURE, where the server's own key makes the signature.

A value that the server did not make is replaced. Earlier versions made a SECRET alone, which counts where it has a
workspace. Over https the name begins with __Host-, so that no neighbouring site and no plain http can set it.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Scope

from persona.store import deployment, workspace
from persona.ui import i18n
from persona.ui.middleware import workspaces

COOKIE_SECONDS = 31_536_000  # a year
SECURE_COOKIE = f"__Host-{workspaces.VISITOR_COOKIE}"
KEY_FILE = "cookie-key"
_VALUE = re.compile(r"([A-Za-z0-9_-]{43})(?:\.([0-9a-f]{32}))?")


class VisitorCookie(NamedTuple):
    """secret: "" where there is none of ours. is_current: as the server sets it now; else it is to be set again."""

    secret: str
    is_current: bool


def read_cookie(scope: Scope) -> VisitorCookie:
    """The visitor's secret in a request."""
    header = Headers(scope=scope).get("cookie", "")
    for value in _values(header, _cookie_name(scope)):
        if found := _VALUE.fullmatch(value):
            secret, signature = found.groups("")
            if signature and hmac.compare_digest(signature, _sign(secret)):
                return VisitorCookie(secret, True)
    for value in _values(header, workspaces.VISITOR_COOKIE):  # one without a signature is never made anew
        visitor = workspaces.visitor_of_secret(value)
        if visitor and workspace.workspace_of(visitor).is_dir():
            return VisitorCookie(value, False)
    return VisitorCookie("", False)


def make_cookie(scope: Scope, secret: str) -> str:
    """The Set-Cookie header with this secret."""
    if scope.get("scheme") != "https":
        kind = "SameSite=Lax"
    elif deployment.is_hf_space():  # which the Hub shows in a frame
        kind = i18n.CROSS_SITE_COOKIE
    else:
        kind = "SameSite=Lax; Secure"
    value = f"{secret}.{_sign(secret)}"
    return f"{_cookie_name(scope)}={value}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; {kind}"


def _cookie_name(scope: Scope) -> str:
    return SECURE_COOKIE if scope.get("scheme") == "https" else workspaces.VISITOR_COOKIE


def _values(header: str, name: str) -> list[str]:
    return re.findall(rf"(?:^|;) *{re.escape(name)}=([^;]*)", header)


def _sign(secret: str) -> str:
    return hmac.new(_read_key(), secret.encode(), hashlib.sha256).hexdigest()[:32]


def _read_key() -> bytes:
    """The server's key, made on first use. Whoever reads it could make cookies, but guess nobody's secret."""
    file = workspace.data_root() / KEY_FILE
    with contextlib.suppress(FileNotFoundError):
        return file.read_bytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{KEY_FILE}.")  # which only its owner may read
    with os.fdopen(handle, "wb") as out:
        out.write(secrets.token_bytes(32))
    try:
        os.link(temporary, file)  # of two that make one at the same time, the first wins
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links
        Path(temporary).replace(file)
    Path(temporary).unlink(missing_ok=True)
    return file.read_bytes()
