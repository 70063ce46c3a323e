"""Packed rows: the same loss and gradients as the padded batch, and a refusal where that cannot be."""

import pytest
import torch
from tiny_models import load as open_base
from tiny_models import lora_gradients, with_lora
from training import CARD, PAIRS

from persona.errors import InputError
from persona.models import loss
from persona.models.loss import nll_sum
from persona.store.persona_folder import create_persona_at
from persona.template.render import IGNORE_INDEX
from persona.train import collator, prepare, validate
from persona.train import run as train_run
from persona.train.collator import Collator
from persona.train.config import make_config
from persona.train.launcher import create_run

# as rows come from the renderer, and one whose very first token is learned: nothing may be said before it
ROWS = [{"input_ids": [(7 * n + k * k) % 90 + 5 for k in range(size)],
         "labels": [IGNORE_INDEX] * (learned := size // 2 if n else 0) + [(7 * n + k * k) % 90 + 5 for k in range(learned, size)]}
        for n, size in enumerate((9, 31, 5, 18, 22, 40))]  # fmt: skip


@pytest.mark.parametrize(
    "lengths, most, want",
    [
        ([5, 3, 2], 10, [[0, 1, 2]]),
        ([5, 3, 9, 2], 10, [[2], [0, 1, 3]]),
        ([6, 6, 4], 10, [[0, 2], [1]]),
        ([12, 1], 10, [[0], [1]]),
    ],
)
def test_rows_go_where_they_fit(lengths, most, want):
    assert collator.pack_rows(lengths, most) == want


def test_every_token_is_in_the_packed_batch_once():
    batch = Collator(0, pack=64)(ROWS)
    assert batch["input_ids"].shape == (2, 64) and batch["tokens"] == sum(len(r["input_ids"]) for r in ROWS) == 125
    starts = (batch["position_ids"] == 0).nonzero().tolist()
    got = []
    for (line, at), (after, end) in zip(starts, [*starts[1:], [2, 0]], strict=True):
        row = slice(at, end if after == line else 64)
        got.append(batch["input_ids"][line, row].tolist())
        assert batch["position_ids"][line, row].tolist() == list(range(len(got[-1])))
        assert at == 0 or batch["labels"][line, at] == IGNORE_INDEX
    padding = [x for x in got if x not in [r["input_ids"] for r in ROWS]]
    assert len(got) == len(ROWS) + len(padding) and not any(map(any, padding))
    assert "position_ids" not in Collator(0)(ROWS)


@pytest.mark.parametrize("pack", [40, 64, 512])
@pytest.mark.parametrize("family", ["tiny_gemma", "tiny_llama"])
def test_loss_and_gradients_are_those_of_the_padded_batch(request, family, pack):
    """Rows of 40 tokens in layers that look 16 back, too."""
    model = with_lora(open_base(request.getfixturevalue(family))).train()
    found = []
    for collate in (Collator(0), Collator(0, pack=pack)):
        batch = collate(ROWS)
        total, learned = nll_sum(model, batch["input_ids"], batch["labels"], batch.get("position_ids"))
        total.backward()
        found.append((total.item(), learned, lora_gradients(model)))
    (loss, count, want), (packed, packed_count, got) = found
    assert packed == pytest.approx(loss, rel=1e-5) and packed_count == count
    for name, gradient in want.items():
        assert torch.allclose(got[name], gradient, rtol=1e-3, atol=1e-4 * gradient.abs().max().item()), name


@pytest.mark.parametrize("family", ["tiny_gemma", "tiny_llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_that_keeps_rows_apart_passes(request, family, dtype):
    validate.check_packing(open_base(request.getfixturevalue(family), dtype), "tiny")


def leaky(kind: str):
    """A layer that goes along the row: a convolution (LFM 2), a state (Qwen 3 Next, Mamba 2)."""
    import transformers as t

    shape = {"vocab_size": 150, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1}  # fmt: skip
    own = {"lfm2": {"layer_types": ["conv", "full_attention"]},
           "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2, "head_dim": 16,
                          "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
                          "num_experts": 0, "mlp_only_layers": [0, 1]}}[kind]  # fmt: skip
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(kind, **shape, **own)).eval()


@pytest.mark.parametrize("kind", ["lfm2", "qwen3_next"])
def test_a_base_in_which_rows_would_see_each_other_is_refused(kind):
    with pytest.raises(InputError, match=f"packing: in {kind} packed rows would see each other. Set packing to false"):
        validate.check_packing(leaky(kind), kind)


@pytest.mark.slow
def test_a_packed_run_is_the_run(tmp_path, tiny_gemma, plain_cpu, monkeypatch):
    shapes, real = [], loss.nll_sum
    monkeypatch.setattr(
        "persona.train.trainer.nll_sum", lambda m, ids, *more: shapes.append(len(ids)) or real(m, ids, *more)
    )
    curves = []
    for packed in (False, True):
        config = make_config(base=str(tiny_gemma), packing=packed, dtype="float32", batch_size=4, max_steps=4, max_length=300,
                             eval_fraction=0.25, learning_rate=1e-2)  # fmt: skip
        run = create_run(create_persona_at(tmp_path / f"mags-{packed}", CARD, PAIRS), config)
        train_run.train_run(run)
        curves.append((dict(run.progress().train), dict(run.progress().held_out)))
    assert len(shapes) == 8 and all(b < a for a, b in zip(shapes[:4], shapes[4:], strict=True)), shapes
    for got, want in zip(curves[1], curves[0], strict=True):
        assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_not_with_noise(tmp_path, tiny_gemma):
    config = make_config(base=str(tiny_gemma), packing=True, neftune_noise_alpha=5)
    with pytest.raises(InputError, match="packing and neftune_noise_alpha do not go together"):
        prepare.prepare_run(create_run(create_persona_at(tmp_path / "mags", CARD, PAIRS), config))
