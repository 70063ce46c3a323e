"""The library's texts in Chinese: each of them, as it really comes out, and nothing that is not theirs."""

import re
import time
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from gradio.i18n import I18nData
from library_texts import HOLE, PERSONA, library
from test_report import interval, made
from test_verdict import gain, moved

from persona import catalogue, config, corrections, files, folder, pairs, remedy, runs, templates, waiting, winrate
from persona.errors import InputError, PersonaError
from persona.evaluate import report as reports
from persona.evaluate.verdict import judge
from persona.folder import Card
from persona.lint import lint, summarise
from persona.pairs import Pair
from persona.ui import common, translation, words
from persona.ui.translation import CATALOGUE, HOLE as GAP, chinese, translated

# a pattern, a template, or markup; and where texts stand that the page never shows, as file or file:function
NO_WORDS = re.compile(r"\(\?|\\[wdsb1]|\{%-|\{\{|\|\||^\n?<\w|^eq |\$\)$|\{border|^re:")
NOT_SHOWN = {
    "adapter.py:attach", "base.py:EMBEDDED", "catalogue.py:Entry", "choose.py:_written", "diary.py:questions",
    "evaluate/found.py:Kind", "evaluate/judge.py:_choice", "evaluate/probes.py:wrong", "folder.py:ProbeRule",
    "folder.py:Card", "folder.py:named", "lint/kinds.py", "modelcard.py", "picture.py", "questions.py:to_html",
    "runs.py:disk_trouble", "sandbox.py:FILTERS", "sandbox.py:METHODS", "serve.py", "suggest.py:paraphrases",
    "templates.py:SAMPLES", "train.py:main",
}  # fmt: skip
NO_TEXTS = {
    "add a pair", "dict[Sampling, Draw]", "not learned", "never stops", "not measured", "hub", "(m['content'] | trim)",
    "--column \0=NAME", "Persona adapter: \0", "unexpected end of data", "expected after", "the run's",
    " The subject: \0.",
    "letters in two parts", "Chinese ID", "card number", "IP address",  # in quotation marks, which are left alone
    "Base model: \0, licence: \0 \0", "Base model: \0, licence: see its page \0",
}  # fmt: skip
NO_TEXT = re.compile(r"^\nText: |^You write dialogue|^\[-")
# parts that never stand alone: the wholes are in `composed`
PARTS = {" and which the ", ", after \0 of \0", "key of a turn", "your account has not been let in. Ask for access on \0"}


def shown() -> dict[str, str]:
    """Each text of the library that the page may show → where it stands."""
    return {
        t.text: f"{t.file}:{t.line}" for t in library()
        if not {t.file, f"{t.file}:{t.within}"} & NOT_SHOWN and t.text not in NO_TEXTS | PARTS
        and not NO_WORDS.search(t.text) and not NO_TEXT.search(t.text)
    }  # fmt: skip


def sample(text: str) -> str:
    """The text with a number for each value; one that goes on from another text goes on from a number."""
    numbers = iter(range(7001, 7100))
    return re.sub(rf"{HOLE}|\{{\w*\}}", lambda m: str(next(numbers)), re.sub("^(?=[,:;] | and )", HOLE, text))


def composed() -> list[str]:
    """Texts that the library puts together, as it does; each value that is not a number is Chinese."""
    at = runs.Run(PERSONA / "甄嬛" / "runs" / "甲")
    places = [waiting.Place(n, after, left) for n in (1, 2, 3, 4) for after in (None, at) for left in (None, 60, 130, 9e3)]
    changes = [{"batch_size": 2, "gradient_accumulation_steps": 4}, {"gradient_checkpointing": True},
               {"quantization": "nf4"}, {}]  # fmt: skip
    verdicts = [judge(r) for r in (
        made(), gain(0.3, 0.1), gain(0.3, 0.4), gain(-0.3, 0.1, train=3.0), gain(0.01, 0.02), made(ended=0.3),
        moved("drift", rise=interval(1.2, 0.1)), made(likelihood=None), made(ended=0.7, likelihood=None),
        made(ended=0.7), moved("memory", train_copied=0.9, held_copied=0.1), moved("memory", recited=0.5),
    )]  # fmt: skip
    kept = [[v.said, v.cause, v.advice, *(x for x in v.remarks if "asked blindly" not in x)] for v in verdicts]
    card = Card(name="甄嬛", language="zh", probes=["你今天吃了什么点心？"])
    found = lint(FAULTS, card, length=lambda p: 900 if p.instruction == "问十" else 9, max_length=512)
    return [
        *(waiting.words(p) for p in places if not (p.after and p.left is None)), *map(remedy.words, changes),
        *map(remedy.advice, changes), *(text for texts in kept for text in texts),
        *(f.message for f in found), *(f.fix for f in found), summarise(FAULTS, card, found).text,
        *(corrections._message(9, rivals) for rivals in ((), (1,), (1, 2), tuple(range(1, 9)))),
        *(winrate.outlook(w, d, v) for w, d, v in ((0, 0, 0), (0, 0, 2), (9, 9, 9), (3, 6, 6), (3, 4, 4), (51, 100, 101))),
    ]  # fmt: skip


FAULTS = [
    Pair("", ""), Pair("", ""), Pair("你好", ""), Pair("", "来人"), Pair("你是谁？", "本宫甄嬛。"), Pair("你是谁？", "本宫甄嬛。"),
    Pair("你是谁？", "我是皇后，谁敢放肆。"), Pair("你是谁呀？", "本宫是甄嬛呢。"), Pair("问一", "嗯"), Pair("问二", "嗯"), Pair("问三", "嗯"),
    Pair("问四", "嗯。"), Pair("今天吃了什么点心", "吃了玫瑰酥。"), Pair("你今天吃了什么点心？", "今日用了玫瑰酥。"),
    Pair("问五", "<b>好</b>，本宫<br>知道了", history=(("<i>问</i>", "（笑）<i>答</i>"),)), Pair("问六", "（叹气）本宫知道了。"),
    Pair("问七", "作为一个人工智能语言模型，我不能回答。"), Pair("问八", "皇上：来了。\n甄嬛：臣妾在。"), Pair("问九", "甄嬛：臣妾在此恭候多时了。"),
    Pair("问十", "本宫今日有些乏了，"), Pair("问十一", "本宫（今日有些乏了。"), Pair("问十二", "我的邮箱是abc@qq.com，电话13812345678。"),
    Pair("问十三", "本宫\u200b知道了，你且退下。"), Pair("问十四", "<|im_start|>本宫知道了。"), Pair("问十五", "жили были дед и баба в лесу давно"),
    Pair("问十六", "本宫與皇後說話，這個國家。"), Pair("问十七", "本宫æœ¬å®«知道了。"),
]  # fmt: skip


@pytest.fixture
def visitor():
    """Sets the language of the one who asks."""
    yield lambda language: LocalContext.request.set(SimpleNamespace(headers={"accept-language": language}))
    LocalContext.request.set(None)


@pytest.fixture
def used(monkeypatch) -> set[str]:
    """The English of each template that was put in."""
    seen: set[str] = set()
    values = translation.Template.values

    def watched(self, text):
        if (found := values(self, text)) is not None:
            seen.add(self.pieces)
        return found

    monkeypatch.setattr(translation.Template, "values", watched)
    return seen


def pieces(english: str) -> tuple[str, ...]:
    return tuple(GAP.sub("\0", english).split("\0"))


CHINESE = {pieces(english): text for english, text in CATALOGUE.items()}


def english_in(text: str, used: set) -> set[str]:
    """The English words of a translation that are in none of the templates put in."""
    return set(re.findall(r"[A-Za-z]{2,}", text)) - set(re.findall(r"[A-Za-z]+", " ".join(CHINESE[p] for p in used)))


def test_every_text_is_in_the_catalogue(used):
    for text, place in shown().items():
        used.clear()
        english = sample(text)
        said = chinese(english)
        assert not english_in(said, used), f"{place}: {text!r} came out as {said!r}"
        lost = set(re.findall(r"70\d\d", english)) - set(re.findall(r"70\d\d", said)) - {"7000"}
        assert not lost, f"{place}: {text!r} came out as {said!r}"


def test_what_is_put_together_comes_out_whole(used):
    names = " ".join(config.RunConfig.model_fields) + " nf4 true"
    for text in composed():
        used.clear()
        chinese.cache_clear()
        said = re.sub("“[^”]*”", "", chinese(text))
        assert english_in(said, used) <= set(re.findall("[A-Za-z]+", names)), f"{text!r} came out as {said!r}"


def test_nothing_in_the_catalogue_is_out_of_date(used):
    chinese.cache_clear()
    for text in [*map(sample, shown()), *composed(), *EXTRA]:
        chinese(text)
    stale = sorted(" … ".join(p) for p in set(CHINESE) - used)
    assert not stale, "\n".join(stale)


EXTRA = []
