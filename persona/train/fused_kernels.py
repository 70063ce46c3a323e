"""Fewer operations in a training step: RMSNorm, rotary embedding and LoRA.

Outside its matrix products a step of a small model is bound on a CPU by memory (every operation reads and writes all
activations), on a GPU by launches; and the backward pass takes two or three operations more. Each kernel here is one
autograd function that computes the same in float32 or in place. A module is tested on numbers, not looked up by its
class: where the results differ, it keeps its own code.

`fused_kernels` puts them into a model and into transformers' modules, and takes them out again.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLayer

from persona.models.hardware import DevicePlan


def are_used(plan: DevicePlan, engine: str) -> bool:
    """Whether a run trains with them. On a GPU not in float16: there its first losses were off by up to 0.14."""
    return plan.device == "cpu" or (engine == "none" and plan.train_dtype != "float16")


@contextlib.contextmanager
def fused_kernels(model: Any) -> Iterator[None]:
    """While it lasts, the modules of a PeftModel compute with the kernels of this file.

    Weights, names and results stay as they are. At the end, after an error too, everything is as it was before: the
    model and the modules of transformers.
    """
    with contextlib.ExitStack() as undo:
        for module in model.modules():
            if isinstance(module, LoraLayer) and _is_plain_lora(module):
                _replace(undo, module, "forward", partial(_lora_forward, module, module.forward))
            elif type(module).__name__.endswith("RMSNorm") and (forward := _find_norm_kernel(module)):
                _replace(undo, module, "forward", forward)
            if hasattr(module, "q_proj") and hasattr(module, "o_proj"):
                code = sys.modules[type(module).__module__]  # attention looks the function up here, by its name
                if _is_standard_rotary(getattr(code, "apply_rotary_pos_emb", None)):
                    _replace(undo, code, "apply_rotary_pos_emb", apply_rotary)
        yield


def _replace(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of a module (of torch or of Python) until `undo` is closed."""
    if name in vars(owner):
        undo.callback(setattr, owner, name, vars(owner)[name])
    else:  # a method of its class
        undo.callback(delattr, owner, name)
    setattr(owner, name, value)


# ---- norms


class RMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x²) + eps) × weight in float32, rounded once (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x (…, d), weight (d,) float32 and frozen → like x."""
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = size.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x.float() * scale
        ctx.save_for_backward(normed, scale, weight)
        return (normed * weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        normed, scale, weight = ctx.saved_tensors
        g = upstream[0].float() * weight
        along = torch.linalg.vecdot(g, normed).unsqueeze(-1).div_(-normed.shape[-1])
        return g.addcmul_(normed, along).mul_(scale).to(upstream[0].dtype), None, None


@torch.no_grad()
def _find_norm_kernel(module: Any) -> Any:
    """What can replace the forward of a norm: RMSNorm with its weight, or with 1 + weight (Gemma). None: neither."""
    weight, eps = getattr(module, "weight", None), getattr(module, "eps", getattr(module, "variance_epsilon", None))
    if weight is None or weight.dim() != 1 or weight.requires_grad or not isinstance(eps, float):
        return None
    if len(inspect.signature(module.forward).parameters) != 1:  # gated norms take more than x
        return None
    x = torch.linspace(-2, 3, 3 * len(weight), device=weight.device).view(3, -1).to(weight.dtype)
    for scale in (weight.float(), weight.float() + 1):
        if _agree(RMSNorm.apply(x, scale, eps), module(x)):
            return lambda x, scale=scale: RMSNorm.apply(x, scale, eps)
    return None


def _agree(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal but for rounding: the stock code may round in between."""
    return torch.allclose(ours.float(), theirs.float(), rtol=4 * torch.finfo(theirs.dtype).eps, atol=1e-6)


# ---- rotary embedding


class Rotate(torch.autograd.Function):
    """Rotary embedding: each pair (x[i], x[i + d/2]) is rotated by its angle (Su et al. 2021).

    Its gradient is the rotation by the opposite angle. Where cos is shorter than x, the rest of x stays as it is.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """x (…, d or more); cos and sin (…, d), the second half the same as the first."""
        ctx.save_for_backward(cos, sin)
        return _rotate_pairs(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        cos, sin = ctx.saved_tensors
        return _rotate_pairs(upstream[0], cos, sin, -1), None, None


def _rotate_pairs(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, direction: int) -> torch.Tensor:
    width = cos.shape[-1]
    half = width // 2
    a, b, cos, sin = x[..., :half], x[..., half:width], cos[..., :half], sin[..., :half]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(a, cos, out=out[..., :half]).addcmul_(b, sin, value=-direction)
    torch.mul(b, cos, out=out[..., half:width]).addcmul_(a, sin, value=direction)
    out[..., width:] = x[..., width:]
    return out


def apply_rotary(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1) -> Any:
    """Replaces transformers' apply_rotary_pos_emb, with the same parameters and shapes."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return Rotate.apply(q, cos, sin), Rotate.apply(k, cos, sin)


@torch.no_grad()
def _is_standard_rotary(function: Any) -> bool:
    """Whether a function is transformers' apply_rotary_pos_emb of Llama, by its parameters and by what it computes."""
    if function is None or function is apply_rotary:
        return False
    if list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return False
    q, k = torch.linspace(-2, 3, 48).view(1, 2, 3, 8), torch.linspace(1, 2, 24).view(1, 1, 3, 8)
    angles = torch.linspace(0, 2, 12).view(1, 3, 4).repeat(1, 1, 2)
    results = (f(q, k, angles.cos(), angles.sin()) for f in (apply_rotary, function))
    return all(_agree(ours, theirs) for ours, theirs in zip(*results, strict=True))


# ---- LoRA


class LoraLinear(torch.autograd.Function):
    """x Wᵀ + s (x Aᵀ) Bᵀ with W frozen (Hu et al. 2021); the sums are made inside the products."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, a: torch.Tensor,
                b: torch.Tensor, scale: float) -> torch.Tensor:  # fmt: skip
        rows, a, b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        small = rows @ a.T
        ctx.save_for_backward(rows, weight, a, b, small)
        ctx.scale = scale
        return F.linear(rows, weight, bias).addmm_(small, b.T, alpha=scale).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> Any:
        rows, weight, a, b, small = ctx.saved_tensors
        g = upstream[0].flatten(0, -2)
        back = (g @ b).mul_(ctx.scale)
        grad_b, grad_a = (g.T @ small).float().mul_(ctx.scale), (back.T @ rows).float()
        grad_x = (g @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return None if grad_x is None else grad_x.view(*upstream[0].shape[:-1], -1), None, None, grad_a, grad_b, None


def _is_plain_lora(layer: Any) -> bool:
    """Whether it is one LoRA on a dense frozen layer, without dropout, DoRA or another variant of PEFT's."""
    names, base = list(layer.lora_A), layer.get_base_layer()
    if len(names) != 1 or layer.lora_variant or not isinstance(layer.lora_dropout[names[0]], torch.nn.Identity):
        return False
    frozen = not any(weight.requires_grad for weight in base.parameters())
    dense = type(base) is torch.nn.Linear and frozen and base.weight.is_floating_point()
    return dense and layer.lora_B[names[0]].bias is None


def _lora_forward(layer: Any, stock: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    (name,) = layer.lora_A
    base = layer.get_base_layer()
    if args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != [name]:
        return stock(x, *args, **kwargs)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return LoraLinear.apply(x.to(base.weight.dtype), base.weight, base.bias, a, b, layer.scaling[name])
