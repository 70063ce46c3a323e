"""What a run needs: the shape of a base and the rows of a batch → bytes, item by item, and floating-point operations.

Pure arithmetic. What is kept for the backward pass was counted on the embedded Gemma 3 (saved_tensors_hooks: 40.1 KB a
token and layer in bfloat16, 64.1 KB in float32; the formulas here give 39.6 and 63.9).
"""

import re
from dataclasses import dataclass, fields, replace
from typing import Any

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# of one quantized weight. nf4: 4 bits and a scale for 64, the scales in 8 bits (Dettmers et al. 2023, §3: 4.127 bits);
# int8: a float32 scale a row (Dettmers et al. 2022, LLM.int8) is less than a hundredth
QUANTIZED_WEIGHT_BYTES = {"nf4": 4.127 / 8, "int8": 1.01}
ADAM_BYTES = 4 + 4 + 8  # bytes of a float32 parameter, its gradient, Adam's two moments (Rajbhandari et al. 2020, §3.1)
NON_TEXT_TOWERS = re.compile(r"vision|visual|audio|multi_modal")
VOCAB_TILE = 4096  # rows of the output layer at once; × 240 rows × 4 bytes stays within a CPU's cache
# rows are padded to a multiple of so many tokens. A CPU builds its kernels anew for each shape, in some 20 ms each: 16
# would cost more in padding
PAD_MULTIPLE = 8


def padded_length(length: int, multiple: int = PAD_MULTIPLE) -> int:
    """The length of a row of `length` tokens in a batch: the next multiple."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class ModelShape:
    """What matters of a decoder. Counts of parameters, or widths in numbers per token."""

    parameters: int
    linear: int  # of `parameters`: in the layers' linear weights, which LoRA covers and quantization shrinks
    largest: int  # of `linear`: in the largest single weight
    lora: int  # parameters of a LoRA of rank 1 on all of them: inputs + outputs
    layers: int
    hidden: int
    inner: int
    queries: int
    keys: int
    norms: int  # a layer, without those of queries and keys
    qk_norm: bool
    vocab: int
    plain_head: bool  # as loss.py asks: no soft cap or scale


def infer_model_shape(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> ModelShape:
    """config.json and the names and shapes of the weights → Shape. Raises KeyError where it is no decoder we know."""
    text = config.get("text_config", config)
    own = {name: size for name, size in tensors.items() if not NON_TEXT_TOWERS.search(name)}
    inside = {name: size for name, size in own.items() if re.search(r"(^|\.)layers\.\d+\.", name)}
    linear = [size for size in inside.values() if len(size) >= 2]
    first = {name.partition("layers.0.")[2] for name in inside if "layers.0." in name}
    heads = text["num_attention_heads"]
    head = text.get("head_dim") or text["hidden_size"] // heads
    scales = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier")
    return ModelShape(
        parameters=sum(map(_product, own.values())), linear=sum(map(_product, linear)),
        largest=max(map(_product, linear), default=0), lora=sum(sum(size[-2:]) for size in linear),
        layers=text["num_hidden_layers"], hidden=text["hidden_size"],
        inner=text.get("intermediate_size") or 4 * text["hidden_size"], queries=heads * head,
        keys=(text.get("num_key_value_heads") or heads) * head,
        norms=sum("norm" in name and "self_attn" not in name for name in first),
        qk_norm=any(name.startswith("self_attn.q_norm") for name in first), vocab=text["vocab_size"],
        plain_head=all(text.get(name) in (None, 1, 1.0) for name in scales),
    )  # fmt: skip


def _product(size: tuple[int, ...]) -> int:
    n = 1
    for x in size:
        n *= x
    return n


@dataclass(frozen=True)
class StepShape:
    """The settings that decide what a step needs. length: tokens of the longest row, padding included."""

    batch: int
    length: int
    learned: int  # of a row's positions
    rank: int = 16
    dtype: str = "float32"
    quantization: str = "none"
    checkpointing: bool = False
    full: bool = False  # train every weight: for comparison, the trainer only knows LoRA
    device: str = "cpu"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at a step's peak."""

    weights: int
    training: int  # gradients and optimizer; of a LoRA its weights too
    activations: int
    logits: int
    runtime: int  # libraries, the GPU's context, and what the allocator cannot use again

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def estimate_memory(shape: ModelShape, work: StepShape) -> MemoryEstimate:
    """The peak of one forward and backward pass of a micro batch, with everything that stays."""
    size, tokens = DTYPE_BYTES[work.dtype], work.batch * work.length
    whole = _activation_bytes(shape, work.rank, size) * tokens * shape.layers
    activations = whole
    if work.checkpointing:  # the layers' inputs, and one layer worked out again (Chen et al. 2016)
        activations = tokens * shape.hidden * size * shape.layers + whole / shape.layers
    # full, as the tutorials do it in 16 bits: gradients as wide as the weights, two optimizer states of 8 bits
    training = shape.parameters * (size + 2) if work.full else shape.lora * work.rank * ADAM_BYTES
    logits = _logit_bytes(shape, work)
    runtime = _runtime_bytes(work.device, activations + logits)
    return MemoryEstimate(int(_weight_bytes(shape, work)), int(training), int(activations), int(logits), int(runtime))


def _weight_bytes(shape: ModelShape, work: StepShape) -> float:
    size = DTYPE_BYTES[work.dtype]
    if work.quantization == "none":
        return shape.parameters * size
    # embeddings, norms and head stay as they are; one weight at a time is unpacked to be multiplied
    rest = shape.parameters - shape.linear
    return shape.linear * QUANTIZED_WEIGHT_BYTES[work.quantization] + (rest + shape.largest) * size


def _activation_bytes(shape: ModelShape, rank: int, size: float) -> float:
    """Kept for the backward pass by one token in one layer.

    Counted as in Korthikanti et al. 2022, §4.1, for what PyTorch keeps here: base weights are frozen, so a linear
    layer keeps only the input of its LoRA (shared by q, k, v and by gate, up); fused attention keeps q, k, v and its
    output, and nothing that grows with length²; norms work in float32 and keep their input.
    """
    attention = shape.hidden + 2 * shape.queries + 2 * shape.keys
    mlp = shape.hidden + 4 * shape.inner
    norms = shape.norms * shape.hidden + (shape.queries + shape.keys if shape.qk_norm else 0)
    return size * (attention + mlp + 7 * rank) + 4 * norms


def _logit_bytes(shape: ModelShape, work: StepShape) -> float:
    """As loss.py does it: a plain frozen head keeps no logits, only the gradient by which it was reached.

    It works on one tile of them, as multiplied, in float32 and rounded again; the hidden states are there once as
    given, and thrice in float32. Any other head keeps logits, their float32 copy, log-softmax and gradient.
    """
    learned, size = work.batch * work.learned, DTYPE_BYTES[work.dtype]
    if shape.plain_head and not work.full:
        return learned * (VOCAB_TILE * (2 * size + 4) + shape.hidden * (size + 3 * 4))
    return learned * shape.vocab * (size + 4 + 4 + 4)


# On a CPU: 1.1 GB resident before the first step, weights not counted (Python with torch, transformers, TRL, and what
# opening a base leaves of the heap; measured), and oneDNN's kernels: 0.6 MB each and 34 a shape of batch, 250 MB after
# 27 steps; it keeps 1024 at most. A CUDA context with cuBLAS' workspaces is taken as 1 GB: not measured by us.
RUNTIME_BYTES = {"cpu": 1.1e9 + 0.25e9, "cuda": 1e9, "mps": 1e9}
# What freed blocks leave unused of a CPU's heap (glibc cannot give a freed block to an aligned request of the same
# size), as a part of all activations and logits. Fitted to the runs of the embedded base in test_hardware.py.
HEAP_FRAGMENTATION = 0.15


def _runtime_bytes(device: str, kept: float) -> float:
    return RUNTIME_BYTES[device] + (HEAP_FRAGMENTATION * kept if device == "cpu" else 0.0)


def step_flops(shape: ModelShape, tokens: float, learned: float, checkpointing: bool = False) -> float:
    """FLOPs to learn `tokens`, of which `learned` go through the head, by LoRA.

    2 a weight and token forward, 2 for the gradient of the inputs (Kaplan et al. 2020, §2.1; frozen weights want no
    gradient of their own), forward once more with checkpointing; the same for the head. Attention's own products are
    left out: at rows of a hundred tokens they are a hundredth.
    """
    return tokens * shape.linear * (6 if checkpointing else 4) + learned * 4 * shape.vocab * shape.hidden


def compare_tuning_methods(shape: ModelShape, work: StepShape) -> dict[str, int]:
    """Bytes in all of the three ways that tutorials compare: full fine-tuning, LoRA in 16 bits, QLoRA (nf4)."""
    half = replace(work, dtype="float32" if work.device == "mps" else "bfloat16", quantization="none")
    ways = {"full": replace(half, full=True), "lora": half, "qlora": replace(half, quantization="nf4")}
    return {name: estimate_memory(shape, w).total for name, w in ways.items()}
