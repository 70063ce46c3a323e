"""`persona serve --engine vllm`: the command that is built, what it is given, and what is refused before it starts."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import pytest
from cases import check_each
from tiny_models import PLAIN_CPU, write_adapter
from typer.testing import CliRunner

from persona import cli
from persona.errors import AdapterError, InputError
from persona.models import adapter, hardware
from persona.models.base import Base, load_tokenizer
from persona.serve import vllm_engine
from persona.serve.auth import ApiAuth
from persona.serve.model_list import list_models

VLLM = Path("/opt/vllm/bin/vllm")
# stands in for vLLM: writes down what it was given, and ends
STANDIN = """#!{python}
import json, os, pathlib, sys
at = sys.argv.index
template, generation = (pathlib.Path(sys.argv[at(x) + 1]) for x in ("--chat-template", "--generation-config"))
seen = {{"command": sys.argv[1:], "template": template.read_text("utf-8"), "key": os.environ.get("VLLM_API_KEY"),
         "generation": json.loads((generation / "generation_config.json").read_text("utf-8"))}}
pathlib.Path({out!r}).write_text(json.dumps(seen), "utf-8")
sys.exit({status})
"""


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch):
    monkeypatch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)


def served(base_folder, folder, template="gemma-base", **adapters):
    """Models for the base in base_folder: an adapter of each name, with these LoRA settings."""
    base, found = Base("tiny", base_folder), []
    for seed, (name, settings) in enumerate(adapters.items(), 1):
        write_adapter(base_folder, folder / name, seed=seed, **{"template": template, **settings})
        found.append((name, adapter.read_adapter(folder / name), base))
    return list_models(found, [])


def option(command, name):
    return command[command.index(name) + 1]


def test_the_command(tiny_gemma, tmp_path):
    models = served(tiny_gemma, tmp_path, one={"r": 4}, two={"r": 12, "rank_pattern": {"q_proj": 20}})
    command = vllm_engine.build_command(VLLM, models, "127.0.0.1", 8000, tmp_path)
    assert command[:3] == [str(VLLM), "serve", str(tiny_gemma)], "the folder of the training's own weights"
    assert option(command, "--served-model-name") == "tiny"
    assert (option(command, "--host"), option(command, "--port")) == ("127.0.0.1", "8000")
    assert option(command, "--max-lora-rank") == "32", "the next that vLLM takes"
    assert option(command, "--max-loras") == "3", "one stays empty: vLLM reads the last one for the base"
    assert "--enforce-eager" in command
    assert [json.loads(x) for x in command[command.index("--lora-modules") + 1 :][:2]] == [
        {"name": name, "path": str(tmp_path / name), "base_model_name": "tiny"} for name in ("one", "two")
    ]
    assert Path(option(command, "--chat-template")).read_text("utf-8") == models[1].adapter.template.text
    generation = json.loads(
        (Path(option(command, "--generation-config")) / "generation_config.json").read_text("utf-8")
    )
    tokenizer = load_tokenizer(models[0].base)
    assert generation["eos_token_id"] == sorted({models[1].renderer("").stop_id, tokenizer.eos_token_id})


def test_on_a_gpu_no_slot_stays_empty(tiny_gemma, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "this_machine", lambda: dataclasses.replace(PLAIN_CPU, device="cuda"))
    models = served(tiny_gemma, tmp_path, one={}, two={})
    command = vllm_engine.build_command(VLLM, models, "127.0.0.1", 8000, tmp_path)
    assert option(command, "--max-loras") == "2" and "--enforce-eager" not in command


def test_a_base_alone(tiny_gemma, tmp_path):
    command = vllm_engine.build_command(VLLM, list_models([], [Base("tiny", tiny_gemma)]), "::1", 1, tmp_path)
    assert "--enable-lora" not in command and "--lora-modules" not in command


def test_what_it_cannot_serve_is_refused(tiny_gemma, tiny_gemma2_folder, tmp_path):
    def check(number, models, error, words):
        (tmp_path / f"out{number}").mkdir()
        with pytest.raises(error, match=words):
            vllm_engine.build_command(VLLM, models, "127.0.0.1", 1, tmp_path / f"out{number}")

    plain = served(tiny_gemma, tmp_path / "a", plain={})
    chatml = served(tiny_gemma, tmp_path / "b", template="alpaca-en", other={})
    check_each([
        (1, served(tiny_gemma, tmp_path / "c", dora={"use_dora": True}), AdapterError, "does not load a DoRA adapter.*--as merged"),
        (2, served(tiny_gemma, tmp_path / "d", wide={"r": 600}), AdapterError, "up to 512, this one has 600"),
        (3, plain + chatml[1:], InputError, "different ones: plain, other|different ones: tiny, other"),
        (4, plain + list_models([], [Base("second", tiny_gemma2_folder)]), InputError, "one base at a time.*second"),
    ], check)  # fmt: skip


@pytest.fixture
def tiny_gemma2_folder(tiny_gemma, tmp_path):
    """The same base in another folder."""
    (tmp_path / "second").symlink_to(tiny_gemma, target_is_directory=True)
    return tmp_path / "second"


def test_the_environment(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "7")
    found = vllm_engine.build_environment(ApiAuth(("secret",)))
    assert found["VLLM_API_KEY"] == "secret" and found["VLLM_CPU_KVCACHE_SPACE"] == "7"
    assert found["VLLM_NO_USAGE_STATS"] == found["HF_HUB_OFFLINE"] == "1" and found["PATH"] == os.environ["PATH"]
    with pytest.raises(InputError, match="takes one key, there are 2"):
        vllm_engine.build_environment(ApiAuth(("a", "b")))


def test_the_program_is_found_or_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PERSONA_VLLM", raising=False)
    with pytest.raises(InputError, match="vllm: vLLM is not installed there.*pip install vllm.*PERSONA_VLLM="):
        vllm_engine.find_vllm()
    program = tmp_path / "vllm"
    program.touch(0o755)
    assert vllm_engine.find_vllm() == program
    monkeypatch.setenv("PERSONA_VLLM", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="nothing: vLLM is not installed there"):
        vllm_engine.find_vllm()


def serve(*arguments):
    return CliRunner().invoke(cli.app, ["serve", *arguments])


def test_from_the_command_line(tiny_gemma, tmp_path, monkeypatch):
    write_adapter(tiny_gemma, tmp_path / "mags", template="gemma-base")
    monkeypatch.setenv("PERSONA_API_KEYS", "secret")
    for status in (0, 3):
        out, program = tmp_path / f"seen{status}.json", tmp_path / f"vllm{status}"
        program.write_text(STANDIN.format(python=sys.executable, out=str(out), status=status), "utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PERSONA_VLLM", str(program))
        done = serve(f"mags={tmp_path / 'mags'}", "--base", str(tiny_gemma), "--engine", "vllm", "--port", "8123")
        seen = json.loads(out.read_text("utf-8"))
        assert option(seen["command"], "--port") == "8123" and seen["key"] == "secret"
        assert "secret" not in " ".join(seen["command"]), "other users of this machine see the command"
        assert seen["template"] == (tmp_path / "mags/chat_template.jinja").read_text("utf-8")
        assert not Path(option(seen["command"], "--generation-config")).exists(), "removed when it has ended"
        assert isinstance(done.exception, SystemExit | type(None)) or "status 3" in str(done.exception)
        assert (status == 0) == (done.exception is None)


def test_a_signal_is_passed_on_and_ends_it_well(tiny_gemma, tmp_path):
    """As vLLM does, the stand-in ends with a status of its own; it sends the signal as soon as it runs."""
    program = tmp_path / "vllm"
    script = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(9))\n"
    program.write_text(f"#!{sys.executable}\n{script}os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)\n", "utf-8")
    program.chmod(0o755)
    models = list_models([], [Base("tiny", tiny_gemma)])
    assert vllm_engine.run_vllm(program, models, "127.0.0.1", 1, ApiAuth()) == 0


def test_what_does_not_go_together_is_refused(tmp_path):
    assert "choose one of persona, vllm" in str(serve("--engine", "tgi").exception)
    refused = serve("--engine", "vllm", "--quantization", "nf4").exception
    assert "--quantization nf4 does not go with --engine vllm" in str(refused)
