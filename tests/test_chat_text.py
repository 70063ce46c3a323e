"""How a reply is drawn, how its text grows, and how it ends."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import check_each
from speaking import GREEDY, NEVER, SHORT, WARM, letters, say, script
from tiny_models import load, with_lora

from persona.compare.session import NO_ADAPTER, Column, Voice, stream_replies
from persona.errors import InputError
from persona.models import decode_loop, generate
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.template.chat_template import read_template
from persona.template.render import ChatPrompt, Renderer

pytest_plugins = "speaking"
pytestmark = pytest.mark.usefixtures("plain_cpu")


@pytest.mark.parametrize("sampling", [replace(WARM, top_p=1.0), replace(WARM, temperature=1.7, top_k=3, top_p=1.0),
                                      replace(WARM, temperature=0.5, top_p=0.6),
                                      replace(WARM, top_p=1.0, min_p=0.2)])  # fmt: skip
def test_tokens_are_drawn_with_the_probabilities_of_softmax(sampling):
    """Noise and maximum are a draw from softmax: 4,000 draws against the exact shares."""
    scores = torch.tensor([[1.0, 0.2, -0.5, 2.0, 0.9], [0.0, 0.0, 0.0, -3.0, 1.0]])
    draw = generate.Sampler(sampling)
    counts = torch.zeros(2, 5)
    for _ in range(4000):
        for row, token in enumerate(draw(scores).tolist()):
            counts[row, token] += 1
    want = (scores / sampling.temperature).softmax(-1)
    if sampling.top_k:
        want = torch.where(want >= want.topk(sampling.top_k, -1).values[:, -1:], want, 0)
    if sampling.min_p:
        want = torch.where(want >= sampling.min_p * want.amax(-1, keepdim=True), want, 0)
        assert (want == 0).any(), "it drops some, or this test sees nothing"
    if sampling.top_p < 1:
        ordered, order = want.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
        want = torch.zeros_like(want).scatter(-1, order, ordered)
    want = want / want.sum(-1, keepdim=True)
    if sampling.top_k == 0:  # with top_k, equal scores at the edge may all be kept
        assert (counts / 4000 - want).abs().max() < 0.035
    assert ((counts == 0) | (want > 0)).all()


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_top_p_keeps_what_transformers_keeps(top_p, monkeypatch):
    """Peaked rows from the shortlist, flat ones sorted as a whole, both in one batch."""
    torch.manual_seed(3)
    scores = torch.randn(4, 5000) * torch.tensor([[9.0], [2.0], [0.5], [0.0]])
    scores[0, :4000] = -torch.inf  # as top_k leaves it
    sorted_rows = []
    nucleus = generate.FastTopPWarper(top_p)
    real = nucleus.full_sort
    monkeypatch.setattr(nucleus, "full_sort", lambda ids, some: sorted_rows.append(len(some)) or real(ids, some))
    got = nucleus(None, scores)
    assert torch.equal(got[:3], real(None, scores[:3])), "the last row is all ties: any share of it will do"
    assert abs((got[3] > -torch.inf).sum() - top_p * 5000) <= 1
    assert 0 < len(sorted_rows) < 4, "or one of the two ways was never taken"


@pytest.mark.parametrize("stop", ["<end_of_turn>", "<eos>"])
def test_a_stop_token_ends_its_own_row_alone(model, monkeypatch, stop):
    """The reply's own stop token, or the tokenizer's: an ended row says nothing more while the others go on."""
    end, turn = (model.tokenizer.convert_tokens_to_ids(t) for t in (stop, "<end_of_turn>"))
    a, b = letters(model.tokenizer, "你")[0], letters(model.tokenizer, "有")[0]
    script(monkeypatch, [a, b], [end, b], [b], [end])
    shown = [[(r.text, r.tokens, r.ended) for r in step] for step in
             stream_replies(model, [Column(NO_ADAPTER, SHORT)] * 2, GREEDY, turn)]  # fmt: skip
    assert shown == [
        [("你", 1, False), ("有", 1, False)],
        [("你", 1, True), ("有有", 2, False)],
        [("你", 1, True), ("有有有", 3, False)],
        [("你", 1, True), ("有有有", 3, True)],
    ]


def test_the_limit_is_not_an_end(model, monkeypatch):
    a = letters(model.tokenizer, "你")[0]
    script(monkeypatch, *[[a]] * 3)
    *_, last = stream_replies(model, [Column(NO_ADAPTER, SHORT)], replace(GREEDY, max_new_tokens=3), NEVER)
    assert (last[0].text, last[0].tokens, last[0].ended) == ("你你你", 3, False)


def test_half_a_character_waits_for_its_other_half(model, monkeypatch):
    """A rare character comes in four bytes, one token each; none of them is a character."""
    bytes_ = letters(model.tokenizer, "𠮷")
    assert len(bytes_) == 4
    a = letters(model.tokenizer, "你")[0]
    script(monkeypatch, *[[t] for t in (a, *bytes_, a, *bytes_[:2])])
    shown = [
        step[0].text
        for step in stream_replies(model, [Column(NO_ADAPTER, SHORT)], replace(GREEDY, max_new_tokens=8), NEVER)
    ]
    assert shown[:8] == ["你", "你", "你", "你", "你𠮷", "你𠮷你", "你𠮷你", "你𠮷你"]
    assert not any("\ufffd" in text for text in shown[:8])
    assert shown[8].startswith("你𠮷你"), "the limit came in the middle of a character: what there is, is shown"


@pytest.mark.parametrize("text", ["家父是大理寺少卿", "👩‍🚀 ok 🙂", "a  b\n\n c", "e\u0301𠮷\u3000。", "x" * 30])
@pytest.mark.parametrize("tokenizer", ["sentencepiece_tokenizer", "byte_tokenizer", "llama3_tokenizer"])
def test_text_grows_and_ends_as_what_was_said(request, tokenizer, text):
    tokenizer = request.getfixturevalue(tokenizer)
    shown = generate._StreamedText(tokenizer)
    steps = [shown.add(t) for t in letters(tokenizer, text)]
    assert steps[-1] == shown.decode() == text
    assert all(b.startswith(a) for a, b in itertools.pairwise(steps))
    assert not any("\ufffd" in s for s in steps)


def test_no_room_for_a_reply_is_that_columns_error(model):
    room = replace(GREEDY, max_new_tokens=96)
    short, long = say(
        model, [Column(NO_ADAPTER, SHORT), Column(NO_ADAPTER, ChatPrompt("", [5] * (MAX_CONTEXT_TOKENS - 95)))], room
    )
    assert long.error == (
        "The conversation has 4,001 tokens, and with a reply of up to 96 more than the 4,096 that fit. Shorten the "
        "message, or allow shorter replies."
    )
    assert short == say(model, [Column(NO_ADAPTER, SHORT)], room)[0] and short.tokens == 96


def test_a_bad_setting_is_refused_by_name():
    cases = [
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("min_p", float("nan")),
        ("max_new_tokens", 0),
        ("max_new_tokens", MAX_CONTEXT_TOKENS + 1),
        ("seed", -1),
        ("seed", 2**64),
    ]

    def check(name, value):
        with pytest.raises(InputError, match=f"{name}={value}"):
            Sampling(**{name: value})

    check_each(cases, check)


def test_a_base_in_half_precision_is_sampled_in_full(tiny_gemma):
    """Scores in bfloat16 have ties; they are made float32 before they are drawn from."""
    model = with_lora(load(tiny_gemma, "bfloat16"), size=0.1)
    with decode_loop.DecodeLoop(model, [SHORT.ids], [()], 0) as steps:
        assert steps.logits().dtype == torch.float32


def test_the_output_layer_gets_the_last_positions_side_by_side(tiny_gemma):
    """As a slice of all positions, a bfloat16 product on a CPU copies its weights for each row."""
    model, seen = load(tiny_gemma, "bfloat16"), []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with decode_loop.DecodeLoop(model, [SHORT.ids, [*SHORT.ids, 5]], None, 0) as steps:
        steps.logits()
    assert seen[0].shape[:2] == (2, 1) and seen[0].is_contiguous()


def test_the_repetition_penalty_counts_what_this_row_has_said_and_nothing_else():
    """Not the prompt: a persona must be free to say the name that is in it. Not the other columns either."""
    draw = generate.Sampler(Sampling(temperature=0, repetition_penalty=2))
    scores = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
    assert draw(scores.clone(), []).tolist() == [0, 0]
    assert draw(scores.clone(), [[0], [2]]).tolist() == [1, 0]


def test_the_oldest_exchanges_leave_a_conversation_that_is_too_long(model):
    """The system prompt, the greeting and the newest exchanges stay; a base's own context counts."""
    voice = Voice("base", NO_ADAPTER, Renderer(model.tokenizer, read_template("gemma-base"), "You keep the light."))
    turns = [("", "Evening."), *((f"question {n}", f"answer {n}") for n in range(40))]
    whole = voice.render_column(turns, "And now?")
    assert not whole.left_out and "answer 0" in whole.prompt.text
    cut = voice.render_column(turns, "And now?", room=300)
    assert 0 < cut.left_out < 40 and len(cut.prompt.ids) <= 300
    assert all(text in cut.prompt.text for text in ("keep the light", "Evening.", "answer 39", "And now?"))
    kept = [n for n in range(40) if f"answer {n}\n" in cut.prompt.text or f"answer {n}<" in cut.prompt.text]
    assert kept == list(range(cut.left_out, 40))
    more = voice.render_column([turns[0], *turns[cut.left_out :]], "And now?")
    assert len(more.prompt.ids) > 300, "one more would have had no room"
    assert voice.render_column(turns, "And now?", room=5).left_out == 40


def test_a_base_made_for_short_texts_says_so(model, monkeypatch):
    monkeypatch.setattr(model.model.config.get_text_config(), "max_position_embeddings", 64)
    assert model.context_tokens == 64
    (reply,) = say(model, [Column(NO_ADAPTER, ChatPrompt("", [5] * 60))], GREEDY)
    assert "more than the 64 that fit" in reply.error and not reply.tokens
