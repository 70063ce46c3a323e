"""The chat templates: each shipped one on a tokenizer of its family, which one a base gets, and what is refused.

A new file in templates/chat is picked up by every test of the first part; its control tokens are read out of it.
"""

import itertools
import re
from datetime import datetime

import pytest
from cases import check_each
from rendering import (
    CONVERSATIONS,
    HISTORY,
    OFFICIAL,
    PAIRS,
    SHIPPED,
    SYSTEM,
    TRL,
    Q,
    S,
    decode,
    learned_parts,
    official,
    renderer_of,
    tokenizer_of,
    trainable,
    trimming,
)

from persona.errors import InputError, TemplateError
from persona.store.pairs import Pair
from persona.template import jinja_engine
from persona.template.chat_template import ChatTemplate, apply_template, build_messages, pin_date
from persona.template.compatibility import find_incompatibilities, is_mask_exact, try_render_prompt
from persona.template.render import IGNORE_INDEX, Renderer, render_examples
from persona.template.select import choose_template

# ---- what holds for every shipped template


def test_it_says_where_it_comes_from_and_fits_its_family():
    def check(name):
        about = SHIPPED[name].about
        assert "Origin:" in about and "Change:" in about
        assert find_incompatibilities(tokenizer_of(name), SHIPPED[name]) == []
        assert is_mask_exact(tokenizer_of(name), SHIPPED[name])

    check_each(list(SHIPPED), check)


def test_exactly_reply_and_stop_token_are_learned_after_the_prompt():
    def check(name, system):
        renderer = renderer_of(name, system)
        trim, lead = trimming(renderer)
        for pair, example in trainable(renderer):
            learned = decode(renderer, [x for x in example.labels if x != IGNORE_INDEX])
            assert learned == lead + trim(pair.output) + decode(renderer, [renderer.stop_id])
            assert len(learned_parts(example)) == 1
            prompt = renderer.render_prompt(pair.history, pair.instruction)
            assert example.input_ids[: len(prompt.ids)] == prompt.ids and example.text.startswith(prompt.text)
            assert [label != IGNORE_INDEX for label in example.labels].index(True) == len(prompt.ids)

    check_each(itertools.product(list(SHIPPED), ["", SYSTEM]), check)


def test_a_further_turn_changes_no_earlier_token_unless_the_header_says_so():
    def check(name, system):
        renderer = renderer_of(name, system)
        changed = 0
        for pair, example in trainable(renderer):
            history = (*pair.history, (pair.instruction, pair.output))
            until = max(n for n, label in enumerate(example.labels) if label != IGNORE_INDEX) + 1
            changed += renderer.render_prompt(history, "Next").ids[:until] != example.input_ids[:until]
        if "Earlier turns change" not in SHIPPED[name].about:
            assert not changed
        elif system:
            assert changed, "the header says something that is not so"

    check_each(itertools.product(list(SHIPPED), ["", SYSTEM]), check)


def test_earlier_replies_are_learned_too_or_the_row_says_why_not():
    def check(name, system):
        renderer = renderer_of(name, system, learn_history=True)
        trim, lead = trimming(renderer)
        pair = Pair("And?", "Gone.", HISTORY)
        example = renderer.render_example(pair)
        if example.problems:
            assert "Earlier turns change" in SHIPPED[name].about
            assert len(example.problems) == 1 and "earlier reply in another way" in example.problems[0]
            assert example.problems[0].endswith("Set learn_history to false")
            assert not renderer_of(name, system).render_example(pair).problems
            return
        stop = decode(renderer, [renderer.stop_id])
        replies = [*(reply for _, reply in HISTORY), "Gone."]
        assert [decode(renderer, part) for part in learned_parts(example)] == [lead + trim(r) + stop for r in replies]

    check_each(itertools.product(list(SHIPPED), ["", SYSTEM]), check)


def test_the_system_prompt_is_in_every_prompt():
    def check(name):
        renderer = renderer_of(name, "You are Mags.")
        for history in ([], HISTORY):
            assert renderer.render_prompt(history, "Hi").text.count("You are Mags.") == 1
        assert renderer_of(name, " \n").render_prompt(HISTORY, "Hi") == renderer_of(name).render_prompt(HISTORY, "Hi")

    check_each(list(SHIPPED), check)


def test_tomorrow_it_renders_the_same(monkeypatch):
    """Llama 3.1 and SmolLM3 write a date: it must not be today's."""

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 3, 4)

    def rendered(name):
        return renderer_of(name, SYSTEM).render_prompt(HISTORY, "Hi"), renderer_of(name).render_example(PAIRS["turns"])

    today = {name: rendered(name) for name in SHIPPED}
    monkeypatch.setattr(jinja_engine, "datetime", Tomorrow)
    assert {name: rendered(name) for name in SHIPPED} == today
    now = jinja_engine.make_environment().from_string("{{ strftime_now('%Y') }}")
    assert jinja_engine.render_chat(now, Q, {}).text == "2031"


def test_its_own_markers_in_a_text_are_refused_in_training_and_plain_text_in_a_chat():
    def check(name):
        renderer = renderer_of(name)
        plain = renderer.render_prompt([("a", "b")], "c")
        controls = {i for i in plain.ids if i in renderer._controls}
        for typed in {renderer.tokenizer.convert_ids_to_tokens(i) for i in controls | {renderer.stop_id}}:
            with pytest.raises(InputError, match=r"pair 2: 'instruction' holds .*reads as control"):
                render_examples(renderer, [Pair("a", "b"), Pair(f"so {typed}", "b")])
            prompt = renderer.render_prompt([("a", "b")], f"so {typed}")
            assert [i for i in prompt.ids if i in renderer._controls] == [
                i for i in plain.ids if i in renderer._controls
            ]
            assert typed in prompt.text

    check_each(list(SHIPPED), check)


def test_a_block_of_reasoning_within_a_reply_is_refused_where_the_format_has_one():
    """<think> is no special token to Qwen3's tokenizer, and Qwen3 would cut it out of earlier turns."""
    thought = "Yes. <think>hm</think> No."
    with pytest.raises(InputError, match=r"pair 1: 'output' holds </think>, <think>, which"):
        render_examples(renderer_of("qwen3"), [Pair("a", thought)])
    plain, typed = (renderer_of("qwen3").render_prompt([], f"so{more}").ids for more in ("", " <think>"))
    think = tokenizer_of("qwen3").convert_tokens_to_ids("<think>")
    assert plain.count(think) == typed.count(think) == 1, "the template's own"
    assert not renderer_of("chatml").render_example(Pair("a", thought)).problems


# ---- the formats themselves

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
        assert try_render_prompt(tokenizer_of(name), SHIPPED[name], Q) == plain
        with_system = try_render_prompt(tokenizer_of(name), SHIPPED[name], S)
        assert with_system in (plain[:n] + piece + plain[n:] for n in range(len(plain)))

    check_each(list(FORMATS), check)


def test_a_system_prompt_without_a_role_stands_where_the_family_puts_it():
    first, last = (try_render_prompt(tokenizer_of(n), SHIPPED[n], S) for n in ("mistral-v1", "mistral-v3"))
    assert "[INST] s\n\nq [/INST]" in first and "[INST] s\n\nr[/INST]" in last
    reply = renderer_of("mistral-v3", "s").render_example(Pair("r", "b", (("q", "a"),)))
    assert reply.text == last + " b</s>", "in training it stands where the chat will have it"


def test_mistral_trims_earlier_replies_in_its_v3_form_alone():
    chat = build_messages("", [("q", " a ")], "r")
    names = ("mistral-v1", "mistral-v3", "mistral-tekken", "mistral-v7")
    texts = [
        try_render_prompt(tokenizer_of(n), SHIPPED[n], chat).partition("[/INST]")[2].partition("</s>")[0] for n in names
    ]
    assert texts == ["  a ", " a", " a ", " a "]


def test_headers_say_a_fixed_date():
    assert try_render_prompt(tokenizer_of("llama-3.1"), SHIPPED["llama-3.1"], S).startswith(
        "<s><|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\ns<|eot_id|><|start_header_id|>user"
    )
    assert "Today Date: 26 July 2024\nReasoning Mode: /no_think\n\n## Custom Instructions\n\ns\n\n<|im_end|>\n" in (
        try_render_prompt(tokenizer_of("smollm3"), SHIPPED["smollm3"], S)
    )


def test_a_chat_gets_the_very_text_of_the_official_template():
    """Compared with TRL's copies of the published templates. For DeepSeek the block it opens is closed."""

    def check(file, name):
        own, tokenizer = official(file)
        assert choose_template(tokenizer, "zh") == SHIPPED[name]
        for chat in CONVERSATIONS:
            wanted = try_render_prompt(tokenizer, own, chat)
            if wanted is None:
                assert file == "gemma" and chat[0]["role"] == "system"
                continue
            closing = "\n</think>\n\n" if name == "deepseek-r1-distill" else ""
            assert try_render_prompt(tokenizer, SHIPPED[name], chat) == wanted + closing

    check_each(OFFICIAL.items(), check)


def test_a_training_row_is_the_official_text_up_to_its_stop_token():
    cases = [(f, n) for f, n in OFFICIAL.items() if n != "deepseek-r1-distill"]

    def check(file, name):
        own, tokenizer = official(file)
        for chat in CONVERSATIONS:
            whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
            try:
                wanted = apply_template(tokenizer, own, whole, tokenize=False, enable_thinking=False)
            except TemplateError:
                continue
            ours = apply_template(tokenizer, SHIPPED[name], whole, tokenize=False)
            until = ours.rindex("Yes, 好。") + len("Yes, 好。")
            assert wanted[:until] == ours[:until]
            stop = tokenizer.decode([Renderer(tokenizer, SHIPPED[name]).stop_id])
            assert wanted[until:].startswith(stop) or (name == "glm-4.5" and wanted[until:] == "")

    check_each(cases, check)


def test_the_mask_is_that_of_trls_training_template():
    """TRL marks what we mark, in some families markers around it too: an empty thinking block, what follows the end."""
    cases = [(f, n) for f, n in OFFICIAL.items() if (TRL / f"{f}_training.jinja").is_file()]

    def check(file, name):
        _, tokenizer = official(file)
        trls = ChatTemplate("trl", pin_date((TRL / f"{file}_training.jinja").read_text(encoding="utf-8")))
        compared = 0
        for chat in CONVERSATIONS:
            whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
            learned = []
            for template in (SHIPPED[name], trls):
                try:
                    got = apply_template(
                        tokenizer, template, whole, return_dict=True, return_assistant_tokens_mask=True
                    )
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

    check_each(cases, check)
