"""`train`, `resume`, and what is refused before anything is trained, from the command line."""

import json
import shutil
from pathlib import Path

import pytest

from persona import cli
from persona.models import adapter
from persona.store.pairs import MAX_CHARACTERS
from persona.store.persona_folder import Persona, create_persona_at
from persona.train import launcher, snapshots
from persona.train.config import RunConfig, make_config
from persona.train.run_folder import list_runs
from tests.cli_fixtures import CARD, PAIRS, shell

pytest_plugins = "tests.cli_fixtures"
TRAINED = {"run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
           "adapter_nll", "start_nll", "parent", "peak_memory_bytes", "trainable_parameters", "total_parameters"}  # fmt: skip


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
        (["--set", "learning_rat=1"], "learning_rat='1': no such setting (did you mean learning_rate?)"),
        (["--set", "preset=quick"], "preset='quick': no such setting"),
        (["--set", "lora_r=many"], "lora_r='many': "),
        (["--set", "lora_r=0", "--set", "seed=-1"], "lora_r='0': "),
        (["--set", "epochs"], "--set epochs: write it as name=value, e.g. --set epochs=2."),
        (["--set", "quantization=int4"], "quantization='int4': Input should be 'none', 'nf4' or 'int8'"),
        (["--resume", "nowhere"], "nowhere: not a training run (no run.json)"),
        (["--resume", "nowhere", "--base", "x", "--preset", "quick"], "--base, --preset with --resume: a run keeps"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["--set", "r=4", "--set", "lora_r=8"], "r=4 and lora_r=8 contradict each other"),
    ],
    ids=[
        "preset",
        "unknown",
        "not-a-setting",
        "text",
        "two",
        "no-value",
        "quantization",
        "resume",
        "resume-base",
        "config",
        "contradiction",
    ],
)
def test_train_refuses_settings(refused, persona, words, why):
    assert why in refused("train", persona.path, *words)
    assert list_runs(persona) == []


class Started(Exception):
    """The run that would have been started."""


def refuse_to_start(monkeypatch) -> None:
    def start(run):
        raise Started(run)

    monkeypatch.setattr(launcher, "start_run", start)


def test_settings_from_the_command_line(call, persona, tiny_gemma, monkeypatch):
    """Spaces around name and value do no harm, a value may hold '=' and ',', and --base wins over --set base."""

    refuse_to_start(monkeypatch)
    with pytest.raises(Started) as e:
        call("train", persona.path, "--base", tiny_gemma, "--preset", "balanced", "--set", " epochs = 2 ", "--set",
             "target_modules= q_proj, up_proj", "--set", "use_rslora=true", "--set", "base=other", "--set",
             "template=a=b.jinja", "--set", "learning_rate=1e-3")  # fmt: skip
    config = e.value.args[0].config()
    want = make_config("balanced", base=str(tiny_gemma), epochs=2, target_modules="q_proj, up_proj", use_rslora=True,
                       template="a=b.jinja", learning_rate=1e-3)  # fmt: skip
    assert config == want


def test_a_file_of_settings_or_a_run_to_repeat(call, persona, tiny_gemma, tmp_path, monkeypatch):
    """--set is on top of the file, --base on top of both; a run is repeated by its name, its folder or its run.json."""
    refuse_to_start(monkeypatch)

    def started(*words) -> RunConfig:
        with pytest.raises(Started) as e:
            call("train", persona.path, *words)
        return e.value.args[0].config()

    file = tmp_path / "settings.yml"
    file.write_text("model_name_or_path: elsewhere\nr: 4\nnum_train_epochs: 2\n")
    config = started("--config", file, "--set", "lora_r=8", "--base", tiny_gemma)
    assert config == make_config(base=str(tiny_gemma), lora_r=8, epochs=2)
    (run,) = list_runs(persona)
    for same in (run.name, run.path, run.path / "run.json"):
        assert started("--config", same) == config
    assert started("--config", run.name, "--set", "seed=3").seed == 3


@pytest.mark.slow
def test_go_on_from_a_run_of_the_persona(call, refused, trained, tiny_gemma, tmp_path, monkeypatch):
    """By its name, a snapshot of it, its folder or a zip; the settings are the adapter's, the pace is that of --from."""
    refuse_to_start(monkeypatch)
    persona = Persona(shutil.copytree(trained[1].path, tmp_path / "mags"))
    (first,) = list_runs(persona)
    step = snapshots.list_snapshot_steps(first)[0]
    call("export", first.path, tmp_path / "light.zip", "--as", "zip")
    notes = []

    def started(parent, *words):
        monkeypatch.setattr("persona.cli.train.print_note", lambda text: notes.append(str(text)))
        with pytest.raises(Started) as e:
            call("train", persona.path, "--from", parent, *words)
        return e.value.args[0]

    for parent, name in [
        (first.name, f"run/{persona.slug}/{first.name}"),
        (f"{first.name}@{step}", f"run/{persona.slug}/{first.name}@{step}"),
        (first.path, f"run/{persona.slug}/{first.name}"),
    ]:
        run = started(parent)
        config, own = run.config(), first.config()
        assert run.manifest()["parent"]["adapter"] == name
        assert (config.base, config.lora_r, config.epochs, config.new_pair_repeats) == (own.base, own.lora_r, 1, 12)
        assert [r.held_out for r in run.rows()] == [r.held_out for r in first.rows()]
        assert "0 new pairs, each learned 12 times an epoch, 11 old ones; 1 held out" in notes[-1]
    run = started(tmp_path / "light.zip", "--base", tiny_gemma, "--preset", "quick")
    assert (run.manifest()["parent"]["rows_known"], run.config().epochs) == (False, 3)
    assert "none counts as new" in notes[-1]
    monkeypatch.undo()
    message = refused("train", persona.path, "--from", first.name, "--set", "lora_r=4", "--set", "use_dora=true")
    assert "lora_r=4 ≠ 32, use_dora=true ≠ false" in message and "start a new run without one" in message
    assert "--from with --resume: a run keeps" in refused("train", persona.path, "--from", "x", "--resume", "y")
    assert "nowhere: no adapter here" in refused("train", persona.path, "--from", "nowhere")


def test_relative_paths_name_the_same_base_and_template(call, persona, tiny_gemma, tmp_path, monkeypatch):
    """The process that trains works in the folder of its run."""
    refuse_to_start(monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_gemma)
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    with pytest.raises(Started) as e:
        call("train", persona.path, "--base", "./model", "--set", "template=own.jinja")
    config = e.value.args[0].config()
    assert (config.base, config.template) == (str(tmp_path / "model"), str(tmp_path / "own.jinja"))
    (tmp_path / "gemma-3-270m").mkdir()
    with pytest.raises(Started) as e:
        call("train", persona.path)
    assert e.value.args[0].config().base == "gemma-3-270m", "a name is a name"


@pytest.mark.parametrize(
    "name, why",
    [
        ("gemma-3-27m", "'gemma-3-27m': no such folder, GGUF file or Hub id (OWNER/NAME). The embedded base"),
        ("/nowhere/model.gguf", "/nowhere/model.gguf: no such file. Check the path"),
        ("{empty}", "no config.json in this folder"),
        ("qwen3-0.6b", "'qwen3-0.6b': its id on the Hub has an owner: Qwen/Qwen3-0.6B."),
        ("modelscope:nobody", "'modelscope:nobody': not a model of ModelScope"),
    ],
)
def test_a_base_that_is_not_there_is_refused_before_there_is_a_run(refused, persona, tmp_path, name, why):
    (tmp_path / "empty").mkdir()
    assert why in refused("train", persona.path, "--base", name.format(empty=tmp_path / "empty"))
    assert not persona.runs_dir.exists()


def test_a_base_on_the_hub_without_a_network(call, persona, tiny_gemma, tmp_path, monkeypatch, capsys):
    """One that was downloaded passes; of another one it is said that it cannot be checked, and the run is made."""
    refuse_to_start(monkeypatch)
    noted = "ann/model: not on this machine, and the Hub cannot be asked now"
    with pytest.raises(Started):
        call("train", persona.path, "--base", "ann/model")
    assert noted in capsys.readouterr().err
    monkeypatch.setattr("persona.models.download.find_in_hub_cache", lambda name, revision="": tiny_gemma)
    with pytest.raises(Started):
        call("train", persona.path, "--base", "ann/model")
    assert noted not in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--help", "--settings"])
def test_settings_are_listed(option, call, monkeypatch):
    """Each with its meaning, its default, when to change it and its other names; no line wider than the terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = call("train", option)
    assert status == 0 and max(map(len, out.splitlines())) <= 80
    listed = out[out.index("Settings: NAME=VALUE") :]
    words = " ".join(listed.split())
    for name, field in RunConfig.model_fields.items():
        when = (field.json_schema_extra or {}).get("when", "")
        assert f"\n  {name}=" in listed and f"{field.description}. {when}".strip() in words, name
    assert "lora_r=16 " in words and "Also: r." in words and "bnb_4bit_quant_type" in words
    assert ("--resume" in out) == (option == "--help")


def test_resume_with_other_settings(call, persona, tiny_gemma, monkeypatch):
    run = launcher.create_run(persona, make_config(base=str(tiny_gemma)))
    run.log("state", state="stopped")
    status, _, err = call("train", persona.path, "--resume", run.name, "--set", "r=4")
    assert status == 1 and "r=4: cannot change once a run has begun" in err
    refuse_to_start(monkeypatch)
    with pytest.raises(Started):
        call("train", persona.path, "--resume", run.name, "--set", "num_train_epochs=5")
    assert run.config().epochs == 5 and run.manifest()["changes"][0]["settings"] == {"epochs": [3.0, 5.0]}


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

    from persona.models import hardware
    from persona.train import plan as train_plan
    from persona.train.config import make_config

    small = hardware.Machine("cpu", "test", 10**11, 2, (("float32", 1e9), ("bfloat16", 1e9)))
    plan = train_plan.estimate_training(persona, make_config(base=str(tiny_gemma)), persona.pairs(), small).plan
    assert plan.batch_size == 8
    real = train_plan.plan_training
    monkeypatch.setattr(hardware, "this_machine", lambda: small)
    monkeypatch.setattr(train_plan, "plan_training", lambda *a: replace(real(*a), batch_size=1, accumulation=8))
    monkeypatch.setattr(launcher, "start_run", lambda run: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("sys.argv", ["persona", "train", str(persona.path), "--base", str(tiny_gemma), *words])
    assert cli.main() == 130
    (run,) = list_runs(persona)
    assert (run.config().batch_size, run.config().gradient_accumulation_steps) == (batch, 8 // batch)
    out, err = capsys.readouterr()
    assert why in err and why not in out


def test_resume_with_less(call, persona, tiny_gemma, monkeypatch):
    from persona.train.config import make_config
    from persona.train.launcher import create_run

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
    persona = create_persona_at(root / "my mags", CARD, PAIRS)
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
    assert adapter.read_adapter(run.adapter).card == CARD


@pytest.mark.slow
def test_resume(value, trained, tmp_path, tiny_gemma, monkeypatch):
    """By its name inside the persona, or by its path; it goes on from the checkpoint."""
    from persona.models import malloc
    from persona.train import launcher
    from persona.train import run as train_run

    persona = create_persona_at(tmp_path / "mags", CARD, PAIRS)
    run = launcher.create_run(persona, make_config(base=str(tiny_gemma), dtype="float32", batch_size=4, max_steps=3))
    monkeypatch.setattr(malloc, "disable_malloc_trim", lambda: None)
    assert train_run.train_run(run, deadline=0.0)["status"] == "stopped"
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
