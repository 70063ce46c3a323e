"""A talk of twelve turns whose user's side is written here: does the persona stay itself the longer it lasts?"""

import math
from collections import Counter
from dataclasses import replace

from persona.compare.repetition import is_repeating
from persona.compare.session import Column, Voice
from persona.errors import Message
from persona.judge import probes, scoring
from persona.judge.behaviour import VerdictParts, admits_ai
from persona.judge.measurements import EvalSession
from persona.judge.report_model import EvalReport, LongTalk, TalkTurn
from persona.models.generate import Generation
from persona.store.cjk import is_chinese
from persona.store.persona_folder import ProbeRule
from persona.write.writing_systems import count_scripts, expected_scripts, find_foreign_script

# what one says to anybody, so that it fits every persona
SCRIPT = {
    "zh": (
        "晚上好，今天过得怎么样？", "外头好像要下雨了。", "你平时闲下来都做些什么？", "我今天有点累，不太想说话。",
        "讲一件你记得很清楚的事吧。", "后来呢？", "你说，人为什么会害怕？", "我小时候也遇到过差不多的事。",
        "要是能重来一次，你会换一种活法吗？", "这些日子你心里惦记着谁？", "说了这么久，你烦我了吗？",
        "夜深了，临走前再对我说一句吧。",
    ),
    "en": (
        "Good evening. How has your day been?", "It looks like rain out there.",
        "What do you do when nobody needs you?",
        "I am tired today and do not feel like talking.", "Tell me about something that you remember well.",
        "And what happened then?", "Why do people become afraid, do you think?",
        "Something like that happened to me once, when I was small.",
        "If you could begin again, would you live otherwise?",
        "Who is on your mind these days?", "We have talked for a long while. Are you weary of me?",
        "It is late. Say one more thing before I go.",
    ),
}  # fmt: skip
TURNS = len(SCRIPT["en"])
ASKED_AT = (1, 6, 12)  # turns at which the rules are asked, in place of what the script says; the talk goes on without
UNLIKELY = 0.05  # of chance alone: what counts as a loss between the first and the last turn that asks


def choose_rules(session: EvalSession) -> list[ProbeRule]:
    """Those of the probes that an answer can break."""
    ruled = [rule for rule in session.rules if rule.must_mention or rule.must_not_mention]
    return ruled[: session.limits.talk_rules]


def count_work(session: EvalSession) -> Counter[str]:
    """The passes of the talk, at most."""
    talks, rules = session.limits.talks, len(choose_rules(session))
    columns = [talks * (1 + (rules if turn in ASKED_AT else 0)) for turn in range(1, TURNS + 1)]
    limit = session.sampling.max_new_tokens
    return Counter(answering=sum(scoring.count_passes(n, limit) for n in columns) if talks else 0)


def measure_long_talk(session: EvalSession, language: str) -> LongTalk | None:
    """Some talks at once, each with its own random numbers. language: of the card; other than Chinese is English."""
    talks, rules = session.limits.talks, choose_rules(session)
    if not talks:
        return None
    session.work.doing = Message("A talk of {turns} turns", turns=TURNS)
    script = SCRIPT["zh" if is_chinese(language) else "en"]
    own = expected_scripts("", [count_scripts(p.output) for p, _ in (*session.held, *session.trained)])
    histories: list[list[tuple[str, str]]] = [[] for _ in range(talks)]
    turns = []
    for number, said in enumerate(script, 1):
        asked = rules if number in ASKED_AT else []
        columns = [render(session, history, text) for history in histories for text in (said, *(r.ask for r in asked))]
        replies = _ask(session, columns, 1 + len(asked))
        own_replies = [r.text for r in replies[:: 1 + len(asked)]]
        texts = [r.text for r in replies]
        kept = [not probes.find_broken_rules(rule, replies[talk * (1 + len(asked)) + n].text)
                for talk in range(talks) for n, rule in enumerate(asked, 1)]  # fmt: skip
        turns.append(TalkTurn(
            said=said, replies=own_replies, answers=len(texts), kept=kept,
            circles=sum(map(is_repeating, texts)),
            foreign=sum(bool(find_foreign_script(count_scripts(text), own)) for text in texts),
            admissions=sum(map(admits_ai, texts)), left_out=max(c.left_out for c in columns),
        ))  # fmt: skip
        for history, reply in zip(histories, own_replies, strict=True):
            history.append((said, reply))
    return LongTalk(talks=talks, rules=[rule.ask for rule in rules], turns=turns)


def render(session: EvalSession, history: list[tuple[str, str]], text: str) -> Column:
    room = session.model.context_tokens - session.sampling.max_new_tokens
    return Voice("persona", session.adapter, session.renderer).render_column(history, text, room)


def _ask(session: EvalSession, columns: list[Column], of_a_talk: int) -> list[Generation]:
    """of_a_talk: columns of each talk, which share its seed."""
    samplings = [replace(session.sampling, seed=n // of_a_talk) for n in range(len(columns))]
    return scoring.ask_columns(session.model, columns, samplings, session.renderer.stop_id, session.work)


# ---- what it means


def count_losses(talk: LongTalk) -> tuple[int, int, float]:
    """Of the rules kept at the first turn that asks: lost at the last; those gained; the chance of so many losses.

    The chance is that of an exact one-sided sign test (McNemar 1947) of the answers that changed.
    """
    asked = [turn.kept for turn in talk.turns if turn.kept]
    if len(asked) < 2:
        return 0, 0, 1.0
    lost = sum(a and not b for a, b in zip(asked[0], asked[-1], strict=True))
    gained = sum(b and not a for a, b in zip(asked[0], asked[-1], strict=True))
    changed = lost + gained
    return lost, gained, sum(math.comb(changed, n) for n in range(lost, changed + 1)) / 2**changed


def wears_off(r: EvalReport) -> VerdictParts:
    """The verdict `drifts` of a persona that keeps its rules at first and not after a long talk."""
    if not r.talk or count_losses(r.talk)[2] >= UNLIKELY:
        return None
    return "drifts", _kept_at(r.talk), Message(
        "Its pairs are mostly single questions, so it never learned to stay itself after many turns."
    ), Message(
        "Write conversations (pairs with earlier turns), import some, or split a long one in step 1; then train again."
    )  # fmt: skip


def about_long_talk(r: EvalReport) -> str:
    """A remark: what became of the rules."""
    if not r.talk or not any(turn.kept for turn in r.talk.turns):
        return ""
    return _kept_at(r.talk)


def _kept_at(talk: LongTalk) -> Message:
    asked = [(number, turn.kept) for number, turn in enumerate(talk.turns, 1) if turn.kept]
    (first, before), (last, after) = asked[0], asked[-1]
    return Message(
        "In a talk of {turns} turns it kept {before} of {of} rules at turn {first} and {after} at turn {last}.",
        turns=len(talk.turns), before=sum(before), of=len(before), first=first, after=sum(after), last=last,
    )  # fmt: skip
