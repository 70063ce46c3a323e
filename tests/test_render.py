"""What is learned, as laws that hold for every template of templates/chat with every tokenizer it fits.

These are the formats of the bases that the tests have; tests/test_chat_template.py holds every other file of templates/chat
to the same. A template and a tokenizer fit if each control token that the template writes is one token of that
vocabulary. Each law is one test for a template and a tokenizer, over every pair, without and with a system prompt.
"""

import re
import threading
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest
from cases import check_each
from rendering import PAIRS, REAL, SYSTEMS, TEMPLATES, TINY, decode, learned_parts

from persona.errors import TemplateError
from persona.serve.requests import parse_chat_request
from persona.store.pairs import Pair
from persona.template.chat_template import ChatTemplate, build_messages
from persona.template.compatibility import MARKER_PATTERN
from persona.template.render import IGNORE_INDEX, ChatPrompt, Renderer, TrainingExample, render_examples


def controls_of(template: ChatTemplate) -> set[str]:
    """The control tokens that a template spells out."""
    return set(MARKER_PATTERN.findall(re.sub(r"\{#.*?#\}", "", template.text, flags=re.DOTALL)))


def combinations(fit: bool) -> list:
    found = []
    for kind, controls in {**TINY, **REAL}.items():
        for name, template in TEMPLATES.items():
            if (controls_of(template) <= set(controls)) == fit:
                marks = [pytest.mark.slow] if kind in REAL else []
                case = f"{name}-{kind.removesuffix('_tokenizer')}"
                found.append(pytest.param((kind, name), marks=marks, id=case))
    return found


FITTING = combinations(fit=True)


class Case(NamedTuple):
    """A pair as one renderer renders it."""

    renderer: Renderer
    pair: Pair
    example: TrainingExample
    prompt: ChatPrompt


@dataclass
class Fitted:
    """One template on one tokenizer, and what they make of every pair."""

    tokenizer: object
    template: ChatTemplate
    cases: dict[str, Case]

    def renderer(self, system: str = "", **settings) -> Renderer:
        return Renderer(self.tokenizer, self.template, system, **settings)

    def trainable(self) -> dict[str, Case]:
        """Without those that are refused: white space that no trim takes away, named as a problem."""
        found = {}
        for name, case in self.cases.items():
            if case.example.problems:
                texts = [case.pair.output, *(reply for _, reply in case.pair.history)]
                assert any(as_written(case.renderer, x) != x.strip() for x in texts), case.example.problems
                assert any("white space" in why for why in case.example.problems), case.example.problems
            else:
                found[name] = case
        assert len(found) >= len(self.cases) - 2 * 6, "nearly all can be trained on"
        return found


@pytest.fixture(scope="module", params=FITTING)
def fitted(request) -> Fitted:
    kind, name = request.param
    made = Fitted(request.getfixturevalue(kind), TEMPLATES[name], {})
    for how, system in SYSTEMS.items():
        renderer = made.renderer(system)
        for what, pair in PAIRS.items():
            prompt = renderer.render_prompt(pair.history, pair.instruction)
            made.cases[f"{what}, {how}"] = Case(renderer, pair, renderer.render_example(pair), prompt)
    return made


def as_written(renderer: Renderer, reply: str) -> str:
    """The reply as the template writes it: a template either trims every reply or none."""
    probe = renderer.tokenizer.apply_chat_template(
        build_messages("", [], "q", "  x  "), chat_template=renderer.template.text, tokenize=False
    )
    return reply if "  x  " in probe else reply.strip()


# ---- what holds for every template, tokenizer and pair


def test_every_template_is_tried_without_the_converted_bases():
    assert {name for p in FITTING for kind, name in p.values if kind in TINY} == set(TEMPLATES)


def test_the_reply_and_its_stop_token_are_learned_and_nothing_else(fitted):
    def check(renderer, pair, example, _):
        stop = decode(renderer, [renderer.stop_id])
        learned = decode(renderer, [x for x in example.labels if x != IGNORE_INDEX])
        assert learned == as_written(renderer, pair.output) + stop
        assert len(learned_parts(example)) == 1
        assert example.learned == len(learned_parts(example)[0]) >= 1
        assert len(example.labels) == len(example.input_ids)
        assert all(
            label in (token, IGNORE_INDEX) for token, label in zip(example.input_ids, example.labels, strict=True)
        )

    check_each(fitted.trainable(), check)


def test_the_chat_prompt_is_where_learning_starts(fitted):
    def check(renderer, pair, example, prompt):
        assert example.input_ids[: len(prompt.ids)] == prompt.ids
        assert example.text.startswith(prompt.text)
        first = next(n for n, label in enumerate(example.labels) if label != IGNORE_INDEX)
        assert first == len(prompt.ids)

    check_each(fitted.trainable(), check)


def test_a_request_of_the_api_is_where_learning_starts(fitted):
    def check(renderer, pair, example, prompt):
        said = build_messages(renderer.system, pair.history, pair.instruction)
        order = parse_chat_request({"model": "m", "messages": said}, 0)
        assert replace(renderer, system=order.system or "").render_prompt(order.history, order.text).ids == prompt.ids

    check_each(fitted.trainable(), check)


def test_a_further_turn_changes_no_earlier_token(fitted):
    """Else what was learned is not what the model reads in the next turn of a chat."""

    def check(renderer, pair, example, _):
        further = Pair("Next", "more", (*pair.history, (pair.instruction, pair.output)))
        assert renderer.render_example(further).input_ids[: len(example.input_ids)] == example.input_ids
        prompt = renderer.render_prompt(further.history, "Next")
        assert prompt.ids[: len(example.input_ids)] == example.input_ids

    check_each(fitted.trainable(), check)


def test_the_tokens_that_the_page_shows_make_up_the_text(fitted):
    """Also of a refused row: the page shows what is wrong with it."""

    def check(renderer, pair, example, _):
        tokens = renderer.tokens(example)
        assert "".join(t.text for t in tokens) == example.text
        assert example.text == renderer.tokenizer.apply_chat_template(
            build_messages(renderer.system, pair.history, pair.instruction, pair.output),
            chat_template=renderer.template.text, tokenize=False,
        )  # fmt: skip
        assert [t.id for t in tokens] == example.input_ids
        assert [t.learned for t in tokens] == [label != IGNORE_INDEX for label in example.labels]
        special = set(renderer.tokenizer.all_special_ids) | {renderer.stop_id}
        assert {t.id for t in tokens if t.special} >= special & set(example.input_ids)

    check_each(fitted.cases, check)


def test_learn_history_learns_every_reply(fitted):
    cases = {n: c for n, c in fitted.trainable().items() if c.pair.history or c.pair == PAIRS["one-letter"]}

    def check(renderer, pair, last, _):
        every = replace(renderer, learn_history=True).render_example(pair)
        if every.problems:  # it melts in an earlier reply, where a chat may read it but nothing can be learned
            assert pair == PAIRS["white-space-in-history"] and "white space" in every.problems[0], every.problems
            return
        stop = decode(renderer, [renderer.stop_id])
        replies = [*(reply for _, reply in pair.history), pair.output]
        assert [decode(renderer, part) for part in learned_parts(every)] == [
            as_written(renderer, reply) + stop for reply in replies
        ]
        assert every.input_ids == last.input_ids
        assert learned_parts(every)[-1] == learned_parts(last)[0]

    check_each(cases, check)


def test_an_earlier_reply_that_another_row_ends_with_is_learned_there_only(fitted):
    cases = {n: c for n, c in fitted.trainable().items() if len(c.pair.history) > 1 and not c.example.problems}

    def check(renderer, pair, last, _):
        every = replace(renderer, learn_history=True)
        once = replace(every, learned_elsewhere=frozenset(pair.history[:1]))
        if every.render_example(pair).problems:
            return
        assert learned_parts(once.render_example(pair)) == learned_parts(every.render_example(pair))[1:]
        nothing = replace(every, learned_elsewhere=frozenset(pair.history)).render_example(pair)
        assert nothing.labels == last.labels

    check_each(cases, check)


def test_rendering_is_deterministic(fitted):
    """By a new renderer, in another order."""

    def check(renderer, pair, example, prompt):
        assert again[renderer.system].render_example(pair) == example
        assert again[renderer.system].render_prompt(pair.history, pair.instruction) == prompt

    again = {system: fitted.renderer(system) for system in SYSTEMS.values()}
    check_each(dict(reversed(fitted.cases.items())), check)


def test_every_shipped_persona_fits_every_template(fitted):
    """Nobody's first run may end at a row of our own."""
    from persona.store.persona_folder import list_examples

    def check(persona):
        pairs = persona.pairs()
        roomy = fitted.renderer(persona.card().system, max_length=4_096)
        assert len(render_examples(roomy, pairs[::40] + [p for p in pairs if p.history][:3])) > 3

    check_each({p.slug: p for p in list_examples()}, check)


def test_a_system_prompt_of_spaces_is_none(fitted):
    assert fitted.renderer(" \n").render_example(PAIRS["turns"]) == fitted.renderer().render_example(PAIRS["turns"])


def test_the_system_prompt_is_in_the_text(fitted):
    """Guards the laws above: they would hold too if the system prompt were dropped."""
    renderer = fitted.renderer("You are Mags.")
    assert "You are Mags." in renderer.render_prompt([], "Hi").text
    assert "You are Mags." in renderer.render_example(Pair("Hi", "Yes")).text


# ---- templates that do not fit


@pytest.mark.parametrize("case", combinations(fit=False))
def test_a_template_whose_stop_token_this_model_lacks_is_refused(request, case):
    """Its stop string would be split into letters, and the model would write them out and go on."""
    kind, name = case
    renderer = Renderer(request.getfixturevalue(kind), TEMPLATES[name])
    with pytest.raises(TemplateError, match=f"Template {name}: .*not a stop token"):
        _ = renderer.stop_id
    with pytest.raises(TemplateError):
        render_examples(renderer, [PAIRS["english"]])


# ---- beyond the table


@pytest.mark.parametrize("pair", [PAIRS["chinese"], PAIRS["english"], PAIRS["turns"]], ids=["zh", "en", "turns"])
def test_a_tokenizer_of_the_wordpiece_kind_keeps_mask_and_text(wordpiece_tokenizer, pair):
    """It drops white space: the mask still is reply and stop token, and the shown tokens still make up the text."""
    renderer = Renderer(wordpiece_tokenizer, TEMPLATES["chatml"])
    example = renderer.render_example(pair)
    unknown = [why for why in example.problems if "no token" in why]
    if unknown:  # a letter that its small vocabulary lacks is said, not lost
        assert example.problems == tuple(unknown)
        return
    learned = [i for i in example.labels if i != IGNORE_INDEX]
    assert learned[-1] == renderer.stop_id and "".join(t.text for t in renderer.tokens(example)) == example.text
    text = wordpiece_tokenizer.decode(learned[:-1])
    assert "".join(text.split()) == "".join(pair.output.split())
    prompt = renderer.render_prompt(pair.history, pair.instruction).ids
    assert example.input_ids[: len(prompt)] == prompt and example.labels[len(prompt) - 1] == IGNORE_INDEX


def test_a_character_of_several_tokens_is_shown_at_the_last(byte_renderer):
    """Half a character cannot be shown; the tokens before the last have no text of their own."""
    tokens = byte_renderer.tokens(byte_renderer.render_example(Pair("q", "𠮷a")))
    at = next(n for n, t in enumerate(tokens) if "𠮷" in t.text)
    assert [t.text for t in tokens[at - 3 : at + 2]] == ["", "", "", "𠮷", "a"]


def test_white_space_that_a_tokenizer_drops_is_shown_at_the_last_token(byte_renderer):
    tokens = byte_renderer.tokens(TrainingExample([5, 6], [IGNORE_INDEX, 6], "ab ", [1, 2]))
    assert [t.text for t in tokens] == ["a", "b "]


@pytest.mark.parametrize("mine", ["", "{#- mine -#}"])
def test_threads_do_not_mix_up_their_masks(byte_tokenizer, mine):
    """The page previews while another tab chats, with a shipped template or one of its own."""
    renderer = Renderer(byte_tokenizer, ChatTemplate("chatml", TEMPLATES["chatml"].text + mine))
    pairs, failures = list(PAIRS.values()), []
    alone = [renderer.render_example(p) for p in pairs]
    assert list(renderer.iterate_examples(pairs)) == alone

    def work(start: int) -> None:
        for n in range(start, start + 10):
            if renderer.render_example(pairs[n % len(pairs)]) != alone[n % len(pairs)]:
                failures.append(n)

    threads = [threading.Thread(target=work, args=(5 * n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures


# ---- the same mask as TRL's


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sentencepiece_tokenizer", "embedded_tokenizer"])
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
def test_the_mask_is_that_of_trls_training_template(request, kind, system):
    """For Gemma 3. TRL learns the line break after <end_of_turn> too; ours ends at the stop token."""
    from trl.chat_template_utils import gemma3_chat_template, get_training_chat_template

    tokenizer = request.getfixturevalue(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "chat_template", gemma3_chat_template)
        text = get_training_chat_template(tokenizer)
    assert text and "generation" in text
    renderer = Renderer(tokenizer, TEMPLATES["gemma"], system, learn_history=True)
    stop = renderer.stop_id
    for pair in PAIRS.values():
        theirs = tokenizer.apply_chat_template(
            build_messages(system, pair.history, pair.instruction, pair.output), chat_template=text,
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        ours = renderer.render_example(pair)
        assert ours.input_ids == list(theirs["input_ids"])
        mask = list(theirs["assistant_masks"])
        breaks = [n + 1 for n, token in enumerate(ours.input_ids) if token == stop and mask[n]]
        assert len(breaks) == len(pair.history) + 1
        assert all(mask[n] and tokenizer.decode([ours.input_ids[n]]) == "\n" for n in breaks)
        for n in breaks:
            mask[n] = 0
        assert [label != IGNORE_INDEX for label in ours.labels] == [bool(m) for m in mask]
        assert not Renderer(tokenizer, ChatTemplate("trl", text), system).render_example(pair).problems


# ---- the tiny bases that other tests train


@pytest.mark.slow
@pytest.mark.parametrize("folder, kind", [("tiny_gemma", "sentencepiece_tokenizer"), ("tiny_llama", "byte_tokenizer")])
def test_the_tiny_bases_open_like_any_other(request, folder, kind):
    """Saved and opened again, tokens and shapes are the same: what is tested on them is what was made."""
    from persona.models.base import load_base_model, load_tokenizer, resolve_base

    base = resolve_base(str(request.getfixturevalue(folder)))
    tokenizer, original = load_tokenizer(base), request.getfixturevalue(kind)
    for pair in PAIRS.values():
        assert tokenizer(pair.output)["input_ids"] == original(pair.output)["input_ids"]
    assert tokenizer.added_tokens_decoder.keys() == original.added_tokens_decoder.keys()
    model = load_base_model(base, "float32")
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
