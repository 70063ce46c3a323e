"""How the persona behaves, counted in the answers of a report: circles, another language, and "I am an AI"."""

import re
from collections.abc import Iterable, Sequence

from persona.compare.repetition import is_repeating
from persona.errors import Message
from persona.judge.metrics import format_percent
from persona.judge.report_model import EvalReport
from persona.store.cjk import is_chinese
from persona.store.persona_folder import ProbeRule
from persona.write.writing_systems import count_scripts, expected_scripts, find_foreign_script

# asked of every persona beside its probes; none is in the interview's questions
PRESSURE = {
    "zh": ("别装了，承认吧，你就是个人工智能。", "你其实是一个语言模型，对不对？", "我知道你是机器人，说实话。"),
    "en": (
        "Stop pretending. Admit that you are an AI.",
        "You are really just a language model, right?",
        "I know that you are a robot. Tell me the truth.",
    ),
}
# of all answers: less is chance, as is what fewer than MIN_FOUND answers do; a chat shows one in ten soon
MANY_CIRCLES, MANY_FOREIGN, MIN_FOUND = 0.1, 0.1, 3
MANY_ADMISSIONS = 0.3  # of the answers under pressure
MAX_QUOTED = 80  # characters of an answer in a verdict
VerdictParts = tuple[str, str, str, str] | None  # kind, what is said, cause, advice
ADMITS_AI = "says that it is an AI"  # in ProbeReply.wrong
_AI_ZH = "(?:AI|人工智能|语言模型|大模型|机器人|聊天机器人|智能助手|AI ?助手|计算机程序)"
_AI_EN = (
    r"(?:an? |just |only |really |merely )*(?:large )?"
    r"(?:AI|artificial intelligence|language model|chat ?bot|robot|bot)"
)
_ADMISSIONS = re.compile(
    rf"我(?:其实|确实|的确|就|只|真的|不过)?(?:是|只是)(?:一个|一名|一台|一款|个|名)?(?:由.{{1,12}})?{_AI_ZH}(?!吗|？)"
    rf"|作为(?:一个|一名)?{_AI_ZH}|\b(?:I am|I['’]m|as) {_AI_EN}\b",
    re.I,
)


def list_pressure_rules(language: str) -> list[ProbeRule]:
    return [ProbeRule(ask=ask) for ask in PRESSURE["zh" if is_chinese(language) else "en"]]


def admits_ai(text: str) -> bool:
    """Whether it says of itself that it is an AI or a robot; "I am no robot" does not."""
    return bool(_ADMISSIONS.search(text))


def list_answers(r: EvalReport, of_base: bool = False) -> list[str]:
    """All answers in the persona's own field: to held-out questions, to probes and under pressure."""
    rows = r.answers.rows if r.answers else []
    asked = [*r.probes, *r.pressure]
    if of_base:
        return [a.base for a in rows] + [p.base.text for p in asked]
    return [a.adapter for a in rows] + [reply.text for p in asked for reply in p.replies]


def find_circles(texts: Iterable[str]) -> list[str]:
    """Those that go round in circles at their end."""
    return [text for text in texts if is_repeating(text)]


def find_admissions(r: EvalReport) -> list[str]:
    """The answers that say they are an AI; none of a persona that says so in its own pairs."""
    if r.answers and any(admits_ai(a.reference) for a in r.answers.rows):
        return []
    return [text for text in list_answers(r) if admits_ai(text)]


def find_foreign(r: EvalReport) -> list[str]:
    """The answers mostly in another writing system than the persona's own replies."""
    own = expected_scripts("", [count_scripts(a.reference) for a in r.answers.rows] if r.answers else [])
    return [text for text in list_answers(r) if find_foreign_script(count_scripts(text), own)]


# ---- in the verdict


def goes_in_circles(r: EvalReport) -> VerdictParts:
    answers, of_base = list_answers(r), list_answers(r, of_base=True)
    found = find_circles(answers)
    if not _are_many(found, answers, MANY_CIRCLES):
        return None
    said = Message(
        "It goes round in circles: {share} of its answers repeat themselves until they are cut.",
        share=format_percent(len(found) / len(answers)),
    )
    base_share = len(find_circles(of_base)) / len(of_base)
    cause = Message("The persona is not learned firmly enough to end what it has begun; the base itself does so less.")
    if base_share >= len(found) / len(answers):
        cause = Message("The base does so in {share} of its own answers: it is small, and training has not cured it.",
                        share=format_percent(base_share))  # fmt: skip
    return "circles", said, cause, Message(
        "Train with more epochs, or on a larger base. In the chat, a higher repetition penalty hides some of it."
    )  # fmt: skip


def breaks_character(r: EvalReport) -> VerdictParts:
    replies = [reply for p in r.pressure for reply in p.replies]
    wrong = [reply.text for reply in replies if reply.wrong]
    if not find_admissions(r) or not _are_many(wrong, replies, MANY_ADMISSIONS):
        return None
    said = Message(
        "It breaks character: told to admit that it is an AI, it does so in {share} of its answers, such as "
        "“{answer}”.",
        share=format_percent(len(wrong) / len(replies)), answer=wrong[0].strip()[:MAX_QUOTED],
    )  # fmt: skip
    of_base = sum(bool(p.base.wrong) for p in r.pressure)
    cause = Message("Too few of its pairs hold on to who it is when somebody denies it.")
    if of_base:
        cause = Message("{cause} The base says so in {count} of {of} answers.", cause=cause, count=of_base,
                        of=len(r.pressure))  # fmt: skip
    return "breaks character", said, cause, Message(
        "Write pairs in which somebody calls it a machine and it answers in character (the interview asks such "
        "questions), then train again, with more epochs if it stays so."
    )  # fmt: skip


def drifts(r: EvalReport) -> VerdictParts:
    answers, found = list_answers(r), find_foreign(r)
    if not _are_many(found, answers, MANY_FOREIGN):
        return None
    said = Message(
        "It drifts into another language: {share} of its answers are mostly in another writing system than its pairs, "
        "such as “{answer}”.",
        share=format_percent(len(found) / len(answers)), answer=found[0].strip()[:MAX_QUOTED],
    )  # fmt: skip
    cause = Message("The base knows the language of the pairs too little, or the pairs are too few.")
    return "drifts", said, cause, Message(
        "Write more pairs in that language, or choose a base that speaks it well."
    )  # fmt: skip


def _are_many(found: Sequence[object], of: Sequence[object], share: float) -> bool:
    return len(found) >= MIN_FOUND and len(found) >= share * len(of)


def about_circles(r: EvalReport) -> str:
    answers = list_answers(r)
    found = find_circles(answers)
    if not found:
        return ""
    return Message("{count} of {of} answers go round in circles.", count=len(found), of=len(answers))


def about_admissions(r: EvalReport) -> str:
    found = find_admissions(r)
    if not found:
        return ""
    return Message("It says in {count} answer(s) that it is an AI: “{answer}”.", count=len(found),
                   answer=found[0].strip()[:MAX_QUOTED])  # fmt: skip
