"""Suggestions: a real HTTP server answers as a chat model would, well and badly."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from persona.errors import InputError, PersonaError
from persona.store import edit_history, persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.ui.steps.write import suggest_tab
from persona.write import llm_client, suggestions

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


def test_paraphrases_keep_the_answer_and_say_that_they_are_synthetic(model):
    model.says = 'Sure:\n```json\n["What is your name?", "And you are?", "Who are you?", 3, " "]\n```'
    made = suggestions.suggest_paraphrases(llm_client.endpoint_from_env(), PAIR, 7)
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
    assert model.headers == ["Bearer sk-secret"]


def test_new_pairs_are_made_from_her_manner_and_bad_rows_left_out(model):
    rows = [
        {"instruction": "Cold?", "output": "Aye.", "mood": "x"},
        {"instruction": "no answer"},
        "text",
        {"instruction": 1, "output": "x"},
    ]
    model.says = json.dumps(rows)
    made = suggestions.suggest_pairs(llm_client.endpoint_from_env(), CARD, [PAIR], "weather")
    assert made == [Pair("Cold?", "Aye.", source="synthetic: tiny")]
    asked = model.asked[0][1]["messages"][0]["content"]
    assert "Mags. I keep the light." in asked and "weather" in asked and CARD.system in asked


@pytest.mark.parametrize("says", ["I cannot do that.", "[", "{}", '["a"', ""])
def test_an_answer_that_is_no_list_is_refused(model, says):
    model.says = says
    with pytest.raises(PersonaError, match="did not answer with a JSON list"):
        suggestions.suggest_paraphrases(llm_client.endpoint_from_env(), PAIR, 1)


def test_a_list_without_pairs_is_refused(model):
    model.says = "[1, 2]"
    with pytest.raises(PersonaError, match="no pair in its answer"):
        suggestions.suggest_pairs(llm_client.endpoint_from_env(), CARD, [PAIR], "")


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_refusal_names_the_status_and_never_the_key(model, status):
    model.status = status
    with pytest.raises(PersonaError, match=str(status)) as caught:
        suggestions.suggest_paraphrases(llm_client.endpoint_from_env(), PAIR, 1)
    assert "sk-secret" not in str(caught.value) and "sk-secret" not in repr(llm_client.endpoint_from_env())


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1", "not an address", "http://[bad"])
def test_an_address_that_does_not_answer_is_a_message(monkeypatch, url):
    monkeypatch.setenv("PERSONA_LLM_URL", url)
    with pytest.raises(PersonaError, match="cannot be reached"):
        suggestions.suggest_paraphrases(llm_client.endpoint_from_env(), PAIR, 1)


# ---- the page's side: read, then taken one by one


@pytest.fixture
def persona(home):
    return persona_folder.create_persona_at(
        persona_folder.personas_dir() / "mags", CARD, [PAIR, Pair("Tea?", "Strong.")]
    )


class Event:
    def __init__(self, do, at):
        self.do, self.at = do, at


def test_a_proposal_is_saved_only_when_it_is_taken(model, persona):
    model.says = '["What is your <b>name</b>?", "And you are?"]'
    made, html = suggest_tab.propose_pairs("mags", 1, "", True)
    assert len(made) == 2 and "<b>name" not in html.replace("<b><", "") and "&lt;b&gt;" in html and "<ins>" in html
    assert len(persona.pairs()) == 2
    made, html = suggest_tab.decide_proposal("mags", made, Event("leave", 0))
    assert len(made) == 1 and len(persona.pairs()) == 2
    made, _ = suggest_tab.decide_proposal("mags", made, Event("take", 0))
    assert made == [] and persona.pairs()[2].instruction == "And you are?"
    assert (
        persona.pairs()[2].source.startswith("synthetic: tiny")
        and edit_history.undo(persona) == "add of a suggested pair"
    )
    with pytest.raises(InputError, match="not there any more"):
        suggest_tab.decide_proposal("mags", made, Event("take", 0))


def test_proposals_want_a_chosen_pair_or_some_pairs(model, persona, monkeypatch):
    with pytest.raises(InputError, match="Click a pair"):
        suggest_tab.propose_pairs("mags", 9, "", True)
    empty = persona_folder.create_persona_at(persona_folder.personas_dir() / "new", CARD)
    with pytest.raises(InputError, match="Write a few pairs"):
        suggest_tab.propose_pairs(empty.slug, 1, "", False)
    monkeypatch.delenv("PERSONA_LLM_URL")
    with pytest.raises(PersonaError, match="PERSONA_LLM_URL"):
        suggest_tab.propose_pairs("mags", 1, "", True)


def test_the_difference_of_two_questions_is_marked():
    marked = suggest_tab.difference_html("Who are you?", "Who were you <then>?")
    assert "<ins>" in marked and "<del>" in marked and "<then>" not in marked
    assert suggest_tab.difference_html("", "new") == "<ins>new</ins>"
