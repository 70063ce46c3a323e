"""Who may use the API: clients with a key, or, without keys, the programs of this machine."""

import hashlib
import hmac
import ipaddress
import os
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.requests import Request

from persona.errors import InputError
from persona.serve.api_errors import ApiError


@dataclass(frozen=True)
class ApiAuth:
    """With keys: any client that sends one. Without: this machine's programs.

    Host is checked because a name of another site can lead to this machine's address; ApiOrigins checks the Origin.
    """

    keys: tuple[str, ...] = field(default=(), repr=False)

    async def check(self, request: Request) -> None:
        """Raises ApiError, 401 or 403."""
        if not self.keys:
            if not is_loopback_url(f"http://{request.headers.get('host', '')}"):
                raise ApiError(403, "Without PERSONA_API_KEYS only programs on this machine are answered.")
        elif self._key_number(request) is None:
            raise ApiError(401, "Incorrect or missing API key. Send it as 'Authorization: Bearer KEY'.",
                          code="invalid_api_key")  # fmt: skip

    def client_of(self, request: Request) -> str:
        """Whose request it is, for the queue before the model: each key is a client of its own."""
        number = self._key_number(request)
        return "api" if number is None else f"api key {number}"

    def _key_number(self, request: Request) -> int | None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if kind.lower() == "bearer" else ""
        equal = [hmac.compare_digest(_digest(given), _digest(key)) for key in self.keys]  # all are compared
        return equal.index(True) if any(equal) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def is_loopback(host: str) -> bool:
    """Whether a bind address, or the host of a URL, is this machine's loopback."""
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def is_loopback_url(url: str) -> bool:
    with suppress(ValueError):
        return is_loopback(urlsplit(url).hostname or "")
    return False


def read_api_auth(host: str) -> ApiAuth:
    """The keys of PERSONA_API_KEYS. Raises InputError where there are none and other machines can reach `host`."""
    keys = tuple(k for part in os.environ.get("PERSONA_API_KEYS", "").split(",") if (k := part.strip()))
    if not keys and not is_loopback(host):
        raise InputError(
            "{host}: other machines could use the model, so keys are needed. Set PERSONA_API_KEYS to one "
            "or more, separated by commas, or serve on 127.0.0.1.",
            host=host,
        )
    return ApiAuth(keys)
