"""Suggestions: a real HTTP server answers as a chat model would, well and badly."""

import dataclasses
import importlib.machinery
import json
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cases import check_each
from waiting import wait_for

from persona.errors import InputError, PersonaError
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.ui.steps.write import review_tab, suggest_tab
from persona.write import llm_client, review, suggestions
from persona.write.llm_client import LlmEndpoint

CARD = PersonaCard(name="Mags", system="You are Mags, who keeps a lighthouse.")
PAIR = Pair("Who are you?", "Mags. I keep the light.", source="book.txt:3")


class Model:
    """An OpenAI-compatible endpoint that says what it is told to, and remembers what it was asked."""

    def __init__(self):
        self.says, self.status, self.asked, self.headers = "[]", 200, [], []
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.asked.append((self.path, body))
                model.headers.append(self.headers.get("Authorization"))
                answer = json.dumps({"choices": [{"message": {"content": model.says}}]}).encode()
                self.send_response(model.status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def model(monkeypatch):
    running = Model()
    monkeypatch.setenv("PERSONA_LLM_URL", f"http://127.0.0.1:{running.server.server_port}/v1/")
    monkeypatch.setenv("PERSONA_LLM_MODEL", "tiny")
    monkeypatch.setenv("PERSONA_LLM_KEY", "sk-secret")
    yield running
    running.server.shutdown()
    running.server.server_close()


def test_without_an_address_nothing_is_asked(monkeypatch):
    monkeypatch.delenv("PERSONA_LLM_URL", raising=False)
    assert llm_client.endpoint_from_env() is None


@pytest.fixture
def writer(model):
    return suggestions.server_writer(llm_client.endpoint_from_env())


def test_paraphrases_keep_the_answer_and_say_that_they_are_synthetic(model, writer):
    for says in ('Sure:\n```json\n["What is your name?", "And you are?", "Who are you?", 3, " "]\n```',
                 "Of course!\n\n- What is your name?\n2. “And you are?”\n- who are you\n-\nThat is all."):  # fmt: skip
        model.says = says
        made = suggestions.suggest_paraphrases(writer, PAIR, 7)
        assert [(p.instruction, p.output) for p in made] == [
            ("What is your name?", PAIR.output),
            ("And you are?", PAIR.output),
        ]
        assert {p.source for p in made} == {"synthetic: tiny, paraphrase of pair 7"}
    path, body = model.asked[0]
    assert (
        path == "/v1/chat/completions"
        and body["model"] == "tiny"
        and PAIR.instruction in body["messages"][0]["content"]
    )
    assert model.headers[0] == "Bearer sk-secret"


def drafts(writer, pairs, passages, count=5):
    return [p for p in suggestions.write_drafts(writer, CARD, pairs, passages, count) if p]


def test_drafts_are_made_in_the_manner_of_the_pairs_and_repeats_left_out(model, writer):
    model.says = (
        "Here you go:\n\n**Q1:** Cold?\n**A1:** Aye.\nBitter, too.\n\nQ: who are you\nA: Mags.\nQ: unanswered\n"
        "Q: Wet?\nA: Aye."
    )
    made = drafts(writer, [PAIR], suggestions.topic_passages("weather"))
    source = "synthetic: tiny, topic weather"
    assert made == [Pair("Cold?", "Aye.\nBitter, too.", source=source), Pair("Wet?", "Aye.", source=source)]
    assert len(model.asked) == 1 + suggestions.MAX_FRUITLESS  # the same answer again has nothing new in it
    asked = model.asked[0][1]["messages"][0]["content"]
    assert "Mags. I keep the light." in asked and "weather" in asked and CARD.system in asked


def test_what_models_write_is_read_in_several_forms():
    cases = [
        (
            '[{"instruction": "Cold?", "output": "Aye.", "mood": "x"}, {"instruction": "no answer"}, "text"]',
            [("Cold?", "Aye.")],
        ),
        ("1. Q: Cold?\nA: Aye.\n2. Q: Wet?\nA: No.", [("Cold?", "Aye."), ("Wet?", "No.")]),
        ("问：冷吗？\n答：冷。", [("冷吗？", "冷。")]),
        ("Q: [1, 2]?\nA: Aye.", [("[1, 2]?", "Aye.")]),
        ("I cannot do that.", []),
        ("A: first\nQ: last", []),
        ('[{"instruction": 1, "output": "x"}]', []),
        ("", []),
    ]

    def check(says, pairs):
        assert suggestions.parse_drafts(says) == pairs

    check_each(cases, check)


def test_a_document_is_read_in_passages_that_are_the_drafts_source(model, writer, tmp_path):
    book = tmp_path / "book.txt"
    book.write_text("The light was lit at dusk.\n\n" * 60)
    passages = suggestions.document_passages(book, "book.txt")
    assert len(passages) == 2 and max(len(p.text) for p in passages) <= suggestions.PASSAGE_CHARACTERS
    model.says = "Q: When is it lit?\nA: At dusk."
    (made,) = drafts(writer, [], passages)
    assert made.source == "synthetic: tiny, book.txt, passage 1"
    assert suggestions.card_passages(CARD)[0].place == "card"
    (tmp_path / "empty.txt").write_text("\n \n")
    for refused in (
        lambda: suggestions.document_passages(tmp_path / "empty.txt", "empty.txt"),
        lambda: suggestions.topic_passages(" "),
        lambda: suggestions.card_passages(PersonaCard(name="Mags")),
    ):
        with pytest.raises(InputError):
            refused()


@pytest.mark.parametrize("says", ["I cannot do that.", "[", "{}", '["a"', "", "[1, 2]"])
def test_an_answer_with_nothing_in_it_is_refused(model, writer, says):
    model.says = says
    with pytest.raises(PersonaError, match="no other wording"):
        suggestions.suggest_paraphrases(writer, PAIR, 1)
    with pytest.raises(PersonaError, match="no new pair in its answer"):
        drafts(writer, [], suggestions.topic_passages("x"))


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_names_the_status_and_never_the_key(model, writer, status):
    model.status = status
    with pytest.raises(PersonaError, match=str(status)) as caught:
        suggestions.suggest_paraphrases(writer, PAIR, 1)
    assert "sk-secret" not in str(caught.value) and "sk-secret" not in repr(llm_client.endpoint_from_env())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "not an address", "http://[bad"])
def test_an_address_that_does_not_answer_is_a_message(url):
    with pytest.raises(PersonaError, match="cannot be reached"):
        suggestions.suggest_paraphrases(suggestions.server_writer(LlmEndpoint(url, "tiny")), PAIR, 1)


# ---- the address, set in the page


class Keyring(types.ModuleType):
    """The functions of the package keyring."""

    def __init__(self, monkeypatch):
        super().__init__("keyring")
        self.__spec__ = importlib.machinery.ModuleSpec("keyring", None)
        self.kept: dict = {}
        self.get_password = lambda *entry: self.kept.get(entry)
        self.set_password = lambda service, user, secret: self.kept.update({(service, user): secret})
        self.delete_password = lambda *entry: self.kept.pop(entry)
        monkeypatch.setitem(sys.modules, "keyring", self)


@pytest.fixture
def no_server(monkeypatch):
    monkeypatch.delenv("PERSONA_LLM_URL", raising=False)
    monkeypatch.setattr(llm_client, "_set_here", None)


def test_an_address_set_in_the_page_is_in_no_file(no_server, home, monkeypatch):
    monkeypatch.setitem(sys.modules, "keyring", None)  # not installed
    monkeypatch.setattr(llm_client, "has_keyring", lambda: False)
    before = sorted(home.rglob("*"))
    note, key = suggest_tab.set_server(" http://127.0.0.1:9/v1/ ", "tiny", "sk-secret", True)
    assert llm_client.current_endpoint() == LlmEndpoint("http://127.0.0.1:9/v1", "tiny", "sk-secret")
    assert "127.0.0.1:9" in note and "sk-secret" not in note and key == "" and sorted(home.rglob("*")) == before
    suggest_tab.set_server("", "", "", False)
    assert llm_client.current_endpoint() is None and "No model server is set" in suggest_tab.server_note()
    with pytest.raises(InputError, match="not an address"):
        suggest_tab.set_server("file:///etc/passwd", "", "", False)


def test_the_keyring_keeps_it_if_that_is_wanted(no_server, monkeypatch):
    keyring = Keyring(monkeypatch)
    suggest_tab.set_server("http://a.b/v1", "tiny", "sk-secret", False)
    assert keyring.kept == {}
    suggest_tab.set_server("http://a.b/v1", "tiny", "sk-secret", True)
    monkeypatch.setattr(llm_client, "_set_here", None)  # as after a restart
    assert llm_client.current_endpoint() == LlmEndpoint("http://a.b/v1", "tiny", "sk-secret")
    suggest_tab.set_server("", "", "", False)
    assert keyring.kept == {} and llm_client.current_endpoint() is None
    keyring.set_password = None  # a system without a keyring
    with pytest.raises(InputError, match="keyring refused"):
        suggest_tab.set_server("http://a.b/v1", "tiny", "", True)


def test_a_shared_server_asks_only_what_its_owner_has_set(no_server, monkeypatch):
    Keyring(monkeypatch).set_password("persona", "model server", '{"url": "http://a.b", "model": "m"}')
    suggest_tab.set_server("http://a.b/v1", "tiny", "", False)
    monkeypatch.setenv("PERSONA_SHARED", "1")
    assert llm_client.current_endpoint() is None
    with pytest.raises(InputError, match="only its owner"):
        suggest_tab.set_server("http://a.b/v1", "tiny", "", False)


# ---- the base in memory


@pytest.mark.slow
def test_a_base_writes_if_it_was_tuned_to_answer(tiny_llama, byte_renderer, plain_cpu):
    from persona.compare import base_writer
    from persona.models.base import Base
    from persona.template.chat_template import shipped_templates

    base, asked = Base("tiny", tiny_llama), []
    writer = base_writer.open_base_writer(base, byte_renderer, is_stopped=lambda: asked.append(1) or len(asked) > 5)
    text = writer.ask("Write something.")
    assert writer.name == "tiny" and isinstance(text, str) and len(asked) <= 6
    pretrained = dataclasses.replace(byte_renderer, template=shipped_templates()["gemma-base"])
    with pytest.raises(PersonaError, match="only learned to continue text"):
        base_writer.open_base_writer(base, pretrained)


# ---- the page's side


@pytest.fixture
def persona(home):
    return persona_folder.create_persona_at(
        persona_folder.personas_dir() / "mags", CARD, [PAIR, Pair("Tea?", "Strong.")]
    )


def written(stream) -> list[str]:
    return list(stream)


SERVER = suggest_tab.WRITERS[1]
SETTINGS = ("", "auto", 512, False)


def test_drafts_wait_in_the_review_and_are_no_pairs(model, persona):
    model.says = "Q: What is your <b>name</b>?\nA: Mags.\nQ: Cold?\nA: Aye."
    shown = written(suggest_tab.write_drafts("mags", SERVER, "A topic", "names", None, 5, *SETTINGS))
    assert "2 new drafts. 2 wait" in shown[-1] and len(persona.pairs()) == 2
    html = review_tab.draw_review("mags")
    assert (
        "&lt;b&gt;name" in html
        and "a draft, not among the pairs yet" in html
        and "synthetic: tiny, topic names" in html
    )
    # the same again is not new, nor what was dropped
    review.decide(persona, 1, "drop")
    review.decide(persona, 2, "keep")
    assert persona.pairs()[2] == Pair("Cold?", "Aye.", source="synthetic: tiny, topic names")
    with pytest.raises(PersonaError, match="no new pair"):
        written(suggest_tab.write_drafts("mags", SERVER, "The card", "", None, 5, *SETTINGS))


def test_other_words_for_a_question_are_reviewed_with_the_question(model, persona):
    model.says = "- What is your name?\n- And you are?"
    shown = written(suggest_tab.write_paraphrases("mags", SERVER, 1, *SETTINGS))
    assert "2 new drafts" in shown[-1]
    assert [i.why for i in review.read_review(persona)] == ["Other words for pair 1: Who are you?"] * 2


def test_stop_ends_the_writing_and_keeps_what_is_there(model, persona):
    model.says = "Q: Cold?\nA: Aye.\nQ: Wet?\nA: Aye."
    stream = suggest_tab.write_drafts("mags", SERVER, "The card", "", None, 100, *SETTINGS)
    next(stream)
    with pytest.raises(PersonaError, match="being written"):
        written(suggest_tab.write_drafts("mags", SERVER, "The card", "", None, 100, *SETTINGS))
    suggest_tab.stop_writing()
    assert "new drafts" in written(stream)[-1]
    stream = suggest_tab.write_drafts("mags", SERVER, "A topic", "tides", None, 1, *SETTINGS)
    model.says = "Q: High?\nA: Aye."
    next(stream)
    stream.close()  # the window is closed
    wait_for(lambda: not suggest_tab.WRITING._stops)


def test_drafts_want_material_a_chosen_pair_and_a_server(model, persona, monkeypatch):
    for stream, why in (
        (suggest_tab.write_paraphrases("mags", SERVER, 9, *SETTINGS), "Click a pair"),
        (suggest_tab.write_drafts("mags", SERVER, "A document", "", None, 5, *SETTINGS), "Choose a document"),
        (
            suggest_tab.write_drafts("mags", SERVER, "A topic", "", None, 5, *SETTINGS),
            "what the drafts are to be about",
        ),
    ):
        with pytest.raises(InputError, match=why):
            written(stream)
    monkeypatch.delenv("PERSONA_LLM_URL")
    with pytest.raises(PersonaError, match="PERSONA_LLM_URL"):
        written(suggest_tab.write_paraphrases("mags", SERVER, 1, *SETTINGS))
