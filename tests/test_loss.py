"""The loss is the stock cross entropy, wherever it saves work: same value, same gradients, row by row or padded."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_models import load, lora_gradients, with_lora

from persona.models import loss, memory
from persona.models.loss import TiledNLL, mean_nll, nll_sum, score_examples
from persona.template.render import IGNORE_INDEX, TrainingExample
from persona.train.collator import Collator
from persona.train.sampler import LengthGroupedBatchSampler

LENGTHS = (23, 9, 31, 16)  # longer than the sliding window of tiny_gemma, and none of them alike


def rows(vocabulary: int, lengths=LENGTHS, seed: int = 0) -> list[dict[str, list[int]]]:
    """Random rows; the last half of each is learned."""
    torch.manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, vocabulary, (length,)).tolist()
        made.append({"input_ids": ids, "labels": [IGNORE_INDEX] * (length // 2) + ids[length // 2 :]})
    return made


def stock(model, ids, labels):
    """All logits of all positions, and PyTorch's own loss."""
    logits = model(input_ids=ids, use_cache=False).logits.float()
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.fixture(params=["tiny_gemma", "tiny_llama"])
def model(request):
    return with_lora(load(request.getfixturevalue(request.param)))


@pytest.fixture
def batch(model):
    return Collator(0)(rows(model.config.vocab_size))


def compare(model, batch) -> tuple[float, float, dict, dict]:
    want = stock(model, batch["input_ids"], batch["labels"])
    want.backward()
    expected = lora_gradients(model)
    got, learned = nll_sum(model, batch["input_ids"], batch["labels"])
    got.backward()
    assert learned == sum(n - n // 2 for n in LENGTHS)
    return want.item(), got.item(), expected, lora_gradients(model)


@pytest.mark.parametrize("tile", [7, 64, 4096], ids=["many-tiles", "some-tiles", "one-tile"])
def test_value_and_gradients_are_the_stock_ones(model, batch, tile, monkeypatch):
    """However the vocabulary is cut: no size here divides it."""
    assert model.config.vocab_size % tile and model.config.vocab_size > 64
    monkeypatch.setattr(memory, "VOCAB_TILE", tile)
    want, got, expected, found = compare(model, batch)
    assert got == pytest.approx(want, rel=1e-5)
    assert found.keys() == expected.keys() and len(found) == 2 * 2 * 7, "A and B, two layers, seven matrices each"
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("base", ["tiny_gemma", "tiny_llama"])
def test_in_bfloat16_too(base, request):
    """float32 LoRA weights on a bfloat16 base: as close as eight bits of mantissa allow."""
    model = with_lora(load(request.getfixturevalue(base), "bfloat16"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    batch = Collator(0)(rows(model.config.vocab_size))
    with torch.autocast("cpu", torch.bfloat16):
        want, got, expected, found = compare(model, batch)
    assert got == pytest.approx(want, rel=0.01)
    for name, gradient in expected.items():
        assert F.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.99, name


def test_a_bfloat16_base_needs_no_autocast_of_the_caller(tiny_gemma):
    """float32 LoRA weights meet bfloat16 activations: without the cast inside, the matmul would not even start."""
    model = with_lora(load(tiny_gemma, "bfloat16"))
    for module in model.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # as the trainer sets it on a CPU
    batch = Collator(0)(rows(model.config.vocab_size))
    value, _ = nll_sum(model, batch["input_ids"], batch["labels"])
    assert value.dtype == torch.float32 and math.isfinite(value.item())


def test_right_padding_without_a_mask_changes_nothing(model):
    """A padded batch is its rows one by one, in value and gradient, whatever stands in the padding."""
    made = rows(model.config.vocab_size)
    total = 0.0
    for row in made:
        alone = Collator(0, multiple=1)([row])
        assert alone["input_ids"].shape == (1, len(row["input_ids"])), "no padding at all"
        value, _ = nll_sum(model, alone["input_ids"], alone["labels"])
        value.backward()
        total += value.item()
    expected = lora_gradients(model)
    for pad_id in (0, 5):
        padded = Collator(pad_id)(made)
        value, _ = nll_sum(model, padded["input_ids"], padded["labels"])
        value.backward()
        assert value.item() == pytest.approx(total, rel=1e-5)
        for name, gradient in lora_gradients(model).items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5 * gradient.abs().max().item())


def test_a_scaled_loss_scales_its_gradient(model, batch):
    """The trainer divides by the tokens of the whole accumulated batch: the gradient is made before that is known."""
    nll_sum(model, batch["input_ids"], batch["labels"])[0].backward()
    whole = lora_gradients(model)
    (nll_sum(model, batch["input_ids"], batch["labels"])[0] / 8).backward()
    for name, gradient in lora_gradients(model).items():
        torch.testing.assert_close(gradient * 8, whole[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def capped():
    """A Gemma 2: it bends its logits, so the bare output layer is not its head."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=16, intermediate_size=64, final_logit_softcapping=0.5, query_pre_attn_scalar=16,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    return with_lora(Gemma2ForCausalLM(config))


def test_a_model_that_caps_its_logits_keeps_its_own_head(capped, monkeypatch):
    batch = Collator(0)(rows(200))
    plain = TiledNLL.apply
    monkeypatch.setattr(TiledNLL, "apply", lambda *_: pytest.fail("the tiled path would skip the cap"))
    want, got, expected, found = compare(capped, batch)
    assert got == pytest.approx(want, rel=1e-5)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5 * gradient.abs().max().item())
    monkeypatch.setattr(TiledNLL, "apply", plain)
    monkeypatch.setattr(loss, "_has_plain_head", lambda _: True)
    skipped, _ = nll_sum(capped, batch["input_ids"], batch["labels"])
    assert abs(skipped.item() - want) > 0.1 * want, "the cap must matter, or this test sees nothing"


@pytest.mark.parametrize("change", ["bias", "trained"])
def test_another_head_is_left_to_the_model(tiny_llama, change):
    model = load(tiny_llama)
    assert loss._has_plain_head(model.requires_grad_(False))
    if change == "bias":
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size), requires_grad=False)
    else:
        model.lm_head.weight.requires_grad_(True)
    assert not loss._has_plain_head(model)


def test_scores_that_overflow_alone_do_not_overflow_together():
    """exp(200) is infinite in float32: the running maximum must be taken off first, in every tile."""
    hidden = torch.eye(4, requires_grad=True)
    weight = torch.tensor([[200.0, 0, 0, 0], [0, -200, 0, 0], [0, 0, 150, 0], [0, 0, 0, 1]]).repeat(1000, 1)
    target = torch.tensor([0, 1, 2, 3])
    got = TiledNLL.apply(hidden, weight, target)
    want = F.cross_entropy(hidden.detach() @ weight.T, target, reduction="none")
    assert torch.allclose(got, want, rtol=1e-5)
    got.sum().backward()
    assert hidden.grad.isfinite().all()


def test_without_gradients_none_are_made(model, batch):
    with torch.no_grad():
        value, _ = nll_sum(model, batch["input_ids"], batch["labels"])
    assert not value.requires_grad


# ---- mean


def examples(vocabulary: int) -> list[TrainingExample]:
    """Learned tokens: 1, 2 and 20."""
    torch.manual_seed(3)
    made = []
    for length, learned in ((12, 1), (9, 2), (30, 20)):
        ids = torch.randint(3, vocabulary, (length,)).tolist()
        made.append(TrainingExample(ids, [IGNORE_INDEX] * (length - learned) + ids[-learned:], "", []))
    return made


def test_each_token_has_a_gradient_of_its_own():
    """A weighted sum of the losses, which only a per-token backward gets right."""
    torch.manual_seed(0)
    weight, target, share = torch.randn(300, 8), torch.tensor([5, 299, 0]), torch.tensor([1.0, 0.0, -2.5])
    gradients = []
    for nll in (TiledNLL.apply, lambda h, w, t: F.cross_entropy(h @ w.T, t, reduction="none")):
        hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (nll(hidden, weight, target) * share).sum().backward()
        gradients.append(hidden.grad)
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_scores_are_each_examples_own_in_the_order_given(model, batch_size):
    found = examples(model.config.vocab_size)
    got = score_examples(model, found, Collator(0), batch_size)
    assert got.tokens == [1, 2, 20]
    for nats, e in zip(got.nats, found, strict=True):
        alone, _ = nll_sum(model, torch.tensor([e.input_ids]), torch.tensor([e.labels]))
        assert nats == pytest.approx(alone.item(), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_mean_nll_weighs_tokens_and_not_rows(model, batch_size):
    found = examples(model.config.vocab_size)
    sums = []
    with torch.no_grad():
        for e in found:
            sums.append(stock(model, torch.tensor([e.input_ids]), torch.tensor([e.labels])).item())
    want, rowwise = sum(sums) / 23, sum(s / e.learned for s, e in zip(sums, found, strict=True)) / 3
    assert abs(want - rowwise) > 0.01, "the two means must differ, or this test sees nothing"
    assert mean_nll(model, found, Collator(0), batch_size) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_mean_nll_measures_without_dropout_and_leaves_the_mode_as_it_was(tiny_gemma, training):
    model = with_lora(load(tiny_gemma), lora_dropout=0.5)
    found = examples(model.config.vocab_size)
    still = mean_nll(model.eval(), found, Collator(0))
    model.train(training)
    assert mean_nll(model, found, Collator(0)) == still
    assert model.training is training
    assert all(p.grad is None for p in model.parameters())


# ---- collator


@pytest.mark.parametrize(
    "lengths, multiple, width",
    [((3,), 16, 16), ((16, 2), 16, 16), ((17, 2), 16, 32), ((5, 7), 1, 7), ((8, 9, 1), 8, 16)],
)
def test_collator_shapes(lengths, multiple, width):
    made = rows(100, lengths)
    batch = Collator(7, multiple)(made)
    assert set(batch) == {"input_ids", "labels", "tokens"}, "no attention mask: it would take the slower kernel"
    assert batch["input_ids"].shape == batch["labels"].shape == (len(lengths), width)
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.int64
    assert int(batch["tokens"]) == sum(lengths)
    for n, row in enumerate(made):
        assert batch["input_ids"][n].tolist() == row["input_ids"] + [7] * (width - lengths[n])
        assert batch["labels"][n].tolist() == row["labels"] + [IGNORE_INDEX] * (width - lengths[n])


# ---- the order of rows


def order(lengths: list[int], epoch: int, joined: int = 1) -> list[list[int]]:
    steps = math.ceil(math.ceil(len(lengths) / 4) / joined)
    return list(LengthGroupedBatchSampler(lengths, 4, joined, 7, lambda: epoch * steps))


@pytest.mark.parametrize("joined", [1, 3])
def test_rows_of_like_length_share_a_batch_and_who_does_changes(joined):
    torch.manual_seed(0)
    lengths = torch.randint(20, 90, (61,)).tolist()
    for epoch in (0, 1):
        batches = order(lengths, epoch, joined)
        assert sorted(n for batch in batches for n in batch) == list(range(61))
        assert sorted(map(len, batches)) == [1] + [4] * 15
        assert max(lengths) in [lengths[n] for n in batches[0]], "short memory must show at the first step"
        positions = sum(len(b) * memory.padded_length(max(lengths[n] for n in b)) for b in batches)
        alone = sum(memory.padded_length(n) for n in lengths)
        assert positions < 1.06 * alone
        widths = [memory.padded_length(max(lengths[n] for n in b)) for b in batches]
        assert widths != sorted(widths, reverse=True), "lengths must not fall through an epoch"
    first, second = ({frozenset(b) for b in order(lengths, epoch, joined)} for epoch in (0, 1))
    assert len(first & second) < 8
    assert order(lengths, 1, joined) == order(lengths, 1, joined)


def test_ungrouped_rows_come_in_random_order():
    lengths = list(range(20, 81))
    batches = list(LengthGroupedBatchSampler(lengths, 4, 1, 7, lambda: 0, group=False))
    assert sorted(n for batch in batches for n in batch) == list(range(61))
    spread = [max(batch) - min(batch) for batch in batches if len(batch) == 4]
    assert min(spread) > 6, "no batch is of similar lengths"
    assert 60 in batches[0], "short memory must show at the first step"


def test_more_rows_than_one_pool(monkeypatch):
    monkeypatch.setattr(LengthGroupedBatchSampler, "POOL", 2)
    batches = order(list(range(1, 31)), 0)
    assert sorted(n for batch in batches for n in batch) == list(range(30))
    assert len(batches) == 8
