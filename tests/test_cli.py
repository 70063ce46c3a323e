"""`python -m persona`: one JSON object on the last line, messages on stderr, exit status 0, 1 or 2."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from tiny import write_adapter

from persona import adapter, cli, folder, launch
from persona.base import Base, load_tokenizer, open_renderer
from persona.cli.common import note
from persona.config import RunConfig, make_config
from persona.embedded import Further
from persona.files import PROJECT, SHIPPED_PERSONAS
from persona.folder import Card, create
from persona.pairs import MAX_CHARACTERS, Pair
from persona.render import Renderer
from persona.runs import list_runs
from persona.templates import read_template

CARD = Card(name="Mags", system="Be dry.", language="en")
EXAMPLE = SHIPPED_PERSONAS / "lighthouse-keeper"
PAIRS = [Pair("Who are you?", "I keep the light. 𠮷"), Pair("你好", "  好。\n\n茶？ "), Pair("c", "d", (("a", "b"),))]
PAIRS += [Pair(f"question {n}", f"answer {n}") for n in range(9)]
TRAINED = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
           "adapter_nll", "peak_memory_bytes"}  # fmt: skip


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: (exit status, stdout, stderr)."""

    def call(*words) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["persona", *map(str, words)])
        status = cli.main()
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def value(call):
    """The JSON object of a command that must succeed: it is the last line of stdout, and nothing follows it."""

    def value(*words) -> dict:
        status, out, err = call(*words, "--json")
        assert status == 0, err
        assert out.endswith("}\n")
        return json.loads(out.splitlines()[-1])

    return value


@pytest.fixture
def refused(call):
    """The message of a command that must be refused: on stderr, with exit status 1 and nothing on stdout."""

    def refused(*words) -> str:
        status, out, err = call(*words)
        assert (status, out) == (1, ""), err
        assert "Traceback" not in err and err.strip()
        return err

    return refused


def shell(*words, home: Path, **options) -> subprocess.CompletedProcess:
    env = {**os.environ, "PERSONA_HOME": str(home), "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "persona", *map(str, words)]
    return subprocess.run(command, env=env, capture_output=True, text=True, encoding="utf-8", timeout=300, **options)


@pytest.fixture
def persona(tmp_path):
    return create(tmp_path / "mags", CARD, PAIRS)


# ---- through a shell


def test_the_module_answers_from_a_shell(tmp_path, home):
    done = shell("new", tmp_path / "mags", "--name", "Mags 甄嬛", "--system", "Be dry.", "--json", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout.splitlines()[-1]) == {"persona": str((tmp_path / "mags").resolve())}
    again = shell("new", tmp_path / "mags", "--name", "Mags", home=home)
    assert (again.returncode, again.stdout) == (1, "")
    assert "mags: already exists. Choose another name, or open it." in again.stderr and "Traceback" not in again.stderr
    usage = shell("new", tmp_path / "other", home=home)
    assert (usage.returncode, usage.stdout) == (2, "") and "--name" in usage.stderr


@pytest.mark.slow
def test_a_refusal_from_a_shell_works_without_a_terminal(tmp_path, home, tiny_gemma):
    """Chinese in a message on a system whose language is C."""
    create(tmp_path / "甄嬛", CARD, [])
    words = [sys.executable, "-m", "persona", "train", str(tmp_path / "甄嬛"), "--base", str(tiny_gemma)]
    env = {"PATH": os.environ["PATH"], "PERSONA_HOME": str(home), "PYTHONPATH": str(PROJECT), "LC_ALL": "C"}
    done = subprocess.run(words, env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, b"")
    assert "甄嬛/pairs.jsonl: no pairs. A run needs at least 2" in done.stderr.decode("utf-8")


# ---- usage


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["new"],
        ["new", "x"],
        ["new", "x", "--nam", "y"],
        ["render"],
        ["render", "x", "--pair", "0"],
        ["render", "x", "--pair", "one"],
        ["train", "x", "--set"],
        ["chat", "x"],
        ["chat", "x", "--prompt", "a", "--temperature", "warm"],
        ["export", "x"],
        ["push", "x"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(call, words):
    status, out, err = call(*words)
    assert (status, out) == (2, "") and "Error: " in err and "Traceback" not in err
    assert "Usage: python -m persona " in err or words[-1] == "--set"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["chat", "--help"]], ids=" ".join)
def test_help_is_status_0(call, words):
    status, out, err = call(*words)
    assert status == 0 and "Usage:" in out and err == ""


# ---- new


def test_new(value, tmp_path):
    made = value("new", tmp_path / "a b" / "mags", "--name", "Mags", "--system", "Be dry.")
    opened = folder.open_persona(made["persona"])
    assert (opened.card(), opened.pairs()) == (Card(name="Mags", system="Be dry."), [])


@pytest.mark.parametrize(
    "name, why", [("", "--name/--system: 'name': "), ("x" * 81, "--name/--system: 'name': ")], ids=["empty", "long"]
)
def test_new_refuses_a_name_that_is_none(refused, tmp_path, name, why):
    assert why in refused("new", tmp_path / "mags", "--name", name)
    assert not (tmp_path / "mags").exists()


# ---- render


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("template", ["auto", "gemma"])
def test_render(value, persona, tiny_gemma, number, template):
    got = value("render", persona.path, "--pair", number, "--base", tiny_gemma, "--template", template)
    assert set(got) == {"text", "tokens", "learned", "masked", "problems"}
    assert "".join(t["text"] for t in got["tokens"]) == got["text"]
    assert got["learned"] + got["masked"] == len(got["tokens"]) and got["problems"] == []
    assert got["learned"] == sum(t["learned"] for t in got["tokens"])
    name = "gemma-base" if template == "auto" else template
    renderer = Renderer(load_tokenizer(Base("x", tiny_gemma)), read_template(name), CARD.system)
    example = renderer.example(PAIRS[number - 1])
    assert [t["id"] for t in got["tokens"]] == example.input_ids and got["text"] == example.text
    learned = "".join(t["text"] for t in got["tokens"] if t["learned"])
    assert learned == PAIRS[number - 1].output.strip() + ("<eos>" if template == "auto" else "<end_of_turn>")


def test_render_for_people_names_the_totals(call, persona, tiny_gemma):
    status, out, _ = call("render", persona.path, "--base", tiny_gemma)
    assert status == 0 and "I keep the light. 𠮷" in out and " learned, " in out and "masked tokens" in out


def test_render_says_what_is_wrong_with_a_pair(value, tmp_path, tiny_gemma):
    persona = create(tmp_path / "p", CARD, [Pair("a", "b<end_of_turn>")])
    assert "'output' holds <end_of_turn>" in value("render", persona.path, "--base", tiny_gemma)["problems"][0]


@pytest.mark.parametrize(
    "words, why",
    [
        (["--pair", "13"], r"pairs.jsonl: has 12 pairs, there is no pair 13"),
        (["--base", "/nowhere"], "'/nowhere': no such folder, GGUF file or Hub id"),
        (["--template", "nope"], "'nope': no such template. Choose one of alpaca-en"),
        (["--template", "chatml"], "Template chatml: a reply ends with '>', which is not a stop token of this model"),
    ],
    ids=["pair", "base", "template", "foreign-template"],
)
def test_render_refuses(refused, persona, tiny_gemma, words, why):
    assert why in refused("render", persona.path, *(["--base", tiny_gemma] if "--base" not in words else []), *words)


# ---- pairs and settings that cannot make a run


def broken(path: Path) -> None:
    with (path / "pairs.jsonl").open("a") as f:
        f.write('{"instruction": "a", "output": \n')


def too_long(path: Path) -> None:
    with (path / "pairs.jsonl").open("a") as f:
        f.write(json.dumps({"instruction": "a", "output": "x" * (MAX_CHARACTERS + 1)}) + "\n")


BAD_PAIRS = {
    "empty": (lambda p: (p / "pairs.jsonl").write_text(""), "pairs.jsonl: no pairs. A run needs at least 2"),
    "absent": (lambda p: (p / "pairs.jsonl").unlink(), "pairs.jsonl: no pairs. A run needs at least 2"),
    "one": (lambda p: (p / "pairs.jsonl").write_text('{"instruction": "a", "output": "b"}\n'), "pairs.jsonl: one pair"),
    "broken-line": (broken, "pairs.jsonl line 13: column 32: not JSON"),
    "too-long": (too_long, "pairs.jsonl line 13: 'output' has 100,001 characters, more than 100,000. Split it"),
    "no-persona": (lambda p: (p / "persona.json").unlink(), "not a persona folder (no persona.json)"),
    "broken-card": (lambda p: (p / "persona.json").write_text("{"), "persona.json line 1, column 2: not JSON"),
}


@pytest.mark.parametrize("damage, why", BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_train_refuses_pairs(refused, persona, tiny_gemma, damage, why):
    damage(persona.path)
    message = refused("train", persona.path, "--base", tiny_gemma, "--json")
    assert why in message and str(persona.path) in message
    assert not persona.runs_dir.exists()


@pytest.mark.parametrize("command", ["render"])
@pytest.mark.parametrize("damage, why", [BAD_PAIRS["broken-line"], BAD_PAIRS["too-long"]], ids=["broken", "too-long"])
def test_render_names_the_line_too(refused, persona, tiny_gemma, command, damage, why):
    damage(persona.path)
    assert why in refused(command, persona.path, "--base", tiny_gemma)


@pytest.mark.parametrize(
    "words, why",
    [
        (["--preset", "fast"], "'fast': no such preset. Choose one of quick"),
        (["--set", "learning_rat=1"], "learning_rat='1': Extra inputs are not permitted"),
        (["--set", "preset=quick"], "preset='quick': Extra inputs are not permitted"),
        (["--set", "lora_r=many"], "lora_r='many': "),
        (["--set", "lora_r=0", "--set", "seed=-1"], "lora_r='0': "),
        (["--set", "epochs"], "--set epochs: write it as name=value, e.g. --set epochs=2."),
        (["--set", "quantization=int4"], "quantization='int4': Input should be 'none', 'nf4' or 'int8'"),
        (["--resume", "nowhere"], "nowhere: not a training run (no run.json)"),
    ],
    ids=["preset", "unknown", "not-a-setting", "text", "two", "no-value", "quantization", "resume"],
)
def test_train_refuses_settings(refused, persona, words, why):
    assert why in refused("train", persona.path, *words)
    assert list_runs(persona) == []


class Started(Exception):
    """The run that would have been started."""


def refuse_to_start(monkeypatch) -> None:
    def start(run):
        raise Started(run)

    monkeypatch.setattr(launch, "start", start)


def test_settings_from_the_command_line(call, persona, tiny_gemma, monkeypatch):
    """Spaces around name and value do no harm, a value may hold '=' and ',', and --base wins over --set base."""

    refuse_to_start(monkeypatch)
    with pytest.raises(Started) as e:
        call("train", persona.path, "--base", tiny_gemma, "--preset", "balanced", "--set", " epochs = 2 ", "--set",
             "target_modules= q_proj, up_proj", "--set", "use_rslora=true", "--set", "base=other", "--set",
             "template=a=b.jinja", "--set", "learning_rate=1e-3")  # fmt: skip
    config = e.value.args[0].config()
    want = RunConfig(base=str(tiny_gemma), epochs=2, target_modules="q_proj, up_proj", use_rslora=True,
                     template="a=b.jinja", learning_rate=1e-3, early_stopping_patience=4)  # fmt: skip
    assert config == want


@pytest.mark.parametrize(
    "words, batch, why",
    [
        ([], 1, "Changed so that it fits into memory: batch_size: 8 → 1"),
        (["--set", "batch_size=8"], 8, "Kept as given, but it may run out of memory; what would fit: batch_size=1"),
    ],
)
def test_train_fits_the_run_as_the_page_does(capsys, persona, tiny_gemma, monkeypatch, words, batch, why):
    """On a machine with little memory; what was given by hand stays, with a warning on stderr."""
    from dataclasses import replace

    from persona import hardware, planning
    from persona.config import make_config

    small = hardware.Machine("cpu", "test", 10**11, 2, (("float32", 1e9), ("bfloat16", 1e9)))
    plan = planning.outlook(persona, make_config(base=str(tiny_gemma)), persona.pairs(), small).plan
    assert plan.batch_size == 8
    real = hardware.plan_training
    monkeypatch.setattr(hardware, "this_machine", lambda: small)
    monkeypatch.setattr(hardware, "plan_training", lambda *a: replace(real(*a), batch_size=1, accumulation=8))
    monkeypatch.setattr(launch, "start", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("sys.argv", ["persona", "train", str(persona.path), "--base", str(tiny_gemma), *words])
    assert cli.main() == 130
    (run,) = list_runs(persona)
    assert (run.config().batch_size, run.config().gradient_accumulation_steps) == (batch, 8 // batch)
    out, err = capsys.readouterr()
    assert why in err and why not in out


def test_resume_with_less(call, persona, tiny_gemma, monkeypatch):
    from persona.config import make_config
    from persona.runs import create_run

    run = create_run(persona, make_config(base=str(tiny_gemma)))
    run.log("state", state="failed", message="Out of memory.", remedy={"gradient_checkpointing": True})

    refuse_to_start(monkeypatch)
    with pytest.raises(Started) as e:
        call("train", persona.path, "--resume", run.name, "--smaller")
    assert e.value.args[0] == run and run.config().gradient_checkpointing


# ---- train, resume


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_gemma):
    """`train` in a shell: what came out, and the persona's folder."""
    root = tmp_path_factory.mktemp("trained")
    persona = create(root / "my mags", CARD, PAIRS)
    done = shell("train", persona.path, "--base", tiny_gemma, "--set", "epochs = 2", "--set", "dtype=float32",
                 "--set", "batch_size=4", "--json", home=root / "home")  # fmt: skip
    return done, persona


@pytest.mark.slow
def test_train(trained, tiny_gemma):
    done, persona = trained
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    result = json.loads(lines[-1])
    assert set(result) == TRAINED and done.stdout.endswith("}\n") and len(lines) == 1
    (run,) = list_runs(persona)
    assert result["run"] == str(run.path) and result["adapter"] == str(run.adapter)
    assert (result["status"], result["steps"]) == ("done", 2 * 3)
    assert result["base_nll"] > 0 and result["adapter_nll"] > 0 and result["seconds"] > 0
    assert str(run.path) in done.stderr, "where it is, while it runs"
    assert run.config().base == str(tiny_gemma) and run.config().epochs == 2
    assert adapter.check(run.adapter).card == CARD


@pytest.mark.slow
def test_resume(value, trained, tmp_path, tiny_gemma, monkeypatch):
    """By its name inside the persona, or by its path; it goes on from the checkpoint."""
    from persona import hardware, runs, train

    persona = create(tmp_path / "mags", CARD, PAIRS)
    run = runs.create_run(persona, make_config(base=str(tiny_gemma), dtype="float32", batch_size=4, max_steps=3))
    monkeypatch.setattr(hardware, "keep_freed_memory", lambda: None)
    assert train.train(run, deadline=0.0)["status"] == "stopped"
    (run.path / "worker.json").unlink()  # this very process was the worker
    result = value("train", persona.path, "--resume", run.name)
    assert (result["run"], result["status"], result["steps"]) == (str(run.path), "done", 3)
    assert [e["step"] for e in run.events() if e["event"] == "step"] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_that_fails_says_so_on_both(call, persona, tiny_gemma):
    """stdout has the object with status failed, stderr the sentence that the run ended with."""
    status, out, err = call("train", persona.path, "--base", tiny_gemma, "--set", "max_length=8", "--json")
    assert status == 1 and "pair 1: the reply would be cut" in err and "Traceback" not in err
    result = json.loads(out.splitlines()[-1])
    assert set(result) == TRAINED and result["status"] == "failed"
    assert result["run"] == str(list_runs(persona)[0].path) and result["adapter_nll"] is None


# ---- chat, export


@pytest.fixture
def ready(tiny_gemma, tmp_path):
    write_adapter(tiny_gemma, tmp_path / "given" / "adapter", template="gemma-base", card=CARD)
    return tmp_path / "given"


SHORT = ["--max-new-tokens", "12"]


def test_chat(value, ready, tiny_gemma):
    got = value("chat", ready, "--prompt", "Who are you?", "--prompt", "你是谁？", "--base", tiny_gemma, *SHORT)
    assert set(got) == {"turns", "tokens_per_s"} and got["tokens_per_s"] > 0
    assert [t["prompt"] for t in got["turns"]] == ["Who are you?", "你是谁？"]
    _, renderer = open_renderer(CARD, str(tiny_gemma), "gemma-base")
    for turn in got["turns"]:
        assert set(turn) == {"prompt", "rendered", "base", "adapter", "columns"}
        assert [c["text"] for c in turn["columns"]] == [turn["base"], turn["adapter"]]
        assert turn["rendered"] == renderer.prompt([], turn["prompt"]).text
        assert turn["base"] != turn["adapter"]


def test_chat_settings_reach_the_reply(value, ready, tiny_gemma):
    def replies(*words) -> tuple[str, str]:
        (turn,) = value("chat", ready, "--prompt", "hi", "--base", tiny_gemma, *SHORT, *words)["turns"]
        return turn["base"], turn["adapter"]

    warm = ("--temperature", 1.0)
    assert replies(*warm, "--seed", 1) == replies(*warm, "--seed", 1) != replies(*warm, "--seed", 2)
    greedy = replies("--temperature", 0, "--seed", 1)
    assert greedy == replies("--temperature", 0, "--seed", 2)
    off = replies("--temperature", 0, "--strength", 0)
    assert off == (greedy[0], greedy[0])


def test_chat_with_more_columns(value, refused, ready, tiny_gemma, tmp_path):
    """The first two stay what they were; without a prompt the base is asked differently; half of her is her at half."""
    (tmp_path / "q.txt").write_text("Who are you?\n\n你是谁？\n", encoding="utf-8")
    words = ["chat", ready, "--questions", tmp_path / "q.txt", "--base", tiny_gemma, *SHORT]
    plain = value(*words)["turns"]
    more = ["--with", "base", "--with", f"{ready}*0.5", "--save", tmp_path / "out.md"]
    got = value(*words, *more)["turns"]
    keys = ("prompt", "rendered", "base", "adapter")
    assert [{k: t[k] for k in keys} for t in got] == [{k: t[k] for k in keys} for t in plain]
    assert [t["prompt"] for t in got] == ["Who are you?", "你是谁？"]
    for turn in got:
        assert [c["label"] for c in turn["columns"]] == ["base", "persona", "base", f"{ready}*0.5"]
        rendered = [c["rendered"] for c in turn["columns"]]
        assert "Be dry." not in rendered[2] and rendered[0] == rendered[1] == rendered[3] == turn["rendered"]
        assert all(c["tokens"] and not c["error"] for c in turn["columns"])
    assert (tmp_path / "out.md").read_text(encoding="utf-8").startswith("| question | base | persona |")
    assert "5 columns: base and persona, and 2 more" in refused(*words, *["--with", "base"] * 3)
    assert "End the name with one of them" in refused(*words, "--save", tmp_path / "out.doc")


def test_chat_for_people(call, ready, tiny_gemma):
    status, out, _ = call("chat", ready, "--prompt", "Who are you?", "--base", tiny_gemma, *SHORT)
    assert status == 0 and out.startswith("> Who are you?\nbase:    ") and "\npersona: " in out


@pytest.mark.parametrize(
    "words, why",
    [
        (["--prompt", " "], "The prompt is empty"),
        (["--prompt", "a", "--temperature", "9"], "temperature=9.0: from 0"),
        (["--prompt", "a", "--strength", "3"], "strength=3.0: from 0"),
        (["--prompt", "a", "--seed", "-1"], "seed=-1: from 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens=0: from 1"),
        (["--prompt", "a " * 5000], "tokens and no room for a reply"),
        (["--prompt", "a", "--base", "/nowhere"], "'/nowhere': no such folder"),
    ],
    ids=["empty", "temperature", "strength", "seed", "limit", "long", "base"],
)
def test_chat_refuses(refused, ready, tiny_gemma, words, why):
    assert why in refused("chat", ready, *([] if "--base" in words else ["--base", tiny_gemma]), *words)


def test_chat_refuses_what_is_no_adapter(refused, persona, tmp_path, ready):
    assert "no adapter here. Train one with: python -m persona train" in refused("chat", persona.path, "--prompt", "a")
    assert "no adapter here" in refused("chat", tmp_path / "nowhere", "--prompt", "a")
    assert "no such file" in refused("chat", tmp_path / "nowhere.zip", "--prompt", "a")
    (ready / "adapter" / "chat_template.jinja").unlink()
    assert "no chat_template.jinja" in refused("chat", ready, "--prompt", "a")


def test_export_and_chat_with_the_zip(value, ready, tiny_gemma, tmp_path):
    out = tmp_path / "out" / "mags.zip"
    made = value("export", ready, out)
    assert made == {"file": str(out), "bytes": out.stat().st_size}
    with zipfile.ZipFile(out) as archive:
        assert {Path(n).name for n in archive.namelist()} == set(adapter.FILES) - {
            "loss.png"
        }  # no events here to draw it from
    words = ["--prompt", "hi", "--temperature", 0, "--base", tiny_gemma, *SHORT]
    assert value("chat", out, *words)["turns"] == value("chat", ready, *words)["turns"]


def test_export_in_each_form(value, ready, tiny_gemma, tmp_path):
    made = value("export", ready, tmp_path / "whole", "--as", "merged", "--base", tiny_gemma, "--strength", 0.5)
    assert made["strength"] == 0.5 and made["difference"]["largest"] < 1e-3
    assert (tmp_path / "whole" / "model.safetensors").is_file()
    made = value("export", ready, tmp_path / "mags", "--as", "gguf", "--base", tiny_gemma)
    assert made["file"] == "mags.gguf" and "did not come as a GGUF file" in made["notes"][0]
    made = value("export", ready, tmp_path / "mags.png", "--as", "card")
    assert made == {"file": str(tmp_path / "mags.png"), "bytes": (tmp_path / "mags.png").stat().st_size, "examples": 0}
    made = value("export", EXAMPLE, tmp_path / "data", "--as", "dataset")
    assert made["pairs"] > 100 and "axolotl.yaml" in made["files"]


def test_export_for_people(call, tmp_path):
    status, out, _ = call("export", EXAMPLE, tmp_path / "card.json", "--as", "card", "--version", 2)
    assert status == 0 and out.strip() == str(tmp_path / "card.json")
    assert json.loads((tmp_path / "card.json").read_text())["spec"] == "chara_card_v2"


def test_export_refuses(refused, call, ready, tiny_gemma, tmp_path):
    words = ["--base", tiny_gemma, "--as"]
    assert "only a merged model has one" in refused("export", ready, tmp_path / "x", "--strength", 0.5)
    assert "only a merged model has one" in refused("export", ready, tmp_path / "x", *words, "gguf", "--strength", 0.5)
    assert "did not come as a GGUF file" in refused("export", ready, tmp_path / "x", *words, "gguf", "--merge")
    for form in ("merged", "zip"):
        assert "is there already" in refused("export", ready, ready, *words, form)
    assert "the pairs are not here" in refused("export", ready, tmp_path / "x", "--as", "dataset")
    assert call("export", ready, tmp_path / "x", "--as", "nonsense")[0] == 2
    assert not (tmp_path / "x").exists()


# ---- doctor


def test_doctor(value, call, home):
    got = value("doctor")
    assert set(got) == {"persona", "python", "machine", "plan", "packages", "embedded", "home", "not_verified"}
    assert got["home"] == str(home) and got["python"] == sys.version.split()[0]
    assert got["plan"]["device"] == got["machine"]["device"] and got["plan"]["train_dtype"] in got["plan"]["reason"]
    assert got["packages"]["torch"] and got["machine"]["cores"] >= 1 and got["machine"]["memory_bytes"] > 1e8
    status, out, _ = call("doctor")
    assert status == 0 and got["plan"]["reason"] in out and str(home) in out


def test_a_shipped_persona_renders(value, tmp_path, tiny_gemma):
    copy = Path(shutil.copytree(SHIPPED_PERSONAS / "zhen-huan", tmp_path / "zh"))
    got = value("render", copy, "--base", tiny_gemma)
    assert got["problems"] == [] and "".join(t["text"] for t in got["tokens"]) == got["text"]


# ---- import and lint


def test_import_makes_the_persona_and_a_second_time_adds_nothing(tmp_path, value, home):
    file = tmp_path / "rows.json"
    rows = [
        {"instruction": "Who?", "input": "", "output": "Me."},
        {"instruction": "no answer"},
        {"instruction": "Why?", "input": "", "output": "So."},
    ]
    file.write_text(json.dumps(rows, indent=1), encoding="utf-16")
    got = value("import", file, tmp_path / "mags")
    assert (got["read"], got["pairs"], got["known"], got["format"], got["encoding"]) == (3, 2, 0, "alpaca", "utf-16")
    assert [s["line"] for s in got["skipped"]] == [7] and "output" in got["skipped"][0]["why"]
    made = folder.open_persona(tmp_path / "mags")
    assert made.card().name == "mags" and [p.instruction for p in made.pairs()] == ["Who?", "Why?"]
    assert made.pairs()[1].source == "rows.json:10"
    again = value("import", file, tmp_path / "mags")
    assert (again["read"], again["pairs"], again["known"]) == (3, 0, 2) and len(made.pairs()) == 2


def test_import_of_a_screenplay_wants_a_speaker_and_names_those_there_are(tmp_path, value, refused):
    play = tmp_path / "play.txt"
    play.write_text("甲：谁？\n乙：我。\n甲：何事？\n乙：借个火。\n", encoding="gb18030")
    message = refused("import", play, tmp_path / "yi")
    assert (
        "乙 (2)" in message and "--speaker" in message and not (tmp_path / "yi").exists()
    )  # refused: nothing is written
    got = value("import", play, tmp_path / "yi", "--speaker", "乙", "--history", 1)
    assert got["pairs"] == 2 and got["encoding"] == "gb18030"
    assert folder.open_persona(tmp_path / "yi").pairs()[1].history == (("谁？", "我。"),)


def test_import_reads_what_is_piped_in_and_columns_that_are_named(tmp_path, home):
    table = "Frage,Antwort,Nr\nWer?,Ich.,1\n"
    words = (
        "import",
        "-",
        tmp_path / "p",
        "--format",
        "table",
        "--column",
        "instruction=Frage",
        "--column",
        "output=Antwort",
        "--json",
    )
    done = shell(*words, home=home, input=table)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pairs"] == 1
    assert folder.open_persona(tmp_path / "p").pairs()[0].instruction == "Wer?"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{tmp}/missing.json"], "cannot be read"),
        (["{tmp}/good.json", "--format", "pdf"], "no such format"),
        (["{tmp}/good.json", "--column", "instruction"], "--column instruction=Question"),
        (["{tmp}/good.json", "--actions", "sing"], "drop or keep"),
        (["{tmp}/empty.json"], "is empty"),
        (["nobody/no-data-set"], "nobody/no-data-set"),
    ],
)
def test_import_refuses_in_words_and_changes_nothing(tmp_path, refused, words, says, persona):
    (tmp_path / "good.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "empty.json").write_text("")
    before = persona.pairs_file.read_bytes()
    words = [w.format(tmp=tmp_path) for w in words]
    assert says in refused("import", words[0], persona.path, *words[1:])
    assert persona.pairs_file.read_bytes() == before


def test_lint_says_what_is_wrong_by_rule_and_row(tmp_path, value, call):
    pairs = [
        Pair("你是谁？", "本宫甄嬛。"),
        Pair("你是谁？", "我是一个人工智能语言模型。"),
        Pair("茶？", "好茶。"),
        Pair("茶？", "好茶。"),
    ]
    made = create(tmp_path / "zh", Card(name="甄嬛", language="zh"), pairs)
    got = value("lint", made.path)
    assert got["pairs"] == 4 and got["counts"]["duplicate"] == 1 and got["counts"]["ai-leak"] == 1
    assert {"rule": "duplicate", "severity": "warning", "pairs": [4]}.items() <= next(
        f for f in got["findings"] if f["rule"] == "duplicate"
    ).items()
    assert got["counts"]["rival-answers"] == 2 and "identity" in got["kinds"] and got["summary"]
    status, out, _ = call("lint", made.path)
    assert status == 0 and "duplicate" in out


@pytest.mark.slow
def test_lint_measures_rows_for_the_chosen_base(tmp_path, value, embedded_base, monkeypatch, base_home):
    monkeypatch.setenv("PERSONA_HOME", str(base_home))
    made = create(tmp_path / "long", CARD, [Pair("Who?", "word " * 60), Pair("Who are you?", "Me.")])
    got = value("lint", made.path, "--max-length", 40)
    assert got["counts"]["too-long"] == 1


def test_how_far_a_download_is_stands_in_one_line_and_in_no_log(capsys, monkeypatch):
    def err():
        return capsys.readouterr().err.replace("\x1b[2m", "").replace("\x1b[0m", "")  # dim, and no longer

    said = "Downloading a/b from the Hub …", Further("1 of 2 MB"), Further("2 of 2 MB")
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    for text in said:
        note(text)
    assert err() == said[0] + "\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for text in said:
        note(text)
    up_and_over = "\x1b[A\x1b[2K"
    assert err() == f"{said[0]}\n{up_and_over}1 of 2 MB\n{up_and_over}2 of 2 MB\n"
