"""Memory and FLOPs of a training step, and memory of a chat, from the shapes of a base and a batch. Arithmetic only.

Activations kept for the backward pass were measured on the bundled Gemma 3 (saved_tensors_hooks): 40.1 KB a token and
layer in bfloat16 and 64.1 KB in float32; the formulas here give 39.6 and 63.9. On small models of other families they
are within a twentieth for Llama and Qwen, and within a quarter for Falcon, GPT-2, GPT-NeoX, OPT and Phi; BLOOM and MPT,
whose attention is not fused, keep more with long rows than is counted here.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from persona.models.quantization import stored_quantization

DTYPE_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
# nf4: 4 bits and a scale for 64 weights, the scales in 8 bits (Dettmers et al. 2023, §3: 4.127 bits);
# int8: a float32 scale a row (Dettmers et al. 2022, LLM.int8) adds less than a hundredth
QUANTIZED_WEIGHT_BYTES = {"nf4": 4.127 / 8, "int8": 1.01}
ADAM_BYTES = 4 + 4 + 8  # a float32 parameter, its gradient, Adam's two moments (Rajbhandari et al. 2020, §3.1)
NON_TEXT_TOWERS = re.compile(r"vision|visual|audio|multi_modal")
# tokens of the vocabulary that the loss takes at once: × 240 rows × 4 bytes fits a CPU's cache; 1024 and 2048 were as
# fast
VOCAB_TILE = 4096
# rows are padded to a multiple of so many tokens: a CPU builds its kernels anew for each shape, in some 20 ms each.
# A multiple of 16 would cost more in padding
PAD_MULTIPLE = 8
# how model families call the same setting of config.json
SETTING_NAMES = {
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "keys": ("num_key_value_heads", "num_kv_heads"),
    "inner": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"),
}
ACTIVATION_NAMES = ("hidden_act", "hidden_activation", "activation_function", "activation")
# activation functions that transformers computes step by step, and what they keep more than a fused one: measured on
# GPT-2 (5) and Phi (3)
UNFUSED_ACTIVATIONS, UNFUSED_KEPT = ("gelu_new", "gelu_fast"), 4
CHAT_TOKENS = 4 * 512  # of all columns together, that a chat's memory is planned for
# STEM.NUMBER.NAME of a weight in a stack of layers: model.layers, transformer.h, transformer.blocks …
STACK = re.compile(r"((?:.*?\.)?[A-Za-z_]\w*)\.(\d+)\.(.+)")
FUSED_ATTENTION = re.compile(r"qkv|query_key_value|c_attn", re.IGNORECASE)  # one weight for queries, keys and values
QUERY_NORMS = re.compile(r"(^|[._])(q|query|k|key)_?(layer_?)?norm\.")
# settings of config.json by which a model changes its logits after the output layer, unless they are 1
LOGIT_SCALE_SETTINGS = (
    "final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier", "lm_head_multiplier",
)  # fmt: skip


def padded_length(length: int, multiple: int = PAD_MULTIPLE) -> int:
    """A row's length in tokens after padding to a multiple."""
    return -(-length // multiple) * multiple


@dataclass(frozen=True)
class ModelShape:
    """The shape of a decoder: numbers of parameters, and widths in numbers per token."""

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
    mlp_kept: int  # activations of width `inner` that a token keeps for the backward pass
    vocab: int
    plain_head: bool  # logits without soft cap or scale, for the tiled loss of loss.py
    stored: str = "none"  # how its linear weights are quantized on disk: nf4, int8 or none
    flat: bool = False  # whether only rotary attention mixes tokens, so that batches may be flat (flat_batch.py)


def infer_model_shape(config: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> ModelShape:
    """config.json, and names and shapes of the weights → ModelShape. Raises KeyError for an unknown architecture.

    Layers are recognized by their numbers and not by their names, which differ between model families.
    """
    text = config.get("text_config", config)
    text_weights = {name: size for name, size in tensors.items() if not NON_TEXT_TOWERS.search(name)}
    layers = _find_layers(text_weights)
    linear = [size for layer in layers for size in layer.values() if len(size) >= 2]
    first = layers[0]
    hidden, heads = _read_setting(text, "hidden"), _read_setting(text, "heads")
    queries = heads * (text.get("head_dim") or hidden // heads)
    keys = queries // heads * (_read_setting(text, "keys", 0) or heads)
    for name, size in first.items():
        if len(size) == 2 and FUSED_ATTENTION.search(name) and "linear_attn" not in name:
            keys = (math.prod(size) // hidden - queries) // 2
    mlp = sum(math.prod(size) for size in first.values() if len(size) >= 2) - 2 * hidden * (queries + keys)
    inner = _read_setting(text, "inner", 0) or mlp // (2 * hidden)
    inner = max(inner) if isinstance(inner, list) else inner  # Gemma 3n: one a layer
    norms = [name for name, size in first.items() if len(size) == 1 and name.endswith(".weight")]
    query_norms = [name for name in norms if QUERY_NORMS.search(name)]
    unfused = any(text.get(name) in UNFUSED_ACTIVATIONS for name in ACTIVATION_NAMES)
    gated = mlp > 2.5 * hidden * inner  # three matrices, not two
    scaled = any(text.get(name) not in (None, 1, 1.0) for name in LOGIT_SCALE_SETTINGS)
    vocab = text["vocab_size"]
    return ModelShape(
        parameters=sum(map(math.prod, text_weights.values())), linear=sum(map(math.prod, linear)),
        largest=max(map(math.prod, linear), default=0), lora=sum(sum(size[-2:]) for size in linear),
        layers=len(layers), hidden=hidden, inner=inner, queries=queries, keys=keys,
        norms=len(norms) - len(query_norms), qk_norm=bool(query_norms),
        mlp_kept=(4 if gated else 2) + UNFUSED_KEPT * unfused, vocab=vocab,
        plain_head=not scaled and (vocab,) not in text_weights.values(),  # a bias of the output layer
        stored=stored_quantization(config), flat=_has_only_rotary_attention(config),
    )  # fmt: skip


def _has_only_rotary_attention(config: dict[str, Any]) -> bool:
    """By config.json: positions are rotations, no layer has a state, a convolution or linear attention, and no tower
    stands beside the language model (whose config is nested then)."""
    rotary = any(name.startswith("rope_") for name in config)
    kinds = set(config.get("layer_types") or ["full_attention"]) <= {"full_attention", "sliding_attention"}
    return rotary and kinds and not any(re.search(r"mamba|ssm|conv|linear_", name) for name in config)


def find_layer_stack(weights: dict[str, tuple[int, ...]]) -> str:
    """The name before the numbers of a decoder's layers, such as model.layers: of the largest stack of modules.

    Raises KeyError where there are none.
    """
    sizes: dict[str, int] = {}
    for name, size in weights.items():
        if match := STACK.fullmatch(name):
            sizes[match[1]] = sizes.get(match[1], 0) + math.prod(size)
    if not sizes:
        raise KeyError("layers")
    return max(sizes, key=lambda stem: sizes[stem])


def _find_layers(weights: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    """The weights of each layer, by their names inside it."""
    stack = find_layer_stack(weights)
    layers: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, size in weights.items():
        if (match := STACK.fullmatch(name)) and match[1] == stack:
            layers.setdefault(int(match[2]), {})[match[3]] = size
    return [layers[n] for n in sorted(layers)]


def _read_setting(config: dict[str, Any], setting: str, *default: Any) -> Any:
    """The first of its names that config.json gives a value. Raises KeyError where there is none and no default."""
    found = [config[name] for name in SETTING_NAMES[setting] if config.get(name)]
    if not (found or default):
        raise KeyError(SETTING_NAMES[setting][0])
    return [*found, *default][0]


@dataclass(frozen=True)
class StepShape:
    """The settings that decide the memory of a step. length: tokens of a row, padding included."""

    batch: int
    length: int
    learned: int  # positions of a row that are learned
    rank: int = 16
    trained: int = 0  # parameters that are trained beside the LoRA
    dtype: str = "float32"
    quantization: str = "none"
    checkpointing: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes at the peak of a step."""

    weights: int
    training: int  # the LoRA's weights, gradients and optimizer
    activations: int
    logits: int
    runtime: int  # libraries, the GPU's context, and memory lost to fragmentation

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def estimate_memory(shape: ModelShape, step: StepShape, gpus: int = 1) -> MemoryEstimate:
    """The peak of the forward and backward pass of one micro batch, with everything that stays in memory.

    gpus: over which the layers are spread; the peak is that of one, with a layer more than its share.
    """
    activations = _kept_activations(shape, step)
    training = (shape.lora * step.rank + step.trained) * ADAM_BYTES
    logits = _logit_bytes(shape, step)
    runtime = _runtime_bytes(step.device, activations + logits)
    share = 1.0 if gpus == 1 else 1 / gpus + 1 / shape.layers
    weights = weight_bytes(shape, step.dtype, step.quantization) * share
    return MemoryEstimate(int(weights), int(training * share), int(activations * share), int(logits), int(runtime))


def weight_bytes(shape: ModelShape, dtype: str, quantization: str = "none") -> float:
    """Bytes of the base's weights. quantization: nf4, int8, or none: as they are stored."""
    size, quantization = DTYPE_BYTES[dtype], shape.stored if quantization == "none" else quantization
    if quantization == "none":
        return shape.parameters * size
    # embeddings, norms and output layer are not quantized; one weight at a time is unpacked for its product
    rest = shape.parameters - shape.linear
    return shape.linear * QUANTIZED_WEIGHT_BYTES[quantization] + (rest + shape.largest) * size


def estimate_chat_memory(shape: ModelShape, dtype: str, quantization: str = "none") -> int:
    """Bytes that opening a base and asking CHAT_TOKENS take, beside what the program holds already.

    The weights, an adapter of rank 16, keys and values, and the widest activations of one layer. Measured on a CPU
    with a random Llama of 300 million parameters and 400 tokens: 1.19 GB in float32 and 0.21 in nf4; this gives 1.49
    and 0.52, 0.26 of it for the longer conversation. While it loads, up to 1 GB more was resident there, half of it
    pages of the file.
    """
    size = DTYPE_BYTES[dtype]
    activations = CHAT_TOKENS * size * (2 * shape.layers * shape.keys + 2 * (shape.hidden + shape.inner))
    return int(weight_bytes(shape, dtype, quantization) + shape.lora * 16 * 4 + activations)


@dataclass(frozen=True)
class MethodMemory:
    """Bytes of a step by one way of training, without what the libraries take."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # with those of the output layer

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


def compare_methods(shape: ModelShape, step: StepShape, trained: int) -> dict[str, MethodMemory]:
    """A step by full fine-tuning, LoRA and QLoRA, which is what 16-bit weights, and then 4-bit ones, take at least.

    trained: parameters of the LoRA, which are kept in 32 bits with their gradients and both moments of Adam. full: all
    parameters, with gradients in 16 bits and Adam's moments in 8: 6 bytes a parameter, where 32 bits for all of them
    are 16. Of `step` its batch, length, learned, rank and checkpointing count.
    """
    step = replace(step, dtype="bfloat16")
    activations, logits = _kept_activations(shape, step), _logit_bytes(shape, step)
    without_lora = _kept_activations(shape, replace(step, rank=0))
    whole_logits = _logit_bytes(replace(shape, plain_head=False), step)  # a trained output layer keeps its logits
    count, lora = shape.parameters, 4 * trained
    full = (2 * count, 2 * count, 2 * count, without_lora + whole_logits)
    small = (lora, 2 * lora, activations + logits)
    figures = {
        "full": full,
        "lora": (weight_bytes(replace(shape, stored="none"), "bfloat16") + lora, *small),
        "qlora": (weight_bytes(shape, "bfloat16", "nf4") + lora, *small),
    }
    return {name: MethodMemory(*map(int, parts)) for name, parts in figures.items()}


def _kept_activations(shape: ModelShape, step: StepShape) -> float:
    """Activations of all layers that a step keeps for the backward pass."""
    size, tokens = DTYPE_BYTES[step.dtype], step.batch * step.length
    kept = _activation_bytes(shape, step.rank, size) * tokens * shape.layers
    if step.checkpointing:  # the layers' inputs, and one layer that is recomputed (Chen et al. 2016)
        return tokens * shape.hidden * size * shape.layers + kept / shape.layers
    return kept


def _activation_bytes(shape: ModelShape, rank: int, size: float) -> float:
    """Activations that one token keeps in one layer for the backward pass.

    Counted as in Korthikanti et al. 2022, §4.1, for what PyTorch keeps here: base weights are frozen, so a linear
    layer keeps only the input of its LoRA (shared by q, k, v and by gate, up); fused attention keeps q, k, v and its
    output, and nothing that grows with length²; an MLP keeps input and output of its activation, a gated one
    the other factor and the product too; norms compute in float32 and keep their input.
    """
    attention = shape.hidden + 2 * shape.queries + 2 * shape.keys
    mlp = shape.hidden + shape.mlp_kept * shape.inner
    norms = shape.norms * shape.hidden + (shape.queries + shape.keys if shape.qk_norm else 0)
    return size * (attention + mlp + 7 * rank) + 4 * norms


def _logit_bytes(shape: ModelShape, step: StepShape) -> float:
    """Memory of the output layer and the loss, as loss.py computes it.

    With a plain frozen output layer no logits are kept: one tile of them exists as multiplied, in float32 and rounded
    again, and the hidden states once as given and three times in float32. Any other output layer keeps logits, their
    float32 copy, log-softmax and gradient.
    """
    learned, size = step.batch * step.learned, DTYPE_BYTES[step.dtype]
    if shape.plain_head:
        return learned * (VOCAB_TILE * (2 * size + 4) + shape.hidden * (size + 3 * 4))
    return learned * shape.vocab * (size + 4 + 4 + 4)


# On a CPU: 1.1 GB resident before the first step without the weights (Python, torch, transformers, TRL, and heap that
# opening a base leaves behind; measured), and oneDNN's kernels: 0.6 MB each, 34 a shape of batch, 250 MB after 27
# steps; it caches 1024 at most. 1 GB for a CUDA context with cuBLAS' workspaces is an assumption, not measured.
RUNTIME_BYTES = {"cpu": 1.1e9 + 0.25e9, "cuda": 1e9, "mps": 1e9}
# Heap lost between freed blocks on a CPU (glibc cannot give a freed block to an aligned request of the same size), as a
# share of activations and logits. Fitted to the runs of the bundled base in test_hardware.py.
HEAP_FRAGMENTATION = 0.15


def _runtime_bytes(device: str, activations_and_logits: float) -> float:
    return RUNTIME_BYTES[device] + (HEAP_FRAGMENTATION * activations_and_logits if device == "cpu" else 0.0)


def step_flops(shape: ModelShape, tokens: float, learned: float, checkpointing: bool = False) -> float:
    """FLOPs of LoRA training on `tokens`, of which `learned` pass the output layer.

    2 a weight and token forward, 2 for the gradient of the inputs (Kaplan et al. 2020, §2.1; frozen weights need no
    gradient of their own), the forward pass again with checkpointing; the same for the output layer. The products of
    attention itself are left out: with rows of a hundred tokens they are a hundredth.
    """
    return tokens * shape.linear * (6 if checkpointing else 4) + learned * 4 * shape.vocab * shape.hidden
