"""What one visitor can make a shared server hold: slow events, large bodies, many tabs, what has no limit of its own."""

import json
import socket

import gradio as gr
import httpx
import pytest
from waiting import wait_for

from persona.compare import blind_votes, conversation, conversation_store
from persona.compare.blind_votes import VoteSide
from persona.compare.conversation import VoiceRecord
from persona.errors import InputError
from persona.store import persona_folder, workspace
from persona.ui.middleware import event_limits
from persona.ui.middleware.stack import build_middleware
from tests.test_workspaces import ANN, persona_of


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
    head = (
        f"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\nContent-Length: {length}\r\n"
    )
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + sent)
    return connection


def end(connections: list[socket.socket], visitor: httpx.Client) -> None:
    """Close them, and wait until the server has noticed."""
    for connection in connections:
        connection.close()
    wait_for(lambda: ask(visitor, "tab").status_code == 200, what="a place for one more")


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
    end(started, ann)


def test_bodies_that_are_held_open_are_summed(server, monkeypatch):
    url, _ = server
    monkeypatch.setattr(event_limits, "MAX_EVENTS_BYTES", 300_000)
    ann, ben = visitor_of(url), visitor_of(url)
    held = [begin(ann, 200_000, b" " * 100_000) for _ in range(3)]
    assert status_of(begin(ann, 200_000, b" " * 100_000)) == 413
    assert ask(ben, "tab").status_code == 200
    end(held, ann)


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


def test_nothing_that_is_kept_goes_past_the_disk_limit(monkeypatch, home):
    """Cards, further turns of a conversation and blind votes are small, but there is no end of them."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setenv("PERSONA_MAX_DISK_MB", "1")
    mine, owners = persona_of(ANN), persona_of("")
    key = conversation.new_browser_key()
    store, votes = conversation_store.open_store(mine.path, key), blind_votes.open_vote_log(mine.path, key)
    sides = [VoteSide(VoiceRecord("base", "Base")), VoteSide(VoiceRecord("prompt", "Base, with persona prompt"))]
    with workspace.as_visitor(ANN):
        talk = conversation_store.start_conversation(store, "hello")
        with pytest.raises(
            InputError, match=r"have 1,000,\d+ characters together: on this server they may have 200,000"
        ):
            persona_folder.update_card(mine, lambda _: {"source": "x" * 1_000_000})
        (mine.path / "large").write_bytes(b"x" * 1_100_000)
        for add in (
            lambda: persona_folder.update_card(mine, lambda _: {"source": "a book"}),
            lambda: conversation_store.add_turn(store, talk, "and?"),
            lambda: blind_votes.draw_question(votes, "who?", sides, "", {}),
        ):
            with pytest.raises(InputError, match="fills 1 MB, where this server has 1 MB for each visitor"):
                add()
        assert not mine.card().source
    with workspace.as_visitor(""):
        persona_folder.update_card(owners, lambda _: {"source": "x" * 1_000_000})


def test_a_name_too_long_is_refused_in_words():
    with pytest.raises(InputError, match="'name'.*80"):
        persona_folder.default_card("a" * 81)
