"""The chat templates: each shipped one on a tokenizer of its family, which one a base gets, and what is refused.

A new file in templates/chat is picked up by every test of the first part; its control tokens are read out of it.
"""

import importlib.util
import re
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest
from cases import check_each
from conftest import family_tokenizer
from rendering import PAIRS, decode, learned_parts

from persona.choose import choose_template, derive
from persona.errors import InputError, TemplateError
from persona.pairs import Pair
from persona.render import IGNORED, Renderer, check_all
from persona.templates import (
    Template,
    apply,
    fits,
    messages,
    pinned,
    prompt_text,
    read_template,
    shipped_templates,
    sound,
)

TEMPLATES = shipped_templates()
SYSTEM = "你是灯塔。\nBe dry."
HISTORY = (("你好", "好。"), ("What ship?", "The Patience.\n\nShe sank."))
TRL = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"  # read without importing it: 5 s
each_template = pytest.mark.parametrize("name", TEMPLATES)
each_system = pytest.mark.parametrize("system", ["", SYSTEM], ids=["no-system", "system"])


@cache
def tokenizer_of(name: str):
    return family_tokenizer(TEMPLATES[name].text)


def renderer_of(name: str, system: str = "", **settings) -> Renderer:
    return Renderer(tokenizer_of(name), TEMPLATES[name], system, **settings)


def trainable(renderer: Renderer):
    """Every pair that is not refused, for white space that melts or a marker in its text; most are not."""
    found = []
    for pair in PAIRS.values():
        example = renderer.example(pair)
        if example.problems:
            marker = pair == PAIRS["markup"] and all("reads as control" in why for why in example.problems)
            assert marker or any("white space" in why for why in example.problems), (pair, example.problems)
        else:
            found.append((pair, example))
    assert len(found) >= len(PAIRS) - 5
    return found


def trimming(renderer: Renderer):
    """What the template does to white space around a reply, and what it writes before one."""
    edged = "\n\n x \n"
    text = renderer._apply(messages("", [], "q", edged), tokenize=False)
    ways = [lambda s: s, lambda s: s.lstrip("\n"), str.strip]
    way = next(w for w in ways if w(edged) in text)
    lead = decode(renderer, [i for i in renderer.example(Pair("q", "x")).labels if i != IGNORED]).partition("x")[0]
    assert not lead.strip()
    return way, lead


# ---- what holds for every shipped template


@each_template
def test_it_says_where_it_comes_from_and_fits_its_family(name):
    about = TEMPLATES[name].about
    assert "Origin:" in about and "Change:" in about
    assert fits(tokenizer_of(name), TEMPLATES[name]) == []
    assert sound(tokenizer_of(name), TEMPLATES[name])


@each_template
@each_system
def test_exactly_reply_and_stop_token_are_learned_after_the_prompt(name, system):
    renderer = renderer_of(name, system)
    trim, lead = trimming(renderer)
    for pair, example in trainable(renderer):
        learned = decode(renderer, [x for x in example.labels if x != IGNORED])
        assert learned == lead + trim(pair.output) + decode(renderer, [renderer.stop_id])
        assert len(learned_parts(example)) == 1
        prompt = renderer.prompt(pair.history, pair.instruction)
        assert example.input_ids[: len(prompt.ids)] == prompt.ids and example.text.startswith(prompt.text)
        assert [label != IGNORED for label in example.labels].index(True) == len(prompt.ids)


@each_template
@each_system
def test_a_further_turn_changes_no_earlier_token_unless_the_header_says_so(name, system):
    renderer = renderer_of(name, system)
    changed = 0
    for pair, example in trainable(renderer):
        history = (*pair.history, (pair.instruction, pair.output))
        until = max(n for n, label in enumerate(example.labels) if label != IGNORED) + 1
        changed += renderer.prompt(history, "Next").ids[:until] != example.input_ids[:until]
    if "Earlier turns change" not in TEMPLATES[name].about:
        assert not changed
    elif system:
        assert changed, "the header says something that is not so"


@each_template
@each_system
def test_earlier_replies_are_learned_too_or_the_row_says_why_not(name, system):
    renderer = renderer_of(name, system, learn_history=True)
    trim, lead = trimming(renderer)
    pair = Pair("And?", "Gone.", HISTORY)
    example = renderer.example(pair)
    if example.problems:
        assert "Earlier turns change" in TEMPLATES[name].about
        assert len(example.problems) == 1 and "earlier reply in another way" in example.problems[0]
        assert example.problems[0].endswith("Set learn_history to false")
        assert not renderer_of(name, system).example(pair).problems
        return
    stop = decode(renderer, [renderer.stop_id])
    replies = [*(reply for _, reply in HISTORY), "Gone."]
    assert [decode(renderer, part) for part in learned_parts(example)] == [lead + trim(r) + stop for r in replies]


@each_template
def test_the_system_prompt_is_in_every_prompt(name):
    renderer = renderer_of(name, "You are Mags.")
    for history in ([], HISTORY):
        assert renderer.prompt(history, "Hi").text.count("You are Mags.") == 1
    assert renderer_of(name, " \n").prompt(HISTORY, "Hi") == renderer_of(name).prompt(HISTORY, "Hi")


@each_template
def test_tomorrow_it_renders_the_same(name, monkeypatch):
    """Llama 3.1 and SmolLM3 write a date: it must not be today's."""
    from transformers.utils import chat_template_utils

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 3, 4)

    today = renderer_of(name, SYSTEM).prompt(HISTORY, "Hi"), renderer_of(name).example(PAIRS["turns"])
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    assert (renderer_of(name, SYSTEM).prompt(HISTORY, "Hi"), renderer_of(name).example(PAIRS["turns"])) == today
    assert "2031" in apply(tokenizer_of(name), Template("now", "{{ strftime_now('%Y') }}"), Q, tokenize=False)


@each_template
def test_its_own_markers_in_a_text_are_refused_in_training_and_plain_text_in_a_chat(name):
    renderer = renderer_of(name)
    plain = renderer.prompt([("a", "b")], "c")
    controls = {i for i in plain.ids if i in renderer._controls}
    for typed in {renderer.tokenizer.convert_ids_to_tokens(i) for i in controls | {renderer.stop_id}}:
        with pytest.raises(InputError, match=r"pair 2: 'instruction' holds .*reads as control"):
            check_all(renderer, [Pair("a", "b"), Pair(f"so {typed}", "b")])
        prompt = renderer.prompt([("a", "b")], f"so {typed}")
        assert [i for i in prompt.ids if i in renderer._controls] == [i for i in plain.ids if i in renderer._controls]
        assert typed in prompt.text


def test_a_block_of_reasoning_in_a_reply_is_refused_where_the_format_has_one():
    """<think> is no special token to Qwen3's tokenizer, and Qwen3 would cut it out of earlier turns."""
    thought = "<think>hm</think> Yes."
    with pytest.raises(InputError, match=r"pair 1: 'output' holds </think>, <think>, which"):
        check_all(renderer_of("qwen3"), [Pair("a", thought)])
    plain, typed = (renderer_of("qwen3").prompt([], f"so{more}").ids for more in ("", " <think>"))
    think = tokenizer_of("qwen3").convert_tokens_to_ids("<think>")
    assert plain.count(think) == typed.count(think) == 1, "the template's own"
    assert not renderer_of("chatml").example(Pair("a", thought)).problems


# ---- the formats themselves

Q = messages("", [("q", "a")], "r")
S = messages("s", [("q", "a")], "r")
FORMATS = {
    "chatml": ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
               "<|im_start|>assistant\n", "<|im_start|>system\ns<|im_end|>\n"),
    "gemma-4": ("<s><|turn>user\nq<turn|>\n<|turn>model\na<turn|>\n<|turn>user\nr<turn|>\n<|turn>model\n",
                "<|turn>system\ns<turn|>\n"),
    "mistral-v1": ("<s> [INST] q [/INST] a</s> [INST] r [/INST]", "s\n\n"),
    "mistral-v3": ("<s>[INST] q[/INST] a</s>[INST] r[/INST]", "s\n\n"),
    "mistral-tekken": ("<s>[INST]q[/INST]a</s>[INST]r[/INST]", "s\n\n"),
    "mistral-v7": ("<s>[INST]q[/INST]a</s>[INST]r[/INST]", "[SYSTEM_PROMPT]s[/SYSTEM_PROMPT]"),
    "phi-3": ("<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n<|user|>\nr<|end|>\n<|assistant|>\n", "<|system|>\ns<|end|>\n"),
    "phi-4": ("<|im_start|>user<|im_sep|>q<|im_end|><|im_start|>assistant<|im_sep|>a<|im_end|><|im_start|>user<|im_sep|>r"
              "<|im_end|><|im_start|>assistant<|im_sep|>", "<|im_start|>system<|im_sep|>s<|im_end|>"),
    "phi-4-mini": ("<|user|>q<|end|><|assistant|>a<|end|><|user|>r<|end|><|assistant|>", "<|system|>s<|end|>"),
    "internlm": ("<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
                 "<|im_start|>assistant\n", "<|im_start|>system\ns<|im_end|>\n"),
    "glm-4": ("[gMASK]<sop><|user|>\nq<|assistant|>\na<|user|>\nr<|assistant|>", "<|system|>\ns"),
    "glm-4.5": ("[gMASK]<sop><|user|>\nq/nothink<|assistant|>\n<think></think>\na<|user|>\nr/nothink<|assistant|>\n"
                "<think></think>", "<|system|>\ns"),
    "deepseek-r1-distill": ("<s><｜User｜>q<｜Assistant｜>a<｜end▁of▁sentence｜><｜User｜>r<｜Assistant｜><think>\n\n</think>\n\n",
                            "s"),
    "qwen3": ("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\nr<|im_end|>\n"
              "<|im_start|>assistant\n<think>\n\n</think>\n\n", "<|im_start|>system\ns<|im_end|>\n"),
}  # fmt: skip


def test_the_format_is_the_familys():
    """Written out once, for the eye; with a system prompt it differs by that one piece."""

    def check(name):
        plain, piece = FORMATS[name]
        assert prompt_text(tokenizer_of(name), TEMPLATES[name], Q) == plain
        with_system = prompt_text(tokenizer_of(name), TEMPLATES[name], S)
        assert with_system in (plain[:n] + piece + plain[n:] for n in range(len(plain)))

    check_each(list(FORMATS), check)


def test_a_system_prompt_without_a_role_stands_where_the_family_puts_it():
    first, last = (prompt_text(tokenizer_of(n), TEMPLATES[n], S) for n in ("mistral-v1", "mistral-v3"))
    assert "[INST] s\n\nq [/INST]" in first and "[INST] s\n\nr[/INST]" in last
    reply = renderer_of("mistral-v3", "s").example(Pair("r", "b", (("q", "a"),)))
    assert reply.text == last + " b</s>", "in training it stands where the chat will have it"


def test_mistral_trims_earlier_replies_in_its_v3_form_alone():
    chat = messages("", [("q", " a ")], "r")
    names = ("mistral-v1", "mistral-v3", "mistral-tekken", "mistral-v7")
    texts = [
        prompt_text(tokenizer_of(n), TEMPLATES[n], chat).partition("[/INST]")[2].partition("</s>")[0] for n in names
    ]
    assert texts == ["  a ", " a", " a ", " a "]


def test_headers_say_a_fixed_date():
    assert prompt_text(tokenizer_of("llama-3.1"), TEMPLATES["llama-3.1"], S).startswith(
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>user"
    )
    assert "Today Date: 26 July 2024\nReasoning Mode: /no_think\n\n## Custom Instructions\n\ns\n\n<|im_end|>\n" in (
        prompt_text(tokenizer_of("smollm3"), TEMPLATES["smollm3"], S)
    )


OFFICIAL = {"gemma": "gemma", "gemma3": "gemma", "gemma4": "gemma-4", "gemma4_v2": "gemma-4", "gemma4_v5": "gemma-4",
            "llama3": "llama-3", "llama3_1": "llama-3.1", "llama3_2": "llama-3.1", "phi3": "phi-3", "phi3_5": "phi-3",
            "qwen2_5": "qwen2.5", "qwen3": "qwen3", "qwen3_instruct_2507": "chatml", "glm4moe": "glm-4.5",
            "deepseek_r1_distill": "deepseek-r1-distill"}  # fmt: skip
# other conversations than those on which choose_template decides
CONVERSATIONS = [
    messages("", [], "Who are you?"),
    messages("Be dry.", [], "  spaces  "),
    messages("", HISTORY, "\nline\n"),
    messages(SYSTEM, [("<b>x</b>", "1.\n2."), ("{% if %}", "'\"\\n")], "👩‍🚀"),
    messages("a" * 300, [(" x ", " y ")] * 5, "end"),
]


def official(file: str):
    """(its template, a tokenizer of its family that speaks it)"""
    own = (TRL / f"{file}.jinja").read_text(encoding="utf-8")
    tokenizer = family_tokenizer(own, *(t.text for t in TEMPLATES.values()), extra="<|user|> <|assistant|> <|system|>")
    tokenizer.chat_template = own
    return Template(file, pinned(own)), tokenizer


@pytest.mark.parametrize("file, name", OFFICIAL.items(), ids=OFFICIAL)
def test_a_chat_gets_the_very_text_of_the_official_template(file, name):
    """Compared with TRL's copies of the published templates. For DeepSeek the block it opens is closed."""
    own, tokenizer = official(file)
    assert choose_template(tokenizer, "zh") == TEMPLATES[name]
    for chat in CONVERSATIONS:
        wanted = prompt_text(tokenizer, own, chat)
        if wanted is None:
            assert file == "gemma" and chat[0]["role"] == "system"
            continue
        closing = "\n</think>\n\n" if name == "deepseek-r1-distill" else ""
        assert prompt_text(tokenizer, TEMPLATES[name], chat) == wanted + closing


@pytest.mark.parametrize("file, name", [(f, n) for f, n in OFFICIAL.items() if n != "deepseek-r1-distill"])
def test_a_training_row_is_the_official_text_up_to_its_stop_token(file, name):
    own, tokenizer = official(file)
    for chat in CONVERSATIONS:
        whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
        try:
            wanted = apply(tokenizer, own, whole, tokenize=False, enable_thinking=False)
        except TemplateError:
            continue
        ours = apply(tokenizer, TEMPLATES[name], whole, tokenize=False)
        until = ours.rindex("Yes, 好。") + len("Yes, 好。")
        assert wanted[:until] == ours[:until]
        stop = tokenizer.decode([Renderer(tokenizer, TEMPLATES[name]).stop_id])
        assert wanted[until:].startswith(stop) or (name == "glm-4.5" and wanted[until:] == "")


@pytest.mark.parametrize("file, name", [(f, n) for f, n in OFFICIAL.items() if (TRL / f"{f}_training.jinja").is_file()])
def test_the_mask_is_that_of_trls_training_template(file, name):
    """TRL marks what we mark, in some families markers around it too: an empty thinking block, what follows the end."""
    _, tokenizer = official(file)
    trls = Template("trl", pinned((TRL / f"{file}_training.jinja").read_text(encoding="utf-8")))
    compared = 0
    for chat in CONVERSATIONS:
        whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
        learned = []
        for template in (TEMPLATES[name], trls):
            try:
                got = apply(tokenizer, template, whole, return_dict=True, return_assistant_tokens_mask=True)
            except TemplateError:
                break
            mask = got["assistant_masks"]
            end = len(mask) - mask[::-1].index(1)
            start = end - mask[:end][::-1].index(0) if 0 in mask[:end] else 0
            learned.append(tokenizer.decode(got["input_ids"][start:end]))
        if len(learned) == 2:
            ours, theirs = learned[0].strip(), learned[1]
            assert ours in theirs and not re.sub(r"<[^<>]*>|\s", "", theirs.replace(ours, "", 1))
            compared += 1
    assert compared >= 2


# ---- which template


def test_a_template_is_read_by_name_or_from_a_file(tmp_path):
    assert read_template("gemma") == TEMPLATES["gemma"]
    (tmp_path / "mine.jinja").write_text("{{ '你好' }}", encoding="utf-8")
    assert read_template(str(tmp_path / "mine.jinja")) == Template("mine", "{{ '你好' }}")


def test_a_template_that_is_not_there_is_refused():
    cases = ["", "nothing", "../chat/gemma", "/etc/passwd", "no/such.jinja"]

    def check(name):
        with pytest.raises(TemplateError, match="no such template. Choose one of .*chatml"):
            read_template(name)

    check_each(cases, check)


def speaking(own, *others: str, eos: str = "</s>"):
    """A tokenizer whose base has this chat template, and with the control tokens of all of these texts."""
    texts = [own] if isinstance(own, str) else list((own or {}).values())
    tokenizer = family_tokenizer(*texts, *others, extra="<|im_start|> <|im_end|>")
    tokenizer.chat_template = own
    tokenizer.eos_token = eos
    return tokenizer


def test_a_base_without_a_format_gets_one_by_its_tokens_and_language(sentencepiece_tokenizer):
    assert choose_template(sentencepiece_tokenizer, "zh").name == "gemma-base"
    assert choose_template(speaking(None), "zh").name == "alpaca-zh"
    assert choose_template(speaking(None), "zh-Hans").name == "alpaca-zh"
    assert choose_template(speaking(None), "en").name == choose_template(speaking(None)).name == "alpaca-en"


@pytest.mark.parametrize("end, name", [("<|im_end|>", "chatml"), ("<|eot_id|>", "llama-3"), ("<turn|>", "gemma-4"),
                                       ("<end_of_turn>", "gemma")])  # fmt: skip
def test_a_base_whose_text_ends_with_a_turn_was_tuned_for_chat(end, name):
    """The markers alone say little: a pretrained base has them in its vocabulary too, unlearned."""
    assert choose_template(speaking(None, TEMPLATES[name].text, eos=end), "zh").name == name
    assert choose_template(speaking(None, TEMPLATES["llama-3"].text), "zh").name == "alpaca-zh"
    assert choose_template(speaking(None, eos="<|im_end|>"), "zh").name == "chatml"


@each_template
def test_a_base_that_speaks_a_shipped_format_gets_it(name):
    """Recognised by what it renders: written in another way, with its comment and its marks gone."""
    text = re.sub(r"\{#.*?#\}", "", TEMPLATES[name].text, flags=re.DOTALL)
    text = re.sub(r"\{% (?:end)?generation %\}", "", text)
    tokenizer = family_tokenizer(TEMPLATES[name].text)
    tokenizer.chat_template = text
    assert choose_template(tokenizer).name == name


@pytest.mark.slow
def test_the_embedded_bases_get_their_formats(embedded_tokenizer, smollm2_tokenizer):
    from trl.chat_template_utils import gemma3_chat_template

    assert smollm2_tokenizer.chat_template
    assert choose_template(smollm2_tokenizer, "zh").name == "smollm2"
    assert choose_template(embedded_tokenizer, "zh").name == "gemma-base"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_tokenizer, "chat_template", gemma3_chat_template)
        assert choose_template(embedded_tokenizer, "zh").name == "gemma"


# ---- a base's own format, rewritten

TURN = "{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
OTHERS = sorted(f.stem for f in TRL.glob("*.jinja")
                if not f.stem.endswith("_training") and f.stem not in OFFICIAL
                and f.stem not in ("idefics3", "smolvlm", "llava_next"))  # fmt: skip


@pytest.mark.parametrize("file", OTHERS)
def test_any_published_format_becomes_trainable(file):
    """Of families that no shipped template is written for. Their chats get their own text; a block of reasoning or a
    channel that the model would write itself is written for it, before the reply and unlearned.
    """
    own, tokenizer = official(file)
    chosen = choose_template(tokenizer)
    assert fits(tokenizer, chosen) == [] and sound(tokenizer, chosen)
    for chat in CONVERSATIONS:
        wanted, got = prompt_text(tokenizer, own, chat), prompt_text(tokenizer, chosen, chat)
        assert got.startswith(wanted)
        assert got[len(wanted) :] in ("", "\n</think>\n\n", "<|channel|>final<|message|>", " to=user<|message|>")
    renderer = Renderer(tokenizer, chosen, SYSTEM, max_length=4096)
    for pair, example in trainable(renderer):
        learned = decode(renderer, [x for x in example.labels if x != IGNORED])
        assert learned.removesuffix(decode(renderer, [renderer.stop_id])).strip() == pair.output.strip()


def test_formats_with_pictures_are_refused():
    """They want a list of pieces where a text stands here."""
    _, tokenizer = official("smolvlm")
    with pytest.raises(TemplateError, match=r"no shipped template reproduces.*chatml.*\{% generation %\}"):
        choose_template(tokenizer)


UNSURE = {
    "changes-the-words": "{% for m in messages %}" + TURN.replace("m.content", "m.content | upper") + "{% endfor %}" + ASK,
    "no-end-of-reply": "{% for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% endfor %}{{ 'assistant: ' }}",
    "counts-the-turns": "{% for m in messages %}{{ loop.index }}" + TURN + "{% endfor %}" + ASK,
    "system-at-the-end": "{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}" + ASK,
    "forgets-old-turns": "{% for m in messages[-4:] %}" + TURN + "{% endfor %}" + ASK,
    "asks-in-another-way": "{% for m in messages %}" + TURN + "{% endfor %}" + ASK.replace("assistant", "model"),
    "cuts-long-texts": "{% for m in messages %}" + TURN.replace("m.content", "m.content[:9]") + "{% endfor %}" + ASK,
    "drops-a-turn": "{% for m in messages if m.content | length > 1 %}" + TURN + "{% endfor %}" + ASK,
    "does-not-render": "{% for m in messages %}",
}  # fmt: skip


def test_a_format_that_cannot_be_rewritten_surely_is_refused():
    """Training on a format other than the base's own would be a silent loss of quality."""

    def check(own):
        with pytest.raises(TemplateError, match=r"no shipped template reproduces.*chatml.*\{% generation %\}"):
            choose_template(speaking(own))

    check_each(UNSURE, check)


def test_a_format_that_forgets_to_ask_for_a_reply_is_asked_as_it_writes_earlier_ones():
    tokenizer = speaking("{% for m in messages %}" + TURN + "{% endfor %}")
    assert choose_template(tokenizer) == TEMPLATES["chatml"]


def test_a_default_system_prompt_and_a_date_are_kept():
    head = (
        "{% if messages[0].role != 'system' %}{{ 'It\\'s ' ~ strftime_now('%d %B %Y') ~ ' \\\\ {% x %}\n' }}{% endif %}"
    )
    tokenizer = speaking(head + "{% for m in messages %}" + TURN + "{% endfor %}" + ASK)
    chosen = choose_template(tokenizer)
    assert chosen.name == "own" and "Origin:" in chosen.about and "strftime" not in chosen.text
    assert prompt_text(tokenizer, chosen, messages("", [], "Hi")) == (
        "It's 26 July 2024 \\ {% x %}\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt_text(tokenizer, chosen, messages("s", [], "Hi")).startswith(
        "<|im_start|>system\ns<|im_end|>\n<|im_sta"
    )


@pytest.mark.parametrize("jinja", ["m.content | trim", "m.content.lstrip('\n')", "m.content.rstrip()", "m.content"])
@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_white_space_is_trimmed_as_the_base_does(jinja, role):
    content = f"(({jinja}) if m.role == '{role}' else m.content)"
    own = (
        "{% for m in messages %}"
        + TURN.replace("m.content", content).replace("<|im_start|>", "<|go|>")
        + "{% endfor %}"
    )
    own += ASK.replace("<|im_start|>", "<|go|>")
    tokenizer = speaking(own)
    chosen = choose_template(tokenizer)
    for chat in CONVERSATIONS:
        assert prompt_text(tokenizer, chosen, chat) == prompt_text(tokenizer, Template("own", own), chat)


def test_marks_of_the_bases_own_are_kept_where_they_are_right():
    """Some mark the header too, or leave the stop token out: those are marked anew."""
    reply = "{%- generation -%}{{ m.content ~ '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
    good = ("{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|go|>assistant\n' }}" + reply + "{% else %}"
            + TURN.replace("im_start", "go") + "{% endif %}{% endfor %}" + ASK.replace("im_start", "go"))  # fmt: skip
    assert choose_template(speaking(good)) == Template("own", good)
    for bad in (good.replace("{{ '<|go|>assistant\n' }}{%- generation -%}", "{%- generation -%}{{ '<|go|>assistant\n' }}"),
                good.replace("~ '<|im_end|>' }}{%- endgeneration -%}", "}}{%- endgeneration -%}{{ '<|im_end|>' }}")):  # fmt: skip
        assert bad != good
        chosen = choose_template(speaking(bad))
        assert chosen.name == "own" and chosen.text != bad and sound(speaking(good), chosen)


def test_formats_by_name_count_by_their_default():
    """Some bases carry several: {"default": …, "tool_use": …}."""
    odd = UNSURE["counts-the-turns"]
    assert choose_template(speaking({"default": TEMPLATES["chatml"].text, "tool_use": odd})).name == "chatml"
    with pytest.raises(TemplateError, match="no shipped template reproduces"):
        choose_template(speaking({"default": odd, "tool_use": TEMPLATES["chatml"].text}))


def test_a_system_role_in_an_unknown_place_is_not_taken_for_none():
    """Mistral's moves with the last question; folding it into the first would be another format."""
    own = Template("own", re.sub(r"\{% (?:end)?generation %\}", "", TEMPLATES["mistral-v3"].text))
    assert derive(family_tokenizer(own.text), own) is None


# ---- does it fit


def test_markers_that_a_model_does_not_know_are_refused():
    """Each would be a handful of letters, and the model would never have seen a turn begin like that."""
    (why,) = fits(family_tokenizer(extra="<|im_end|>"), TEMPLATES["chatml"])
    assert re.match(
        r"Template chatml: this model does not know its markers: <\|im_start\|> \(\d+ tokens\)\. Choose", why
    )
    (why,) = fits(family_tokenizer(extra="<|im_end|> <|im_start|>"), TEMPLATES["qwen3"])
    assert "<think>" in why and "</think>" in why
    assert fits(family_tokenizer(), TEMPLATES["mistral-v1"]) == [], "plain letters there, as its header says"
    assert fits(family_tokenizer(), TEMPLATES["mistral-v3"])


def test_a_template_of_todays_date_is_refused():
    dated = TEMPLATES["chatml"].text + "{{ strftime_now('%d') }}"
    tokenizer = tokenizer_of("chatml")
    (why,) = fits(tokenizer, Template("mine", dated))
    assert why.startswith("Template mine: it writes today's date")
    with pytest.raises(TemplateError, match="today's date"):
        check_all(Renderer(tokenizer, Template("mine", dated)), [Pair("a", "b")])
    assert fits(tokenizer, Template("mine", pinned(dated))) == []
    assert fits(tokenizer, Template("mine", dated.replace("{{ strf", "{% if false %}{{ strf") + "{% endif %}")) == []


def test_characters_that_a_model_cannot_write_are_a_problem():
    """A vocabulary without bytes for the rest: it would learn to say <unk>."""
    from conftest import wrap
    from tokenizers import Tokenizer, models, pre_tokenizers

    controls = ["<unk>", "<|im_start|>", "<|im_end|>"]
    letters = "\nabcdefghijklmnopqrstuvwxyzHiYesBbrf. 你好{}<>/1x"
    tokenizer = Tokenizer(
        models.BPE({c: n for n, c in enumerate(dict.fromkeys([*controls, *letters]))}, [], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(controls)
    renderer = Renderer(
        wrap(tokenizer, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<unk>"), TEMPLATES["chatml"]
    )
    assert not renderer.example(Pair("hi", "yes")).problems
    with pytest.raises(InputError) as e:
        check_all(renderer, [Pair("hi", "yes"), Pair("hi", "yes 甄嬛 甄"), Pair("Ω", "b", (("a", "é"),))])
    lines = str(e.value).splitlines()
    assert lines[0].startswith(
        "pair 2: 'output' holds '甄', '嬛', for which this model has no token: it would learn to say <unk>"
    )
    assert [line.split(" holds")[0] for line in lines[1:]] == ["pair 3: 'history'", "pair 3: 'instruction'"]
