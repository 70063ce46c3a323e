"""What step 3 teaches of LoRA: the layers of a base, what is trained of it, and the memory of three ways to train."""

import math

import pytest
from peft import get_peft_model
from tiny_models import load

from persona.errors import InputError
from persona.models import memory
from persona.models.base import Base
from persona.models.memory import StepShape
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.train import lora_config, target_modules
from persona.train.config import RunConfig
from persona.ui.steps.train import lora_lesson, settings_form

NAMES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAIRS = [Pair(f"Who keeps light {n}?", "I do.") for n in range(12)]


@pytest.mark.parametrize("wanted", ["all-linear", "attention", "mlp", "up_proj,q_proj", r"re:.*layers\.0\..*_proj"])
def test_the_layers_of_a_base_and_what_is_trained_of_them(tiny_gemma, wanted):
    base = Base("x", tiny_gemma)
    kinds = target_modules.list_layer_kinds(base, wanted)
    assert sorted(k.name for k in kinds) == sorted(NAMES) and all(k.layers == 2 for k in kinds)
    config = RunConfig(target_modules=wanted, lora_r=4)
    model = get_peft_model(load(tiny_gemma), lora_config.make_lora_config(config, load(tiny_gemma)))
    trained, _ = model.get_nb_trainable_parameters()
    named = {n.split(".")[-1] for n, m in model.named_modules() if hasattr(m, "lora_A")}
    assert {k.name for k in kinds if k.chosen} == named
    if not wanted.startswith("re:"):  # which takes a kind in one of its layers
        assert target_modules.count_trainable(kinds, 4) == trained


def test_layers_that_are_not_there_are_named(tiny_gemma):
    with pytest.raises(InputError, match="this base has no layer 'nope'"):
        target_modules.list_layer_kinds(Base("x", tiny_gemma), "nope")


def llama_7b() -> memory.ModelShape:
    """Llama 2 7B, from its paper's and config.json's figures."""
    layer = {f"self_attn.{n}_proj": (4096, 4096) for n in "qkvo"} | {
        "mlp.gate_proj": (11008, 4096), "mlp.up_proj": (11008, 4096), "mlp.down_proj": (4096, 11008),
        "input_layernorm": (4096,), "post_attention_layernorm": (4096,),
    }  # fmt: skip
    tensors = {f"model.layers.{n}.{name}.weight": size for n in range(32) for name, size in layer.items()}
    tensors |= {
        "model.embed_tokens.weight": (32000, 4096),
        "lm_head.weight": (32000, 4096),
        "model.norm.weight": (4096,),
    }
    config = {"hidden_size": 4096, "num_attention_heads": 32, "intermediate_size": 11008, "vocab_size": 32000}
    return memory.infer_model_shape(config, tensors)


def test_three_ways_to_train_7_billion_parameters():
    """The 40, 20 and 10 GB that tutorials give for a 7B, with a batch of 4 rows of 256 tokens."""
    shape = llama_7b()
    assert shape.parameters == 6_738_415_616
    trained = 8 * shape.lora
    seen = memory.compare_methods(shape, StepShape(4, 256, 128, rank=8), trained)
    full, lora, qlora = (seen[name].total / 1e9 for name in ("full", "lora", "qlora"))
    assert (
        full == pytest.approx(40, rel=0.2)
        and lora == pytest.approx(20, rel=0.2)
        and qlora == pytest.approx(10, rel=0.25)
    )
    assert seen["full"].optimizer == 2 * shape.parameters and seen["lora"].optimizer == 8 * trained
    assert seen["qlora"].weights < 0.3 * seen["lora"].weights
    less = memory.compare_methods(shape, StepShape(4, 256, 128, rank=8, checkpointing=True), trained)
    assert less["lora"].activations < 0.3 * seen["lora"].activations


def test_linear_attention_in_the_first_layer_says_nothing_of_keys():
    linear = {"linear_attn.in_proj_qkv.weight": (160, 32), "linear_attn.out_proj.weight": (32, 64)}
    full = {f"self_attn.{n}_proj.weight": (s, 32) for n, s in (("q", 64), ("k", 16), ("v", 16))}
    tensors = {f"model.layers.{n}.{k}": s for n, part in enumerate((linear, full)) for k, s in part.items()}
    config = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16,
              "intermediate_size": 64, "vocab_size": 99}  # fmt: skip
    assert memory.infer_model_shape(config, tensors).keys == 16


@pytest.fixture
def form(home, tiny_gemma):
    create_persona_at(home / "personas/mags", PersonaCard(name="Mags"), PAIRS)

    def form(**changes):
        values = dict(zip(settings_form.EXPERT_FIELDS, settings_form.preset_values("quick"), strict=True)) | changes
        return "quick", str(tiny_gemma), "auto", 64, False, "none", *values.values()

    return form


def test_the_lesson_has_this_runs_own_figures(form, tiny_gemma):
    html, layers = lora_lesson.lesson("mags", *form(lora_r=4, lora_alpha=6, target_modules="mlp"))
    trained = 4 * 2 * 3 * (32 + 64)
    total = sum(map(math.prod, Base("x", tiny_gemma).tensors().values())) + trained
    assert f"<b>{trained:,}</b> of {total:,} parameters: <b>{100 * trained / total:.2f} %</b>" in html
    assert "6 / 4 = <b>1.5</b>" in html and "<svg" in html and html.count("<tr>") == 4
    assert layers.value == ["gate_proj", "up_proj", "down_proj"] or set(layers.value) == set(NAMES[4:])
    assert {value for _, value in layers.choices} == set(NAMES)
    assert ("q_proj: 2 × 1 k", "q_proj") in layers.choices
    assert "6 / √4 = <b>3</b>" in lora_lesson.lesson("mags", *form(lora_r=4, lora_alpha=6, use_rslora=True))[0]


def test_a_base_that_is_not_here_yet_gets_the_sentences_alone(form):
    preset, _, *rest = form()
    html, layers = lora_lesson.lesson("mags", preset, "someone/unknown", *rest)
    assert "ΔW = B·A" in html and "once the base is on this disk" in html and not layers.visible
    html, layers = lora_lesson.lesson("mags", *form(target_modules="nope"))
    assert "no layer &#x27;nope&#x27;" in html or "no layer 'nope'" in html
    assert not layers.visible


def test_ticked_layers_are_the_target_modules(form):
    assert lora_lesson.choose_layers(["v_proj", "q_proj"], *form()) in ("q_proj,v_proj", "v_proj,q_proj")
    assert lora_lesson.choose_layers(NAMES, *form(target_modules="mlp")) == "all-linear"
    assert lora_lesson.choose_layers([], *form(target_modules="mlp")) == "mlp"
