"""Trained rows of tokens in an adapter: what teaches a base a stop token that it has never learned.

PEFT (trainable_token_indices) trains and saves them; a saved row is the whole row, not a difference. To speak, they are
put on the base as a LoRA whose one side picks the rows: PEFT's own way copies the whole matrix at each step and cannot
share a batch between several adapters, while a LoRA knows mixed batches and strength already.
"""

from typing import Any

from persona.errors import AdapterError

TRAINED_TOKENS_SUFFIX = ".token_adapter.trainable_tokens_delta"  # PEFT's name in an adapter's file
MAX_TRAINED_TOKENS = 64
TokenRows = dict[str, tuple[list[int], Any]]  # layer → token ids, and their rows as a tensor (ids, hidden)


def select_trainable_tokens(model: Any, token_id: int) -> dict[str, list[int]]:
    """The rows that let the model learn to say this token, in PEFT's form: {layer: token ids}.

    With tied weights PEFT needs the embedding's name, and the output layer follows.
    """
    tied = model.config.get_text_config().tie_word_embeddings
    layer = model.get_input_embeddings() if tied else model.get_output_embeddings()
    return {next(name for name, module in model.named_modules() if module is layer): [token_id]}


def are_token_ids(value: Any) -> bool:
    good = isinstance(value, list) and all(type(x) is int and 0 <= x < 2**31 for x in value)
    return good and 1 <= len(value) == len(set(value)) <= MAX_TRAINED_TOKENS


def take_token_rows(state: dict[str, Any], named: dict[str, list[int]] | list[int], model: Any) -> TokenRows:
    """Take the rows out of an adapter's tensors and check them against its settings `named` and the base.

    PEFT allows the end of a layer's name there, and for the embedding none at all.

    The output layer is among the result too where its weights are the embedding's. Raises AdapterError.
    """
    ends = {n: m for n, m in model.named_modules() if m is model.get_input_embeddings()}
    if isinstance(named, list):
        named = dict.fromkeys(ends, named)
    ends |= {n: m for n, m in model.named_modules() if m is model.get_output_embeddings()}
    found: TokenRows = {}
    given = {key: state.pop(key) for key in list(state) if key.endswith(TRAINED_TOKENS_SUFFIX)}
    for key, rows in given.items():
        layer = key.removeprefix("base_model.model.").removesuffix(TRAINED_TOKENS_SUFFIX)
        ids = next((ids for end, ids in named.items() if f".{layer}".endswith(f".{end}")), [])
        weight = ends[layer].weight if layer in ends else None
        if weight is None or tuple(rows.shape) != (len(ids), weight.shape[1]) or max(ids, default=0) >= weight.shape[0]:
            size = "×".join(map(str, rows.shape))
            raise AdapterError(
                "Its trained token rows ({layer}, {size}) do not fit this base. Open it with its own.",
                layer=layer,
                size=size,
            )
        found |= {name: (ids, rows) for name, module in ends.items() if module.weight is weight}
    if len(given) != len(named):
        raise AdapterError("The token rows that its settings name are not all there. Copy it again.")
    return found


def make_token_row_settings(rows: TokenRows, rslora: bool) -> dict[str, dict[str, Any]]:
    """What PEFT needs to make room for them: a rank of one a row, and the alpha that makes its scale 1."""
    ranks = {layer: len(ids) for layer, (ids, _) in rows.items()}
    return {"rank_pattern": ranks, "alpha_pattern": {n: r**0.5 if rslora else r for n, r in ranks.items()}}


def set_token_rows(model: Any, name: str, rows: TokenRows) -> None:
    """Make the LoRA `name` of these layers replace the rows, at strength 1. model: a PeftModel's base."""
    import torch

    for path, (ids, trained) in rows.items():
        layer = model.get_submodule(path)
        weight = layer.get_base_layer().weight
        with torch.no_grad():
            change = trained.to(weight.device, torch.float32) - weight[ids].float()
            if name in layer.lora_embedding_A:
                pick, difference = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
            else:
                pick, difference = layer.lora_B[name].weight, layer.lora_A[name].weight
            pick.zero_()[ids, range(len(ids))] = 1
            difference.copy_(change)
