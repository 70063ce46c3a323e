"""The quantizations of a GGUF file: which type each tensor gets, and its rows in that type.

The mix of types is that of llama.cpp's own tool (llama-quantize, without an importance matrix), so that `q4_k_m` means
here what it means elsewhere: more bits for the output layer, and in the layers at both ends and each third one between
for the values of attention and the last product of the MLP.
"""

import importlib.util
import math

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from persona.errors import InputError
from persona.share.exports.formats import Quantization

FILE_TYPES = {name: getattr(gguf.LlamaFileType, f"MOSTLY_{name.upper()}") for name in Quantization if name != "none"}
USUAL_TYPES = {
    Quantization.q8_0: Type.Q8_0, Quantization.q6_k: Type.Q6_K, Quantization.q5_k_m: Type.Q5_K,
    Quantization.q5_0: Type.Q5_0, Quantization.q4_k_m: Type.Q4_K, Quantization.q4_0: Type.Q4_0,
}  # fmt: skip
MIXED = (Quantization.q4_k_m, Quantization.q5_k_m)
# a type in whose blocks of 256 weights a row does not end → the one with blocks of 32 that is taken instead
NARROW = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}


def choose_type(name: str, columns: int, layers: int, has_output: bool, quantization: Quantization) -> Type:
    """The type of a tensor of two dimensions.

    name: llama.cpp's; columns: length of its rows; layers: of the model; has_output: the model has an output layer of
    its own, else the embedding serves as one.
    """
    kind = USUAL_TYPES[quantization]
    if name == "output.weight" or (name == "token_embd.weight" and not has_output):
        kind = Type.Q8_0 if quantization is Quantization.q8_0 else Type.Q6_K
    elif quantization in MIXED and name.startswith("blk."):
        _, number, part, *_ = name.split(".")
        if part in ("attn_v", "ffn_down") and _gets_more_bits(int(number), layers):
            kind = Type.Q6_K
        elif part == "attn_qkv":
            kind = {Type.Q4_K: Type.Q5_K, Type.Q5_K: Type.Q6_K}[kind]
    if columns % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = NARROW.get(kind, Type.F16)
    return Type.F16 if columns % gguf.GGML_QUANT_SIZES[kind][0] else kind


def _gets_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def quantize_rows(rows: np.ndarray, kind: Type) -> np.ndarray:
    """The rows, float32 of (outputs, inputs), in `kind`'s bytes or as 16-bit numbers."""
    if kind in (Type.F16, Type.BF16, Type.Q8_0):
        return gguf.quants.quantize(rows, kind)
    import libgguf

    return libgguf.quantize_rows(np.ascontiguousarray(rows), int(kind))


def require_quantizer(quantization: Quantization) -> None:
    """Raises InputError where this installation cannot write it, naming what it can."""
    if quantization not in (Quantization.none, Quantization.q8_0) and importlib.util.find_spec("libgguf") is None:
        raise InputError(
            "quantize={quantization}: needs libgguf, which is not installed here. Install it (pip install libgguf), or "
            "take q8_0 or none.",
            quantization=quantization,
        )


def estimate_bytes(shapes: dict[str, tuple[int, ...]], layers: int, quantization: Quantization) -> int:
    """Bytes of a file's tensors. shapes: of each, by llama.cpp's name; those of one dimension stay in float32."""
    return sum(_tensor_bytes(name, shape, layers, "output.weight" in shapes, quantization)
               for name, shape in shapes.items())  # fmt: skip


def _tensor_bytes(name: str, shape: tuple[int, ...], layers: int, has_output: bool, quantization: Quantization) -> int:
    count = math.prod(shape)
    if len(shape) == 1:
        return 4 * count
    if quantization is Quantization.none:
        return 2 * count
    block, size = gguf.GGML_QUANT_SIZES[choose_type(name, shape[-1], layers, has_output, quantization)]
    return count // block * size
