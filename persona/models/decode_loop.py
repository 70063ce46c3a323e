"""The forward passes that generate a batch of replies: one a token, with a key-value cache.

On a GPU a step of eager PyTorch is bound by launching some thousand small kernels. A CUDA graph launches them at once:
3.6 times as fast with two columns of Gemma 3 4B on an H200, and the same texts (docs/gpu.md).
"""

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.cache_utils import Cache, DynamicCache, StaticLayer, get_layer_types_and_kwargs

from persona.models import kv_cache
from persona.models.malloc import trim_malloc
from persona.models.memory import padded_length
from persona.models.mixed_lora import AdapterWeights, MixedLora
from persona.models.placement import input_device, is_divided
from persona.models.quantization import is_quantized

EAGER_STEPS = 3  # before the capture, which no lazy initialization of a library may fall into: the prompt's is another
LENGTH_MULTIPLE = 64  # of a static cache, in tokens: aligned for every attention kernel
# rows × length of a static cache, which takes its memory at once: 1.1 GB with Gemma 3 4B
MAX_STATIC_TOKENS = 2**13


class DecodeLoop:
    """A context manager: the forward passes of one left-padded batch, with a key-value cache."""

    def __init__(self, model: Any, prompts: Sequence[list[int]], mixes: Sequence[AdapterWeights] | None, pad_id: int):
        device = input_device(model)
        longest = max(map(len, prompts))
        padded = [[pad_id] * (longest - len(p)) + p for p in prompts]
        self.model, self.ids = model, torch.tensor(padded, device=device)
        lengths = torch.tensor([[len(p)] for p in prompts], device=device)
        offsets = torch.arange(longest, device=device) - (longest - lengths)
        self.positions = offsets.clamp(min=0)
        # rows of equal length need no mask, and attention without one is faster
        self.mask = (offsets >= 0).long() if len({len(p) for p in prompts}) > 1 else None
        # an index copies the last positions into one tensor. With logits_to_keep=1, a slice, the CPU copies the output
        # layer's weights for each row: 335 MB and seconds a row with Gemma's. It would have to be on the device of the
        # last layer, though, which of a divided model is another one
        self.last = 1 if is_divided(model) else torch.tensor([-1], device=device)
        self.cache: Any = DynamicCache(config=model.config)
        self.mixed = MixedLora(model, mixes) if mixes is not None else None

    def __enter__(self) -> "DecodeLoop":
        if self.mixed:
            self.mixed.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.mixed:
            self.mixed.__exit__()
        del self.cache
        trim_malloc()  # every conversation has other shapes

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        """The scores of each row's next token, (rows, vocabulary) float32."""
        return self._forward()

    def _forward(self) -> torch.Tensor:
        out = self.model(
            input_ids=self.ids, attention_mask=self.mask, position_ids=self.positions, past_key_values=self.cache,
            use_cache=True, logits_to_keep=self.last,
        )  # fmt: skip
        return out.logits[:, -1].float()

    def append(self, tokens: list[int], active: list[int]) -> None:
        """Add the new token of each row. Rows that are not `active` leave the batch, which makes it faster."""
        if len(active) < len(tokens):
            rows = torch.tensor(active)  # on the CPU: it indexes tensors of any device
            self.cache.batch_select_indices(rows)
            self.positions = self.positions[rows]
            self.mask = None if self.mask is None else self.mask[rows]
            if self.mixed:
                self.mixed.keep_rows(active)
            self._drop_padding()
        self.ids = torch.tensor([[tokens[n]] for n in active], device=self.ids.device)
        self.positions = self.positions[:, -1:] + 1
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(active), 1)], dim=1)

    def _drop_padding(self) -> None:
        """Where the longest row has gone, the others need no columns before their first token."""
        if self.mask is None or not kv_cache.can_join(self.cache):
            return
        if before := int(self.mask.any(dim=0).int().argmax()):
            self.mask = self.mask[:, before:]
            kv_cache.set_length(self.cache, self.mask.shape[1])
        if self.mask.all():
            self.mask = None

    @property
    def can_grow(self) -> bool:
        """Whether the rows of other loops can join while it runs."""
        return kv_cache.can_join(self.cache)

    def absorb(self, other: "DecodeLoop") -> None:
        """Take over the rows of another loop on the same model, behind its own. Both have their newest tokens appended.

        The other loop is of no use afterwards, and must not be left: its layers are this loop's now.
        """
        masks = [loop._mask_of_tokens() for loop in (self, other)]
        length = max(mask.shape[1] for mask in masks)
        mask = torch.cat([pad(m, (length - m.shape[1], 0)) for m in masks])
        for loop in (self, other):
            kv_cache.set_length(loop.cache, length - 1)
        kv_cache.join(self.cache, other.cache)
        self.mask = None if mask.all() else mask
        self.ids, self.positions = torch.cat([self.ids, other.ids]), torch.cat([self.positions, other.positions])
        if self.mixed and other.mixed:
            self.mixed.mixes += other.mixed.mixes
            self.mixed.__enter__()

    def _mask_of_tokens(self) -> torch.Tensor:
        """(rows, tokens in the cache + 1), also where no mask is needed."""
        if self.mask is not None:
            return self.mask
        return self.ids.new_ones(len(self.ids), self.cache.get_seq_length() + 1)

    def suspend(self) -> None:
        """Give every layer its own forward again, until `resume`."""
        if self.mixed:
            self.mixed.__exit__()

    def resume(self, model: Any) -> None:
        """Go on, with the model's layers as they are now: adapters may have come or gone."""
        self.model = model
        if self.mixed:
            self.mixed = MixedLora(model, self.mixed.mixes).__enter__()


class StaticDecodeLoop(DecodeLoop):
    """A DecodeLoop whose tensors keep shape and address, so that a CUDA graph can replay its step.

    The cache has its full length from the start, in layers with a sliding window too: the mask alone hides what is
    outside of it. Rows that have ended stay in the batch; their scores are ignored. Each batch captures a graph of its
    own, at the cost of about one eager step, so there is nothing to compile or to keep between conversations.
    """

    def __init__(
        self, model: Any, prompts: Sequence[list[int]], mixes: Sequence[AdapterWeights] | None, pad_id: int, length: int
    ):
        """length: tokens of the longest prompt and its reply together, at most."""
        super().__init__(model, prompts, mixes, pad_id)
        self.cache = Cache(layers=[StaticLayer(max_cache_len=length) for _ in _layer_types(model)])
        # ones where no token is yet: what comes later is hidden by causality
        mask = self.ids.new_ones(len(prompts), length)
        if self.mask is not None:
            mask[:, : self.mask.shape[1]] = self.mask
        self.mask = mask
        self.rows = list(range(len(prompts)))  # those still wanted
        self.steps = 0
        self.replay: Callable[[], None] | None = None
        self.captured_forwards: list[Any] = []
        self.scores: Any = None  # of all rows

    def __exit__(self, *exception: object) -> None:
        self.replay = self.scores = None  # the graph, and its memory
        super().__exit__(*exception)

    @torch.inference_mode()
    def logits(self) -> torch.Tensor:
        if self.steps == EAGER_STEPS:
            self._capture()
        if self.replay:
            self.replay()
        else:
            self.scores = self._forward()
        self.steps += 1
        return self.scores[self.rows]

    def _capture(self) -> None:
        try:
            self.replay, self.scores = capture_graph(self._forward)
        except RuntimeError as e:  # an operation that a graph cannot hold; nothing of the step was computed
            logging.getLogger("persona").warning("No CUDA graph for %s: %s", type(self.model).__name__, e)

    @property
    def can_grow(self) -> bool:
        return False

    def suspend(self) -> None:
        if self.replay and self.mixed:  # the graph reads the rows' adapters where they were when it was captured
            self.captured_forwards = [layer.__dict__["forward"] for layer in self.mixed.layers]
        super().suspend()

    def append(self, tokens: list[int], active: list[int]) -> None:
        self.rows = [self.rows[n] for n in active]
        if self.steps == 1:  # from the prompt to one token
            self.ids, self.positions = torch.zeros_like(self.ids[:, :1]), self.positions[:, -1:].clone()
        self.ids[self.rows] = torch.tensor([[tokens[n]] for n in active], device=self.ids.device)
        self.positions += 1


def open_decode_loop(
    model: Any, prompts: Sequence[list[int]], mixes: Sequence[AdapterWeights] | None, pad_id: int, max_new_tokens: int
) -> DecodeLoop:
    """The loop for a batch. max_new_tokens: of the row that may write most."""
    length = padded_length(max(map(len, prompts)) + max_new_tokens, LENGTH_MULTIPLE)
    if wants_cuda_graph(model) and length * len(prompts) <= MAX_STATIC_TOKENS:
        return StaticDecodeLoop(model, prompts, mixes, pad_id, length)
    return DecodeLoop(model, prompts, mixes, pad_id)


def wants_cuda_graph(model: Any) -> bool:
    """Whether a step of this model can be a CUDA graph: on a GPU, attention full or sliding.

    PERSONA_CUDA_GRAPHS=0 turns them off, 1 uses them for bases in 4 and 8 bits too, with which no GPU has shown them.
    """
    asked = os.environ.get("PERSONA_CUDA_GRAPHS", "")
    return bool(
        (asked == "1" or (asked != "0" and not is_quantized(model)))
        and not is_divided(model)
        and input_device(model).type == "cuda"
        and model._can_compile_fullgraph
        and set(_layer_types(model)) <= {"full_attention", "sliding_attention"}
    )


def _layer_types(model: Any) -> list[str]:
    return get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))[0]


def capture_graph(forward: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """A function that repeats what `forward` does, on the same memory, and the tensor in which its result then is.

    Raises RuntimeError where `forward` does what a graph cannot hold, such as reading a value from the GPU.
    """
    captured = torch.cuda.CUDAGraph()
    # the outer context restores the stream if the capture fails; other threads may use the GPU meanwhile
    with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(captured, capture_error_mode="thread_local"):
        result = forward()
    return captured.replay, result
