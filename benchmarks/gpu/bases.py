"""Bases of published shapes with random weights, a small tokenizer, and personas whose rows have real lengths.

Speed and memory do not depend on the values of weights and tokens, so nothing needs to be downloaded. The shapes in
shapes.json are those of the published config.json files. The tokenizer is a byte-level BPE trained on the shipped
甄嬛 pairs: their rows have about as many tokens as with the bases' own tokenizers (62 on average, a third learned).
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.store.workspace import EXAMPLES_DIR

SHAPES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("shapes.json").read_text())
# what --tiny puts in place of the published sizes; inputs of layers stay multiples of 64, as 4 bits want them
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 1024}  # fmt: skip
TINY_LAYERS = {"gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]}}
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 4096  # with it, and with this system prompt, the short rows have their 62 tokens, a third of them learned
SYSTEM = "你是甄嬛。"
TEMPLATE = "chatml"
LONG_ROW = 460  # tokens of a long row's text at most; with the template, below 512
LONG_ROWS = 64


@lru_cache(maxsize=1)
def train_tokenizer() -> Any:
    """The tokenizer, as transformers wraps it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=CONTROLS, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    tokenizer.train_from_iterator([text for p in _example().pairs() for text in (p.instruction, p.output)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, padding_side="right",
        eos_token=CONTROLS[2], bos_token=CONTROLS[0], pad_token=CONTROLS[0],
    )  # fmt: skip


def _example() -> Persona:
    return persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan")


def build_base(name: str, folder: Path, tiny: bool = False) -> Path:
    """Write the checkpoint of a random base called `name` under `folder`, unless it is there. Returns its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    target = folder / (f"{name}-tiny" if tiny else name)
    if (target / "config.json").exists():
        return target
    tokenizer = train_tokenizer()
    values = dict(SHAPES[name])
    kind = values.pop("model_type")
    if tiny:
        values |= {**TINY, "vocab_size": VOCABULARY, **TINY_LAYERS.get(kind, {})}
    ids = {f"{x}_token_id": getattr(tokenizer, f"{x}_token_id") for x in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(kind, **values, **ids, dtype="bfloat16")
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    tokenizer.save_pretrained(target)
    model.save_pretrained(target)
    return target


def short_persona(folder: Path) -> Persona:
    """A copy of the shipped 甄嬛: rows of 62 tokens, a third of them learned."""
    return _persona(folder / "short", _example().pairs())


def long_persona(folder: Path) -> Persona:
    """Rows of up to 512 tokens, half of them learned: consecutive pairs put together."""
    texts = [text for p in _example().pairs() for text in (p.instruction, p.output)]
    sizes = [len(train_tokenizer()(t)["input_ids"]) for t in texts]
    pairs: list[Pair] = []
    start = 0
    for _ in range(LONG_ROWS):
        halves = []
        for _ in range(2):
            taken, length = [], 0
            while length + sizes[start % len(texts)] <= LONG_ROW // 2:
                taken.append(texts[start % len(texts)])
                length += sizes[start % len(texts)]
                start += 1
            halves.append("".join(taken))
        pairs.append(Pair(*halves))
    return _persona(folder / "long", pairs)


def _persona(target: Path, pairs: list[Pair]) -> Persona:
    if target.exists():
        return persona_folder.open_persona(target)
    card = _example().card().model_copy(update={"system": SYSTEM})
    return persona_folder.create_persona_at(target, card, pairs)
