"""`persona`: one JSON object on the last line, messages on stderr, exit status 0, 1 or 2."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import typer
from tiny_models import write_adapter

from persona import cli
from persona.cli.output import print_note
from persona.models import adapter
from persona.models.base import Base, load_tokenizer
from persona.models.open_renderer import open_renderer
from persona.models.progress_callback import ProgressUpdate
from persona.store import persona_folder, workspace
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.workspace import EXAMPLES_DIR, PROJECT_DIR
from persona.template.chat_template import read_template
from persona.template.render import Renderer
from tests.cli_fixtures import CARD, PAIRS, shell

pytest_plugins = "tests.cli_fixtures"
EXAMPLE = EXAMPLES_DIR / "lighthouse-keeper"


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
    create_persona_at(tmp_path / "甄嬛", CARD, [])
    words = [sys.executable, "-m", "persona", "train", str(tmp_path / "甄嬛"), "--base", str(tiny_gemma)]
    env = {"PATH": os.environ["PATH"], "PERSONA_HOME": str(home), "PYTHONPATH": str(PROJECT_DIR), "LC_ALL": "C"}
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
        ["page", "--prot", "8000"],
        ["page", "--port", "many"],
        ["--nonsense"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_status_2(call, words):
    status, out, err = call(*words)
    assert (status, out) == (2, "") and "Error: " in err and "Traceback" not in err
    assert "Usage: persona " in err or words[-1] == "--set"


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["chat", "--help"]], ids=" ".join)
def test_help_is_status_0(call, words):
    status, out, err = call(*words)
    assert status == 0 and "Usage:" in out and err == ""


# ---- new


def test_new(value, tmp_path):
    made = value("new", tmp_path / "a b" / "mags", "--name", "Mags", "--system", "Be dry.")
    opened = persona_folder.open_persona(made["persona"])
    assert (opened.card(), opened.pairs()) == (PersonaCard(name="Mags", system="Be dry."), [])


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
    example = renderer.render_example(PAIRS[number - 1])
    assert [t["id"] for t in got["tokens"]] == example.input_ids and got["text"] == example.text
    learned = "".join(t["text"] for t in got["tokens"] if t["learned"])
    assert learned == PAIRS[number - 1].output.strip() + ("<eos>" if template == "auto" else "<end_of_turn>")


def test_render_for_people_names_the_totals(call, persona, tiny_gemma):
    status, out, _ = call("render", persona.path, "--base", tiny_gemma)
    assert status == 0 and "I keep the light. 𠮷" in out and " learned, " in out and "masked tokens" in out


def test_render_says_what_is_wrong_with_a_pair(value, tmp_path, tiny_gemma):
    persona = create_persona_at(tmp_path / "p", CARD, [Pair("a", "b<end_of_turn>")])
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
        assert turn["rendered"] == renderer.render_prompt([], turn["prompt"]).text
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
        assert [c["label"] for c in turn["columns"]] == ["base", "persona", "base without prompt", f"{ready}*0.5"]
        rendered = [c["rendered"] for c in turn["columns"]]
        assert "Be dry." not in rendered[2] and rendered[0] == rendered[1] == rendered[3] == turn["rendered"]
        assert all(c["tokens"] and not c["error"] for c in turn["columns"])
    assert (tmp_path / "out.md").read_text(encoding="utf-8").startswith("| question | base | persona |")
    again = refused(*words, "--with", "base", "--with", "base")
    assert "--with base: there is a column 'base without prompt' already. Name each column once." in again
    assert "5 columns: base and persona, and 2 more" in refused(*words, *["--with", "base"] * 3)
    assert "End the name with one of them" in refused(*words, "--save", tmp_path / "out.doc")


def test_chat_for_people(call, ready, tiny_gemma):
    status, out, notes = call("chat", ready, "--prompt", "Who are you?", "--base", tiny_gemma, *SHORT)
    assert status == 0 and out.startswith("> Who are you?\nbase:    ") and "\npersona: " in out
    assert f"{tiny_gemma.name} in float32: about 0.0 GB of memory, " in notes


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
def test_chat_on_a_quantized_base(call, value, ready, tiny_gemma):
    words = ["chat", ready, "--prompt", "hi", "--base", tiny_gemma, "--temperature", 0, *SHORT]
    status, out, notes = call(*words, "--quantization", "int8", "--json")
    assert status == 0 and f"{tiny_gemma.name} in 8 bits (int8): about" in notes
    assert json.loads(out.splitlines()[-1])["turns"] != value(*words)["turns"]


@pytest.mark.parametrize(
    "words, why",
    [
        (["--prompt", " "], "The prompt is empty"),
        (["--prompt", "a", "--temperature", "9"], "temperature=9.0: from 0"),
        (["--prompt", "a", "--strength", "3"], "strength=3.0: from 0"),
        (["--prompt", "a", "--seed", "-1"], "seed=-1: from 0"),
        (["--prompt", "a", "--max-new-tokens", "0"], "max_new_tokens=0: from 1"),
        (["--prompt", "a " * 5000], "Shorten the message, or allow shorter replies"),
        (["--prompt", "a", "--base", "/nowhere"], "'/nowhere': no such folder"),
        (["--prompt", "a", "--quantization", "int4"], "quantization=int4: is not auto, none, nf4 or int8"),
    ],
    ids=["empty", "temperature", "strength", "seed", "limit", "long", "base", "quantization"],
)
def test_chat_refuses(refused, ready, tiny_gemma, words, why):
    assert why in refused("chat", ready, *([] if "--base" in words else ["--base", tiny_gemma]), *words)


def test_chat_refuses_what_is_no_adapter(refused, persona, tmp_path, ready):
    assert "no adapter here. Train one with: persona train" in refused("chat", persona.path, "--prompt", "a")
    assert "no adapter here" in refused("chat", tmp_path / "nowhere", "--prompt", "a")
    assert "no such file" in refused("chat", tmp_path / "nowhere.zip", "--prompt", "a")
    (ready / "adapter" / "chat_template.jinja").unlink()
    assert "no chat_template.jinja" in refused("chat", ready, "--prompt", "a")


def test_export_and_chat_with_the_zip(value, ready, tiny_gemma, tmp_path):
    out = tmp_path / "out" / "mags.zip"
    made = value("export", ready, out)
    assert made == {"file": str(out), "bytes": out.stat().st_size}
    with zipfile.ZipFile(out) as archive:
        held = {Path(n).name for n in archive.namelist()}
    assert held == set(adapter.ADAPTER_FILES) - {"loss.png"}, "no events here to draw it from"
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
    copy = Path(shutil.copytree(EXAMPLES_DIR / "zhen-huan", tmp_path / "zh"))
    got = value("render", copy, "--base", tiny_gemma)
    assert got["problems"] == [] and "".join(t["text"] for t in got["tokens"]) == got["text"]


def test_an_example_s_name_is_the_users_own_copy_of_it(call, home, tmp_path, monkeypatch):
    """Made once; a folder of that name comes first."""
    monkeypatch.chdir(tmp_path)
    status, out, err = call("lint", EXAMPLE.name)
    copy = home / "personas" / EXAMPLE.name
    assert (status, "661 usable pairs" in out) == (0, True) and str(copy) in err
    persona_folder.Persona(copy).save_pairs(PAIRS)
    assert f"{len(PAIRS)} usable pairs" in call("lint", EXAMPLE.name)[1]
    create_persona_at(tmp_path / EXAMPLE.name, CARD, PAIRS[:5])
    assert "5 usable pairs" in call("lint", EXAMPLE.name)[1]


def test_a_persona_of_the_user_by_its_name(value, refused, ready, home, tmp_path, tiny_gemma, monkeypatch):
    """Wherever an adapter or a persona's folder is asked for; never in the way of a folder of that name."""
    monkeypatch.chdir(tmp_path)
    copy = home / "personas" / "keeper"
    create_persona_at(copy, CARD, PAIRS)
    assert value("lint", "keeper")["pairs"] == len(PAIRS)
    assert "keeper: no adapter here. Train one with: persona train keeper" in refused("chat", "keeper", "--prompt", "a")
    shutil.copytree(ready, copy / "runs" / ready.name)
    words = ["--prompt", "Who are you?", "--temperature", 0, "--base", tiny_gemma, *SHORT]
    assert value("chat", "keeper", *words)["turns"] == value("chat", ready, *words)["turns"]
    value("export", "keeper", "keeper.zip")
    assert value("chat", "keeper.zip", *words)["turns"] == value("chat", ready, *words)["turns"]
    assert value("export", "zhen-huan", "data", "--as", "dataset")["pairs"] > 100
    assert not (home / "personas" / "zhen-huan").exists()
    assert "zhen-huan: no adapter here. Train one with" in refused("eval", "zhen-huan")


@pytest.mark.parametrize("command", typer.main.get_command(cli.app).commands.values(), ids=lambda c: c.name)
def test_every_option_says_what_it_means_and_its_default(command):
    """typer prints a default of its own accord, but not one that is empty: then the help text says it."""
    for parameter in command.params:
        assert parameter.help, parameter.name
        if parameter.param_type_name == "option" and parameter.default in (None, "") and not parameter.required:
            assert re.search(r"Default: |Repeat for ", parameter.help), parameter.name


def test_the_version_is_the_package_s(call):
    project = tomllib.loads((PROJECT_DIR / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert call("--version") == (0, f"persona {project['version']}\n", "")


def test_page_takes_options_before_variables(call, monkeypatch, tmp_path):
    """Who asks is not known from the shell: `asking` is unset again."""
    from persona.ui import server

    served = []
    monkeypatch.setattr(
        server,
        "serve_page",
        lambda *at: served.append((*at, os.environ["PERSONA_HOME"], workspace._active_visitor.get())),
    )
    for name in ("HOST", "GRADIO_SERVER_NAME", "GRADIO_SERVER_PORT", "GRADIO_SHARE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PORT", "8001")
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path))
    assert call("page")[0] == call("page", "--host", "0.0.0.0", "--port", 8002, "--home", tmp_path / "h")[0] == 0
    assert served == [("127.0.0.1", 8001, str(tmp_path), None), ("0.0.0.0", 8002, str(tmp_path / "h"), None)]


def test_how_far_a_download_is_stands_in_one_line_and_in_no_log(capsys, monkeypatch):
    def err():
        return capsys.readouterr().err.replace("\x1b[2m", "").replace("\x1b[0m", "")  # dim, and no longer

    said = "Downloading a/b from the Hub …", ProgressUpdate("1 of 2 MB"), ProgressUpdate("2 of 2 MB")
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    for text in said:
        print_note(text)
    assert err() == said[0] + "\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    for text in said:
        print_note(text)
    up_and_over = "\x1b[A\x1b[2K"
    assert err() == f"{said[0]}\n{up_and_over}1 of 2 MB\n{up_and_over}2 of 2 MB\n"
