"""What the tests of templates and label masks stand on: pairs of every kind, and how to look at what was rendered."""

from conftest import BYTE_CONTROLS, GEMMA_CONTROLS, LLAMA3_CONTROLS, SENTENCEPIECE_CONTROLS, SMOLLM2_CONTROLS

from persona.pairs import Pair
from persona.render import IGNORED, Example, Renderer
from persona.templates import shipped_templates

TINY = {
    "byte_tokenizer": BYTE_CONTROLS,
    "llama3_tokenizer": LLAMA3_CONTROLS,
    "sentencepiece_tokenizer": SENTENCEPIECE_CONTROLS,
}
REAL = {"embedded_tokenizer": GEMMA_CONTROLS, "smollm2_tokenizer": SMOLLM2_CONTROLS}
CORE = ("alpaca-en", "alpaca-zh", "chatml", "gemma", "gemma-base", "llama-3", "smollm2")
TEMPLATES = {name: shipped_templates()[name] for name in CORE}

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


def learned_parts(example: Example) -> list[list[int]]:
    """The learned ids, one list for each unbroken run."""
    parts, before = [], IGNORED
    for label in example.labels:
        if label != IGNORED:
            if before == IGNORED:
                parts.append([])
            parts[-1].append(label)
        before = label
    return parts
