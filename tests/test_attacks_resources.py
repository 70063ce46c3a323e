"""What one visitor can make a shared server hold: events that arrive slowly, large bodies, many tabs."""

import json
import socket

import gradio as gr
import httpx
import pytest

from persona.store import workspace
from persona.ui.middleware import event_limits
from persona.ui.middleware.stack import build_middleware


@pytest.fixture
def server(monkeypatch, home, tmp_path):
    """(the page's address, the page): a shared server whose one event counts what its tab has asked."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(workspace, "_visitor_lookup", lambda: None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    with gr.Blocks() as demo:
        count, asked = gr.State(0), gr.Textbox()
        asked.input(lambda n: (n + 1, str(n + 1)), count, [count, asked], trigger_mode="multiple")
    _, url, _ = demo.queue().launch(prevent_thread_lock=True, quiet=True, ssr_mode=False,
                                    app_kwargs={"middleware": build_middleware("127.0.0.1")})  # fmt: skip
    yield url, demo
    demo.close()


def visitor_of(url: str) -> httpx.Client:
    visitor = httpx.Client(base_url=url, timeout=60)
    visitor.get("/")
    return visitor


def ask(visitor: httpx.Client, tab: str) -> httpx.Response:
    return visitor.post("gradio_api/queue/join", json={"data": [None], "fn_index": 0, "session_hash": tab})


def answer_of(visitor: httpx.Client, tab: str) -> str:
    """What the tab is answered to one more question."""
    assert ask(visitor, tab).status_code == 200
    with visitor.stream("GET", "gradio_api/queue/data", params={"session_hash": tab}) as lines:
        done = next(line for line in lines.iter_lines() if "process_completed" in line)
    return json.loads(done[5:])["output"]["data"][1]


def begin(visitor: httpx.Client, length: int, sent: bytes = b"") -> socket.socket:
    """An event of which only the headers and `sent` have come."""
    connection = socket.create_connection((visitor.base_url.host, visitor.base_url.port))
    connection.settimeout(60)
    cookie = "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())
    head = f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Length: {length}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + sent)
    return connection


def status_of(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(100)[9:12])


def test_events_that_arrive_slowly_are_counted(server, monkeypatch):
    """Their bodies come after all of their headers, so that none of them is in Gradio's queue yet."""
    url, _ = server
    monkeypatch.setattr(event_limits, "MAX_EVENTS", 3)
    ann, ben = visitor_of(url), visitor_of(url)
    started = [begin(ann, 2) for _ in range(3)]
    with begin(ann, 2) as late:
        assert int(late.recv(100)[9:12]) == 429
    assert ask(ben, "tab").status_code == 200
    for connection in started:
        connection.close()
    assert answer_of(ann, "tab") == "1"


def test_bodies_that_are_held_open_are_summed(server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(event_limits, "MAX_EVENTS_BYTES", 300_000)
    ann, ben = visitor_of(url), visitor_of(url)
    held = [begin(ann, 200_000, b" " * 100_000) for _ in range(3)]
    assert status_of(begin(ann, 200_000, b" " * 100_000)) == 413
    assert ask(ben, "tab").status_code == 200
    for connection in held:
        connection.close()
    assert answer_of(ann, "tab") == "1"


def test_the_state_of_a_visitors_oldest_tab_is_forgotten_for_one_too_many(server, monkeypatch):
    url, demo = server
    monkeypatch.setattr(event_limits, "MAX_TABS", 3)
    ann, ben = visitor_of(url), visitor_of(url)
    assert answer_of(ben, "tab") == "1" and answer_of(ann, "tab 0") == "1"
    for n in range(1, 5):
        assert answer_of(ann, f"tab {n}") == "1"
    assert len(demo.state_holder.session_data) == 1 + 3
    assert answer_of(ann, "tab 4") == "2" and answer_of(ben, "tab") == "2", "what is in use stays"
    assert answer_of(ann, "tab 0") == "1"


def test_a_new_tab_counts_as_many_requests(server, monkeypatch):
    url, _ = server
    monkeypatch.setenv("PERSONA_MAX_REQUESTS", str(2 * event_limits.TAB_REQUESTS + 5))
    ann = visitor_of(url)
    codes = [ask(ann, f"tab {n}").status_code for n in range(4)]
    assert codes[:2] == [200, 200] and codes[-1] == 429
