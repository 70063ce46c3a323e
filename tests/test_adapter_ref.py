"""References to adapters and voices: parsed, printed, opened, refused and why."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from cases import check_each
from local_hub import ANN, Hub
from tiny_models import CARD, write_adapter

from persona.compare.session import NO_ADAPTER, LoadedModel
from persona.errors import AdapterError, InputError, PersonaError, ShareError
from persona.models import adapter
from persona.models.base import Base
from persona.share import archive, open_adapter
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.hub import push_adapter

pytestmark = pytest.mark.usefixtures("plain_cpu")

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_gemma) -> Path:
    """A persona with two runs; the older one has kept two snapshots."""
    persona = tmp_path_factory.mktemp("made") / "mags"
    for seed, place in enumerate(
        ("old/adapter", "old/moments/step-000003", "old/moments/step-000012", "young/adapter"), 1
    ):
        target = persona / "runs" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        write_adapter(tiny_gemma, target, seed=seed, template="gemma-base")
    return persona


def open_text(text):
    return open_adapter.open_adapter(AdapterRef.parse(text))


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
        assert open_text(given) == adapter.read_adapter(runs / wanted)
    monkeypatch.chdir(made.parent)
    assert open_text(" mags ").path == Path("mags/runs/young/adapter")
    monkeypatch.setenv("HOME", str(made.parent))
    assert open_text("~/mags@3").path.name == "step-000003"


@pytest.mark.parametrize(
    "given, why",
    [
        ("mags/runs/old@4", r"no snapshot of step 4\. It has 3, 12\."),
        ("mags/runs/young@3", r"no snapshot of step 3\. This run has kept none"),
        ("mags/runs/nowhere@3", "no adapter here, none of your personas, nor USER/NAME"),
        ("nowhere", "no adapter here, none of your personas, nor USER/NAME on the Hub"),
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
        open_text(given)


def test_a_persona_by_its_name_is_its_newest_run(made, home):
    shutil.copytree(made, home / "personas" / "mags")
    (home / "personas" / "mags" / "persona.json").write_text("{}")
    runs = home / "personas" / "mags" / "runs"
    for text, place in [("mags", "young/adapter"), ("mags@3", "old/moments/step-000003")]:
        ref = AdapterRef.parse(text)
        assert (ref.kind, str(ref)) == (RefKind.PERSONA, text)
        assert open_adapter.open_adapter(ref).path == runs / place
    with pytest.raises(AdapterError, match=r"^zhen-huan: no adapter here\. Train one with: persona train zhen-huan$"):
        open_text("zhen-huan")
    with pytest.raises(AdapterError, match="no snapshot of step 4"):
        open_text("mags@4")


def test_a_folder_comes_before_the_persona_of_that_name(made, home, monkeypatch):
    shutil.copytree(made, home / "personas" / "mags")
    (home / "personas" / "mags" / "persona.json").write_text("{}")
    monkeypatch.chdir(made.parent)
    assert AdapterRef.parse("mags").kind is RefKind.FOLDER


@pytest.mark.parametrize(
    "text, ref",
    [
        ("base", AdapterRef(RefKind.BASE)),
        ("base+prompt", AdapterRef(RefKind.BASE_WITH_PROMPT)),
        ("mags.zip", AdapterRef(RefKind.ZIP, "mags.zip")),
        ("ann/mags", AdapterRef(RefKind.HUB, "ann/mags")),
        ("ann/mags@v1*0.7", AdapterRef(RefKind.HUB, "ann/mags@v1", strength=0.7)),
        ("ann/mags@12", AdapterRef(RefKind.HUB, "ann/mags@12")),
        ("https://x.org/?persona=ann/mags@v1", AdapterRef(RefKind.HUB, "ann/mags@v1")),
        ("old*.4", AdapterRef(RefKind.FOLDER, "old", strength=0.4)),
        ("old@3*1.25", AdapterRef(RefKind.FOLDER, "old", step=3, strength=1.25)),
        ("odd*0.5", AdapterRef(RefKind.FOLDER, "odd*0.5")),
        ("a + b", AdapterRef(RefKind.FOLDER, "a + b")),
        ("mags", AdapterRef(RefKind.PERSONA, "mags")),
        ("zhen-huan@2", AdapterRef(RefKind.PERSONA, "zhen-huan", step=2)),
        ("old@3*0.6 + ann/mags*0.00001", AdapterRef(RefKind.BLEND, parts=(
            AdapterRef(RefKind.FOLDER, "old", step=3, strength=0.6), AdapterRef(RefKind.HUB, "ann/mags", strength=1e-5)))),
    ],
)  # fmt: skip
def test_a_column_is_parsed_and_printed(text, ref, home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("old", "odd*0.5", "a + b"):
        (tmp_path / folder).mkdir()
    (home / "personas" / "mags").mkdir(parents=True)
    (home / "personas" / "mags" / "persona.json").write_text("{}")
    assert AdapterRef.parse_voice(text) == ref
    assert AdapterRef.parse_voice(str(ref)) == ref


# what conversations and votes on disk keep: text → reference, and the very same text back
IDS = {
    "base": AdapterRef(RefKind.BASE),
    "base+prompt": AdapterRef(RefKind.BASE_WITH_PROMPT),
    "run/mags/20261122-031500-a1b2": AdapterRef(RefKind.RUN, "mags", "20261122-031500-a1b2"),
    "run/甄嬛/20261122-031500-a1b2@24": AdapterRef(RefKind.RUN, "甄嬛", "20261122-031500-a1b2", 24),
    "run/a@1/b c": AdapterRef(RefKind.RUN, "a@1", "b c"),
    "opened/mags-12ab34cd": AdapterRef(RefKind.OPENED, "mags-12ab34cd"),
    "opened/x@3": AdapterRef(RefKind.OPENED, "x@3"),
    "server/org/model@2": AdapterRef(RefKind.SERVER, "org/model@2"),
    "blend/0.50/run/mags/r@3": AdapterRef.blend_with(0.5, AdapterRef(RefKind.RUN, "mags", "r", 3)),
    "blend/1.00/opened/x": AdapterRef.blend_with(1, AdapterRef(RefKind.OPENED, "x")),
    "blend/0.1250/opened/x": AdapterRef.blend_with(0.125, AdapterRef(RefKind.OPENED, "x")),
}


@pytest.mark.parametrize("text, ref", IDS.items())
def test_an_id_of_the_page_is_parsed_and_printed(text, ref):
    assert AdapterRef.parse_id(text) == ref and str(ref) == text


def test_every_id_of_the_page_comes_back():
    """Made up ones: parse_id(str(ref)) == ref."""
    draw = random.Random(0)
    names = ["a", "甄嬛", "x y", "a@b", "@", "*0.5", " + ", "base", "run", "-", "a.b", "💥"]

    def made_up(kinds):
        kind, step = draw.choice(kinds), draw.choice([None, 0, 7, 999_999_999])
        if kind is RefKind.BLEND:
            return AdapterRef.blend_with(draw.randrange(10_001) / 10_000, made_up([RefKind.RUN, RefKind.OPENED]))
        if kind is RefKind.RUN:
            return AdapterRef(kind, draw.choice(names), draw.choice(names).replace("@", "q"), step)
        return AdapterRef(kind, draw.choice([*names, "a/b"] if kind is RefKind.SERVER else names))

    for _ in range(2_000):
        ref = made_up([RefKind.BLEND, RefKind.RUN, RefKind.OPENED, RefKind.SERVER])
        assert AdapterRef.parse_id(str(ref)) == ref


def test_an_id_from_outside_is_never_a_path(made, monkeypatch):
    """Also where a folder, zip or repository of that very name would be found."""
    monkeypatch.chdir(made.parent)
    plain = [
        "mags",
        "mags@3",
        "./mags",
        str(made),
        "ann/mags",
        "mags.zip",
        "base*0.5",
        "https://huggingface.co/ann/mags",
        "",
    ]
    nested = ["run/mags", "run//x", "run/mags/", "run/../x", "run/mags/..", "run/mags/a/b", "run/mags/x@", "run/mags/x@²",
              "run/mags/x@-1", "run/mags/x@1@2", "run/mags/x@1234567890", "run/mags/x\\y", "opened", "opened/", "opened/..",
              "opened/a/b", "opened/C:", "opened/\0", "server", "server/"]  # fmt: skip
    blends = ["blend/", "blend/0.5", "blend/0.5/base", "blend/1.5/opened/x", "blend/nan/opened/x", "blend/.5/opened/x",
              "blend/0.5/blend/0.5/opened/x", "blend/0.5/server/x", "blend/0.5/opened/..", "blend/0.12345/opened/x"]  # fmt: skip

    def check(text):
        with pytest.raises(PersonaError):
            AdapterRef.parse_id(text)

    check_each([*plain, *nested, *blends], check)


def test_a_link_is_never_a_folder(made, monkeypatch):
    monkeypatch.chdir(made.parent)
    (made.parent / "ann" / "mags").mkdir(parents=True, exist_ok=True)
    assert AdapterRef.parse_link("ann/mags").kind is RefKind.HUB
    for text in ("mags", str(made), "mags.zip", "run/mags/x"):
        with pytest.raises(ShareError):
            AdapterRef.parse_link(text)


def test_an_adapter_is_called_after_its_folder():
    for place, name in [("mags/runs/r1/adapter", "mags"), ("mags/runs/r1/moments/step-000030", "mags@30"),
                        ("adapters/mags-12ab34cd", "mags-12ab34cd"), ("x/adapter", "adapter")]:  # fmt: skip
        assert AdapterRef.from_folder(Path(place)).model_name == name


def test_a_folder_of_pickles_is_refused(made, tmp_path):
    folder = Path(shutil.copytree(made / "runs/old/adapter", tmp_path / "a"))
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"holds adapter_model\.bin\. A pickle can run code"):
        open_text(folder)


def test_a_zip(made, tmp_path, home):
    packed = archive.pack_adapter(made / "runs/old/adapter", tmp_path / "mags.zip")
    opened = open_text(packed)
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
        newest = open_text("ann/mags")
        pinned = open_text(f"ann/mags@{first}")
        assert newest.path.parent == pinned.path.parent == home / "adapters" and newest.path != pinned.path
        for opened, run in ((pinned, "old"), (newest, "young")):
            assert (opened.path / WEIGHTS).read_bytes() == (made / f"runs/{run}/adapter" / WEIGHTS).read_bytes()
        assert open_text(f"ann/mags@{second}").path == newest.path
        with pytest.raises(ShareError, match="no such revision"):
            open_text("ann/mags@" + "0" * 40)
    assert open_text(f"ann/mags@{first}").path == pinned.path, "what is here needs no network"


# ---- speakers


def test_speakers(made, voices):
    runs = made / "runs"
    main, other = adapter.read_adapter(runs / "old/adapter"), adapter.read_adapter(runs / "young/adapter")
    name, second = voices.attach(main), voices.attach(other)
    bare, prompted, whole, half, both = (
        open_adapter.open_voice(voices, text, main)
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
        prompted.render_column([], "hi").prompt.ids
        == whole.render_column([], "hi").prompt.ids
        != bare.render_column([], "hi").prompt.ids
    )


def test_a_snapshot_is_a_column(made, voices):
    main = adapter.read_adapter(made / "runs/old/adapter")
    early = open_adapter.open_voice(voices, f"{made / 'runs/old'}@3*0.5", main)
    assert early.strength == 0.5 and voices.attached[early.adapter][0].path.name == "step-000003"


def test_a_blend_of_one_with_itself_is_refused(made, voices):
    main = adapter.read_adapter(made / "runs/old/adapter")
    with pytest.raises(InputError, match="names one adapter twice"):
        open_adapter.open_voice(voices, f"{made / 'runs/old'}*0.6 + {made / 'runs/old'}*0.2", main)
    with pytest.raises(InputError, match=r"strength=3\.0: from 0"):
        open_adapter.open_voice(voices, f"{made / 'runs/old'}*3 + {made / 'runs/young'}", main)


def test_a_column_of_another_base_is_refused(made, voices, tiny_llama, tmp_path):
    """By its name, for an instruction-tuned base has the same shapes; and by its shapes where it has no name."""
    main = adapter.read_adapter(made / "runs/old/adapter")
    write_adapter(tiny_llama, tmp_path / "foreign")
    twin = Path(shutil.copytree(made / "runs/young/adapter", tmp_path / "twin"))
    run = json.loads((twin / "run.json").read_text())
    (twin / "run.json").write_text(json.dumps({**run, "base": {**run["base"], "id": "someone/tiny-it"}}))
    with pytest.raises(AdapterError, match="trained on someone/tiny-it, the others here use someone/tiny"):
        open_adapter.open_voice(voices, str(twin), main)
    assert open_adapter.open_voice(voices, str(twin), main, any_base=True).strength == 1
    with pytest.raises(AdapterError, match="does not fit"):
        open_adapter.open_voice(voices, str(tmp_path / "foreign"), main)


@pytest.mark.parametrize(
    "own, here", [("Someone/Tiny", "someone/tiny"), ("modelscope:someone/tiny", "someone/tiny"), ("", "x/y")]
)
def test_one_base_under_two_names(made, voices, own, here):
    voices.base = replace(voices.base, id=here)
    open_adapter.require_same_base(replace(adapter.read_adapter(made / "runs/old/adapter"), base_id=own), voices)
