"""Thinking in training rows and prompts: on the published formats of families that reason, for every mode."""

import itertools

import pytest
from cases import check_each
from conftest import family_tokenizer
from rendering import CONVERSATIONS, HISTORY, SHIPPED, decode, learned_parts, official, tokenizer_of

from persona.errors import InputError, TemplateError
from persona.store.pairs import Pair
from persona.store.thinking import has_block, is_block_of, join_thinking, split_partial, split_thinking
from persona.template.chat_template import ChatTemplate, render_chats, shipped_templates
from persona.template.compatibility import is_mask_exact, try_render_prompt
from persona.template.mask_html import render_mask_html
from persona.template.render import Renderer, render_examples
from persona.template.select import choose_template, require_same_thinking

# TRL's copy of a published format → the template that writes its thinking; "own": read off the format
FAMILIES = {"qwen3": "qwen3", "glm4moe": "glm-4.5", "deepseek_r1_distill": "deepseek-r1-distill", "qwen3_5_think": "own",
            "qwen3_5_nothink": "own", "qwen3_6": "own", "qwen3_8": "own", "nemotron_3_nano": "own",
            "nemotron_3_ultra": "own"}  # fmt: skip
OPENED = {"deepseek_r1_distill", *(name for name in FAMILIES if name.startswith(("qwen3_", "nemotron")))}
THOUGHT = "They ask who I am.\nKeep it short."
THINKING, PLAIN = Pair("Who are you?", join_thinking(THOUGHT, "Mags. 我守灯。")), Pair("Who are you?", "Mags. 我守灯。")
# SmolLM3's way: the mode stands in the header, and a reply keeps what it holds
HEADED = """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{{- '<|im_start|>system\\nMode: ' ~ ('/think' if enable_thinking else '/no_think') ~ '\\n\\n' -}}
{%- if messages[0].role == 'system' -%}{{- messages[0].content.rstrip() -}}{%- else -%}{{- 'Nobody.' -}}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- for m in messages -%}{%- if m.role == 'user' -%}{{- '<|im_start|>user\\n' ~ m.content ~ '<|im_end|>\\n' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n') -}}
{{- m.content.lstrip('\\n') ~ '<|im_end|>\\n' -}}{%- endif -%}{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' ~ ('' if enable_thinking else '<think>\\n\\n</think>\\n') -}}{%- endif -%}"""


def renderer_for(file: str, mode: str, **settings) -> Renderer:
    _, tokenizer = official(file)
    return Renderer(tokenizer, choose_template(tokenizer, "", mode), "Be Mags.", **settings)


def test_each_family_gets_its_template_in_every_mode():
    def check(file, mode):
        _, tokenizer = official(file)
        chosen = choose_template(tokenizer, "zh", mode)
        assert (chosen.name, chosen.thinking) == (FAMILIES[file], mode)
        assert is_mask_exact(tokenizer, chosen)
        if mode == "none":
            assert chosen == SHIPPED.get(chosen.name, chosen), "as it is shipped"

    check_each(itertools.product(FAMILIES, ["none", "keep", "train"]), check)


def test_the_prompt_is_the_base_s_own_with_thinking_on():
    def check(file, mode):
        own, tokenizer = official(file)
        chosen = choose_template(tokenizer, "", mode)
        for chat in CONVERSATIONS:
            assert try_render_prompt(tokenizer, chosen, chat) == try_render_prompt(tokenizer, own, chat, think=True)

    check_each(itertools.product(FAMILIES, ["keep", "train"]), check)


def test_what_is_learned_of_a_reply_with_and_without_thinking():
    def check(file, mode, pair):
        renderer = renderer_for(file, mode)
        example = renderer.render_example(pair)
        prompt = renderer.render_prompt(pair.history, pair.instruction)
        assert not example.problems
        assert example.input_ids[: len(prompt.ids)] == prompt.ids and example.text.startswith(prompt.text)
        assert prompt.thinking == (None if mode == "none" else "<think>" if file in OPENED else "")
        (learned,) = learned_parts(example)
        text, stop = decode(renderer, learned), decode(renderer, [renderer.stop_id])
        thought = split_thinking(pair.output)[0]
        start = example.labels.index(learned[0], len(prompt.ids))
        between = decode(renderer, example.input_ids[len(prompt.ids) : start])
        if mode == "train":
            assert not between and split_thinking(text) == (thought, "Mags. 我守灯。" + stop) and has_block(text)
        else:
            assert text.lstrip("\n") == "Mags. 我守灯。" + stop
            assert is_block_of(between, thought) if mode == "keep" else not between
        assert ("They ask" in example.text) == (bool(thought) and mode != "none")

    check_each(itertools.product(FAMILIES, ["none", "keep", "train"], [PLAIN, THINKING]), check)


def test_earlier_replies_hold_no_thinking():
    def check(file, mode):
        renderer = renderer_for(file, mode)
        said = tuple((user, join_thinking("secret", reply)) for user, reply in HISTORY)
        plain, thinking = (renderer.render_example(Pair("And?", "Gone.", history)) for history in (HISTORY, said))
        assert thinking == plain and not plain.problems and "secret" not in plain.text
        chats = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": reply},
                  {"role": "user", "content": "b"}] for reply in ("c", "<think>secret</think>\n\nc")]  # fmt: skip
        shown = list(render_chats(renderer.tokenizer, renderer.template, chats, add_generation_prompt=True))
        assert shown[0].text == shown[1].text, "other programs that read the template, too"

    check_each(itertools.product(FAMILIES, ["none", "keep", "train"]), check)


def test_an_earlier_reply_is_learned_only_after_a_block_as_the_last_one_is():
    """Else the base would learn from it to answer at once."""

    def check(file, mode):
        (why,) = renderer_for(file, mode, learn_history=True).render_example(Pair("And?", "Gone.", HISTORY)).problems
        assert "earlier reply in another way" in why

    check_each(itertools.product(["qwen3", "deepseek_r1_distill", "qwen3_5_think"], ["keep", "train"]), check)
    assert not renderer_for("glm4moe", "keep", learn_history=True).render_example(Pair("a", "b", HISTORY)).problems
    assert renderer_for("glm4moe", "train", learn_history=True).render_example(Pair("a", "b", HISTORY)).problems


def test_nothing_but_the_block_may_stand_between_prompt_and_reply():
    """A template that puts more there, or another thinking than the pair's, is refused."""
    _, tokenizer = official("qwen3")
    good = SHIPPED["qwen3"].with_thinking("keep")
    for old, new in (("{{- block if", "{{- 'Well. ' ~ block if"), ("~ thought ~", "~ 'Hm.' ~")):
        bad = ChatTemplate("mine", good.text.replace(old, new))
        assert bad.text != good.text
        (why,) = Renderer(tokenizer, bad).render_example(THINKING).problems
        assert "not the beginning of the training text" in why
        with pytest.raises(TemplateError, match="does not write the block"):
            require_same_thinking(tokenizer, bad, "keep")


def test_a_format_with_the_mode_in_its_header():
    """SmolLM3's: the shipped template writes it for no thinking; else it is read off the base's own."""
    tokenizer = family_tokenizer(HEADED)
    tokenizer.chat_template = HEADED
    for mode in ("keep", "train"):
        chosen = choose_template(tokenizer, "", mode)
        assert chosen.thinking == mode and "/think" in chosen.text and "/no_think" not in chosen.text
        assert not Renderer(tokenizer, chosen, "Be Mags.").render_example(THINKING).problems
    assert "/no_think" in choose_template(tokenizer).text
    example = Renderer(tokenizer_of("smollm3"), SHIPPED["smollm3"]).render_example(THINKING)
    assert not example.problems and example.text.endswith("</think>\nMags. 我守灯。<|im_end|>\n")


def test_a_base_without_thinking_refuses_it_and_leaves_it_out_of_rows():
    def check(file):
        _, tokenizer = official(file)
        for mode in ("keep", "train"):
            with pytest.raises(TemplateError, match=rf"thinking={mode}: this base's chat format has no <think> block"):
                choose_template(tokenizer, "", mode)
            with pytest.raises(TemplateError, match="Set thinking to none, or choose a base that reasons"):
                require_same_thinking(tokenizer, SHIPPED["qwen3"], mode)
        renderer = Renderer(tokenizer, choose_template(tokenizer))
        said = Pair("a", join_thinking("hm", "b"), (("c", join_thinking("hm", "d")),))
        assert renderer.render_example(said) == renderer.render_example(Pair("a", "b", (("c", "d"),)))

    check_each(["qwen2_5", "gemma3", "gemma4", "llama3"], check)


def test_a_named_template_is_held_to_the_base_s_own_prompts():
    """Qwen3-Thinking-2507 opens the block itself: with the template of Qwen3 a chat would ask in another way."""
    own, _ = official("qwen3")
    opened = ChatTemplate("own", own.text.replace("<think>\\n\\n</think>\\n\\n' }}\n    {%- endif", "' }}{%- endif")
                          .replace("{{- '<|im_start|>assistant\\n' }}\n    {%- if", "{{- '<|im_start|>assistant\\n<think>\\n' }}"
                                   "{%- if"))  # fmt: skip
    tokenizer = family_tokenizer(own.text)
    tokenizer.chat_template = opened.text
    assert choose_template(tokenizer) == SHIPPED["qwen3"]
    with pytest.raises(
        TemplateError, match=r"Template qwen3 does not ask .* where that writes '<think>\\n', it has ''"
    ):
        require_same_thinking(tokenizer, SHIPPED["qwen3"], "keep")
    assert choose_template(tokenizer, "", "keep").name == "own"
    _, qwen3 = official("qwen3")
    assert require_same_thinking(qwen3, SHIPPED["qwen3"], "train") == SHIPPED["qwen3"].with_thinking("train")
    with pytest.raises(TemplateError, match="template chatml does not write the block"):
        require_same_thinking(qwen3, SHIPPED["chatml"], "keep")
    assert require_same_thinking(qwen3, SHIPPED["chatml"], "none") == SHIPPED["chatml"]


def test_a_reply_of_thinking_alone_and_a_block_typed_by_the_user_are_refused():
    for mode in ("none", "keep", "train"):
        renderer = renderer_for("qwen3", mode)
        with pytest.raises(InputError, match="pair 1: the reply is thinking alone"):
            render_examples(renderer, [Pair("a", "<think>hm</think>\n")])
        with pytest.raises(InputError, match=r"pair 1: 'instruction' holds <think>, which this model reads as control"):
            render_examples(renderer, [Pair("a <think>", "b")])
        with pytest.raises(InputError, match=r"pair 1: 'output' holds </think>, <think>, which"):
            render_examples(renderer, [Pair("a", join_thinking("hm", "b <think>c</think>"))])


def test_the_mask_shows_the_thinking():
    shown = {mode: render_mask_html(renderer := renderer_for("qwen3", mode), renderer.render_example(THINKING))
             for mode in ("none", "keep", "train")}  # fmt: skip
    counts = {mode: (html.count('class="learned'), html.count("They")) for mode, html in shown.items()}
    assert counts["none"][1] == 0 and counts["keep"][0] == counts["none"][0] < counts["train"][0]


def test_modes_are_one_line_of_the_template():
    for template in shipped_templates().values():
        assert template.thinking in ("", "none")
        kept = template.with_thinking("keep")
        assert kept.with_thinking("none") == template
        assert kept.shows_thinking == bool(template.thinking)


def test_a_block_is_told_apart():
    def check(text, thought, reply):
        assert split_thinking(text) == (thought, reply)

    check_each([
        ("<think>\nhm\n</think>\n\nYes.", "hm", "Yes."), ("hm</think>Yes.", "hm", "Yes."), ("Yes.", "", "Yes."),
        ("<think>\n\n</think>\n\nYes.", "", "Yes."), ("Yes. <think>hm</think> No.", "", "Yes. <think>hm</think> No."),
        ("<think>Yes.", "", "<think>Yes."), ("a < b", "", "a < b"),
    ], check)  # fmt: skip
    grown = ["<think>", "<think>\nhm", "<think>\nhm\n</think>", "<think>\nhm\n</think>\n\nYes"]
    assert [split_partial(text) for text in grown] == [("", ""), ("hm", ""), ("hm", ""), ("hm", "Yes")]
