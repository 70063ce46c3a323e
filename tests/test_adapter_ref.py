"""Adapters from anywhere: what is opened, what is refused and why; the speakers made of them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from local_hub import ANN, Hub
from tiny_models import CARD, PLAIN_CPU, write_adapter

from persona.compare.session import NO_ADAPTER, LoadedModel
from persona.errors import AdapterError, InputError, ShareError
from persona.models import adapter, hardware
from persona.models.base import Base
from persona.share import adapter_ref, archive
from persona.share.hub import push_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_gemma) -> Path:
    """A persona with two runs; the older one has kept two moments."""
    persona = tmp_path_factory.mktemp("made") / "mags"
    for seed, place in enumerate(
        ("old/adapter", "old/moments/step-000003", "old/moments/step-000012", "young/adapter"), 1
    ):
        target = persona / "runs" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(tiny_gemma, target, seed=seed, template="gemma-base")
    return persona


@pytest.fixture
def voices(tiny_gemma):
    return LoadedModel(Base("someone/tiny", tiny_gemma))


def test_folders(made, monkeypatch):
    runs = made / "runs"
    for given, wanted in [
        (runs / "old/adapter", "old/adapter"), (runs / "old", "old/adapter"), (made, "young/adapter"),
        (f"{runs / 'old'}@3", "old/moments/step-000003"), (f"{runs / 'old'}@12", "old/moments/step-000012"),
        (f"{made}@12", "old/moments/step-000012"), (runs / "old/moments/step-000003", "old/moments/step-000003"),
    ]:  # fmt: skip
        assert adapter_ref.open_adapter(given) == adapter.read_adapter(runs / wanted)
    monkeypatch.chdir(made.parent)
    assert adapter_ref.open_adapter(" mags ").path == Path("mags/runs/young/adapter")
    monkeypatch.setenv("HOME", str(made.parent))
    assert adapter_ref.open_adapter("~/mags@3").path.name == "step-000003"


@pytest.mark.parametrize(
    "given, why",
    [
        ("mags/runs/old@4", r"no moment at step 4\. It has 3, 12\."),
        ("mags/runs/young@3", r"no moment at step 3\. This run has kept none"),
        ("mags/runs/nowhere@3", "no adapter here, nor USER/NAME"),
        ("nowhere", "no adapter here, nor USER/NAME of the Hub"),
        ("", "no adapter here"),
        ("a/b/c", "no adapter here"),
        ("weights.bin", r"weights\.bin: a pickle can run code when it is opened"),
        ("run/adapter_model.pt", "a pickle can run code"),
        (WEIGHTS, "Name the folder that they lie in"),
        ("nowhere.zip", "no such file"),
        ("https://example.org/", "no persona in this address"),
    ],
)
def test_what_is_refused_and_why(made, monkeypatch, given, why):
    monkeypatch.chdir(made.parent)
    with pytest.raises((AdapterError, ShareError), match=why):
        adapter_ref.open_adapter(given)


def test_a_folder_of_pickles_is_refused(made, tmp_path):
    folder = Path(shutil.copytree(made / "runs/old/adapter", tmp_path / "a"))
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"holds adapter_model\.bin\. A pickle can run code"):
        adapter_ref.open_adapter(folder)


def test_a_zip(made, tmp_path, home):
    packed = archive.pack_adapter(made / "runs/old/adapter", tmp_path / "mags.zip")
    opened = adapter_ref.open_adapter(packed)
    assert opened.path.parent == home / "adapters"
    assert (opened.path / WEIGHTS).read_bytes() == (made / "runs/old/adapter" / WEIGHTS).read_bytes()


def test_the_hub_gives_one_commit_and_another_only_when_asked(made, monkeypatch, home):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", ANN)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        first = push_adapter(made / "runs/old/adapter", "ann/mags")["revision"]
        second = push_adapter(made / "runs/young/adapter", "ann/mags")["revision"]
        newest = adapter_ref.open_adapter("ann/mags")
        pinned = adapter_ref.open_adapter(f"ann/mags@{first}")
        assert newest.path.parent == pinned.path.parent == home / "adapters" and newest.path != pinned.path
        for opened, run in ((pinned, "old"), (newest, "young")):
            assert (opened.path / WEIGHTS).read_bytes() == (made / f"runs/{run}/adapter" / WEIGHTS).read_bytes()
        assert adapter_ref.open_adapter(f"ann/mags@{second}").path == newest.path
        with pytest.raises(ShareError, match="no such revision"):
            adapter_ref.open_adapter("ann/mags@" + "0" * 40)
    assert adapter_ref.open_adapter(f"ann/mags@{first}").path == pinned.path, "what is here needs no network"


# ---- speakers


def test_speakers(made, voices):
    runs = made / "runs"
    main, other = adapter.read_adapter(runs / "old/adapter"), adapter.read_adapter(runs / "young/adapter")
    name, second = voices.attach(main), voices.attach(other)
    bare, prompted, whole, half, both = (
        adapter_ref.open_voice(voices, text, main)
        for text in ("base", "base+prompt", str(runs / "old"), f"{runs / 'young'}*0.5",
                     f"{runs / 'old'}*0.6 + {runs / 'young'}*.4")
    )  # fmt: skip
    assert (bare.adapter, prompted.adapter, bare.renderer.system, prompted.renderer.system) == (
        NO_ADAPTER,
        NO_ADAPTER,
        "",
        CARD.system,
    )
    assert (whole.adapter, whole.strength, half.adapter, half.strength) == (name, 1.0, second, 0.5)
    assert voices.adapter_weights(both.adapter, both.strength) == ((name, 0.6), (second, 0.4))
    assert bare.renderer.template == prompted.renderer.template == main.template
    assert (
        prompted.render_column([], "hi").prompt.ids == whole.ask([], "hi").prompt.ids != bare.ask([], "hi").prompt.ids
    )


def test_a_moment_is_a_column(made, voices):
    main = adapter.read_adapter(made / "runs/old/adapter")
    early = adapter_ref.open_voice(voices, f"{made / 'runs/old'}@3*0.5", main)
    assert early.strength == 0.5 and voices.attached[early.adapter][0].path.name == "step-000003"


def test_a_blend_of_one_with_itself_is_refused(made, voices):
    main = adapter.read_adapter(made / "runs/old/adapter")
    with pytest.raises(InputError, match="names one adapter twice"):
        adapter_ref.open_voice(voices, f"{made / 'runs/old'}*0.6 + {made / 'runs/old'}*0.2", main)
    with pytest.raises(InputError, match=r"strength=3\.0: from 0"):
        adapter_ref.open_voice(voices, f"{made / 'runs/old'}*3 + {made / 'runs/young'}", main)


def test_a_column_of_another_base_is_refused(made, voices, tiny_llama, tmp_path):
    """By its name, for an instruction-tuned base has the same shapes; and by its shapes where it has no name."""
    main = adapter.read_adapter(made / "runs/old/adapter")
    write_adapter(tiny_llama, tmp_path / "foreign")
    twin = Path(shutil.copytree(made / "runs/young/adapter", tmp_path / "twin"))
    run = json.loads((twin / "run.json").read_text())
    (twin / "run.json").write_text(json.dumps({**run, "base": {**run["base"], "id": "someone/tiny-it"}}))
    with pytest.raises(AdapterError, match="trained on someone/tiny-it, the others here use someone/tiny"):
        adapter_ref.open_voice(voices, str(twin), main)
    assert adapter_ref.open_voice(voices, str(twin), main, any_base=True).strength == 1
    with pytest.raises(AdapterError, match="does not fit"):
        adapter_ref.open_voice(voices, str(tmp_path / "foreign"), main)


@pytest.mark.parametrize(
    "own, here", [("Someone/Tiny", "someone/tiny"), ("modelscope:someone/tiny", "someone/tiny"), ("", "x/y")]
)
def test_one_base_under_two_names(made, voices, own, here):
    voices.base = replace(voices.base, id=here)
    adapter_ref.require_same_base(replace(adapter.read_adapter(made / "runs/old/adapter"), base_id=own), voices)
