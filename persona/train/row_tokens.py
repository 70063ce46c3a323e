"""Tokens of rows, estimated from their characters, and the heaviest batch that they make."""

from collections.abc import Collection, Sequence

from persona.models import memory
from persona.models.memory import StepShape
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.store.thinking import split_thinking
from persona.template.render import find_learned_turns
from persona.train.config import RunConfig

BYTES_PER_TOKEN = 3.6  # of UTF-8: 3.57 Chinese and 3.76 English in the shipped personas, by Gemma's tokenizer
TEMPLATE_TOKENS = 12  # a template's own around a turn


def estimate_row_tokens(
    card: PersonaCard, pair: Pair, learn_history: bool = False, learned_elsewhere: Collection[tuple[str, str]] = (),
    thinking: str = "none",
) -> tuple[int, int]:  # fmt: skip
    """(tokens, learned tokens) of a pair's row, about. learned_elsewhere: as in Renderer; thinking: as in RunConfig."""
    said = [split_thinking(reply) for _, reply in pair.turns]
    replies = [said[n][1] for n in find_learned_turns(pair, learn_history, learned_elsewhere)]
    thought = said[-1][0] if thinking != "none" else ""
    texts = [pair.system or card.system, thought, *(user for user, _ in pair.turns), *(reply for _, reply in said)]
    tokens = _estimate_tokens(texts) + TEMPLATE_TOKENS * (1 + len(pair.history))
    learned = [*replies, thought] if thinking == "train" else replies
    return tokens, _estimate_tokens(learned) + len(replies)


def estimate_shared_tokens(card: PersonaCard, config: RunConfig, pairs: Sequence[Pair]) -> int:
    """Tokens that all rows begin with, about: those of the system prompt, unless a row has one of its own."""
    return 0 if config.rehearsal_fraction or any(pair.system for pair in pairs) else _estimate_tokens([card.system])


def _estimate_tokens(texts: Sequence[str]) -> int:
    return round(sum(len(t.encode()) for t in texts) / BYTES_PER_TOKEN)


def find_heaviest_step(config: RunConfig, rows: Sequence[tuple[int, int]], shared: int | None = None) -> StepShape:
    """The batch that needs most memory: the longest rows, which the sampler puts together. rows: (tokens, learned).

    shared: of a flat batch (models/flat_batch.py), the tokens that all its rows begin with; None: rows are padded.
    """
    longest = sorted(rows, reverse=True)[: config.batch_size]
    if shared is None:
        length = memory.padded_length(longest[0][0])
    else:
        length = -(-(sum(n - shared for n, _ in longest) + shared) // len(longest))
    length = min(config.max_length, length)
    learned = min(length, -(-sum(n for _, n in longest) // len(longest)))
    rank = config.lora_r * (2 if config.is_pissa else 1)
    return StepShape(config.batch_size, length, learned, rank, quantization=config.quantization,
                     checkpointing=config.gradient_checkpointing)  # fmt: skip
