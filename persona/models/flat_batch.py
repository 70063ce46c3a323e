"""A batch as one row of tokens: no padding, and what all rows begin with is computed once.

Every row of a persona begins with the same system prompt. Under a causal mask its hidden states are the same in each
row, so norms, products and MLPs of a layer take them once; attention alone sees rows, and lets each read the shared
beginning. What stands after a row's last learned token changes no loss and is left out. The loss and its gradients stay
the same but for the order of sums.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from persona.models.memory import padded_length
from persona.models.placement import input_device, lora_autocast
from persona.template.render import IGNORE_INDEX

ATTENTION_NAME = "persona_rows"
# keys of a row: up to here plain products beat the flash kernel, whose backward pass costs three times as much, and
# their scores are small
MAX_SHORT_ROW = 256
# the tokens of a batch are filled up to a multiple: a CPU builds its kernels anew for each number of them
FLAT_MULTIPLE = 32
# settings of config.json by which a layer sees only the last so many tokens of a row
WINDOW_SETTINGS = ("sliding_window", "attention_chunk_size")


@dataclass(frozen=True)
class FlatBatch:
    """The tokens of a batch, one after the other: the shared beginning, then what each row goes on with, then filling.

    ids, positions: (1, tokens). prefix: tokens of the shared beginning. place: (rows, length), where in `ids` each
    position of the padded batch stands; what was left out is 0. rows, longest: the grid in which attention sees the
    rest of the rows. own: (rest,), where in that grid, row by row, each token of the rest stands.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    prefix: int
    place: torch.Tensor
    rows: int
    longest: int
    own: torch.Tensor


def flatten_batch(input_ids: torch.Tensor, labels: torch.Tensor) -> FlatBatch:
    """input_ids and labels (rows, length), of which a label at least is learned → the tokens that its loss needs."""
    rows, length = labels.shape
    number = torch.arange(length, device=labels.device)
    # the last learned token is predicted by the one before it, so a row needs that one and no more
    sizes = ((labels[:, 1:] != IGNORE_INDEX) * number[1:]).amax(-1)
    learning = sizes > 0
    same = (input_ids == input_ids[learning][:1]).masked_fill(~learning[:, None], True).all(0)
    prefix = int(same.long().cumprod(0).sum()) if int(learning.sum()) > 1 else 0
    prefix = min(prefix, int(sizes[learning].min()))
    rest = (sizes - prefix).clamp(min=0)
    longest = padded_length(max(int(rest.max()), 1))
    grid = torch.arange(longest, device=labels.device) < rest[:, None]
    own = grid.flatten().nonzero()[:, 0]
    row, step = own // longest, own % longest
    place = torch.zeros_like(input_ids)
    place[:, :prefix] = number[:prefix]
    place[row, prefix + step] = prefix + torch.arange(len(own), device=labels.device)
    filling = padded_length(prefix + len(own), FLAT_MULTIPLE) - prefix - len(own)
    first = input_ids[learning][0, :prefix]
    ids = F.pad(torch.cat([first, input_ids[row, prefix + step]]), (0, filling))
    positions = F.pad(torch.cat([number[:prefix], prefix + step]), (0, filling))
    return FlatBatch(ids[None], positions[None], prefix, place, rows, longest, own)


@contextlib.contextmanager
def flat_batches(model: Any) -> Iterator[None]:
    """While it lasts, the loss of a PeftModel is computed on flat batches, if its base gives the same with them.

    Its attention is row_attention then. A base whose attention is not torch's, or not the same for all its parts, keeps
    its own. At the end, after an error too, the model and the tables of transformers are as they were before.
    """
    causal = model.get_base_model()
    config = causal.config.get_text_config()
    if config._attn_implementation != "sdpa" or config is not causal.config:
        yield
        return
    with contextlib.ExitStack() as undo:
        for table, function in ((AttentionInterface, row_attention), (AttentionMaskInterface, sdpa_mask)):
            table.register(ATTENTION_NAME, function)
            undo.callback(table._global_mapping.pop, ATTENTION_NAME, None)  # there is no public way to unregister
        causal.set_attn_implementation(ATTENTION_NAME)
        undo.callback(causal.set_attn_implementation, "sdpa")
        with model.disable_adapter():
            causal.persona_flat = _computes_the_same(causal)
        undo.callback(delattr, causal, "persona_flat")
        yield


def flatten_if_possible(causal: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> FlatBatch | None:
    """The batch for a model that computes flat ones; None for another, and where a row is longer than its window."""
    if not getattr(causal, "persona_flat", False) or not bool((labels[:, 1:] != IGNORE_INDEX).any()):
        return None
    flat, config = flatten_batch(input_ids, labels), causal.config.get_text_config()
    window = min((size for name in WINDOW_SETTINGS if (size := getattr(config, name, None))), default=labels.shape[1])
    return flat if int(flat.positions.max()) < window else None


@torch.no_grad()
def _computes_the_same(causal: Any) -> bool:
    """Whether the base alone has the hidden states of a padded batch with the flat one, tried on numbers.

    Layers that mix tokens without attention (Mamba, linear attention, convolutions) do not see rows, positions that are
    not rotations may be counted another way, and some models do not hand the layout on to their layers.
    """
    vocabulary, device = causal.config.get_text_config().vocab_size, input_device(causal)
    ids = torch.arange(3 * 12, device=device).view(3, 12) * 5 % 97 % vocabulary
    ids[:, :4] = ids[0, :4]
    labels = ids.clone()
    labels[1, 9:] = labels[2, 6:] = IGNORE_INDEX
    others = ids.clone()
    others[0, 4:] = others[0, 4:].flip(0)
    was_training = causal.training
    causal.eval()
    try:
        with lora_autocast(causal):
            want = causal.base_model(input_ids=ids, use_cache=False).last_hidden_state
            found, beside_others = (_hidden_states(causal, rows, labels) for rows in (ids, others))
    except (TypeError, ValueError, IndexError, RuntimeError, AttributeError):
        return False
    finally:
        causal.train(was_training)
    seen = labels[:, 1:] != IGNORE_INDEX
    want, found, beside_others = (x[:, :-1].float() for x in (want, found, beside_others))
    # beside both rows the shapes are the same, and so is the rounding; padded they differ, in bfloat16 by a hundredth
    leaks = (found - beside_others)[1:][seen[1:]].abs().max() > 1e-5 * want.std()
    return not leaks and bool((found - want)[seen].abs().mean() < 0.05 * want[seen].std())


def _hidden_states(causal: Any, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(rows, length, d) of a padded batch, computed flat; what the loss does not need is the first token's."""
    flat = flatten_batch(ids, labels)
    given = {"input_ids": flat.ids, "position_ids": flat.positions, "use_cache": False, "flat": flat}
    return causal.base_model(**given).last_hidden_state[0][flat.place]


class _Taken(torch.autograd.Function):
    """x[index] of different rows; its gradient is written to its place, where torch's own adds one row at a time."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """x (n, …), index (m,) without repetition → (m, …)."""
        ctx.save_for_backward(index)
        ctx.size = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        (index,), gradient = ctx.saved_tensors, upstream[0]
        return gradient.new_zeros(ctx.size, *gradient.shape[1:]).index_copy_(0, index, gradient), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """Causal attention, in which the last query sees the last key. Products that need few of torch's operations.

    query (rows, heads, n, d), key and value (rows, fewer heads, n or more, d) → (rows, heads, n, d).
    """
    rows, heads, n, width = query.shape
    groups, keys = heads // key.shape[1], key.shape[2]
    if keys > MAX_SHORT_ROW:
        seen = torch.ones(n, keys, dtype=torch.bool, device=query.device).tril(keys - n)
        return F.scaled_dot_product_attention(query, key, value, seen, scale=scaling, enable_gqa=groups > 1)
    # query heads that share a key are stacked: more rows of one product
    q, k, v = query.reshape(-1, groups * n, width), key.flatten(0, 1), value.flatten(0, 1)
    hidden = torch.full((n, keys), -torch.inf, dtype=query.dtype, device=query.device).triu(1 + keys - n)
    hidden = hidden.repeat(groups, 1)[None]
    scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=width**-0.5 if scaling is None else scaling)
    return torch.bmm(scores.softmax(-1), v).view(rows, heads, n, width)


def row_attention(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                  attention_mask: torch.Tensor | None, dropout: float = 0.0, scaling: float | None = None,
                  flat: FlatBatch | None = None, **others: Any) -> tuple[torch.Tensor, None]:  # fmt: skip
    """An attention function of transformers: of a flat batch, of short rows without a mask, else torch's own.

    query (rows, heads, length, d), key and value (rows, fewer heads, length, d) → (rows, length, heads, d). flat: the
    layout of the tokens, as the model was called with it.
    """
    if flat is not None:
        return _attend_flat(flat, query, key, value, scaling), None
    short = attention_mask is None and 1 < query.shape[2] == key.shape[2] <= MAX_SHORT_ROW
    if not short or dropout or not query.requires_grad or not getattr(module, "is_causal", True):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)
    return _attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


def _attend_flat(
    flat: FlatBatch, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """query (1, heads, tokens, d), key and value (1, fewer heads, tokens, d) → (1, tokens, heads, d)."""
    p, end = flat.prefix, flat.prefix + len(flat.own)

    def in_rows(x: torch.Tensor) -> torch.Tensor:
        """(1, heads, tokens, d) → (rows, heads, longest, d), of the rest of each row."""
        grid = x.new_zeros(flat.rows * flat.longest, *x[0, :, 0].shape)
        grid = grid.index_copy(0, flat.own, x[0, :, p:end].transpose(0, 1))
        return grid.view(flat.rows, flat.longest, *grid.shape[1:]).transpose(1, 2)

    def with_beginning(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[:, :, :p].expand(flat.rows, -1, -1, -1), in_rows(x)], 2)

    out = _attend(in_rows(query), with_beginning(key), with_beginning(value), scaling).transpose(1, 2)
    parts = [_Taken.apply(out.flatten(0, 1), flat.own)]
    if p:
        shared = _attend(query[:, :, :p], key[:, :, :p], value[:, :, :p], scaling)
        parts.insert(0, shared[0].transpose(0, 1))
    if filling := query.shape[2] - end:
        parts.append(out.new_zeros(filling, *out.shape[2:]))
    return torch.cat(parts)[None]
