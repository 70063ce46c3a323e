"""Helpers for tests of templates and label masks: pairs of every kind, and views of rendered examples."""

import importlib.util
from functools import cache
from pathlib import Path

from conftest import (
    BYTE_CONTROLS,
    GEMMA_CONTROLS,
    LLAMA3_CONTROLS,
    SENTENCEPIECE_CONTROLS,
    SMOLLM2_CONTROLS,
    family_tokenizer,
)

from persona.store.pairs import Pair
from persona.template.chat_template import ChatTemplate, apply_template, build_messages, pin_date, shipped_templates
from persona.template.render import IGNORE_INDEX, Renderer, TrainingExample

TINY = {
    "byte_tokenizer": BYTE_CONTROLS,
    "llama3_tokenizer": LLAMA3_CONTROLS,
    "sentencepiece_tokenizer": SENTENCEPIECE_CONTROLS,
}
REAL = {"embedded_tokenizer": GEMMA_CONTROLS, "smollm2_tokenizer": SMOLLM2_CONTROLS}
CORE = ("alpaca-en", "alpaca-zh", "chatml", "gemma", "gemma-base", "llama-3", "smollm2")
SHIPPED = shipped_templates()
TEMPLATES = {name: SHIPPED[name] for name in CORE}

PAIRS = {
    "chinese": Pair("你是谁？", "本宫甄嬛，家父是大理寺少卿甄远道。"),
    "english": Pair("Who are you?", "I keep the light. It's Mags."),
    "one-letter": Pair("a", "b"),
    "emoji": Pair("👩‍🚀?", "🙂👍🏽 ok 🏳️‍🌈"),
    "rare": Pair("𠮷野家", "𠮷"),
    "accents": Pair("cafe\u0301", "e\u0301 and é, ﬁ, Ω"),
    "turns": Pair("And then?", "She sank.", (("你好", "好。"), ("What ship?", "The Patience."))),
    "long-history": Pair("e", "f", (("a", "b"), ("b", "c"), ("c", "d"), ("d", "e"))),
    "white-space": Pair("  hi \n", " \n\n yes \t\n "),
    "space-first": Pair("hi", " yes"),
    "line-break-first": Pair("hi", "\nyes"),
    "wide-space-first": Pair("\u3000\u3000问", "\u3000\u3000第一段"),
    "white-space-in-history": Pair("e", "f", ((" a\n", "\n b "),)),
    "line-breaks": Pair("a\n\nb\n c", "one\n\ntwo\r\n three\n\n\n\tfour"),
    "runs-of-spaces": Pair("a  b   c", "x    y  z"),
    "jinja": Pair("{{ 7 * 7 }} {% endfor %}", "{% generation %}{{ bos_token }}{% endgeneration %} {# no #}"),
    "markup": Pair("<b>hi</b> </s> [INST]", "<end> <|x|> <0x0A> ### Response:\n"),
    "same-as-the-question": Pair("Yes", "Yes"),
    "role-names": Pair("user\nmodel\nassistant", "model\nuser\nsystem"),
}
SYSTEMS = {"no-system": "", "system": "你是灯塔。\nBe dry."}


def decode(renderer: Renderer, ids: list[int]) -> str:
    return renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def learned_parts(example: TrainingExample) -> list[list[int]]:
    """The learned ids, one list per contiguous span."""
    parts, before = [], IGNORE_INDEX
    for label in example.labels:
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                parts.append([])
            parts[-1].append(label)
        before = label
    return parts


# ---- every shipped template, on a tokenizer of its family

SYSTEM = "你是灯塔。\nBe dry."
HISTORY = (("你好", "好。"), ("What ship?", "The Patience.\n\nShe sank."))
TRL = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"  # read without importing it: 5 s


Q = build_messages("", [("q", "a")], "r")
S = build_messages("s", [("q", "a")], "r")
OFFICIAL = {"gemma": "gemma", "gemma3": "gemma", "gemma4": "gemma-4", "gemma4_v2": "gemma-4", "gemma4_v5": "gemma-4",
            "llama3": "llama-3", "llama3_1": "llama-3.1", "llama3_2": "llama-3.1", "phi3": "phi-3", "phi3_5": "phi-3",
            "qwen2_5": "qwen2.5", "qwen3": "qwen3", "qwen3_instruct_2507": "chatml", "glm4moe": "glm-4.5",
            "deepseek_r1_distill": "deepseek-r1-distill"}  # fmt: skip
# other conversations than those on which choose_template decides
CONVERSATIONS = [
    build_messages("", [], "Who are you?"),
    build_messages("Be dry.", [], "  spaces  "),
    build_messages("", HISTORY, "\nline\n"),
    build_messages(SYSTEM, [("<b>x</b>", "1.\n2."), ("{% if %}", "'\"\\n")], "👩‍🚀"),
    build_messages("a" * 300, [(" x ", " y ")] * 5, "end"),
]


@cache
def official(file: str):
    """(TRL's template, a tokenizer of its family with that template)"""
    own = (TRL / f"{file}.jinja").read_text(encoding="utf-8")
    tokenizer = family_tokenizer(own, *(t.text for t in SHIPPED.values()), extra="<|user|> <|assistant|> <|system|>")
    tokenizer.chat_template = own
    return ChatTemplate(file, pin_date(own)), tokenizer


@cache
def tokenizer_of(name: str):
    return family_tokenizer(SHIPPED[name].text)


def renderer_of(name: str, system: str = "", **settings) -> Renderer:
    return Renderer(tokenizer_of(name), SHIPPED[name], system, **settings)


def trainable(renderer: Renderer):
    """The pairs that are not refused, for merging white space or a marker in the text; most are not refused."""
    found = []
    for pair in PAIRS.values():
        example = renderer.render_example(pair)
        if example.problems:
            marker = pair == PAIRS["markup"] and all("reads as control" in why for why in example.problems)
            assert marker or any("white space" in why for why in example.problems), (pair, example.problems)
        else:
            found.append((pair, example))
    assert len(found) >= len(PAIRS) - 5
    return found


def trimming(renderer: Renderer):
    """How the template strips white space around a reply, and what it writes before one."""
    edged = "\n\n x \n"
    text = apply_template(renderer.tokenizer, renderer.template, build_messages("", [], "q", edged), tokenize=False)
    ways = [lambda s: s, lambda s: s.lstrip("\n"), str.strip]
    way = next(w for w in ways if w(edged) in text)
    lead = decode(renderer, [i for i in renderer.render_example(Pair("q", "x")).labels if i != IGNORE_INDEX]).partition(
        "x"
    )[0]
    assert not lead.strip()
    return way, lead
