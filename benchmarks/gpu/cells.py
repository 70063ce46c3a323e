"""What the GPU benchmark measures: the cells of its tables."""

from dataclasses import dataclass
from typing import Any

LORAS: dict[str, dict[str, Any]] = {
    "r8 qkvo": {"lora_r": 8, "lora_alpha": 32, "target_modules": "q_proj,k_proj,v_proj,o_proj"},
    "r16 all": {"lora_r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
}


@dataclass(frozen=True)
class Cell:
    """One row of the table. rows: short or long; batch: rows a step.

    side: ours, recipe, trl or unsloth; "ours plain" and "ours compiled" are what training.variant() says.
    """

    side: str
    base: str
    quantization: str = "none"
    lora: str = "r8 qkvo"
    rows: str = "short"
    batch: int = 8
    checkpointing: bool = False


@dataclass(frozen=True)
class Scale:
    """How much is measured: optimizer steps that warm up, and that count; whether bases are tiny."""

    warm: int = 4
    steps: int = 12
    tiny: bool = False


def training_cells(base: str) -> list[Cell]:
    """The cells of one base, the most wanted first."""
    return [
        Cell("ours", base),
        Cell("ours plain", base),
        Cell("recipe", base, batch=4),
        Cell("trl", base),
        Cell("ours", base, "nf4"),
        Cell("recipe", base, "nf4", batch=4),
        Cell("ours compiled", base),
        Cell("ours", base, lora="r16 all", rows="long"),
        Cell("ours plain", base, lora="r16 all", rows="long"),
        Cell("trl", base, lora="r16 all", rows="long"),
        Cell("trl", base, "nf4"),
        Cell("ours", base, batch=4),
        Cell("ours", base, batch=32),
        Cell("ours plain", base, batch=32),
        Cell("ours compiled", base, lora="r16 all", rows="long"),
    ]


def unsloth_cells() -> list[Cell]:
    """2 rows × 4 a step, as in its notebooks."""
    return [
        Cell("unsloth", base, kind, lora, rows)
        for base in ("gemma-3-4b", "qwen3-4b")
        for kind, lora, rows in (
            ("none", "r8 qkvo", "short"),
            ("nf4", "r8 qkvo", "short"),
            ("none", "r16 all", "short"),
            ("nf4", "r16 all", "short"),
            ("none", "r16 all", "long"),
        )
    ]


# one of each kind, for --tiny
TINY_CELLS = [
    Cell("ours", "gemma-3-4b", batch=4),
    Cell("recipe", "gemma-3-4b", batch=4),
    Cell("trl", "gemma-3-4b"),
    Cell("ours", "gemma-3-4b"),
    Cell("ours", "gemma-3-4b", "nf4", "r16 all", "long", 2),
    Cell("recipe", "gemma-3-4b", "nf4", batch=4),
]

# whose planned peak memory is compared with the measured one
ESTIMATE_CELLS = [
    Cell("ours", "gemma-3-270m", "none", "r16 all", "short", 8),
    Cell("ours", "gemma-3-270m", "none", "r16 all", "long", 8),
    Cell("ours", "qwen3-0.6b", "none", "r16 all", "short", 8),
    Cell("ours", "qwen3-0.6b", "none", "r16 all", "long", 2),
    Cell("ours", "gemma-3-1b", "none", "r16 all", "long", 8),
    Cell("ours", "gemma-3-1b", "nf4", "r16 all", "long", 8),
    Cell("ours", "gemma-3-1b", "none", "r16 all", "long", 16, checkpointing=True),
    Cell("ours", "gemma-3-4b", "none", "r16 all", "long", 8),
    Cell("ours", "gemma-3-4b", "nf4", "r16 all", "long", 4),
    Cell("ours", "gemma-3-4b", "none", "r8 qkvo", "long", 8, checkpointing=True),
    Cell("ours", "qwen3-4b", "none", "r16 all", "long", 4),
    Cell("ours", "qwen3-4b", "nf4", "r16 all", "long", 8, checkpointing=True),
]
