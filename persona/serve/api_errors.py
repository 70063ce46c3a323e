"""Errors of the API in OpenAI's form, each with its HTTP status."""

from typing import Any

from persona.errors import Message, PersonaError

_TYPES = {429: "requests", 500: "server_error", 503: "server_error"}


class ApiError(PersonaError):
    """An error for the client. param: the field of the request it is about; retry_after: seconds, 0 for none."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None,
                 retry_after: int = 0):  # fmt: skip
        super().__init__(Message.of(message))
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict[str, Any]:
        kind = _TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {"Retry-After": str(self.retry_after)} if self.retry_after else {}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def internal_error() -> ApiError:
    """For what should not happen; the server's log holds the cause, the client does not."""
    return ApiError(500, "The server failed to answer. Its log says why.", code="internal_error")


def unavailable(message: str) -> ApiError:
    """503: the model, or the whole server, does not answer now."""
    return ApiError(503, message, code="unavailable")
