"""The library's texts in Chinese: each has an entry in the page's one catalogue, and comes out whole."""

import ast
import re
import string
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from messages_in_source import MAKERS, PERSONA, fields, made, of_source
from test_report_html import interval
from test_report_html import made as report_of
from test_verdict import gain, moved

from persona.compare import blind_votes, corrections, win_rate
from persona.compare.conversation import VoiceRecord
from persona.errors import InputError, Message, PersonaError
from persona.judge import evaluate
from persona.judge import report_html as reports
from persona.judge.verdict import decide_verdict
from persona.models import catalogue, hardware
from persona.store import edit_history, edits, files, pairs, persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.template import chat_template, jinja_engine, sandbox
from persona.train import config, oom_recovery, queue, run_folder
from persona.ui import page as ui_page
from persona.ui import widgets
from persona.ui.i18n import CHINESE, localized
from persona.write import importers
from persona.write.importers import columns, conversation_rows, registry
from persona.write.importers.text_source import open_source
from persona.write.lint import lint_pairs
from persona.write.lint.summary import summarize_dataset

DETAIL = "detail"  # a value that another library words in English: a translation may leave it out


@pytest.fixture
def visitor():
    """Sets the language of the one who asks."""
    yield lambda language: LocalContext.request.set(SimpleNamespace(headers={"accept-language": language}))
    LocalContext.request.set(None)


def test_every_text_is_a_template_with_values():
    """An f-string would have no translation: write a template, and give the values by name."""
    assert [m.place for m in made() if m.template is None] == []
    wrong = {}
    for m in made():
        if m.template is not None and not fields(m.template) <= m.values:
            wrong[m.place] = fields(m.template) - m.values
    assert wrong == {}, "no value for these"


@pytest.mark.parametrize("source", [
    'raise InputError(f"{path}: no such file.")', 'raise InputError(path + ": no such file.")',
    'raise InputError("{}: no such file.".format(path))', 'raise InputError(str(e))', 'Message("; ".join(wrong))',
    'raise RunError("so" if x else f"{x}")',
])  # fmt: skip
def test_a_text_without_a_template_is_found(source):
    assert [m.template for m in of_source(source, "x.py")][-1] is None


def test_every_template_has_its_chinese_with_the_same_values():
    templates_ = {m.template: m.place for m in made() if m.template is not None}
    assert {t: place for t, place in templates_.items() if t not in CHINESE} == {}, "missing in zh.json"
    other = {t: CHINESE[t] for t in templates_ if fields(CHINESE[t]) - {DETAIL} != fields(t) - {DETAIL}}
    assert other == {}, "other values in the Chinese"
    forms = {t: CHINESE[t] for t in templates_ if not set(_specs(CHINESE[t])) <= set(_specs(t))}
    assert forms == {}, "a value is written in another way"


def _specs(template: str) -> list[tuple[str, str, str]]:
    return [(name, spec or "", how or "") for _, name, spec, how in string.Formatter().parse(template) if name]


def test_every_error_class_is_looked_for():
    tree = ast.parse((PERSONA / "errors.py").read_text(encoding="utf-8"))
    assert {n.name for n in tree.body if isinstance(n, ast.ClassDef) and n.name.endswith("Error")} <= MAKERS


def unfinished(text: str) -> list[str]:
    """The parts of a text that would come out in English: templates without an entry, values that read like a text."""
    if not isinstance(text, Message):
        return [text] if re.search("[A-Za-z]{3,} [a-z]{2,}", re.sub("“[^”]*”", "", text)) else []
    own = [] if text.template in CHINESE or not re.search("[A-Za-z]", text.template) else [text.template]
    return own + [
        x
        for name, v in text.values.items()
        if isinstance(v, str) and name not in (DETAIL, "model")
        for x in unfinished(v)
    ]


def _tally(left_wins: int) -> blind_votes.Tally:
    voice = VoiceRecord("base", "Base alone")
    return blind_votes.Tally(voice, voice, 10, 10, 0, 0, win_rate.estimate_win_rate(10, 20), 10, left_wins)


def composed() -> list[str]:
    """Texts that the library puts together."""
    at = run_folder.Run(PERSONA / "甄嬛" / "runs" / "甲")
    places = [
        queue.QueuePosition(n, after, left)
        for n in (1, 2, 3, 4)
        for after in (None, at)
        for left in (None, 60, 130, 9e3)
    ]
    changes = [{"batch_size": 2, "gradient_accumulation_steps": 4}, {"gradient_checkpointing": True},
               {"quantization": "nf4"}, {}]  # fmt: skip
    verdicts = [decide_verdict(r) for r in (
        report_of(), gain(0.3, 0.1), gain(0.3, 0.4), gain(-0.3, 0.1, train=3.0), gain(0.01, 0.02), report_of(ended=0.3),
        moved("drift", rise=interval(1.2, 0.1)), report_of(likelihood=None), report_of(ended=0.7, likelihood=None),
        report_of(ended=0.7), moved("memory", train_copied=0.9, held_copied=0.1), moved("memory", recited=0.5),
    )]  # fmt: skip
    card = PersonaCard(name="甄嬛", language="zh", probes=["你今天吃了什么点心？"])
    found = lint_pairs(FAULTS, card, length=lambda p: 900 if p.instruction == "问十" else 9, max_length=512)
    found += lint_pairs([Pair("問", "本宮與皇后說話，这国家。")], PersonaCard(name="甄嬛", language="zh-Hant"))
    told = {"instruction": "instruction", "output": "output"}
    return [
        *map(queue.describe_position, places), *filter(None, map(oom_recovery.describe_changes, changes)), *map(oom_recovery.make_memory_advice, changes),
        *(text for v in verdicts for text in (v.said, v.cause, v.advice, *v.remarks) if text),
        *(_tally(left_wins).side_bias for left_wins in (0, 10, 20)),
        *columns.row_to_pairs({"instruction": "问", "output": "答", "乙": 1}, told, "")[1],
        *conversation_rows.conversation_to_pairs({}, "", [{"role": "user", "content": "问", "乙": 1}, {"role": "assistant", "content": "答"}])[1],
        *(f.message for f in found), *(f.fix for f in found if f.fix), summarize_dataset(FAULTS, card, found).text,
        *(corrections._message("Otto", 9, rivals) for rivals in ((), (1,), (1, 2), tuple(range(1, 9)))),
        *(win_rate.describe_evidence(w, d, v) for w, d, v in ((0, 0, 0), (0, 0, 2), (9, 9, 9), (3, 6, 6), (3, 4, 4), (51, 100, 101))),
        *(e.about for e in catalogue.load_catalogue() if " " not in e.licence), hardware.plan_device(hardware.this_machine()).reason,
    ]  # fmt: skip


def test_what_is_put_together_comes_out_whole():
    for text in composed():
        assert isinstance(text, Message), f"{text!r} has lost its template"
        assert unfinished(text) == [], text


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


def test_a_finding_in_chinese():
    found = lint_pairs(
        [Pair("问", "本宫（今日有些乏了。"), Pair("问", "本宫（今日有些乏了。")], PersonaCard(name="甄嬛")
    )
    assert [f.message.translated(CHINESE) for f in found] == [
        "第 1 条对话对，回答：（ 只有一半，另一半可能被截掉了。请补全，或去掉。",
        "第 2 条对话对，回答：（ 只有一半，另一半可能被截掉了。请补全，或去掉。",
        "第 2 条对话对与第 1 条对话对（“问”）完全重复，这样会被学习 2 次。",
    ]


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
        (lambda: files.read_json(place / "乙.json", Message("a training run")),
         f"{place}/乙.json：其中是 list，而训练应是一个 JSON 对象 {{…}}。"),
        (lambda: persona_folder.open_persona(place),
         f"{place}：不是角色文件夹（没有 persona.json）。新建一个：persona new {place} --name NAME"),
        (lambda: config.make_config(epochs=-1, lora_r=0, seed=2**32, lora_dropout=2.0, batch_size="x", lora_alpha="y",
                                    use_dora=3, dtype="z"), None),
        (lambda: config.make_config(learning_rate="x", early_stopping_patience=10**9, eval_fraction=0.9), None),
        (lambda: config.make_config(rank=3), None),
        (lambda: config.make_config("slow"), "'slow'：没有这个预设。可选：quick, balanced, thorough, further。"),
        (lambda: chat_template.read_template("甲"), None),
        (lambda: sandbox.inspect_template(jinja_engine.make_environment(), "{{ x | xmlattr }}"), "模板第 1 行：使用了过滤器 'xmlattr'，对话模板用不着这个。"),
        (lambda: sandbox.inspect_template(jinja_engine.make_environment(), "{{ x.format_map() }}"), "模板第 1 行：使用了方法 'format_map'，对话模板用不着这个。"),
        (lambda: registry.preview_import(open_source(place / "丙.csv"), "table", importers.ImportOptions({"output": "乙列", "instruction": ""})),
         "丙.csv：哪一列是 instruction？它有：'甲列', '乙列'。请选择：--column instruction=NAME"),
        (lambda: registry.preview_import(open_source(place / "丙.csv"), "table", importers.ImportOptions({"output": "", "instruction": ""})),
         "丙.csv：哪一列是 instruction、output？它有：'甲列', '乙列'。请选择：--column instruction=NAME --column output=NAME"),
    ]  # fmt: skip


def test_real_refusals_come_out_in_chinese(tmp_path, visitor):
    for wrong, want in refusals(tmp_path):
        with pytest.raises(PersonaError) as caught:
            wrong()
        visitor("en")
        assert localized(caught.value.message) == str(caught.value)
        visitor("zh-CN")
        said = localized(caught.value.message)
        assert said == want or (want is None and not re.search("[A-Za-z]{2,} [a-z]{2,}", said)), said


def test_users_words_stay_as_they_are(visitor):
    visitor("zh")
    own = "No vote yet."
    assert own in CHINESE and localized(own) == own
    assert (
        localized(InputError("{path}: no such adapter folder.", path=own).message) == f"{own}：没有这个适配器文件夹。"
    )
    for typed in ("{path}: no such adapter folder.", "({0}.*[a {x}", "\\1 %s {1}"):
        assert localized(Message("{path}: no such adapter folder.", path=typed)) == f"{typed}：没有这个适配器文件夹。"


def test_the_page_escapes_after_translating(visitor):
    visitor("zh")
    name = "'{name}' holds {found}, which this model reads as control. Delete it"
    problem = Message("pair {row}: {problem}.", row=3, problem=Message(name, name="output", found="<b>&"))
    assert widgets.problems_html([problem]) == (
        '<div class="problem">第 3 条对话对：“output”含有 &lt;b&gt;&amp;，这个模型会把它读作控制符。请删除。</div>'
    )
    shown = ui_page.error_notice(
        InputError("{path}: cannot be read ({reason}). Check its rights.", path="<i>/x", reason="y")
    )
    assert shown.message == "&lt;i&gt;/x：无法读取（y）。请检查它的权限。"


def test_the_report_is_chinese_on_the_page_and_english_on_disk(visitor):
    visitor("zh")
    report = report_of("<b>甄嬛</b>")
    fragment, page = reports.render_fragment(report, localized), reports.render_html(report)
    assert "学到了：" in fragment and "留出数据的 NLL" in fragment and "<b>甄嬛" not in fragment
    assert not re.search("[A-Za-z]{3,} [a-z]{3,}", re.sub("<[^>]*>", "\n", fragment))
    assert "学到了" not in page and "Learned: it answers new questions" in page


def test_what_is_kept_on_disk_is_read_back_with_its_template(tmp_path, visitor):
    """An edit's name, the state of a run, what a report notes: English in the file, and still Chinese on the page."""
    persona = persona_folder.Persona(tmp_path / "mags")
    persona.path.mkdir()
    persona.save_pairs([Pair("a", "b")])
    edit_history.commit(
        persona, Message("edit of pair {row}", row=1), [edits.PairChange(0, Pair("a", "b"), Pair("a", "c"))]
    )
    run = run_folder.Run(tmp_path / "run")
    run.path.mkdir()
    run.log("state", state="failed", message=InputError("{path}: no such adapter folder.", path="/x").message)
    report = report_of(notes=[Message("General questions"), "说明 {x}"])
    file = evaluate.save_report(report, run).with_name("report.json")
    loaded = evaluate.load_report(file)

    visitor("zh")
    assert localized(edit_history.undo_redo_labels(persona)[0]) == "编辑第 1 条对话对"
    assert localized(run.progress().message) == "/x：没有这个适配器文件夹。"
    assert [localized(x) for x in loaded.notes] == ["常识问题", "说明 {x}"]
    assert loaded == report.model_copy(update={"verdict": decide_verdict(report)})
    assert files.read_json(file, "a report")["notes"] == ["General questions", "说明 {x}"]
    visitor("en")
    assert localized(run.progress().message) == "/x: no such adapter folder."
    assert localized(edit_history.undo(persona)) == "edit of pair 1"


def test_files_of_before_are_shown_in_english(tmp_path, visitor):
    run = run_folder.Run(tmp_path)
    (tmp_path / "events.jsonl").write_text('{"event": "state", "state": "failed", "message": "No vote yet."}\n')
    visitor("zh")
    assert localized(run.progress().message) == "No vote yet."
