"""Attach an adapter to a model in memory, check that it fits, set its strength. adapter.py validates its folder."""

import warnings
from typing import Any

from persona.errors import AdapterError, Message, join
from persona.models import placement, quantization, trained_modules, trained_tokens
from persona.models.adapter import WEIGHTS_FILE, Adapter
from persona.models.trained_modules import PEFT_PREFIX


def attach_adapter(model: Any, adapter: Adapter, name: str) -> Any:
    """Attach an adapter to a base model, or to a PeftModel beside others, under `name`. Returns the PeftModel.

    Raises AdapterError, and leaves the model as it was, where a tensor does not fit this base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(adapter.path / WEIGHTS_FILE)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    _refuse_dora_in_8_bits(adapter, inner)
    # all checks come first: a later failure would leave half an adapter attached
    token_rows = trained_tokens.take_token_rows(state, adapter.settings.get("trainable_token_indices", {}), inner)
    trained = trained_modules.take_trained_layers(state, adapter.settings, inner)
    layers = check_adapter_fits(adapter, state, inner)
    biases, copied = trained_modules.split_trained_layers(
        trained, layers, bool(adapter.settings.get("use_dora")), inner
    )
    without_lora = [layer for layer in biases if layer not in layers]
    if adapter.settings.get("use_dora") and placement.has_waiting_weights(inner):
        raise AdapterError(
            "The adapter {adapter} is a DoRA, which needs the base's weights at hand, and this base does not fit on "
            "the GPU. Use a larger GPU.",
            adapter=adapter.card.name,
        )
    # built from the known settings: a config file from outside can name things to import
    settings = {
        **adapter.settings,
        "target_modules": [*layers, *without_lora, *token_rows],
        "trainable_token_indices": None,
    }
    for key, pattern in trained_tokens.make_token_row_settings(token_rows, bool(settings.get("use_rslora"))).items():
        settings[key] = pattern | settings.get(key, {})
    settings["rank_pattern"] = dict.fromkeys(without_lora, 1) | settings.get("rank_pattern", {})
    settings |= {"bias": "none", "lora_bias": False, "modules_to_save": copied or None}
    settings["fan_in_fan_out"] = quantization.has_transposed_weights(inner)
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, inference_mode=True, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # both get the same rows
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    placement.materialize_adapters(model)
    state |= trained_modules.fill_copies(copied, trained, model.get_base_model())
    set_peft_model_state_dict(model, state, adapter_name=name)
    trained_tokens.set_token_rows(model.get_base_model(), name, token_rows)
    trained_modules.set_biases(model.get_base_model(), name, biases)
    return model.eval()


def _refuse_dora_in_8_bits(adapter: Adapter, model: Any) -> None:
    """On a CPU, PEFT 0.21 replaces a weight in 8 bits by a copy without its scales as it measures it for DoRA."""
    if adapter.settings.get("use_dora") and model.device.type == "cpu" and getattr(model, "is_loaded_in_8bit", False):
        raise AdapterError(
            "{adapter}: was trained with use_dora, which does not go with a base in 8 bits on a CPU. Set quantization "
            "to nf4 or none.",
            adapter=adapter.card.name,
        )


def check_adapter_fits(adapter: Adapter, state: dict[str, Any], model: Any) -> list[str]:
    """Compare every LoRA tensor with the layer that it belongs to. Returns the names of the layers, sorted.

    state: the tensors of the adapter's file by name. Raises AdapterError listing the first five that do not fit.
    """
    from peft.utils.other import get_pattern_key

    modules = dict(model.named_modules())
    ranks, r = adapter.settings.get("rank_pattern", {}), adapter.settings["r"]
    parts_of_layer: dict[str, set[str]] = {}
    problems = []
    for key, tensor in state.items():
        layer, _, part = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        module: Any = modules.get(layer)
        module = getattr(module, "base_layer", module)
        in_features, out_features = (
            module.weight.shape
            if quantization.is_transposed(module)
            else (getattr(module, "in_features", None), getattr(module, "out_features", None))
        )
        if in_features is None or not key.startswith(PEFT_PREFIX):
            problems.append(Message("  {layer}: this base has no such layer", layer=layer or key))
            continue
        parts_of_layer.setdefault(layer, set()).add(part)
        rank = ranks.get(get_pattern_key(ranks.keys(), layer), r)
        sizes: dict[str, tuple[Any, ...]] = {"A.weight": (rank, in_features), "B.weight": (out_features, rank)}
        if adapter.settings.get("use_dora"):
            sizes["magnitude_vector"] = (out_features,)
        if part not in sizes:
            problems.append(
                Message("  {layer}: lora_{part} is not a tensor that its settings name", layer=layer, part=part)
            )
        elif tuple(tensor.shape) != sizes[part]:
            problems.append(
                Message("  {layer}: lora_{part} is {shape}, with this base it must be {wanted}",
                        layer=layer, part=part, shape=_sizes(tensor.shape), wanted=_sizes(sizes[part]))
            )  # fmt: skip
    problems += [
        Message("  {layer}: only {parts} of its LoRA is there", layer=layer, parts=", ".join(sorted(parts)))
        for layer, parts in parts_of_layer.items()
        if not {"A.weight", "B.weight"} <= parts
    ]
    if not state:
        problems.append(Message("  it holds no weights at all"))
    if problems:
        more = [Message("  … and {count} more", count=len(problems) - 5)] if len(problems) > 5 else []
        raise AdapterError(
            "The adapter {adapter} was trained on {base} and does not fit this one:\n{problems}\n"
            "Open it with its own base.",
            adapter=adapter.card.name,
            base=adapter.base_id or Message("another base"),
            problems=join("\n", problems[:5] + more),
        )
    return sorted(parts_of_layer)


def _sizes(shape: Any) -> str:
    return "×".join(map(str, shape)) or Message("one number")


def set_adapter_strength(model: Any, name: str, strength: float) -> None:
    """Scale the adapter's update to the weights: 0 is the base, 1 the adapter as trained."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.set_scale(name, strength)
