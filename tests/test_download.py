"""A base from afar: what it will cost, which revision is opened, how far its download is, and why it cannot be had."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import HfApi, errors

from persona.errors import BaseError
from persona.models import adapter, base, download
from persona.share.hub import describe_download, push_adapter
from persona.store import workspace
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at, personas_dir
from tests.hub_fixtures import edit_card
from tests.local_hub import ANN, Hub
from tests.local_xet import XetStorage

pytest_plugins = "tests.hub_fixtures"
pytestmark = pytest.mark.usefixtures("machine")


def test_a_link_says_what_its_base_will_cost(mine: Path, hub: Hub, tmp_path: Path, monkeypatch) -> None:
    bases_from(hub, tmp_path, monkeypatch)
    opened = adapter.read_adapter(mine)
    assert "of a size not known" in describe_download(opened) and "someone/tiny-base" in describe_download(opened)
    hub.add("someone/tiny-base", {"config.json": b"{}", "model.safetensors": b"", "pytorch_model.bin": b""})
    hub.sizes["someone/tiny-base", "model.safetensors"] = 2_200_000_000
    hub.sizes["someone/tiny-base", "pytorch_model.bin"] = 9_900_000_000
    assert "downloads 2.2 GB from the Hub" in describe_download(opened)
    assert "unpacked for the first answer" in describe_download(replace(opened, base_id="google/gemma-3-270m"))
    assert "does not say which base" in describe_download(replace(opened, base_id=""))
    assert describe_download(replace(opened, base_id=str(base_folder(tmp_path)))) == ""


def bases_from(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' own downloads come from this Hub too, into a cache of their own. Both are read when imported."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def base_folder(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    return tmp_path / "base"


@pytest.mark.slow
def test_the_page_says_what_to_do_about_a_base_and_keeps_the_one_before(
    hub: Hub, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from persona.ui.steps import template

    bases_from(hub, tmp_path, monkeypatch)
    create_persona_at(personas_dir() / "mags", PersonaCard(name="Mags"), [Pair("a", "b")])
    hub.add("ben/gated", {"config.json": b"{}", "model.safetensors": b"x"})
    hub.gated.add("ben/gated")
    said: list[str] = []
    monkeypatch.setattr(template.gr, "Warning", said.append)
    before = template.RenderSettings(str(tiny_llama), "chatml", 512, False)
    for name in ("ben/gated", "google/gemma-3n-4b-it"):
        *_, accepted = template.show_settings("mags", 1, before, name, *before[1:])
        assert accepted.base == str(tiny_llama)
    assert "accept its licence on https://huggingface.co/ben/gated, then log in: hf auth login" in said[0]
    assert "Did you mean google/gemma-3n-E4B-it?" in said[1] and "the base is still" in said[1]


GREEDY = {"temperature": 0, "repetition_penalty": 1.3}


@pytest.mark.slow
def test_a_link_brings_base_template_system_prompt_and_sampling(
    mine: Path, hub: Hub, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that has none of it: what the page is told, and which revision of the base is opened."""
    from persona.compare import session
    from persona.ui import voice_picker
    from persona.ui.steps import compare

    bases_from(hub, tmp_path, monkeypatch)
    old = hub.add("someone/tiny-base", {f.name: f.read_bytes() for f in tiny_llama.iterdir()})
    hub.add("someone/tiny-base", {"config.json": b"{}"})  # the base moves on
    edit_run(mine, base={"id": "someone/tiny-base", "revision": old})
    edit_card(mine, sampling=GREEDY, greeting="Come in.")
    shared = push_adapter(mine, "zhen", public=True, token=ANN)
    edit_card(mine, sampling={}, system="Else.")
    push_adapter(mine, "zhen", public=True, token=ANN)  # and so does the adapter

    told: list[str] = []
    monkeypatch.setattr("gradio.Info", lambda text, **_: told.append(text))
    chosen = voice_picker.add_link(shared["link"])
    assert len(told) == 1 and "someone/tiny-base is not on this machine" in told[0]
    opened = voice_picker.find_adapter(chosen)
    assert (opened.card.system, opened.template.text) == (
        "你是甄嬛。",
        (mine / "chat_template.jinja").read_text("utf-8"),
    )
    assert (
        compare.card_sampling(chosen, 0.4, 0.9, 0, 0.1, 1.1) == [0, 0.9, 0, 0.1, 1.3]
        and opened.card.sampling.chosen() == GREEDY
    )
    base = session.base_of(opened)
    assert (base.id, base.revision) == ("someone/tiny-base", old) and base.config()["model_type"] == "llama"
    assert voice_picker.add_link(shared["link"]) == chosen and len(told) == 1  # all of it is here now


def edit_run(folder: Path, **changes: Any) -> None:
    file = folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), "utf-8")


def test_a_base_that_cannot_be_had_is_said_in_words(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bases_from(hub, tmp_path, monkeypatch)
    hub.add("ann/base", {"config.json": b"{}", "model.safetensors": b"x"})
    said: list[str] = []
    with pytest.raises(BaseError, match="ann/gone: not on the Hub, or private"):
        base.resolve_base("ann/gone", said.append)
    with pytest.raises(BaseError, match="its revision 000000000000 is not on the Hub any more"):
        base.resolve_base("ann/base", said.append, "0" * 40)
    hub.sizes["ann/base", "model.safetensors"] = 10**15
    with pytest.raises(BaseError, match="1000000.0 GB to download, .* GB free"):
        base.resolve_base("ann/base", said.append)
    hub.sizes["ann/base", "model.safetensors"] = 1_500_000_000
    assert base.resolve_base("ann/base", said.append).revision == hub.repos["ann/base"].head
    assert said == [f"Downloading ann/{x} from the Hub …" for x in ("gone", "base")] + [
        "Downloading ann/base from the Hub (1.5 GB) …"
    ]


def test_weights_that_xet_does_not_give_are_said_in_words(
    hub: Hub, xet: XetStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of hf_xet itself is none of the Hub's client: a RuntimeError."""
    bases_from(hub, tmp_path, monkeypatch)
    there, folder = HfApi(hub.url, token=ANN), base_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(bytes(99))
    there.create_repo("ann/base")
    there.upload_folder(repo_id="ann/base", folder_path=folder)

    hub.fail("xet-read-token", 99, 403)
    with pytest.raises(BaseError, match="ann/base: not on the Hub, or private"):
        base.resolve_base("ann/base", lambda _: None)
    hub.faults.clear()
    xet.url = "http://127.0.0.1:9"
    with pytest.raises(BaseError, match="the Hub cannot be reached. Check the name and the connection"):
        base.resolve_base("ann/base", lambda _: None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.LocalEntryNotFoundError("no"), "not on this machine, and the Hub cannot be reached. Check the name"),
        (ConnectionError("no"), "not on this machine, and the Hub cannot be reached. Check the name"),
        (RuntimeError("CAS: HTTP status server error (503 Service"), "the Hub answers with an error (503). Try again"),
        (
            errors.HfHubHTTPError("no", response=httpx.Response(503, request=httpx.Request("GET", "https://hub.test"))),
            "the Hub answers with an error (503). Try again",
        ),
    ],
)
def test_what_the_hub_refuses_is_a_sentence(error: Exception, words: str) -> None:
    """Without the name of an exception, and with what to do."""
    said = download._explain_hub_error("ann/typo", "", error).message
    assert words in said and "ann/typo" in said and "Error" not in said and "embedded base" in said


def test_a_long_download_says_how_far_it_is(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second; here after each chunk. In the caller's context: who asked, and in which language."""
    bases_from(hub, tmp_path, monkeypatch)
    monkeypatch.setattr(download, "PROGRESS_SECONDS", 0.0)
    hub.add("ann/base", {"config.json": b"{}", "model.safetensors": bytes(45_000_000)})
    said: list[tuple[str, str]] = []
    monkeypatch.setenv("PERSONA_SHARED", "1")
    with workspace.as_visitor("a" * 40):
        base.resolve_base("ann/base", lambda text: said.append((text, workspace.current_visitor())))
    assert said[0][0] == "Downloading ann/base from the Hub (45 MB) …" and {who for _, who in said} == {"a" * 40}
    told = [
        re.fullmatch(r"Downloading ann/base from the Hub: (\d+) of 45 MB(, .+ left)?", text) for text, _ in said[1:]
    ]
    assert len(told) >= 2 and {found[2] for found in told} <= {", less than a minute left", None} and told[-1][2]
    here = [int(found[1]) for found in told]
    assert here == sorted(here) and 0 < here[-1] <= 45
