"""GGUF files for llama.cpp and programs built on it: the adapter alone, or the whole model with the adapter merged.

llama.cpp has its own tensor names and, for the Llama family, another order of the rows of q and k: its rotary embedding
pairs neighbouring rows, that of transformers pairs the halves of a head. Both rules are those of its converter,
convert_hf_to_gguf.py.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from persona.errors import AdapterError, BaseError, Message
from persona.models import adapter as adapters
from persona.models import attach, bundled, trained_modules
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.models.trained_modules import PEFT_PREFIX
from persona.share.exports.formats import Quantization
from persona.share.exports.gguf_types import FILE_TYPES, choose_type, estimate_bytes, quantize_rows
from persona.store.files import expand_home, is_file
from persona.store.workspace import may_name

# model_type → architecture, where each tensor of the one is a tensor of the other
ARCHITECTURES = {
    "gemma3_text": "gemma3", "gemma3": "gemma3", "llama": "llama", "mistral": "llama", "qwen2": "qwen2",
    "qwen3": "qwen3", "smollm3": "smollm3", "phi3": "phi3", "glm4": "glm4",
}  # fmt: skip
PERMUTED_ARCHITECTURES = ("llama", "smollm3")
VERIFIED_ARCHITECTURES = ("gemma3", "llama")  # these two were run in llama.cpp, with the embedded bases
SIXTEEN_BIT_TYPES = {
    "torch.float16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "torch.bfloat16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
CONVERTER_URL = "https://github.com/ggml-org/llama.cpp"


class TensorNames:
    """llama.cpp's names for the tensors of a base, and its order of their rows. Raises BaseError."""

    def __init__(self, base: Base):
        from transformers import AutoConfig

        kind = str(base.config().get("model_type"))
        if kind not in ARCHITECTURES:
            raise BaseError(
                "{base}: {kind} is not among the architectures that can be written as GGUF here "
                "({architectures}). Export with --as merged, then use llama.cpp's converter: python "
                "convert_hf_to_gguf.py FOLDER ({converter}).",
                base=base.id,
                kind=kind,
                architectures=", ".join(ARCHITECTURES),
                converter=CONVERTER_URL,
            )
        self.architecture = ARCHITECTURES[kind]
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        # not read from the file, which may leave out defaults
        config = AutoConfig.from_pretrained(base.path, trust_remote_code=False).get_text_config()
        self.layers = config.num_hidden_layers
        self._map = gguf.get_tensor_name_map(arch, self.layers)
        self._heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}

    def gguf_name(self, name: str) -> str:
        """llama.cpp's name, or "" where it has none. name: of a weight or layer in transformers."""
        plain = name.replace("language_model.", "")
        return self._map.get_name(plain, (".weight", ".bias")) or ""

    def permute_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The rows in llama.cpp's order. name: llama.cpp's, of the tensor; rows: (outputs, inputs)."""
        heads = self._heads.get(name.split(".")[2] if name.count(".") >= 2 else "")
        if self.architecture not in PERMUTED_ARCHITECTURES or not heads:
            return rows
        halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def write_adapter_gguf(adapter: Adapter, base: Base, out: Path) -> None:
    """Write the LoRA as a GGUF file in float32; llama.cpp scales each layer by alpha / rank.

    Raises AdapterError for what GGUF cannot express (DoRA, trained tokens), or an adapter of another base.
    """
    instead = Message("Export the whole model instead: --as gguf --merge, or --as merged.")
    if more := trained_modules.find_more_than_lora(adapter.settings):
        raise AdapterError(
            "{adapter}: llama.cpp has no form for {what}. {instead}",
            adapter=adapter.card.name,
            what=more,
            instead=instead,
        )
    names = TensorNames(base)
    alpha = float(adapter.settings["lora_alpha"]) or 1.0
    writer = gguf.GGUFWriter(out, names.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(adapter.card.name)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    for layer, (a, b, scale) in sorted(_lora_layers(adapter, base).items()):
        name = names.gguf_name(layer)
        if not name:
            raise AdapterError(
                "{adapter}: llama.cpp knows no layer for {layer}. {instead}",
                adapter=adapter.card.name,
                layer=layer,
                instead=instead,
            )
        b = names.permute_rows(f"{name}.weight", b) * np.float32(scale * len(a) / alpha)
        writer.add_tensor(f"{name}.weight.lora_a", a)
        writer.add_tensor(f"{name}.weight.lora_b", b)
    _close(writer)


def _lora_layers(adapter: Adapter, base: Base) -> dict[str, tuple[np.ndarray, np.ndarray, float]]:
    """Layer → A (rank, inputs), B (outputs, rank), scale of their product. Raises AdapterError."""
    from safetensors.torch import load_file

    state = load_file(adapter.path / adapters.WEIGHTS_FILE)
    layers = {}
    for layer in attach.check_adapter_fits(adapter, state, _empty_model(base)):
        a, b = (state[f"{PEFT_PREFIX}{layer}.lora_{x}.weight"].float().numpy() for x in "AB")
        layers[layer] = (a, b, adapters.lora_scale(adapter.settings, layer, len(a)))
    return layers


def _empty_model(base: Base) -> Any:
    """The base's model on the meta device, without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path, trust_remote_code=False))


def find_source_gguf(base: Base, name: str, scratch: Path) -> Path | None:
    """The .gguf file that the base was opened from, or None. A bundled one may be written to `scratch`.

    name: the base's id, or the file as the user named it.
    """
    model = bundled.find_bundled(name)
    if model and base.revision.startswith("gguf"):
        if model.file:
            return bundled.find_packaged_gguf(model)
        bundled.assemble_gguf(scratch / f"{model.name}.gguf")
        return scratch / f"{model.name}.gguf"
    path = expand_home(name)
    return path if path.suffix == ".gguf" and may_name(path) and is_file(path) else None


def estimate_model_gguf(base: Base, quantization: Quantization) -> int:
    """Bytes of the weights of a merged file. Raises BaseError for an architecture that cannot be written."""
    names = TensorNames(base)
    found = {names.gguf_name(name): shape for name, shape in base.tensors().items()}
    return estimate_bytes({name: shape for name, shape in found.items() if name}, names.layers, quantization)


def write_model_gguf(
    source: Path,
    state: dict[str, Any],
    base: Base,
    out: Path,
    name: str,
    template: str,
    stop_id: int,
    quantization: Quantization = Quantization.none,
) -> None:
    """Write a copy of the GGUF file `source` with the weights `state`, a model's state_dict in float16 or bfloat16.

    Sizes and tokenizer are copied; tensors of one dimension (norms) are never trained and are copied too.
    name: of the model; template: its chat template, in Jinja; stop_id: the token that ends a reply.
    """
    reader, names = gguf.GGUFReader(source), TensorNames(base)
    sixteen_bits, file_type = SIXTEEN_BIT_TYPES[str(next(iter(state.values())).dtype)]
    file_type = FILE_TYPES.get(quantization, file_type)
    changed: dict[str, Any] = {
        "general.name": name, "general.file_type": int(file_type), "tokenizer.chat_template": template,
        "tokenizer.ggml.eot_token_id": stop_id,
    }  # fmt: skip
    writer = gguf.GGUFWriter(out, names.architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", *changed):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub)
    for key, value in changed.items():
        (writer.add_uint32 if isinstance(value, int) else writer.add_string)(key, value)
    weights = {names.gguf_name(key): value for key, value in state.items()}
    stored = {t.name: t for t in reader.tensors}
    # an output layer tied to the embedding is left out, as llama.cpp does
    head, embedding = weights.get("output.weight"), weights["token_embd.weight"]
    more = ["output.weight"] if head is not None and head.data_ptr() != embedding.data_ptr() else []
    if unplaced := [k for k in state if names.gguf_name(k) not in (*stored, "output.weight")]:
        raise BaseError(
            "{base}: its GGUF file has no place for {tensor}. Export with --as merged instead.",
            base=base.id,
            tensor=unplaced[0],
        )
    for tensor in dict.fromkeys([*stored, *more]):
        if tensor in stored and (len(stored[tensor].shape) == 1 or tensor not in weights):
            old = stored[tensor]
            writer.add_tensor(tensor, old.data, raw_dtype=old.tensor_type)
            continue
        rows = names.permute_rows(tensor, weights[tensor].detach().float().cpu().numpy())
        kind = sixteen_bits
        if quantization is not Quantization.none:
            kind = choose_type(tensor, rows.shape[-1], names.layers, bool(more), quantization)
        writer.add_tensor(tensor, quantize_rows(rows, kind), raw_dtype=kind)
    _close(writer)


def _close(writer: gguf.GGUFWriter) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
