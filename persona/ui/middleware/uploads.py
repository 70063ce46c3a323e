"""What is uploaded, checked as it arrives: how much it is, that each part is a file with a name, and that it is whole.

Gradio writes the parts to files as they come and removes those of a request that its parser refuses (a
MultiPartException), and of no other. So every refusal here is one of those, raised where the parser asks for more.
"""

import asyncio
from pathlib import Path

from gradio_client.utils import strip_invalid_filename_characters
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.store import quotas
from persona.ui.i18n import localized, set_request_headers, t
from persona.ui.middleware.refusal import RequestRefused

UPLOAD_PATH = "/gradio_api/upload"


class Arriving:
    """A visitor's uploads that are under way. bytes: also of those that have ended meanwhile."""

    def __init__(self) -> None:
        self.requests, self.bytes = 0, 0


class UploadBody:
    """The body of an upload as the app receives it. room: bytes that the visitor has left, None for no limit.

    Raises RequestRefused when the headers tell already that it is none.
    """

    def __init__(self, headers: Headers, receive: Receive, room: int | None, arriving: Arriving) -> None:
        kind, options = parse_options_header(headers.get("content-type", ""))
        if kind != b"multipart/form-data" or b"boundary" not in options:
            raise RequestRefused(400, t("This upload cannot be read. Upload the file again."))
        self.app_receive, self.room, self.arriving = receive, room, arriving
        self.refusal: RequestRefused | None = None
        self.is_whole = self.is_over = False  # the last part has ended, the request has ended
        self.size = 0
        self.name, self.value, self.disposition = b"", b"", b""
        if length := headers.get("content-length", ""):
            self._require_room(int(length) if length.isdecimal() and len(length) < 20 else 0)
        try:
            self.parser = MultipartParser(options[b"boundary"], {
                "on_part_begin": self._begin_part, "on_header_field": self._read_name,
                "on_header_value": self._read_value, "on_header_end": self._end_header,
                "on_headers_finished": self._check_part, "on_end": self._end,
            })  # fmt: skip
        except FormParserError:
            raise RequestRefused(400, t("This upload cannot be read. Upload the file again.")) from None

    async def receive(self) -> Message:
        """The next message of the request. Raises MultiPartException, and sets `refusal`, when it is refused."""
        message = await self.app_receive()
        if self.is_over:
            return message  # the disconnect, when it comes
        try:
            self._check(message)
        except RequestRefused as e:
            self.refusal, self.arriving.bytes = e, self.arriving.bytes - self.size
            raise MultiPartException(e.text) from None
        return message

    def _check(self, message: Message) -> None:
        if message["type"] == "http.disconnect":
            raise RequestRefused(400, t("The upload ended early. Upload the file again."))
        data = message.get("body", b"")
        self.size += len(data)
        self.arriving.bytes += len(data)
        self._require_room(0)
        try:
            self.parser.write(data)
        except FormParserError:
            raise RequestRefused(400, t("This upload cannot be read. Upload the file again.")) from None
        self.is_over = not message.get("more_body")
        if self.is_over and not self.is_whole:
            raise RequestRefused(400, t("The upload ended early. Upload the file again."))

    def _require_room(self, more: int) -> None:
        if self.room is None or self.arriving.bytes + more <= self.room:
            return
        most = quotas.read_quotas().max_disk_mb
        raise RequestRefused(413, t(
            "Your files here would fill more than the {n} MB that this server has for each visitor; uploaded files "
            "count for a day. Download what you want to keep, then delete a persona, or upload less. {instead}",
            n=f"{most:,}", instead=localized(quotas.suggest_alternative()),
        ))  # fmt: skip

    # ---- what the parser calls; of two headers of a name the last one counts, as for Gradio

    def _begin_part(self) -> None:
        self.disposition = b""

    def _read_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def _read_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def _end_header(self) -> None:
        if self.name.lower() == b"content-disposition":
            self.disposition = self.value
        self.name, self.value = b"", b""

    def _check_part(self) -> None:
        _, options = parse_options_header(self.disposition)
        file = options.get(b"filename", b"").decode("utf-8", "replace").strip()
        name = Path(file).name
        if options.get(b"name") != b"files" or not name or strip_invalid_filename_characters(name) in ("", ".", ".."):
            raise RequestRefused(400, t("A file needs a name. Rename it and upload it again."))

    def _end(self) -> None:
        self.is_whole = True


class UploadCheck:
    """ASGI. scope["persona.upload_room"]: a function that gives the bytes a visitor has left; missing: no limit."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.arriving: dict[str, Arriving] = {}  # by visitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"].rstrip("/") != UPLOAD_PATH:
            await self.app(scope, receive, send)
            return
        set_request_headers(Headers(scope=scope))
        visitor = scope.get("persona.visitor") or ""
        arriving = self.arriving.setdefault(visitor, Arriving())
        arriving.requests += 1
        try:
            room = await asyncio.to_thread(scope["persona.upload_room"]) if "persona.upload_room" in scope else None
            await self._pass_on(scope, UploadBody(Headers(scope=scope), receive, room, arriving), send)
        except RequestRefused as e:
            await e.response()(scope, receive, send)
        finally:
            arriving.requests -= 1
            if not arriving.requests:
                self.arriving.pop(visitor, None)

    async def _pass_on(self, scope: Scope, body: UploadBody, send: Send) -> None:
        """Raises RequestRefused in place of whatever the app answers to a body that is refused."""

        async def send_unless_refused(message: Message) -> None:
            if not body.refusal:
                await send(message)

        await self.app(scope, body.receive, send_unless_refused)
        if body.refusal:
            raise body.refusal
