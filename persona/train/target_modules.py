"""`target_modules`: which linear layers of a base get a LoRA; and the kinds of layers that it has, to choose from.

Works on names alone, without torch, so that the page can list the layers of a base that nobody has loaded.
"""

import re
from dataclasses import dataclass, replace

import regex  # unlike re it has a timeout; a dependency of transformers

from persona.errors import InputError
from persona.models import memory
from persona.models.base import Base
from persona.train.config import PATTERN_PREFIX

# what model families call the two halves of a layer
ATTENTION_PARENTS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
MLP_PARENTS = ("mlp", "feed_forward", "ffn")
LAYER_GROUPS = {"attention": ATTENTION_PARENTS, "mlp": MLP_PARENTS, "attention+mlp": ATTENTION_PARENTS + MLP_PARENTS}
MAX_SHOWN_NAMES = 12  # layer names that an error lists


def match_layers(layers: list[str], wanted: str) -> list[str]:
    """Those of the layers that target_modules names. layers: whole names of the linear layers that may have a LoRA.

    wanted: all-linear, one of LAYER_GROUPS, names separated by commas, or re: and a regular expression for whole names.
    Raises InputError naming the layers that there are.
    """
    wanted = wanted.strip()
    if wanted == "all-linear":
        return layers
    if wanted.startswith(PATTERN_PREFIX):
        return _match_pattern(layers, wanted.removeprefix(PATTERN_PREFIX).strip())
    return _match_group(layers, wanted) if wanted in LAYER_GROUPS else _match_names(layers, wanted)


def _match_group(layers: list[str], group: str) -> list[str]:
    """By the module that they are in: q_proj is called qkv_proj, q_a_proj … in other families."""
    matches = [n for n in layers if len(parts := n.split(".")) > 1 and parts[-2] in LAYER_GROUPS[group]]
    if not matches:
        raise InputError(
            "target_modules={wanted}: not known for this base. Name its layers: {layers}.",
            wanted=group,
            layers=list_layer_names(layers),
        )
    return matches


def _match_names(layers: list[str], wanted: str) -> list[str]:
    """wanted: endings of names, separated by commas, each of which must be there."""
    names = split_names(wanted)
    unknown = [n for n in names if not any(ends_with_name(layer, n) for layer in layers)]
    if unknown or not names:
        raise InputError(
            "target_modules: this base has no layer {names!r}. It has {layers}.",
            names=", ".join(unknown) or wanted,
            layers=list_layer_names(layers),
        )
    return [layer for layer in layers if any(ends_with_name(layer, n) for n in names)]


def split_names(text: str) -> list[str]:
    """The names in a setting that lists several, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def ends_with_name(layer: str, name: str) -> bool:
    """Whether `name` is the layer's, or its end at a dot."""
    return f".{layer}".endswith(f".{name}")


def _match_pattern(layers: list[str], pattern: str) -> list[str]:
    try:
        matches = [n for n in layers if regex.fullmatch(pattern, n, timeout=1.0)]  # some patterns would run for years
    except TimeoutError:
        raise InputError(
            "target_modules=re:{pattern}: takes too long. Write it without nested repeats.", pattern=f"{pattern:.100}"
        ) from None
    except regex.error as e:
        raise InputError(
            "target_modules=re:{pattern}: not a regular expression ({reason}).", pattern=pattern, reason=e
        ) from e
    if not matches:
        raise InputError(
            "target_modules=re:{pattern}: matches no linear layer. It must match a whole name, such as "
            "{first} or {last}; e.g. re:.*{ending}.",
            pattern=pattern,
            first=layers[0],
            last=layers[-1],
            ending=re.escape(layers[0].rpartition(".")[2]),
        )
    return matches


def list_layer_names(layers: list[str]) -> str:
    """The last parts of the layers' names, each once; the first few of them."""
    names = list(dict.fromkeys(n.rpartition(".")[2] for n in layers))
    return ", ".join(names[:MAX_SHOWN_NAMES]) + (", …" if len(names) > MAX_SHOWN_NAMES else "")


@dataclass(frozen=True)
class LayerKind:
    """The layers of one name in a base. lora: parameters of a LoRA of rank 1 on all of them, inputs + outputs."""

    name: str  # the shortest ending that no other kind has
    layers: int
    parameters: int
    lora: int
    chosen: bool = False  # by the settings


def list_layer_kinds(base: Base, wanted: str) -> list[LayerKind]:
    """The linear layers of a base on this disk by name, with those chosen that `wanted` names.

    Raises InputError as match_layers().
    """
    shapes = {name.removesuffix(".weight"): shape for name, shape in _linear_weights(base).items()}
    chosen = set(match_layers(list(shapes), _within_language_model(base, wanted)))
    kinds: dict[str, LayerKind] = {}
    for name, shape in shapes.items():
        ending = _ending(name)
        k = kinds.get(ending, LayerKind(ending, 0, 0, 0))
        kinds[ending] = replace(
            k, layers=k.layers + 1, parameters=k.parameters + shape[0] * shape[1], lora=k.lora + sum(shape),
            chosen=k.chosen or name in chosen,
        )  # fmt: skip
    last_parts = [ending.rpartition(".")[2] for ending in kinds]
    return [
        replace(kind, name=last if last_parts.count(last) == 1 else ending)
        for (ending, kind), last in zip(kinds.items(), last_parts, strict=True)
    ]


def _linear_weights(base: Base) -> dict[str, tuple[int, ...]]:
    """The matrices in the layers of its language model."""
    text = {n: shape for n, shape in base.tensors().items() if not memory.NON_TEXT_TOWERS.search(n)}
    stack = memory.find_layer_stack(text)
    return {n: s for n, s in text.items() if len(s) == 2 and n.endswith(".weight") and n.startswith(f"{stack}.")}


def _within_language_model(base: Base, wanted: str) -> str:
    """In a multimodal base all-linear means the layers of attention and MLP, as in lora_config."""
    return "attention+mlp" if wanted.strip() == "all-linear" and "text_config" in base.config() else wanted


def _ending(name: str) -> str:
    """What follows the number of the layer: model.layers.3.mlp.up_proj → mlp.up_proj."""
    match = memory.STACK.fullmatch(name)
    return match[3] if match else name


def count_trainable(kinds: list[LayerKind], rank: int) -> int:
    """Parameters of a LoRA of this rank on the chosen kinds, without what DoRA and trained rows of tokens add."""
    return rank * sum(kind.lora for kind in kinds if kind.chosen)
