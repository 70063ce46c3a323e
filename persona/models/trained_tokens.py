"""Trained token rows of an adapter: embedding rows that teach a base a stop token which it has never learned.

PEFT trains and saves them (trainable_token_indices); a saved row is the whole row, not a difference. For generation
they are attached as a LoRA of which one matrix selects the rows and the other holds the differences: PEFT's own layer
copies the whole embedding at each step and cannot serve several adapters in one batch, which a LoRA can, with strength.
"""

from typing import Any

from persona.errors import AdapterError

TRAINED_TOKENS_SUFFIX = ".token_adapter.trainable_tokens_delta"  # PEFT's name in an adapter's file
MAX_TRAINED_TOKENS = 64
TokenRows = dict[str, tuple[list[int], Any]]  # layer → token ids, and their rows as a tensor (ids, hidden)


def select_trainable_tokens(model: Any, token_id: int) -> dict[str, list[int]]:
    """The trainable_token_indices of LoraConfig with which a model learns to generate a token: {layer: [token_id]}.

    With tied weights the layer is the embedding, and the output layer follows.
    """
    tied = model.config.get_text_config().tie_word_embeddings
    layer = model.get_input_embeddings() if tied else model.get_output_embeddings()
    return {next(name for name, module in model.named_modules() if module is layer): [token_id]}


def are_token_ids(value: Any) -> bool:
    """Whether it is a list of 1 to MAX_TRAINED_TOKENS different token ids."""
    valid = isinstance(value, list) and all(type(x) is int and 0 <= x < 2**31 for x in value)
    return valid and 1 <= len(value) == len(set(value)) <= MAX_TRAINED_TOKENS


def take_token_rows(state: dict[str, Any], indices: dict[str, list[int]] | list[int], model: Any) -> TokenRows:
    """Remove the trained rows from an adapter's tensors `state`, check them against the base, and return them.

    indices: the adapter's trainable_token_indices, where PEFT allows the end of a layer's name, and a plain list of
    token ids for the embedding. With tied weights the result has the output layer too. Raises AdapterError.
    """
    layers = {n: m for n, m in model.named_modules() if m is model.get_input_embeddings()}
    if isinstance(indices, list):
        indices = dict.fromkeys(layers, indices)
    layers |= {n: m for n, m in model.named_modules() if m is model.get_output_embeddings()}
    token_rows: TokenRows = {}
    saved = {key: state.pop(key) for key in list(state) if key.endswith(TRAINED_TOKENS_SUFFIX)}
    for key, rows in saved.items():
        layer = key.removeprefix("base_model.model.").removesuffix(TRAINED_TOKENS_SUFFIX)
        ids = next((ids for ending, ids in indices.items() if f".{layer}".endswith(f".{ending}")), [])
        weight = layers[layer].weight if layer in layers else None
        if weight is None or tuple(rows.shape) != (len(ids), weight.shape[1]) or max(ids, default=0) >= weight.shape[0]:
            size = "×".join(map(str, rows.shape))
            raise AdapterError(
                "Its trained token rows ({layer}, {size}) do not fit this base. Open it with its own.",
                layer=layer,
                size=size,
            )
        token_rows |= {name: (ids, rows) for name, module in layers.items() if module.weight is weight}
    if len(saved) != len(indices):
        raise AdapterError("The token rows that its settings name are not all there. Copy it again.")
    return token_rows


def make_token_row_settings(rows: TokenRows, rslora: bool) -> dict[str, dict[str, Any]]:
    """The patterns of LoraConfig for them: rank_pattern, one rank a row, and alpha_pattern, so that the scale is 1."""
    ranks = {layer: len(ids) for layer, (ids, _) in rows.items()}
    return {"rank_pattern": ranks, "alpha_pattern": {n: r**0.5 if rslora else r for n, r in ranks.items()}}


def set_token_rows(model: Any, name: str, rows: TokenRows) -> None:
    """Fill the LoRA `name` of these layers so that at strength 1 it replaces the rows. model: a PeftModel's base."""
    import torch

    for path, (ids, trained) in rows.items():
        layer = model.get_submodule(path)
        weight = layer.get_base_layer().weight
        with torch.no_grad():
            if name in layer.lora_embedding_A:
                selector, difference = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
            else:
                selector, difference = layer.lora_B[name].weight, layer.lora_A[name].weight
            selector.zero_()[ids, range(len(ids))] = 1
            difference.copy_(trained.to(weight.device, torch.float32) - weight[ids].float())
