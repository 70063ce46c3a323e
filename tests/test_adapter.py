"""An adapter folder: it opens as it was trained, holds no path of its author, and is validated before it is opened."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_models import CARD, FACTS, load, with_lora, write_adapter

from persona.errors import AdapterError
from persona.models import adapter, attach, model_card
from persona.models.base import Base
from persona.template.chat_template import read_template

WEIGHTS = "adapter_model.safetensors"
IDS = torch.tensor([[5, 9, 60, 33, 120, 7, 7, 300]])


def logits(model, **options) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, **options).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_llama):
    folder = tmp_path_factory.mktemp("written") / "adapter"
    return write_adapter(tiny_llama, folder), folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "mags"))


@pytest.fixture
def base_model(tiny_llama):
    return load(tiny_llama)


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(folder: Path, change) -> None:
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)


# ---- there and back


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 8, "lora_alpha": 4},
        {"use_rslora": True},
        {"use_dora": True},
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": r".*\.mlp\.(up|down)_proj"},
        {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    ],
    ids=["plain", "alpha-below-r", "rslora", "dora", "two-layers", "regex", "patterns"],
)
@pytest.mark.parametrize("base", ["tiny_gemma", "tiny_llama"])
def test_round_trip(base, settings, request, tmp_path):
    """Opened on a fresh base, the adapter says exactly what the trained model in memory said."""
    base = request.getfixturevalue(base)
    model = write_adapter(base, tmp_path / "a", **settings)
    opened = attach.attach_adapter(load(base), adapter.read_adapter(tmp_path / "a"), "mags")
    assert torch.equal(logits(opened), logits(model))
    assert (logits(load(base)) - logits(model)).abs().max() > 0.1, "the adapter must matter"


def test_it_describes_itself(trained, tiny_llama):
    opened = adapter.read_adapter(trained[1])
    assert {f.name for f in trained[1].iterdir()} == set(adapter.ADAPTER_FILES) - {model_card.LOSS_PICTURE}
    assert (opened.card, opened.base_id, opened.template) == (CARD, "someone/tiny", read_template("chatml"))
    assert opened.settings["r"] == 4 and opened.settings["lora_alpha"] == 8
    assert opened.max_length == 64 and opened.facts["figures"] == FACTS["figures"]
    assert opened.facts["base"]["licence"] == "MIT"
    layers = opened.settings["target_modules"]
    assert layers == sorted(layers) and len(layers) == 14, "PEFT writes them in the order of a set"


def test_no_file_holds_a_path(trained, tiny_llama):
    """PEFT writes where the base lay on the author's disk into its settings and its README."""
    where = [str(tiny_llama), str(tiny_llama.parent), str(trained[1].parent), str(Path.home()) + os.sep]
    for file in trained[1].iterdir():
        data = file.read_bytes().decode("utf-8", "replace")
        assert not [w for w in where if w in data], file.name
    assert json.loads((trained[1] / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/tiny"


def test_two_equal_runs_give_equal_files(trained, tiny_llama, tmp_path):
    write_adapter(tiny_llama, tmp_path / "again")
    for file in trained[1].iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes(), file.name


def test_an_older_adapter_is_replaced_and_nothing_else_stays(tiny_llama, tmp_path):
    target = tmp_path / "run" / "adapter"
    for seed in (1, 2):
        model = write_adapter(tiny_llama, target, seed)
    opened = attach.attach_adapter(load(tiny_llama), adapter.read_adapter(target), "x")
    assert torch.equal(logits(opened), logits(model))
    assert [p.name for p in target.parent.iterdir()] == ["adapter"]


# ---- refused


def only_a_pickle(folder):
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def no_weights(folder):
    (folder / WEIGHTS).unlink()


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def not_finite(value):
    def change(folder):
        edit_weights(folder, lambda state: state[min(state)].view(-1)[3].fill_(value))

    return change


def stored_as(dtype):
    return lambda folder: edit_weights(folder, lambda s: s.update({min(s): s[min(s)].to(dtype)}))


def settings(**changes):
    return lambda folder: edit(folder / "adapter_config.json", **changes)


def file(name, data):
    return lambda folder: (folder / name).write_bytes(data)


DEEP = b'{"a":' + b"[" * 200_000
REFUSED = {
    "only-a-pickle": (only_a_pickle, r"mags: holds adapter_model\.bin\. A pickle can run code .* safetensors"),
    "no-weights": (no_weights, r"mags: no adapter_model\.safetensors here"),
    "no-template": (no_template, r"mags: no chat_template\.jinja"),
    "template-not-utf8": (file("chat_template.jinja", b"\xff\xfe{{"), r"mags/chat_template\.jinja: cannot be read"),
    "cut": (cut, r"adapter_model\.safetensors: damaged or incomplete"),
    "empty-file": (file(WEIGHTS, b""), r"adapter_model\.safetensors: damaged or incomplete"),
    "header-of-exabytes": (file(WEIGHTS, b"\xff" * 64), r"adapter_model\.safetensors: damaged or incomplete"),
    "nan": (not_finite(float("nan")), r"holds numbers that are not finite"),
    "infinite": (not_finite(float("-inf")), r"holds numbers that are not finite"),
    "float8": (stored_as(torch.float8_e4m3fn), r"is stored as torch\.float8_e4m3fn"),
    "integers": (stored_as(torch.int32), r"is stored as torch\.int32"),
    "other-type": (settings(peft_type="LOHA"), r"a LOHA adapter; only LoRA"),
    "r-0": (settings(r=0), r"r=0 is not a number from 1 to 4096"),
    "r-too-large": (settings(r=4097), r"r=4097 is not"),
    "r-text": (settings(r="4"), r"r='4' is not"),
    "r-missing": (settings(r=None), r"r=None is not"),
    "r-true": (settings(r=True), r"r=True is not"),
    "r-huge": (settings(r=10**400), r"r=1000.* is not"),
    "alpha-huge": (settings(lora_alpha=10**400), r"lora_alpha=1000.* is not"),
    "alpha-infinite": (settings(lora_alpha=float("inf")), r"lora_alpha=inf is not"),
    "alpha-nan": (settings(lora_alpha=float("nan")), r"lora_alpha=nan is not"),
    "rank-pattern-huge": (settings(rank_pattern={"q_proj": 10**9}), r"rank_pattern=.* is not a number for each"),
    "rank-pattern-list": (settings(rank_pattern=["q_proj"]), r"rank_pattern=.* is not a number for each"),
    "pattern-that-never-ends": (settings(alpha_pattern={"(a+)+$": 1}), r"alpha_pattern=.* is not a number for each"),
    "no-layers": (settings(target_modules=None), r"target_modules=None names no layers"),
    "layers-not-text": (settings(target_modules=[1]), r"target_modules=\[1\] names no layers"),
    "digits-without-end": (file("adapter_config.json", b'{"r": ' + b"9" * 5000 + b"}"), r"\.json: cannot be read"),
    "not-utf8": (file("adapter_config.json", b'{"r": "\xff"}'), r"adapter_config\.json: cannot be read"),
    "too-deep": (file("adapter_config.json", DEEP), r"adapter_config\.json: cannot be read"),
    "not-json": (file("adapter_config.json", b"{"), r"adapter_config\.json line 1, column 2: not JSON"),
    "a-list": (file("adapter_config.json", b"[]"), r"adapter_config\.json: holds a list"),
    "run-not-utf8": (file("run.json", b"\xff"), r"run\.json: cannot be read"),
    "run-too-deep": (file("run.json", DEEP), r"run\.json: cannot be read"),
    "persona-without-name": (file("persona.json", b"{}"), r"persona\.json: 'name'"),
}


@pytest.mark.parametrize("damage, why", REFUSED.values(), ids=REFUSED)
def test_check_refuses(folder, damage, why):
    adapter.read_adapter(folder)
    damage(folder)
    with pytest.raises(AdapterError, match=why) as e:
        adapter.read_adapter(folder)
    assert len(str(e.value)) < 600, "a hostile value must not fill the screen"


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="no such adapter folder"):
        adapter.read_adapter(tmp_path / "nowhere")


def test_names_of_things_to_import_are_ignored(folder, base_model, trained):
    """PEFT imports what auto_mapping and megatron_core name; only known settings go through."""
    edit(
        folder / "adapter_config.json",
        auto_mapping={"base_model_class": "system", "parent_library": "os"},
        megatron_config={"a": 1},
        megatron_core="os.path",
        loftq_config={"x": 1},
        init_lora_weights="pissa",
        modules_to_save=["lm_head"],
        layer_replication=[[0, 2]],
        task_type="os.system",
        runtime_config={"x": 1},
        eva_config={"x": 1},
        unheard_of={"__class__": "os"},
    )
    opened = adapter.read_adapter(folder)
    assert set(opened.settings) <= set(adapter._SETTINGS)
    assert torch.equal(logits(attach.attach_adapter(base_model, opened, "x")), logits(trained[0]))


@pytest.mark.timeout(60)
def test_layers_come_from_the_weights_and_not_from_a_pattern(folder, base_model, trained):
    """target_modules may be a regular expression, and one made for it would match for years."""
    edit(folder / "adapter_config.json", target_modules="(.*)*(.*)*(.*)*(.*)*!")
    opened = attach.attach_adapter(base_model, adapter.read_adapter(folder), "x")
    assert torch.equal(logits(opened), logits(trained[0]))


@pytest.mark.parametrize("config", [None, [], "x", 3, {}, {"max_length": "long"}, {"max_length": 10**30},
                                    {"max_length": -1}, {"max_length": True}])  # fmt: skip
def test_max_length_of_a_strange_run_file(folder, config):
    edit(folder / "run.json", config=config)
    assert adapter.read_adapter(folder).max_length == 512


# ---- another base


@pytest.mark.parametrize("beside", [False, True], ids=["first-adapter", "beside-another"])
def test_another_architecture_is_named_layer_by_layer_and_harms_nothing(tiny_gemma, tiny_llama, tmp_path, beside):
    """The base, and an adapter that is on it already, go on as before."""
    write_adapter(tiny_gemma, tmp_path / "gemma")
    foreign = adapter.read_adapter(tmp_path / "gemma")
    model = load(tiny_llama)
    if beside:
        write_adapter(tiny_llama, tmp_path / "own")
        model = attach.attach_adapter(model, adapter.read_adapter(tmp_path / "own"), "own")
    before = logits(model)
    with pytest.raises(AdapterError) as e:
        attach.attach_adapter(model, foreign, "foreign")
    message = str(e.value)
    assert "Mags was trained on someone/tiny and does not fit" in message
    assert "model.layers.0.mlp.down_proj: lora_B.weight is 32×4, with this base it must be 48×4" in message
    assert "… and " in message and "Open it with its own base." in message
    assert torch.equal(logits(model), before)
    assert not [n for n, _ in model.named_modules() if "foreign" in n]


def test_a_layer_that_this_base_lacks_is_named(folder, base_model):
    edit_weights(folder, lambda s: s.update({k.replace("layers.1", "layers.7"): s.pop(k) for k in list(s)}))
    with pytest.raises(AdapterError, match=r"layers\.7\.mlp\.down_proj: this base has no such layer"):
        attach.attach_adapter(base_model, adapter.read_adapter(folder), "x")


FIRST = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
HALF = {
    "half-a-lora": (lambda s: s.pop(FIRST), r"mlp\.down_proj: only B\.weight of its LoRA is there"),
    "empty": (lambda s: s.clear(), r"it holds no weights at all"),
    "a-number": (lambda s: s.update({FIRST: torch.tensor(1.0)}), r"lora_A\.weight is one number, .* must be 4×64"),
    "other-rank": (lambda s: s.update({FIRST: s[FIRST][:2].clone()}), r"lora_A\.weight is 2×64, .* must be 4×64"),
    "bias": (lambda s: s.update({FIRST.replace("A.weight", "B.bias"): torch.zeros(48)}), r"lora_B\.bias is not a "),
    "no-prefix": (lambda s: s.update({FIRST.removeprefix("base_model.model."): s.pop(FIRST)}), r"no such layer"),
    "something-else": (lambda s: s.update({"x.weight": torch.zeros(2)}), r"x\.weight: this base has no such layer"),
}


@pytest.mark.parametrize("change, why", HALF.values(), ids=HALF)
def test_weights_that_do_not_fit_their_own_settings(folder, base_model, change, why):
    before = logits(base_model)
    edit_weights(folder, change)
    with pytest.raises(AdapterError, match=why):
        attach.attach_adapter(base_model, adapter.read_adapter(folder), "x")
    assert torch.equal(logits(base_model), before)
    assert not [n for n, _ in base_model.named_modules() if "lora" in n]


def test_settings_of_another_rank_are_refused(folder, base_model):
    """alpha / r is the strength: a wrong r would change every answer."""
    edit(folder / "adapter_config.json", r=8)
    with pytest.raises(AdapterError, match=r"lora_A\.weight is 4×64, with this base it must be 8×64"):
        attach.attach_adapter(base_model, adapter.read_adapter(folder), "x")


# ---- strength


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 3}, {"use_rslora": True}], ids=["2", "alpha-3", "rslora"])
def test_strength_is_relative_to_what_was_trained(tiny_llama, tmp_path, settings):
    model = write_adapter(tiny_llama, tmp_path / "a", **settings)
    opened = attach.attach_adapter(load(tiny_llama), adapter.read_adapter(tmp_path / "a"), "mags")
    trained, base = logits(model), logits(load(tiny_llama))
    attach.set_adapter_strength(opened, "mags", 0)
    torch.testing.assert_close(logits(opened), base, rtol=0, atol=1e-6)
    attach.set_adapter_strength(opened, "mags", 0.5)
    half = logits(opened)
    attach.set_adapter_strength(opened, "mags", 0.5)
    assert torch.equal(logits(opened), half), "set again it stays: it is not multiplied each time"
    assert (half - base).abs().max() > 0.01 and (half - trained).abs().max() > 0.01
    attach.set_adapter_strength(opened, "mags", 1)
    assert torch.equal(logits(opened), trained)


def test_half_the_strength_is_half_the_update(tiny_llama, tmp_path):
    write_adapter(tiny_llama, tmp_path / "a")
    opened = attach.attach_adapter(load(tiny_llama), adapter.read_adapter(tmp_path / "a"), "mags")
    layer = opened.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(3, 48)
    outputs = []
    for strength in (0, 0.5, 1, 2):
        attach.set_adapter_strength(opened, "mags", strength)
        outputs.append(layer(x).detach())
    base, half, whole, double = outputs
    torch.testing.assert_close((half - base) * 2, whole - base, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close((double - base) / 2, whole - base, rtol=1e-4, atol=1e-5)


# ---- where it is


def test_locate(tmp_path, trained):
    persona = tmp_path / "mags"
    for name in ("20250101-000000-ffff", "20250102-000000-0000", "20250101-120000-aaaa"):
        shutil.copytree(trained[1], persona / "runs" / name / "adapter")
    newest = persona / "runs" / "20250102-000000-0000"
    (persona / "runs" / "20250103-000000-0000").mkdir()  # a run that has no adapter yet
    assert (
        adapter.locate_adapter(persona)
        == adapter.locate_adapter(newest)
        == adapter.locate_adapter(newest / "adapter")
        == newest / "adapter"
    )
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(AdapterError, match=f"{nothing.name}: no adapter here. Train one with: persona"):
            adapter.locate_adapter(nothing)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"),
                                   SafetensorError("I/O error: No space left on device (os error 28)")])  # fmt: skip
def test_a_write_that_fails_leaves_the_old_adapter(tiny_llama, tmp_path, monkeypatch, error):
    write_adapter(tiny_llama, tmp_path / "a")
    before = {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()}
    model = with_lora(load(tiny_llama), seed=2)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(AdapterError, match=r"could not be written \(.*No space left on device.*\)\. Free some space"):
        adapter.save_adapter(model, tmp_path / "a", base=Base("x/y", tiny_llama), template=read_template("chatml"), card=CARD,
                      facts=FACTS)  # fmt: skip
    assert {f.name: f.read_bytes() for f in (tmp_path / "a").iterdir()} == before
