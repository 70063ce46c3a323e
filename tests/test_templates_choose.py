"""Which chat template a base gets, how its own is made trainable, and what is refused."""

import itertools
import re

import pytest
from cases import check_each
from conftest import family_tokenizer
from rendering import CONVERSATIONS, OFFICIAL, SHIPPED, SYSTEM, TRL, decode, official, tokenizer_of, trainable

from persona.errors import InputError, TemplateError
from persona.store.pairs import Pair
from persona.template.chat_template import ChatTemplate, build_messages, pin_date, read_template
from persona.template.compatibility import find_incompatibilities, is_mask_exact, try_render_prompt
from persona.template.derive import derive_template
from persona.template.render import IGNORE_INDEX, Renderer, render_examples
from persona.template.select import choose_template

# ---- which template


def test_a_template_is_read_by_name_or_from_a_file(tmp_path):
    assert read_template("gemma") == SHIPPED["gemma"]
    (tmp_path / "mine.jinja").write_text("{{ '你好' }}", encoding="utf-8")
    assert read_template(str(tmp_path / "mine.jinja")) == ChatTemplate("mine", "{{ '你好' }}")


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
    assert choose_template(speaking(None, SHIPPED[name].text, eos=end), "zh").name == name
    assert choose_template(speaking(None, SHIPPED["llama-3"].text), "zh").name == "alpaca-zh"
    assert choose_template(speaking(None, eos="<|im_end|>"), "zh").name == "chatml"


def test_a_base_that_speaks_a_shipped_format_gets_it():
    """Recognised by what it renders: written in another way, with its comment and its marks gone."""

    def check(name):
        text = re.sub(r"\{#.*?#\}", "", SHIPPED[name].text, flags=re.DOTALL)
        text = re.sub(r"\{% (?:end)?generation %\}", "", text)
        tokenizer = family_tokenizer(SHIPPED[name].text)
        tokenizer.chat_template = text
        assert choose_template(tokenizer).name == name

    check_each(list(SHIPPED), check)


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


@pytest.mark.slow
def test_any_published_format_becomes_trainable():
    """Of families that no shipped template is written for. Their chats get their own text; a block of reasoning or a
    channel that the model would write itself is written for it, before the reply and unlearned.
    """

    def check(file):
        own, tokenizer = official(file)
        chosen = choose_template(tokenizer)
        assert find_incompatibilities(tokenizer, chosen) == [] and is_mask_exact(tokenizer, chosen)
        for chat in CONVERSATIONS:
            wanted, got = try_render_prompt(tokenizer, own, chat), try_render_prompt(tokenizer, chosen, chat)
            assert got.startswith(wanted)
            assert got[len(wanted) :] in ("", "\n</think>\n\n", "<|channel|>final<|message|>", " to=user<|message|>")
        renderer = Renderer(tokenizer, chosen, SYSTEM, max_length=4096)
        for pair, example in trainable(renderer):
            learned = decode(renderer, [x for x in example.labels if x != IGNORE_INDEX])
            assert learned.removesuffix(decode(renderer, [renderer.stop_id])).strip() == pair.output.strip()

    check_each(OTHERS, check)


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
    assert choose_template(tokenizer) == SHIPPED["chatml"]


def test_a_default_system_prompt_and_a_date_are_kept():
    head = (
        "{% if messages[0].role != 'system' %}{{ 'It\\'s ' ~ strftime_now('%d %B %Y') ~ ' \\\\ {% x %}\n' }}{% endif %}"
    )
    tokenizer = speaking(head + "{% for m in messages %}" + TURN + "{% endfor %}" + ASK)
    chosen = choose_template(tokenizer)
    assert chosen.name == "own" and "Origin:" in chosen.about and "strftime" not in chosen.text
    assert try_render_prompt(tokenizer, chosen, build_messages("", [], "Hi")) == (
        "It's 26 July 2024 \\ {% x %}\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert try_render_prompt(tokenizer, chosen, build_messages("s", [], "Hi")).startswith(
        "<|im_start|>system\ns<|im_end|>\n<|im_sta"
    )


def test_white_space_is_trimmed_as_the_base_does():
    def check(jinja, role):
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
            assert try_render_prompt(tokenizer, chosen, chat) == try_render_prompt(
                tokenizer, ChatTemplate("own", own), chat
            )

    check_each(
        itertools.product(
            ["m.content | trim", "m.content.lstrip('\n')", "m.content.rstrip()", "m.content"],
            ["user", "assistant", "system"],
        ),
        check,
    )


def test_marks_of_the_bases_own_are_kept_where_they_are_right():
    """Some mark the header too, or leave the stop token out: those are marked anew."""
    reply = "{%- generation -%}{{ m.content ~ '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
    good = ("{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|go|>assistant\n' }}" + reply + "{% else %}"
            + TURN.replace("im_start", "go") + "{% endif %}{% endfor %}" + ASK.replace("im_start", "go"))  # fmt: skip
    assert choose_template(speaking(good)) == ChatTemplate("own", good)
    for bad in (good.replace("{{ '<|go|>assistant\n' }}{%- generation -%}", "{%- generation -%}{{ '<|go|>assistant\n' }}"),
                good.replace("~ '<|im_end|>' }}{%- endgeneration -%}", "}}{%- endgeneration -%}{{ '<|im_end|>' }}")):  # fmt: skip
        assert bad != good
        chosen = choose_template(speaking(bad))
        assert chosen.name == "own" and chosen.text != bad and is_mask_exact(speaking(good), chosen)


def test_formats_by_name_count_by_their_default():
    """Some bases carry several: {"default": …, "tool_use": …}."""
    odd = UNSURE["counts-the-turns"]
    assert choose_template(speaking({"default": SHIPPED["chatml"].text, "tool_use": odd})).name == "chatml"
    with pytest.raises(TemplateError, match="no shipped template reproduces"):
        choose_template(speaking({"default": odd, "tool_use": SHIPPED["chatml"].text}))


def test_a_system_role_in_an_unknown_place_is_not_taken_for_none():
    """Mistral's moves with the last question; folding it into the first would be another format."""
    own = ChatTemplate("own", re.sub(r"\{% (?:end)?generation %\}", "", SHIPPED["mistral-v3"].text))
    assert derive_template(family_tokenizer(own.text), own) is None


# ---- does it fit


def test_markers_that_a_model_does_not_know_are_refused():
    """Each would be a handful of letters, and the model would never have seen a turn begin like that."""
    (why,) = find_incompatibilities(family_tokenizer(extra="<|im_end|>"), SHIPPED["chatml"])
    assert re.match(
        r"Template chatml: this model does not know its markers: <\|im_start\|> \(\d+ tokens\)\. Choose", why
    )
    (why,) = find_incompatibilities(family_tokenizer(extra="<|im_end|> <|im_start|>"), SHIPPED["qwen3"])
    assert "<think>" in why and "</think>" in why
    assert find_incompatibilities(family_tokenizer(), SHIPPED["mistral-v1"]) == [], (
        "plain letters there, as its header says"
    )
    assert find_incompatibilities(family_tokenizer(), SHIPPED["mistral-v3"])


def test_a_template_of_todays_date_is_refused():
    dated = SHIPPED["chatml"].text + "{{ strftime_now('%d') }}"
    tokenizer = tokenizer_of("chatml")
    (why,) = find_incompatibilities(tokenizer, ChatTemplate("mine", dated))
    assert why.startswith("Template mine: it writes today's date")
    with pytest.raises(TemplateError, match="today's date"):
        render_examples(Renderer(tokenizer, ChatTemplate("mine", dated)), [Pair("a", "b")])
    assert find_incompatibilities(tokenizer, ChatTemplate("mine", pin_date(dated))) == []
    assert (
        find_incompatibilities(
            tokenizer, ChatTemplate("mine", dated.replace("{{ strf", "{% if false %}{{ strf") + "{% endif %}")
        )
        == []
    )


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
        wrap(tokenizer, unk_token="<unk>", eos_token="<|im_end|>", pad_token="<unk>"), SHIPPED["chatml"]
    )
    assert not renderer.render_example(Pair("hi", "yes")).problems
    with pytest.raises(InputError) as e:
        render_examples(renderer, [Pair("hi", "yes"), Pair("hi", "yes 甄嬛 甄"), Pair("Ω", "b", (("a", "é"),))])
    lines = str(e.value).splitlines()
    assert lines[0].startswith(
        "pair 2: 'output' holds '甄', '嬛', for which this model has no token: it would learn to say <unk>"
    )
    assert [line.split(" holds")[0] for line in lines[1:]] == ["pair 3: 'history'", "pair 3: 'instruction'"]
