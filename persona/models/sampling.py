"""Sampling settings of a reply: defaults and limits. Imports no torch, so that --help stays fast."""

from dataclasses import dataclass

from persona.errors import InputError

MAX_CONTEXT_TOKENS = 4096  # tokens of prompt and reply together, at most


@dataclass(frozen=True)
class Sampling:
    """How the tokens of a reply are sampled. Temperature 0 is greedy. Raises InputError for values out of range.

    The defaults suit a small base: at temperature 0.7 it loses the thread, at 0 it repeats itself. The repetition
    penalty (Keskar et al. 2019) counts only tokens of the reply, so that names in the prompt keep their probability.
    min_p (Nguyen et al. 2024) drops tokens less likely than this share of the likeliest one; 0 drops none.
    """

    temperature: float = 0.4
    top_p: float = 0.9
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int = 0
    max_new_tokens: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 5:
            raise InputError(
                "temperature={temperature}: from 0 (always the likeliest token) to 5.", temperature=self.temperature
            )
        if not 0 < self.top_p <= 1 or self.top_k < 0:
            raise InputError(
                "top_p={top_p}, top_k={top_k}: top_p is in (0, 1], top_k at least 0.",
                top_p=self.top_p,
                top_k=self.top_k,
            )
        if not 0 <= self.min_p <= 1:
            raise InputError("min_p={min_p}: from 0 (off) to 1.", min_p=self.min_p)
        if not 1 <= self.repetition_penalty <= 2:
            raise InputError(
                "repetition_penalty={repetition_penalty}: from 1 (none) to 2.",
                repetition_penalty=self.repetition_penalty,
            )
        if not 0 <= self.seed < 2**63:
            raise InputError("seed={seed}: from 0 to {most}.", seed=self.seed, most=2**63 - 1)
        if not 1 <= self.max_new_tokens <= MAX_CONTEXT_TOKENS:
            raise InputError(
                "max_new_tokens={max_new_tokens}: from 1 to {most}.",
                max_new_tokens=self.max_new_tokens,
                most=MAX_CONTEXT_TOKENS,
            )
