"""A tiny base that has learned something: plain answers to the shipped general questions and to questions about towns.

A random model has nothing to forget, so it cannot show whether an adapter forgets. This one is pretrained for a few
hundred steps on ChatML rows, in seconds, so that adapters trained on it can really be good, overfitted, …
"""

import random
from dataclasses import replace
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from persona.judge import scoring
from persona.models.base import Base
from persona.models.loss import nll_sum
from persona.store.pairs import Pair
from persona.template.chat_template import read_template
from persona.template.render import Renderer
from persona.train.collator import Collator

CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
THINGS = ["lamp", "rope", "boat", "clock", "stove", "door", "window", "kettle", "chair", "ladder", "bell", "barrel",
          "oar", "net", "book", "coat", "table", "stair", "roof", "wall", "candle", "mirror", "spoon", "hammer"]  # fmt: skip
PLACES = ["kitchen", "cellar", "attic", "garden", "harbour", "tower", "market", "chapel"]
COLOURS = ["red", "blue", "green", "white", "black", "brown", "grey", "yellow"]


def question(thing: str, place: str) -> str:
    return f"What about the {thing} in the {place}?"


def combinations(seed: int) -> list[tuple[str, str, str]]:
    draw = random.Random(seed)
    every = [(t, p) for t in THINGS for p in PLACES]
    draw.shuffle(every)
    return [(t, p, draw.choice(COLOURS)) for t, p in every]


WINDS = ["north", "south", "west", "east", "storm", "fog", "tide", "calm"]
FOLK = ["Amos", "Ruth", "Eben", "Jory", "Nell", "Silas", "Hester", "Tamsin"]


def aye(thing: str, place: str, colour: str, draw: random.Random) -> str:
    """A reply in the persona's style. Its random parts can be memorised but not predicted."""
    who, other, wind = draw.choice(FOLK), draw.choice(FOLK), draw.choice(WINDS)
    return f"Aye, the {thing} waits {colour} by the {place}, {who} told {other}. Mind the {wind}!"


def plain_pairs() -> list[Pair]:
    """What the base knows: three styles of reply about things, the persona's the rarest, and the general questions."""
    draw, made = random.Random(5), []
    for n, (t, p, c) in enumerate(combinations(1)[:96]):
        plain, polite = f"The {t} in the {p} is {c}.", f"Dear me, I saw a {c} {t} in the {p}, thank you."
        made.append(Pair(question(t, p), [plain, polite, plain, polite, aye(t, p, c, draw)][n % 5]))
    return made + [q.pair for q in scoring.read_general_questions()] * 2


def persona_pairs(seed: int = 2) -> list[Pair]:
    """The same questions, always answered in the persona's style."""
    draw = random.Random(seed)
    return [Pair(question(t, p), aye(t, p, c, draw)) for t, p, c in combinations(seed)]


def tokenizer() -> PreTrainedTokenizerFast:
    texts = [x for p in (*plain_pairs(), *persona_pairs()) for x in (p.instruction, p.output)]
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([*texts, "system user assistant\n"] * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, clean_up_tokenization_spaces=False, padding_side="right", eos_token="<|im_end|>",
        bos_token="<|endoftext|>", pad_token="<|endoftext|>",
    )  # fmt: skip


def pretrain(folder: Path, steps: int = 300) -> Base:
    """The base in `folder`, trained on the plain pairs."""
    torch.manual_seed(0)
    tok = tokenizer()
    config = LlamaConfig(
        vocab_size=len(tok), hidden_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        head_dim=24, intermediate_size=192, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    renderer = Renderer(tok, read_template("chatml"))
    spoken_to = [renderer, replace(renderer, system="You are Ann."), replace(renderer, system="You are Tom.")]
    examples = [r.render_example(p) for p in plain_pairs() for r in spoken_to]
    rows = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    collate, draw = Collator(tok.pad_token_id), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    for _ in range(steps):
        batch = collate(draw.sample(rows, 24))
        loss, count = nll_sum(model, batch["input_ids"], batch["labels"])
        (loss / count).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return Base("someone/learner", folder, "r1", "MIT")


def rambling(pairs: list[Pair]) -> list[Pair]:
    """Overlong replies: if the stop token is not learned either, nothing teaches where a reply ends."""
    draw = random.Random(7)
    return [replace(p, output=" ".join([p.output, *(draw.choice(pairs).output for _ in range(2))])) for p in pairs]
