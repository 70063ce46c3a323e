"""Isolation of visitors on a shared server: every request gets a visitor, and reaches nothing of another visitor.

Gradio identifies a tab by a name that the tab chooses, an uploaded file by its content, and a download by its path;
anyone who knows one can use it. Here the names of tabs and uploads are prefixed with the visitor's id, so that the same
name of two visitors is two; a file is served to, and accepted from, only the visitor it belongs to; and routes that the
page does not need are closed.
"""

import asyncio
import contextlib
import json
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from gradio.context import LocalContext
from gradio.utils import get_upload_folder
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.serve.http import is_api_path
from persona.store import deployment, quotas, workspace
from persona.ui import i18n
from persona.ui.i18n import localized, t
from persona.ui.middleware import event_limits, visitor_cookie, workspaces
from persona.ui.middleware.origins import is_static
from persona.ui.middleware.refusal import RequestRefused

MAX_UPLOADS = 100_000  # whose owner is remembered; an older file has to be uploaded again
API_PREFIX = "/gradio_api/"
PUBLIC_PATHS = (
    "/config",
    "/logout",
    "/login/huggingface",
    "/login/callback",
    API_PREFIX + "info",
    API_PREFIX + "openapi.json",
    API_PREFIX + "startup-events",
    API_PREFIX + "app_id",
    API_PREFIX + "queue/status",
)
EVENT_PREFIXES = (
    API_PREFIX + "queue/join",
    API_PREFIX + "run/",
    API_PREFIX + "api/",
    API_PREFIX + "cancel",
    API_PREFIX + "reset",
)


def current_visitor() -> str | None:
    """The visitor whose event Gradio handles in this thread; for workspace.set_visitor_lookup."""
    request = getattr(LocalContext.request.get(None), "request", None)
    return request.scope.get("persona.visitor") if request is not None else None


class VisitorIsolation:
    """ASGI. Remembers the owners of uploads, and the number of requests of each visitor in this minute."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.time) -> None:
        self.app, self.clock = app, clock
        self.uploads: OrderedDict[str, set[str]] = OrderedDict()  # path → the visitors who uploaded this file
        self.events = event_limits.EventLimits()
        self.request_counts: dict[str, int] = {}  # of the present minute
        self.minute = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # the API beside the page checks its own keys
        if scope["type"] == "lifespan" or (scope["type"] == "http" and is_api_path(scope["path"])):
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})  # the page opens none
            return
        i18n.set_request_headers(Headers(scope=scope))
        visitor, guest = identify_visitor(scope)
        scope["persona.visitor"] = visitor
        if scope["path"] == "/" and scope["method"] in ("GET", "HEAD"):
            if visitor and guest and visitor != guest:
                await asyncio.to_thread(workspaces.move_to_account, guest, visitor)
            await self.app(scope, receive, _with_cookie(scope, send))
            return
        with contextlib.ExitStack() as handled:
            try:
                receive, send = await self.check_request(scope, receive, send, visitor, handled)
            except RequestRefused as e:
                await e.response()(scope, receive, send)
                return
            await self.app(scope, receive, send)

    async def check_request(
        self, scope: Scope, receive: Receive, send: Send, visitor: str | None, handled: contextlib.ExitStack
    ) -> tuple[Receive, Send]:
        """(receive, send) to pass to the app. handled: ends when the app has answered. Raises RequestRefused."""
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        if method in ("GET", "HEAD", "OPTIONS") and (path in PUBLIC_PATHS or is_static(path)):
            return receive, send
        if visitor is None:
            raise RequestRefused(403, localized(workspace.UNKNOWN_VISITOR))
        prefix = f"{visitor[:16]}."  # of the names of tabs and uploads
        if method in ("GET", "HEAD"):
            if path.startswith(API_PREFIX + "file="):
                self.require_file(scope["path"].removeprefix(API_PREFIX + "file="), visitor)
            elif path.startswith(API_PREFIX + "heartbeat/"):
                session = path.removeprefix(API_PREFIX + "heartbeat/")
                scope["path"] = f"{API_PREFIX}heartbeat/{prefix}{session}"
                scope["raw_path"] = scope["path"].encode()
            elif path == API_PREFIX + "queue/data":
                _prefix_query_values(scope, "session_hash", prefix)
            elif path == API_PREFIX + "upload_progress":
                _prefix_query_values(scope, "upload_id", prefix)
            else:
                raise RequestRefused(404, "Not found.")
            return receive, send
        if method != "POST" or not (path == API_PREFIX + "upload" or path.startswith(EVENT_PREFIXES)):
            raise RequestRefused(404, "Not found.")
        self.count_request(visitor)
        workspaces.mark_seen(visitor)
        if path == API_PREFIX + "upload":
            scope["persona.upload_room"] = partial(self.upload_room, visitor)
            _prefix_query_values(scope, "upload_id", prefix)
            return receive, self.record_uploads_from(visitor, send)
        handled.enter_context(self.events.arriving(scope, visitor, prefix))
        return await self.check_event(scope, receive, visitor, prefix), send

    async def check_event(self, scope: Scope, receive: Receive, visitor: str, prefix: str) -> Receive:
        """Prefix the tab's name in an event. Raises RequestRefused when the event names a file of another visitor."""
        raw = await self.events.read_body(scope, receive, visitor, prefix)
        try:
            body = json.loads(raw)
            if not isinstance(body, dict):
                raise ValueError
        except (ValueError, RecursionError):
            raise RequestRefused(400, "The request is no JSON object.") from None
        for file in _file_paths(body):
            self.require_file(file, visitor)
        if isinstance(body.get("session_hash"), str):
            tab = body["session_hash"] = prefix + body["session_hash"]
            if self.events.use_tab(scope, visitor, tab):
                self.count_request(visitor, event_limits.TAB_REQUESTS - 1)
        raw = json.dumps(body).encode()
        MutableHeaders(scope=scope)["content-length"] = str(len(raw))
        return _replay(raw, receive)

    def require_file(self, path: str, visitor: str) -> None:
        """Raises RequestRefused unless the file was uploaded by this visitor, or made for them to download."""
        file, folder = os.path.abspath(path), os.path.abspath(get_upload_folder())  # noqa: PTH100
        downloads = os.path.join(folder, visitor) + os.sep  # noqa: PTH118
        is_own = file.startswith(downloads) or visitor in self.uploads.get(file, ())
        # below the folder there are no links; one that somebody put there is not followed
        if not is_own or os.path.realpath(file) != os.path.realpath(folder) + file.removeprefix(folder):
            raise RequestRefused(403, t("This file does not belong to you. Upload it again, or create it again."))

    def record_uploads_from(self, visitor: str, send: Send) -> Send:
        """`send` that also records the owner of the uploaded files, before the browser gets their paths."""
        parts: list[bytes] = []

        async def send_recorded(message: Message) -> None:
            if message["type"] == "http.response.body":
                parts.append(message.get("body", b""))
                if not message.get("more_body"):
                    self.record_uploads(visitor, b"".join(parts))
            await send(message)

        return send_recorded

    def record_uploads(self, visitor: str, answer: bytes) -> None:
        try:
            paths = json.loads(answer)
        except ValueError:  # the upload was refused
            return
        for path in paths if isinstance(paths, list) else []:
            self.uploads.setdefault(os.path.abspath(path), set()).add(visitor)  # noqa: PTH100
        while len(self.uploads) > MAX_UPLOADS:
            self.uploads.popitem(last=False)

    def upload_room(self, visitor: str) -> int | None:
        """Bytes that a visitor may still upload: what workspace, files to save and earlier uploads leave of the quota.

        The trash is not counted: it is emptied for what needs its room. None: no limit.
        """
        most = quotas.read_quotas().max_disk_mb * 1_000_000
        if not most:
            return None
        home = workspace.workspace_of(visitor)
        used = sum(map(quotas.folder_size, (home, Path(get_upload_folder()) / visitor)))
        used -= quotas.folder_size(home / "trash")
        for path, owners in list(self.uploads.items()):
            if visitor in owners:
                with contextlib.suppress(OSError):  # Gradio has deleted it
                    used += Path(path).lstat().st_size
        return most - used

    def count_request(self, visitor: str, weight: int = 1) -> None:
        """Raises RequestRefused when the visitor has sent too many requests in this minute."""
        most, minute = quotas.read_quotas().max_requests, int(self.clock() // 60)
        if minute != self.minute:
            self.request_counts, self.minute = {}, minute
        self.request_counts[visitor] = self.request_counts.get(visitor, 0) + weight
        if most and self.request_counts[visitor] > most:
            raise RequestRefused(429, t(
                "More than {n} requests in a minute, which is this server's limit for a visitor. Wait a minute, then "
                "go on. {instead}", n=f"{most:,}", instead=localized(quotas.suggest_alternative()),
            ))  # fmt: skip


def identify_visitor(scope: Scope) -> tuple[str | None, str | None]:
    """(visitor, the visitor before signing in): by the account on the Hub, else by the cookie; None for neither."""
    guest = workspaces.visitor_of_secret(visitor_cookie.read_cookie(scope).secret)
    account = _signed_in_account(scope) if deployment.has_sign_in() else ""
    return (workspaces.visitor_of_account(account), guest) if account else (guest, None)


def _signed_in_account(scope: Scope) -> str:
    """The Hub's id of the signed-in account, "" for none. Gradio signs the session with the Space's own secret."""
    info = (scope.get("session") or {}).get("oauth_info") or {}
    if info.get("expires_at") is not None and info["expires_at"] < time.time():
        return ""
    return str((info.get("userinfo") or {}).get("sub") or "")


def _with_cookie(scope: Scope, send: Send) -> Send:
    """`send` that also sets the visitor's cookie, where the request has none that the server would make now."""
    secret, is_current = visitor_cookie.read_cookie(scope)
    if is_current or (scope["persona.visitor"] and not secret):  # who has signed in needs none
        return send
    cookie = visitor_cookie.make_cookie(scope, secret or workspaces.new_secret())

    async def send_with_cookie(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).append("set-cookie", cookie)
        await send(message)

    return send_with_cookie


def _prefix_query_values(scope: Scope, key: str, prefix: str) -> None:
    """Put `prefix` before every value of a key of the query."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    scope["query_string"] = urlencode([(k, prefix + v if k == key else v) for k, v in query]).encode()


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` that gives the app this body."""
    sent = False

    async def receive_body() -> Message:
        nonlocal sent
        if sent:
            return await receive()  # the disconnect, when it comes
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_body


def _file_paths(value: Any) -> list[str]:
    """Every value of a key "path" in a body: where the page names a file."""
    paths, rest = [], [value]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            paths += [item["path"]] if isinstance(item.get("path"), str) else []
            rest += item.values()
        elif isinstance(item, list):
            rest += item
    return paths
