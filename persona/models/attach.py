"""An adapter on a model in memory: does it fit, attach it, set its strength."""

import warnings
from typing import Any

from persona.errors import AdapterError, Message, join
from persona.models import trained_tokens
from persona.models.adapter import Adapter

_PREFIX = "base_model.model."


def attach_adapter(model: Any, adapter: Adapter, name: str) -> Any:
    """Put the adapter on a base model, or on a PeftModel beside others, under `name`. Returns the PeftModel.

    Raises AdapterError listing every tensor that does not fit this base.
    """
    from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(adapter.path / "adapter_model.safetensors")
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    # all checks first: what fails later would leave half an adapter behind
    token_rows = trained_tokens.take_token_rows(state, adapter.settings.get("trainable_token_indices", {}), inner)
    layers = check_adapter_fits(adapter, state, inner)
    # built from known settings, not loaded: a config file from outside can name things to import
    settings = {**adapter.settings, "target_modules": [*layers, *token_rows], "trainable_token_indices": None}
    for key, pattern in trained_tokens.make_token_row_settings(token_rows, bool(settings.get("use_rslora"))).items():
        settings[key] = pattern | settings.get(key, {})
    config = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, inference_mode=True, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # both ends are filled alike
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, adapter_name=name)
    set_peft_model_state_dict(model, state, adapter_name=name)
    trained_tokens.set_token_rows(model.get_base_model(), name, token_rows)
    return model.eval()


def check_adapter_fits(adapter: Adapter, state: dict[str, Any], model: Any) -> list[str]:
    """Compare every LoRA tensor with the layer it belongs to. Returns the layers."""
    from peft.utils.other import get_pattern_key

    modules = dict(model.named_modules())
    ranks, r = adapter.settings.get("rank_pattern", {}), adapter.settings["r"]
    found: dict[str, set[str]] = {}
    wrong = []
    for key, tensor in state.items():
        layer, _, part = key.removeprefix(_PREFIX).rpartition(".lora_")
        module = modules.get(layer)
        module = getattr(module, "base_layer", module)
        into, out = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if into is None or not key.startswith(_PREFIX):
            wrong.append(Message("  {layer}: this base has no such layer", layer=layer or key))
            continue
        found.setdefault(layer, set()).add(part)
        rank = ranks.get(get_pattern_key(ranks.keys(), layer), r)
        sizes: dict[str, tuple[Any, ...]] = {"A.weight": (rank, into), "B.weight": (out, rank)}
        if adapter.settings.get("use_dora"):
            sizes["magnitude_vector"] = (out,)
        if part not in sizes:
            wrong.append(
                Message("  {layer}: lora_{part} is not a tensor that its settings name", layer=layer, part=part)
            )
        elif tuple(tensor.shape) != sizes[part]:
            wrong.append(Message("  {layer}: lora_{part} is {shape}, with this base it must be {wanted}", layer=layer,
                                 part=part, shape=_sizes(tensor.shape), wanted=_sizes(sizes[part])))  # fmt: skip
    wrong += [Message("  {layer}: only {parts} of its LoRA is there", layer=layer, parts=', '.join(sorted(parts)))
              for layer, parts in found.items() if not {"A.weight", "B.weight"} <= parts]  # fmt: skip
    if not state:
        wrong.append(Message("  it holds no weights at all"))
    if wrong:
        more = [Message("  … and {count} more", count=len(wrong) - 5)] if len(wrong) > 5 else []
        raise AdapterError(
            "The adapter {adapter} was trained on {base} and does not fit this one:\n{problems}\n"
            "Open it with its own base.",
            adapter=adapter.card.name,
            base=adapter.base_id or Message("another base"),
            problems=join("\n", wrong[:5] + more),
        )
    return sorted(found)


def _sizes(shape: Any) -> str:
    return "×".join(map(str, shape)) or Message("one number")


def set_adapter_strength(model: Any, name: str, strength: float) -> None:
    """Scale the adapter's update: 0 is the base, 1 what was trained."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and name in module.scaling:
            module.set_scale(name, strength)
