"""A stand-in for the Hub's sign-in on this machine: OpenID Connect with a code, a token and a signed id."""

import base64
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT, SECRET = "client", "client-secret"


class OAuthHub:
    """Signs in whoever is `account` at the time: (the Hub's id, the user's name). Use as a context manager."""

    def __init__(self) -> None:
        self.account = ("512", "ada")
        self.key = RSAKey.generate_key(2048, {"kid": "1", "use": "sig", "alg": "RS256"}, private=True)
        self.codes: dict[str, tuple[tuple[str, str], str, str]] = {}  # → the account, nonce and redirect_uri
        self.issued: list[str] = []  # access tokens

    def __enter__(self) -> "OAuthHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(asked.query).items()}
                match asked.path:
                    case "/.well-known/openid-configuration":
                        self.answer(hub.metadata())
                    case "/oauth/jwks":
                        self.answer({"keys": [hub.key.as_dict(private=False)]})
                    case "/oauth/authorize" if query["client_id"] == CLIENT:
                        self.send_response(302)
                        self.send_header("Location", hub.authorize(query))
                        self.end_headers()
                    case _:
                        self.answer({"error": "not found"}, 404)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                sent = self.headers.get("Authorization", "").removeprefix("Basic ")
                right = base64.b64decode(sent).decode() == f"{CLIENT}:{SECRET}"
                found = hub.codes.pop(form.get("code", [""])[0], None) if right else None
                if not found or found[2] != form["redirect_uri"][0]:
                    self.answer({"error": "invalid_grant"}, 400)
                else:
                    self.answer(hub.token(*found[:2]))

            def answer(self, value: dict, status: int = 200) -> None:
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def metadata(self) -> dict:
        return {"issuer": self.url, "authorization_endpoint": f"{self.url}/oauth/authorize",
                "token_endpoint": f"{self.url}/oauth/token", "jwks_uri": f"{self.url}/oauth/jwks",
                "response_types_supported": ["code"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["RS256"]}  # fmt: skip

    def authorize(self, query: dict[str, str]) -> str:
        """Where the browser goes on, with a code: the visitor has said yes."""
        code = secrets.token_hex(8)
        self.codes[code] = (self.account, query.get("nonce", ""), query["redirect_uri"])
        sign = "&" if "?" in query["redirect_uri"] else "?"
        return query["redirect_uri"] + sign + urlencode({"code": code, "state": query["state"]})

    def token(self, account: tuple[str, str], nonce: str) -> dict:
        now, (sub, name) = int(time.time()), account
        claims = {"iss": self.url, "aud": CLIENT, "sub": sub, "name": name, "preferred_username": name, "nonce": nonce,
                  "iat": now, "exp": now + 600, "profile": f"{self.url}/{name}", "picture": ""}  # fmt: skip
        self.issued.append(f"hf_oauth_{secrets.token_hex(8)}")
        return {"access_token": self.issued[-1], "token_type": "bearer", "expires_in": 600, "scope": "openid profile",
                "id_token": jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)}  # fmt: skip
