"""A share link in the page's address: what it opens, and what is said of one that opens nothing."""

import gradio as gr
import pytest
from cases import check_each

from persona.models.adapter import WEIGHTS_FILE
from persona.share.hub import push_adapter
from persona.ui import app
from persona.ui.navigation import COMPARE
from persona.ui.steps.compare import conversation_view
from persona.ui.steps.compare.controls import Selection
from tests.hub_fixtures import allowed, edit_card
from tests.local_hub import ANN

pytest_plugins = "tests.hub_fixtures"


@pytest.fixture
def notices(monkeypatch):
    said = []
    monkeypatch.setattr(gr, "Info", lambda text, **_: said.append(text))
    return said


@pytest.fixture
def links(mine, hub):
    """A public persona, and what else a link may lead to."""
    edit_card(mine, rights="CC0", greeting="Welcome")
    push_adapter(mine, "zhen", public=True, token=ANN)
    push_adapter(mine, "private", token=ANN)
    files = allowed(mine)
    hub.add("ben/broken", {**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:500]})
    hub.add("ben/model", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.add("ben/lora", {name: files[name] for name in (WEIGHTS_FILE, "adapter_config.json")})
    hub.add("ben/gated", files)
    hub.gated.add("ben/gated")
    return hub


def test_a_link_opens_the_comparison_with_the_greeting_before_any_model(links, notices, monkeypatch):
    monkeypatch.setattr("persona.compare.session.open_model", None)  # nothing is loaded for it
    shown = app.show_address({"persona": "ann/zhen"}, "x")
    assert shown.shown_step == COMPARE and shown.chosen.link == "ann/zhen"
    assert notices[0] == "Opening ann/zhen from the Hub …", "said while it is fetched"
    assert "Its base someone/tiny-base is not on this machine: the first answer downloads" in notices[1]
    view = conversation_view.show_conversation(*Selection("", "", shown.chosen.adapter, [], ""))
    assert any("Welcome" in str(getattr(part, "placeholder", "") or getattr(part, "value", "")) for part in view)


def test_a_link_that_opens_nothing_says_what_it_is(links, notices, monkeypatch):
    def check(link, why, shared="0"):
        monkeypatch.setenv("PERSONA_SHARED", shared)
        with pytest.raises(gr.Error) as refused:
            app.show_address({"persona": link}, "x")
        assert refused.value.duration is None, "it stays"
        assert why in refused.value.message and refused.value.message.startswith(link.partition("@")[0])

    check_each(
        [
            ("ben/broken", "adapter_model.safetensors: damaged or incomplete"),
            ("ann/private", "not on the Hub, or private. Check the name; if it is yours"),
            ("ann/private", "This server opens public personas only", "1"),
            ("ann/gone", "not on the Hub, or private"),
            ("ann/zhen@v9", "the Hub has no such revision (any more)"),
            ("ben/gated", "accept terms on its Hub page first"),
            ("ben/model", "so this is no adapter"),
            ("ben/lora", "no chat_template.jinja, so its chat format is unknown"),
        ],
        check,
    )
    links.fail("/", 99, 503)
    check("ann/zhen@v1", "the Hub is in trouble (status 503)")
