"""The card of an adapter: complete, honest, valid for the Hub, and its lines of code do what they say."""

import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import check_each
from PIL import Image
from tiny_models import FACTS, load, write_adapter

from persona.errors import InputError
from persona.models import adapter, attach, model_card
from persona.models.base import Base, load_tokenizer
from persona.models.sampling import Sampling
from persona.share import loss_plot, refresh_card
from persona.share.archive import pack_adapter
from persona.share.hub import push_adapter
from persona.store.persona_folder import PersonaCard, SamplingDefaults
from persona.store.workspace import PROJECT_DIR
from persona.template.render import Renderer
from persona.train.run_folder import Run, find_persona_card
from tests.local_hub import ANN, Hub, metadata_errors

pytest_plugins = "tests.hub_fixtures"

CARD = PersonaCard(
    name="Mags", system="You keep\nthe light.", language="en-GB", probes=("Who are you?", "Is it <b>late</b>?")
)
BASE = Base("someone/tiny", Path())
ANSWERS = {0: ("*base*", "I am a | model"), 4: ("The light.", "# Late"), 6: ("Too late.", "Too late.")}


def note(run: Run) -> None:
    """The events of a run whose adapter of step 4 was chosen."""
    run.log("state", state="running", message=f"{Path.home()}/bases")
    for step in range(1, 7):
        run.log("step", step=step, loss=5 - step / 2 if step != 5 else math.inf, seconds=step, tokens=step)
    for step, said in ANSWERS.items():
        run.log("eval", step=step, nll=5.0 - step / 3, rows=[1.0])
        answers = [{"probe": p, "text": t, "ended": True} for p, t in zip(CARD.probes, said, strict=True)]
        run.log("diary", step=step, answers=answers)
    run.log("result", adapter=str(run.adapter), adapter_nll=3.0)
    run.log("chosen", step=4, nll=3.0)
    run.log("state", state="done")


@pytest.fixture
def mags(home: Path, tiny_llama: Path) -> Run:
    """A persona with one finished run."""
    run = Run(home / "personas" / "mags" / "runs" / "20261122-031500-a1b2")
    write_adapter(tiny_llama, run.adapter, card=CARD)
    (run.path / "run.json").write_text("{}")
    (run.path.parents[1] / "persona.json").write_text(CARD.model_copy(update={"rights": "CC0"}).model_dump_json())
    note(run)
    return run


def readme(run: Run) -> str:
    refresh_card.refresh_model_card(run.adapter, find_persona_card(run.adapter))
    return (run.adapter / "README.md").read_text("utf-8")


def test_the_card_says_what_the_run_has_seen(mags: Run) -> None:
    before = (mags.adapter / "README.md").read_text("utf-8")
    assert "How it sounds" not in before and "loss.png" not in before and "not stated" in before
    said = readme(mags)
    for line in ("| Rights | CC0 |", "| Licence of the base | MIT |", "someone/tiny, revision r1", "9 pairs, 1 held out",
                 "base 4.000, adapter 3.000", "> You keep the light.", "![Training loss", "## Limits",
                 "**Is it &lt;b>late&lt;/b>?**".replace("b>", "b\\>")):  # fmt: skip
        assert line in said, line
    # the answers of the chosen step beside the base's own, with nothing in them read as Markdown
    for line in ("> *base*: \\*base\\*", "> *Mags*: The light.", "> *base*: I am a \\| model", "> *Mags*: \\# Late"):
        assert line in said, line
    assert "Too late." not in said and str(Path.home()) not in said
    with Image.open(mags.adapter / "loss.png") as drawn:
        assert drawn.size == (800, 400) and drawn.format == "PNG" and not drawn.info
        colours = {c for _, c in drawn.getcolors(1 << 20) or []}
    assert {bytes.fromhex(c[1:]) for c in (loss_plot.TRAIN, loss_plot.HELD_OUT)} <= {bytes(c) for c in colours}
    files = {f.name: f.read_bytes() for f in mags.adapter.iterdir()}
    readme(mags)
    assert files == {f.name: f.read_bytes() for f in mags.adapter.iterdir()}


def test_the_code_on_the_card_samples_as_persona_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_card, "Sampling", lambda: Sampling(0.3, 0.8, repetition_penalty=1.2))
    assert (
        model_card._generate_arguments(PersonaCard(name="Mags"))
        == "do_sample=True, temperature=0.3, top_p=0.8, repetition_penalty=1.2"
    )


def test_what_she_was_trained_with_stays_and_what_is_said_of_it_follows(mags: Run) -> None:
    now = PersonaCard(
        name="Else",
        system="Else.",
        rights="CC0",
        source="a | b\n<i>",
        author="Ann",
        sampling=SamplingDefaults(top_p=0.5),
    )
    refresh_card.refresh_model_card(mags.adapter, now)
    opened = adapter.read_adapter(mags.adapter)
    assert opened.card == CARD.model_copy(
        update={"rights": "CC0", "source": "a | b\n<i>", "author": "Ann", "sampling": SamplingDefaults(top_p=0.5)}
    )
    said = (mags.adapter / "README.md").read_text("utf-8")
    assert "| Text | a &#124; b &lt;i> |" in said and "temperature=0.4, top_p=0.5" in said


def test_an_adapter_from_elsewhere_keeps_its_card(mags: Run, tmp_path: Path) -> None:
    readme(mags)
    for away in (tmp_path / "opened" / "mags-0a1b", tmp_path / "x" / "adapter"):
        shutil.copytree(mags.adapter, away)
        (away / "README.md").write_text("by Ann")
        assert find_persona_card(away) is None
        refresh_card.refresh_model_card(away, CARD)
        assert (away / "README.md").read_text() == "by Ann"


def report(**changes: Any) -> str:
    answer = {"question": "held?", "reference": "the author's own", "base": "b", "adapter": "a"}
    probe = {"ask": "Judged?", "base": {"text": "no"}, "replies": [{"text": "yes"}, {"text": "second"}]}
    whole = {"steps": 3, "probes": [probe], "answers": {"rows": [answer]}, "verdict": {"said": "It learned."}}
    return json.dumps({**whole, **changes})


def test_only_questions_outside_the_training_data_are_called_so(mags: Run) -> None:
    """By the run's own rows, whatever the capitals and the punctuation; without rows, nothing is claimed."""
    unseen, trained, unknown = (
        "To questions that were not in",
        "To questions that it was trained on",
        "that may have been",
    )
    assert unknown in readme(mags) and unseen not in readme(mags)
    rows = [{"instruction": "who are YOU", "output": "Mags."}, {"instruction": "x", "output": "y", "held_out": True}]
    (mags.path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = readme(mags)
    places = [said.index(x) for x in (unseen, "**Is it", trained, "**Who are you?**", "## Limits")]
    assert places == sorted(places) and unknown not in said
    rows[0]["held_out"] = True
    (mags.path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = readme(mags)
    assert unseen in said and trained not in said


def test_one_is_singular() -> None:
    figures = {**FACTS["figures"], "train_rows": 1, "held_out_rows": 1, "steps": 1}
    said = model_card.render_model_card(CARD, {**FACTS, "base": BASE.to_dict(), "figures": figures})
    assert "- 1 pair, 1 held out; 1 step\n" in said and "from 1 held-out pair by" in said
    assert "1 pairs" not in said and "1 held-out pairs" not in said


def test_a_report_speaks_for_the_adapter_that_it_is_about(mags: Run) -> None:
    (mags.path / "report.json").write_text(report())
    said = readme(mags)
    assert "- It learned." in said and "**Judged?**" in said and "> *Mags*: yes" in said and "The light." not in said
    assert "the author's own" not in said and "second" not in said
    for other in (report(steps=2), "{", report(probes=[], verdict=None)):
        (mags.path / "report.json").write_text(other)
        said = readme(mags)
        assert "> *Mags*: The light." in said and "It learned." not in said and "Judged?" not in said


def test_without_a_word_from_the_run_the_card_is_whole(mags: Run) -> None:
    readme(mags)
    (mags.path / "events.jsonl").unlink()
    said = readme(mags)
    assert "How it sounds" not in said and "loss.png" not in said and not (mags.adapter / "loss.png").exists()
    assert "## Load it" in said and "## Limits" in said


@pytest.mark.parametrize(("losses", "words"), [
    ((None, None), "Not measured on held-out pairs"),
    ((4.0, 4.1), "it is no better than its base"),
])  # fmt: skip
def test_the_limits_are_those_of_the_figures(losses: tuple[Any, Any], words: str) -> None:
    figures = {**FACTS["figures"], "base_nll": losses[0], "adapter_nll": losses[1]}
    said = model_card.render_model_card(CARD, {**FACTS, "base": BASE.to_dict(), "figures": figures})
    assert words in said
    assert words not in model_card.render_model_card(CARD, {**FACTS, "base": BASE.to_dict()})


def test_the_metadata_are_what_the_hub_takes() -> None:
    def check(base: str, language: str) -> None:
        card = CARD.model_copy(update={"language": language, "name": "Ann\n---\n# x", "system": '"""\n```\n---'})
        said = model_card.render_model_card(card, {**FACTS, "base": Base(base, Path(), "gguf-0a1b").to_dict()})
        assert metadata_errors(said) == []
        front = said.split("---\n")[1]
        assert ("base_model:" in front) != ("put the path of your own copy" in said)
        assert ("base_model:" in front) == (base == "google/gemma-3-270m")
        assert re.findall("^language: (.*)$", front, re.M) == (
            [f'"{language[:2]}"'] if language[:2] in ("zh", "en") else []
        )
        body = said.split("---\n", 2)[2].splitlines()
        assert [line for line in body if line.startswith(("---", "```"))] == ["```python", "```"]

    check_each(
        itertools.product(
            ["google/gemma-3-270m", "tiny-gemma", "modelscope:Qwen/Qwen3-0.6B", 'a/b"\nx: 1', "a/"],
            ["", "zh", "zh-Hans", "en-GB", "Klingon, a little", "x\ny: 1"],
        ),
        check,
    )


def test_the_hubs_own_rules_do_refuse() -> None:
    """The rules of the Hub for tests, by which the test above measures."""
    for wrong in ("base_model: tiny", "language: zh-Hans", "base_model_relation: lora", "tags: [1]"):
        assert metadata_errors(f"---\nlibrary_name: peft\npipeline_tag: text-generation\n{wrong}\n---\n# x")


def test_nothing_is_drawn_of_one_point(tmp_path: Path) -> None:
    for train in ([], [(1, 2.0)], [(1, 2.0), (2, math.nan)]):
        (tmp_path / "x.png").write_bytes(b"old")
        assert not loss_plot.draw_loss_plot(train, [], tmp_path / "x.png") and not (tmp_path / "x.png").exists()
    assert loss_plot.draw_loss_plot([(1, 2.0), (2, 1.0)], [], tmp_path / "x.png")


@pytest.mark.parametrize("wrong", [{"top_p": 0}, {"temperature": -1}, {"seed": 1}, {"repetition_penalty": 0.5}])
def test_sampling_out_of_range_is_refused_with_the_card(mags: Run, wrong: dict[str, float]) -> None:
    (mags.adapter / "persona.json").write_text(json.dumps({"name": "Mags", "sampling": wrong}))
    with pytest.raises(InputError, match=f"sampling.{next(iter(wrong))}"):
        refresh_card.refresh_model_card(mags.adapter)


def test_nothing_of_the_author_leaves_but_what_is_allowed(
    machine: None, hub: Hub, mags: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that was packed and sent is searched for everything that must stay."""
    monkeypatch.setenv("HOME", str(tmp_path / "annika-holt"))
    monkeypatch.setenv("USER", "annika-holt")
    monkeypatch.setenv("HF_TOKEN", ANN)
    monkeypatch.setattr(socket, "gethostname", lambda: "annikas-laptop")
    run = Run(tmp_path / "annika-holt" / "personas" / "mags" / "runs" / mags.name)
    shutil.copytree(mags.path.parents[1], run.path.parents[1])
    note(run)
    private = {"talks/t.jsonl": b"what a visitor said", "votes/v.jsonl": b"how they voted", "pairs.jsonl": b"pair by pair",
               "runs/x/pairs.jsonl": b"rows of the run", f"runs/{run.name}/moments/step-000001/README.md": b"a moment",
               f"runs/{run.name}/adapter/talks/t.jsonl": b"said inside", f"runs/{run.name}/adapter/events.jsonl": b"events",
               f"runs/{run.name}/adapter/optimizer.pt": b"pickled", f"runs/{run.name}/log.txt": ANN.encode()}  # fmt: skip
    for name, data in private.items():
        (run.path.parents[1] / name).parent.mkdir(parents=True, exist_ok=True)
        (run.path.parents[1] / name).write_bytes(data)
    refresh_card.refresh_model_card(run.adapter, find_persona_card(run.adapter))
    push_adapter(run.adapter, "ann/mags")
    with zipfile.ZipFile(pack_adapter(run.adapter, tmp_path / "mags.zip")) as archive:
        packed = [archive.read(name) for name in archive.namelist()]
        names = {name.split("/", 1)[1] for name in archive.namelist()}
    assert names == set(adapter.ADAPTER_FILES) == set(hub.files("ann/mags")) - {".gitattributes"}
    left = b"\n".join([*packed, *hub.received, *hub.files("ann/mags").values(), (tmp_path / "mags.zip").read_bytes()])
    secrets = [*private.values(), b"annika", str(tmp_path).encode(), ANN.encode(), b"annikas-laptop"]
    assert [s for s in secrets if s in left] == []
    there = b"\n".join(
        [str(run.path).encode(), *(f.read_bytes() for f in run.path.parents[1].rglob("*") if f.is_file())]
    )
    assert [s for s in secrets if s not in there] == [b"annikas-laptop"]  # and the rest was there to be found
    assert b"The light." in left and b"\x89PNG" in left


@pytest.mark.slow
@pytest.mark.release
def test_the_lines_of_code_on_the_card_do_what_they_say(
    machine: None, hub: Hub, mags: Run, tiny_llama: Path, tmp_path: Path
) -> None:
    """Copied from the pushed card into a fresh Python with transformers and PEFT alone: Mags answers as in Persona."""
    commit = hub.add("someone/tiny", {f.name: f.read_bytes() for f in tiny_llama.iterdir()})
    hub.add("someone/tiny", {"config.json": b"{}"})  # a newer revision that would not open
    greedy = CARD.model_copy(
        update={"sampling": SamplingDefaults(temperature=0, repetition_penalty=1), "rights": "CC0"}
    )
    tokenizer = load_tokenizer(Base("tiny", tiny_llama))
    facts = adapter.read_adapter(mags.adapter)
    ids = likeliest(load(tiny_llama), mags.adapter, Renderer(tokenizer, facts.template, CARD.system, 512))
    stop = next(i for n, i in enumerate(ids) if n >= 5 and i not in ids[:n])  # the one where this model shall end
    expected = tokenizer.decode(ids[: ids.index(stop) + 1], skip_special_tokens=True)
    run = {**facts.facts, "base": {**facts.facts["base"], "revision": commit}, "stop": {"id": stop}}
    (mags.adapter / "run.json").write_text(json.dumps(run))
    refresh_card.refresh_model_card(mags.adapter, greedy)
    push_adapter(mags.adapter, "ann/mags", public=True, token=ANN)
    code = re.search(r"```python\n(.*?)```", hub.files("ann/mags")["README.md"].decode(), re.S)[1]  # type: ignore[index]
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert said.returncode == 0, said.stderr[-3000:]
    assert said.stdout == expected + "\n"
    assert str(PROJECT_DIR) not in code and "persona" not in code


def likeliest(model: Any, path: Path, renderer: Renderer) -> list[int]:
    """The likeliest tokens after the prompt, one by one, 100 of them."""
    model = attach.attach_adapter(model, adapter.read_adapter(path), "mags")
    ids = list(renderer.render_prompt([], CARD.probes[0]).ids)
    start = len(ids)
    while len(ids) < start + 100:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]
