"""Uploads to a shared server: longer than they say, many, at the same time, cut off, without a name, not whole."""

import os
import socket
from pathlib import Path

import httpx
import pytest
from cases import check_each
from waiting import wait_for

from persona.store import persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.ui import app
from persona.ui.middleware import workspaces
from persona.ui.middleware.stack import build_middleware
from tests.test_attacks_visitors import Visitor

MB = 1_000_000
HEAD = b'--b\r\nContent-Disposition: form-data; name="files"; filename="x.bin"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"
TYPE = {"content-type": "multipart/form-data; boundary=b"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(url of a page with 3 MB for each visitor, its home, the folder of its uploads)."""
    with pytest.MonkeyPatch.context() as patch:
        home, uploads = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("gradio")
        patch.setenv("PERSONA_HOME", str(home))
        patch.setenv("PERSONA_SHARED", "1")
        patch.setenv("PERSONA_MAX_DISK_MB", "3")
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        demo = app.build_app()
        _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False,
                                        app_kwargs={"middleware": build_middleware("127.0.0.1")}, **app.LAUNCH_OPTIONS)  # fmt: skip
        yield url, home, uploads
        demo.close()


@pytest.fixture
def visitor(server, home, monkeypatch):
    monkeypatch.setenv("PERSONA_HOME", str(server[1]))
    one = Visitor(server[0])
    yield one
    one.http.close()


def files_in(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def send(visitor: Visitor, size: int, *, chunked: bool = True) -> httpx.Response:
    """An upload of `size` random bytes."""
    body = HEAD + os.urandom(size) + TAIL
    content = (body[n : n + 65_536] for n in range(0, len(body), 65_536)) if chunked else body
    return visitor.http.post("gradio_api/upload", content=content, headers=TYPE)  # type: ignore[arg-type]


class OpenUpload:
    """An upload whose request is written piece by piece, as a client that lies would."""

    def __init__(self, visitor: Visitor, *more: str):
        url = visitor.http.base_url
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=60)
        cookie = f"{workspaces.VISITOR_COOKIE}={visitor.http.cookies[workspaces.VISITOR_COOKIE]}"
        lines = ["POST /gradio_api/upload HTTP/1.1", f"Host: {url.host}:{url.port}", f"Cookie: {cookie}",
                 "Content-Type: multipart/form-data; boundary=b", "Transfer-Encoding: chunked", *more]  # fmt: skip
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        self.write(HEAD)

    def write(self, data: bytes) -> None:
        self.socket.sendall(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self) -> bytes:
        """What the server answers."""
        self.socket.sendall(b"%x\r\n%s\r\n0\r\n\r\n" % (len(TAIL), TAIL))
        return self.socket.recv(65_536)


@pytest.mark.slow
def test_bytes_are_counted_and_not_believed(server, visitor):
    before = files_in(server[2])
    lying = OpenUpload(visitor, "Content-Length: 100")
    with pytest.raises(OSError), lying.socket:
        for _ in range(60):
            lying.write(os.urandom(MB))
        raise ConnectionError(lying.socket.recv(100))
    wait_for(lambda: files_in(server[2]) == before)
    refused = send(visitor, 4 * MB)
    assert refused.status_code == 413 and "3 MB" in refused.json()["detail"]
    assert send(visitor, 4 * MB, chunked=False).status_code == 413
    wait_for(lambda: files_in(server[2]) == before)
    assert send(visitor, MB).status_code == 200, "chunks are no fault"


def test_a_visitors_uploads_are_summed_with_their_work(server, visitor):
    assert [send(visitor, MB).status_code for _ in range(4)] == [200, 200, 413, 413]
    other = Visitor(server[0])
    assert send(other, MB).status_code == 200
    other.http.close()
    third = Visitor(server[0])
    with workspace.as_visitor(third.id):
        mine = persona_folder.create_persona_at(persona_folder.free_path("Ada"), PersonaCard(name="Ada"))
    (mine.path / "large").write_bytes(b"x" * (2 * MB + MB // 2))
    assert send(third, MB).status_code == 413
    persona_folder_trash = workspace.workspace_of(third.id) / "trash"
    persona_folder_trash.mkdir()
    mine.path.rename(persona_folder_trash / "ada")
    assert send(third, MB).status_code == 200, "the trash makes room"
    third.http.close()


def test_uploads_at_the_same_time_are_summed(server, visitor):
    first, second = OpenUpload(visitor), OpenUpload(visitor)
    with first.socket, second.socket:
        first.write(os.urandom(2 * MB))
        wait_for(lambda: any(f.stat().st_size >= 1.9 * MB and f.parent == server[2] for f in files_in(server[2])))
        second.write(os.urandom(2 * MB))
        assert second.socket.recv(20).startswith(b"HTTP/1.1 413")
        assert first.end().startswith(b"HTTP/1.1 200"), "who came first is not disturbed"


def test_an_upload_that_is_cut_off_leaves_nothing(server, visitor):
    before = files_in(server[2])
    for end in (b"", TAIL):  # also where all files have come and the request has not ended
        cut = OpenUpload(visitor)
        cut.write(os.urandom(MB) + end)
        wait_for(lambda: files_in(server[2]) != before)
        cut.socket.close()
        wait_for(lambda: files_in(server[2]) == before)


def test_what_is_no_whole_named_file_is_refused_in_words_and_leaves_nothing(server, visitor):
    before = files_in(server[2])
    part = b"--b\r\nContent-Disposition: form-data; %s\r\n\r\nx\r\n"
    cases = {
        "no name": part % b'name="files"; filename=""' + b"--b--\r\n",
        "no file": part % b'name="files"' + b"--b--\r\n",
        "spaces": part % b'name="files"; filename="  "' + b"--b--\r\n",
        "the folder above": part % b'name="files"; filename="a/.."' + b"--b--\r\n",
        "a folder": part % b'name="files"; filename="/"' + b"--b--\r\n",
        "another field": part % b'name="x"; filename="a.txt"' + b"--b--\r\n",
        "no field": part % b'filename="a.txt"' + b"--b--\r\n",
        "the last header counts": part % b'name="files"; filename="a"\r\nContent-Disposition: form-data' + b"--b--\r\n",
        "a good one before": HEAD + b"x" + part.replace(b"--b", b"\r\n--b", 1) % b'name="files"' + b"--b--\r\n",
        "no end": HEAD + b"x" * 100_000,
        "half an end": HEAD + b"x" * 100_000 + b"\r\n--b",
        "no boundary at all": b"hello",
        "nothing": b"",
        "headers without end": b"--b\r\nContent-Disposition: " + b"x" * 100_000,
    }

    def check(body):
        got = visitor.http.post("gradio_api/upload?upload_id=u", content=body, headers=TYPE)
        assert got.status_code == 400 and got.json()["detail"], got.text
        assert files_in(server[2]) == before

    check_each({name: (body,) for name, body in cases.items()}, check)
    for kind in ("", "text/plain", "multipart/form-data", "multipart/form-data; boundary=" + "b" * 3_000):
        got = visitor.http.post("gradio_api/upload", content=HEAD + b"x" + TAIL, headers={"content-type": kind})
        assert got.status_code == 400, kind
    assert files_in(server[2]) == before


def test_names_that_are_allowed_stay_so(visitor):
    for name in ("a.txt", "甄嬛.jsonl", "..a", "a b.csv", "CON", "x" * 400 + ".txt", "a\\b.txt"):
        got = visitor.http.post("gradio_api/upload", files={"files": (name, name.encode())})
        assert got.status_code == 200 and len(got.json()) == 1, name
    two = [("files", ("a.txt", b"a")), ("files", ("b.txt", b"b"))]
    assert [Path(p).name for p in visitor.http.post("gradio_api/upload", files=two).json()] == ["a.txt", "b.txt"]
