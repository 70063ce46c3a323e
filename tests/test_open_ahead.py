"""A share link's model is opened while the visitor reads the greeting."""

import time

import pytest
from tiny_models import CARD, write_adapter

from persona.compare import session
from persona.models import adapter
from persona.models.base import Base
from persona.ui import app, voice_picker
from persona.ui.chosen import Chosen
from persona.ui.steps.compare import loading

pytestmark = pytest.mark.usefixtures("plain_cpu")


@pytest.fixture
def base(tiny_gemma, tmp_path, monkeypatch):
    """The base of the adapter that every link leads to; no model is open."""
    base = Base("someone/tiny", tiny_gemma)
    write_adapter(tiny_gemma, tmp_path / "mags", card=CARD, template="gemma-base")
    linked = adapter.read_adapter(tmp_path / "mags")
    monkeypatch.setattr(session, "_open", {})
    monkeypatch.setattr(session, "base_of", lambda *_, **__: base)
    monkeypatch.setattr(loading.bases, "find_local_base", lambda *_: base)
    monkeypatch.setattr(voice_picker, "find_adapter", lambda _: linked)
    monkeypatch.setattr(voice_picker, "add_hub_adapter", lambda link: "opened/mags")
    return base


def test_a_share_link_opens_its_model(base):
    assert app._open_share_link("ann/mags") == Chosen(adapter="opened/mags", by_hand=True, link="ann/mags")
    end = time.monotonic() + 60
    while not session.is_open(base) and time.monotonic() < end:
        time.sleep(0.01)
    assert session.is_open(base) and list(loading.report_loading("opened/mags")) == ["Writing …"]


@pytest.mark.parametrize("why", ["another model is open", "it would be downloaded", "the GPU is lent by the question"])
def test_it_waits_for_the_question_where(base, why, monkeypatch):
    if why == "another model is open":
        session._open["other", "none"] = None
    elif why == "it would be downloaded":
        monkeypatch.setattr(loading.bases, "find_local_base", lambda *_: None)
    else:
        monkeypatch.setattr(loading, "has_zerogpu", lambda: True)
    assert loading.open_ahead("opened/mags") is None
