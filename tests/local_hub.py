"""A small Hugging Face Hub in memory, on a free port of 127.0.0.1, for tests.

    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)

It speaks what huggingface_hub needs to push and pull a model: whoami, create, preupload, Xet (tests/local_xet.py) or LFS
in one part or several, commit, info, tree and resolve. Each commit keeps its own files, so an old revision can still be
downloaded. `fail` and `cut` break requests.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from huggingface_hub import RepoCard

from tests.local_xet import XetStorage

LOST = -1
ANN, BEN, OLD = "hf_" + "a" * 34, "hf_" + "b" * 34, "hf_" + "c" * 34


@dataclass
class Repo:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)  # newest last
    tags: dict[str, str] = field(default_factory=dict)  # name → commit

    @property
    def head(self) -> str:
        return next(reversed(self.commits))


@dataclass
class Fault:
    """Break the next `times` requests whose "METHOD /path" contains `match`, with a status.

    0: the connection is lost before the request is processed; LOST: after it was processed.
    """

    match: str
    times: int
    status: int


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.answer = JSONResponse({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})


class Hub:
    """Users ann and ben with the tokens ANN and BEN; OLD is a token that has expired."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users = {ANN: "ann", BEN: "ben"}
        self.organizations: dict[str, set[str]] = {}  # name → the users who may write there
        self.gated: set[str] = set()  # gated repos: access was not granted to anyone
        self.renamed: dict[str, str] = {}  # old name → new name: the old one is redirected
        self.blobs: dict[str, bytes] = {}
        self.lfs = True  # False: weights are part of the commit, like small files
        self.xet: XetStorage | None = None  # where hf_xet sends weights; None: there is no such storage
        self.part_bytes = 0  # of an LFS upload in several parts; 0: in one
        self.parts: dict[str, dict[int, bytes]] = {}  # sha256 → parts that have arrived
        self.requests: list[str] = []  # "METHOD /path", in order
        self.received: list[bytes] = []  # every body sent to this Hub
        self.ranges: list[str] = []  # Range headers of resumed downloads
        self.sizes: dict[tuple[str, str], int] = {}  # (repo, file) → a wrong size to report
        self.retry_after = 0  # seconds, sent with every 429
        self.faults: list[Fault] = []
        server = uvicorn.Config(self._faulty(_routes(self)), host="127.0.0.1", port=0, log_level="critical", ws="none")
        self._server = uvicorn.Server(server)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    def fail(self, match: str, times: int = 1, status: int = 500) -> None:
        self.faults.append(Fault(match, times, status))

    def cut(self, match: str, times: int = 1) -> None:
        """Lose the connection: half-way through the body of a download, before anything is stored of an upload."""
        self.fail(match, times, 0)

    def lose(self, match: str, times: int = 1) -> None:
        """Lose the connection after the request was processed, before its sender is answered."""
        self.fail(match, times, LOST)

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repos[repo].commits[self.repos[repo].head]

    def add(self, repo: str, files: dict[str, bytes], private: bool = False) -> str:
        """Add a commit, as another program would. Returns its id."""
        found = self.repos.setdefault(repo, Repo(private))
        return self._commit(found, repo, files)

    def user(self, request: Request) -> str:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in self.users:
            raise Refused(401, f'User Access Token "{token[:6]}..." is expired')
        return self.users.get(token, "")

    def may_write(self, user: str, owner: str) -> bool:
        return bool(user) and (user == owner or user in self.organizations.get(owner, ()))

    def repo(self, request: Request, name: str, write: bool = False) -> Repo:
        user, repo = self.user(request), self.repos.get(name)
        allowed = self.may_write(user, name.split("/")[0])
        if repo is None or (repo.private and not allowed):
            # as on the Hub: without a login, a missing repo looks like a private one
            raise Refused(404, "Repository not found", "RepoNotFound") if user else Refused(401, "Invalid username")
        if write and not allowed:
            raise Refused(403, "Forbidden: you must use a write token for this namespace")
        return repo

    def snapshot(self, repo: Repo, revision: str) -> tuple[str, dict[str, bytes]]:
        commit = repo.head if revision == "main" else repo.tags.get(revision, revision)
        if commit not in repo.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repo.commits[commit]

    def from_xet(self, sha256: str, size: int) -> bytes:
        assert self.xet, f"no file {sha256} has arrived"
        return self.xet.read(sha256, size)

    def _commit(self, repo: Repo, name: str, files: dict[str, bytes]) -> str:
        commit = hashlib.sha1(f"{name} {len(repo.commits)} {sorted(files)}".encode()).hexdigest()
        repo.commits[commit] = dict(files)
        return commit

    def _fault(self, what: str) -> int | None:
        for fault in self.faults:
            if fault.match in what and fault.times > 0:
                fault.times -= 1
                return fault.status
        return None

    def _redirect(self, path: str) -> Response | None:
        """As on the Hub, with the path of the new name; None for a name that is not renamed."""
        for old, new in self.renamed.items():
            if f"{old}/" in f"{path.removeprefix('/api/models')}/":
                return Response(status_code=307, headers={"Location": path.replace(old, new, 1)})
        return None

    def _faulty(self, app: FastAPI) -> Callable[..., Awaitable[None]]:
        """Records every request, and breaks those that `fail` and `cut` name."""

        async def wrapped(scope: dict[str, Any], receive: Callable, send: Callable) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            what = f"{scope['method']} {scope['path']}"
            self.requests.append(what)

            async def half(message: dict[str, Any]) -> None:
                if message["type"] == "http.response.body":
                    message = {**message, "body": message["body"][: len(message["body"]) // 2], "more_body": True}
                await send(message)

            match self._fault(what):
                case None:
                    await (self._redirect(scope["path"]) or app)(scope, receive, send)
                case 0 if scope["method"] == "GET":
                    await app(scope, receive, half)
                case 0:
                    await receive()
                    await _break_off(send)
                case status if status == LOST:
                    await app(scope, receive, _nowhere)
                    await _break_off(send)
                case status:
                    asks = {"Retry-After": str(self.retry_after)} if status == 429 and self.retry_after else None
                    await JSONResponse({"error": "broken on purpose"}, status, asks)(scope, receive, send)

        return wrapped


async def _break_off(send: Callable) -> None:
    """Start a response; returning without its rest makes uvicorn close the connection."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"99")]})
    await send({"type": "http.response.body", "body": b"{", "more_body": True})


async def _nowhere(_: dict[str, Any]) -> None:
    pass


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def metadata_errors(readme: str) -> list[str]:
    """What the real Hub would refuse in a model card's metadata, as far as its documentation says."""
    data = RepoCard(readme, ignore_metadata_errors=False).data.to_dict()
    bases = data.get("base_model", [])
    found = [f"base_model {b!r}: no model id" for b in ([bases] if isinstance(bases, str) else bases)
             if not re.fullmatch(r"[\w.-]+/[\w.-]+", b)]  # fmt: skip
    if (language := data.get("language")) and not re.fullmatch("[a-z]{2,3}", str(language)):
        found.append(f"language {language!r}: not ISO 639")
    if data.get("base_model_relation", "adapter") not in ("adapter", "finetune", "merge", "quantized"):
        found.append("base_model_relation")
    found += [f"{key}: not a text" for key in ("library_name", "pipeline_tag") if not isinstance(data.get(key), str)]
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        found.append("tags: not texts")
    return found


def _routes(hub: Hub) -> FastAPI:
    app = FastAPI()
    app.add_exception_handler(Refused, lambda _, e: e.answer)  # type: ignore[attr-defined]
    _reading(app, hub)
    _writing(app, hub)
    _storing(app, hub)
    return app


def _reading(app: FastAPI, hub: Hub) -> None:
    @app.get("/api/whoami-v2")
    async def whoami(request: Request) -> dict[str, Any]:
        if not (user := hub.user(request)):
            raise Refused(401, "Invalid username or password.")
        orgs = [{"type": "org", "name": name} for name, members in hub.organizations.items() if user in members]
        return {"type": "user", "name": user, "fullname": user, "orgs": orgs}

    @app.get("/api/models/{owner}/{name}")
    @app.get("/api/models/{owner}/{name}/revision/{revision}")
    @app.get("/api/datasets/{owner}/{name}")
    @app.get("/api/datasets/{owner}/{name}/revision/{revision}")
    async def info(request: Request, owner: str, name: str, revision: str = "main") -> dict[str, Any]:
        repo = hub.repo(request, f"{owner}/{name}")
        commit, files = hub.snapshot(repo, revision)
        name = f"{owner}/{name}"
        size = {p: hub.sizes.get((name, p), len(d)) for p, d in files.items()}
        siblings = [{"rfilename": p, "size": size[p], "blobId": _blob(d)} for p, d in files.items()]
        return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings}

    @app.get("/api/models/{owner}/{name}/tree/{revision}")
    async def tree(request: Request, owner: str, name: str, revision: str) -> list[dict[str, Any]]:
        return [_entry(*f) for f in hub.snapshot(hub.repo(request, f"{owner}/{name}"), revision)[1].items()]

    @app.api_route("/datasets/{owner}/{name}/resolve/{revision}/{file:path}", methods=["GET", "HEAD"])
    @app.api_route("/{owner}/{name}/resolve/{revision}/{file:path}", methods=["GET", "HEAD"])
    async def resolve(request: Request, owner: str, name: str, revision: str, file: str) -> Response:
        commit, files = hub.snapshot(hub.repo(request, f"{owner}/{name}"), revision)
        if f"{owner}/{name}" in hub.gated:
            status = 403 if hub.user(request) else 401
            raise Refused(status, f"Access to model {owner}/{name} is restricted.", "GatedRepo")
        if file not in files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        data, entry = files[file], _entry(file, files[file])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        start = int(request.headers.get("range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        headers = {"X-Repo-Commit": commit, "ETag": f'"{etag}"', "Content-Length": str(len(data) - start)}
        if start:
            hub.ranges.append(request.headers["range"])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if hub.xet and "lfs" in entry:
            token = f"{hub.url}/api/models/{owner}/{name}/xet-read-token/{commit}"
            with contextlib.suppress(KeyError):  # a file that came in another way
                headers |= {"X-Xet-Hash": hub.xet.find(etag), "Link": f'<{token}>; rel="xet-auth"'}
        body = b"" if request.method == "HEAD" else data[start:]
        return Response(body, 206 if start else 200, headers, "application/octet-stream")


def _writing(app: FastAPI, hub: Hub) -> None:
    async def body(request: Request) -> bytes:
        hub.received.append(await request.body())
        return hub.received[-1]

    @app.post("/api/repos/create")
    async def create(request: Request) -> Response:
        asked, user = json.loads(await body(request)), hub.user(request)
        owner = asked.get("organization") or user
        name = f"{owner}/{asked['name']}"
        if not user:
            raise Refused(401, "Invalid username or password.")
        if not hub.may_write(user, owner):
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        if name in hub.repos:
            return JSONResponse({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
        hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, asked.get("visibility") == "private")
        return JSONResponse({"url": f"{hub.url}/{name}", "name": name})

    @app.post("/api/validate-yaml")
    async def validate_yaml(request: Request) -> Response:
        errors = [{"message": e} for e in metadata_errors(json.loads(await body(request))["content"])]
        return JSONResponse({"errors": errors, "warnings": []}, 400 if errors else 200)

    @app.post("/api/models/{owner}/{name}/preupload/{revision}")
    async def preupload(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repo = hub.repo(request, f"{owner}/{name}", write=True)
        asked, now = json.loads(await body(request)), hub.snapshot(repo, revision)[1]

        def answer(path: str) -> dict[str, Any]:
            entry, mode = _entry(path, now.get(path, b"")), "regular"
            if hub.lfs and "lfs" in entry:
                entry, mode = entry["lfs"], "lfs"
            oid = entry["oid"] if path in now else None
            return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return {"files": [answer(f["path"]) for f in asked["files"]]}

    @app.post("/api/models/{owner}/{name}/commit/{revision}")
    async def commit(request: Request, owner: str, name: str, revision: str) -> dict[str, Any]:
        repo = hub.repo(request, f"{owner}/{name}", write=True)
        files = dict(hub.snapshot(repo, revision)[1])
        for line in (await body(request)).splitlines():
            match json.loads(line):
                case {"key": "file", "value": {"path": path, "content": content}}:
                    files[path] = base64.b64decode(content)
                case {"key": "lfsFile", "value": {"path": path, "oid": oid, "size": size}}:
                    files[path] = hub.blobs[oid] if oid in hub.blobs else hub.from_xet(oid, size)
                case {"key": "deletedFile", "value": {"path": path}}:
                    del files[path]
        made = hub._commit(repo, f"{owner}/{name}", files)
        return {"success": True, "commitOid": made, "commitUrl": f"{hub.url}/{owner}/{name}/commit/{made}"}


def _storing(app: FastAPI, hub: Hub) -> None:
    """Where weights go before the commit that names them: LFS in one part or several, or Xet."""

    @app.post("/{owner}/{name}.git/info/lfs/objects/batch")
    async def batch(request: Request, owner: str, name: str) -> dict[str, Any]:
        hub.repo(request, f"{owner}/{name}", write=True)
        hub.received.append(await request.body())

        def actions(oid: str, size: int) -> dict[str, Any]:
            there, parts = f"{hub.url}/lfs/{oid}", range(1, 1 + -(-size // (hub.part_bytes or size)))
            urls = {f"{n:05}": f"{there}/{n}" for n in parts} | {"chunk_size": str(hub.part_bytes)}
            return {"upload": {"href": there, **({"header": urls} if hub.part_bytes else {})},
                    "verify": {"href": f"{hub.url}/lfs-verify"}}  # fmt: skip

        objects = json.loads(hub.received[-1])["objects"]
        new = [{"actions": actions(o["oid"], o["size"])} if o["oid"] not in hub.blobs else {} for o in objects]
        transfer = "multipart" if hub.part_bytes else "basic"
        return {"transfer": transfer, "objects": [{**o, **n} for o, n in zip(objects, new, strict=True)]}

    def keep(oid: str, data: bytes) -> Response:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, "sha256 mismatch")
        hub.blobs[oid] = data
        return Response()

    @app.put("/lfs/{oid}")
    async def put(request: Request, oid: str) -> Response:
        hub.received.append(await request.body())
        return keep(oid, hub.received[-1])

    @app.put("/lfs/{oid}/{part}")
    async def put_part(request: Request, oid: str, part: int) -> Response:
        hub.received.append(await request.body())
        hub.parts.setdefault(oid, {})[part] = hub.received[-1]
        return Response(headers={"ETag": f'"{part}"'})

    @app.post("/lfs/{oid}")
    async def complete(request: Request, oid: str) -> Response:
        sent = json.loads(await request.body())["parts"]
        return keep(oid, b"".join(hub.parts[oid][p["partNumber"]] for p in sent))

    @app.post("/lfs-verify")
    async def verify(request: Request) -> Response:
        asked = json.loads(await request.body())
        if len(hub.blobs.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "Object does not exist")
        return Response()

    @app.get("/api/models/{owner}/{name}/xet-{kind}-token/{revision}")
    async def xet_token(request: Request, owner: str, name: str, kind: str, revision: str) -> Response:
        hub.repo(request, f"{owner}/{name}", write=kind == "write")
        if hub.xet is None:
            raise Refused(404, "Sorry, we can't find the page you are looking for.")
        found = hub.xet.connection()
        headers = {"X-Xet-Cas-Url": found["casUrl"], "X-Xet-Access-Token": found["accessToken"],
                   "X-Xet-Token-Expiration": str(found["exp"])}  # fmt: skip
        return JSONResponse(found, headers=headers)
