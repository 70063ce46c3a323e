"""Hostile text in every place that becomes HTML: it must arrive as text, in the page, the files and the cards."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from cases import check_each

from persona.compare import question_list
from persona.errors import InputError
from persona.judge import report_html as reports
from persona.models import model_card
from persona.models.base import Base
from persona.models.generate import Generation
from persona.share.exports import new_output
from persona.share.exports.trainer_settings import PROGRAMS
from persona.store.pairs import BadLine, Pair
from persona.store.persona_folder import PersonaCard, ProbeRule
from persona.template.chat_template import ChatTemplate, read_template
from persona.template.render import Renderer
from persona.train.progress import RunProgress
from persona.train.run_folder import Run
from persona.ui import page, widgets
from persona.ui.steps import compare, share
from persona.ui.steps.compare import blind_vote_tab, chat_tab, conversation_view, questions_tab
from persona.ui.steps.template import facts
from persona.ui.steps.train import ledger_view, run_view
from persona.ui.steps.write import (
    import_tab,
    interview_tab,
    lint_tab,
    pairs_status,
    pairs_table,
    probes_editor,
    review_tab,
)
from persona.write.importers import ImportReport, SkippedRow
from persona.write.interview import Interview, Question
from persona.write.lint.finding import Finding
from persona.write.lint.summary import DatasetSummary
from persona.write.probe_suggestions import ProbeSuggestion
from persona.write.review import ReviewItem
from tests.test_report_html import made as made_report
from tests.tiny_models import FACTS, write_adapter

HOSTILE = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "</textarea><script>alert(1)</script>",
    "</title></style><iframe src=javascript:alert(1)>",
    "<a href=javascript:alert(1)>x</a>",
    "<a href='&#106;avascript:alert(1)'>x</a>",
    "<style>*{background:url(//evil.example)}</style>",
    "--><base href=//evil.example>",
    "{{ 7 * 7 }}<object data=x>",
]
ACTIVE = {"script", "iframe", "object", "embed", "base", "link", "form", "img", "video", "audio", "frame", "portal"}


class Seen(HTMLParser):
    """What a browser would run, load or send in a piece of HTML."""

    def __init__(self, html: str, allowed: set[str]):
        super().__init__(convert_charrefs=True)
        self.bad: list[str] = []
        self.allowed = allowed
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag in ACTIVE or (tag in ("svg", "style") and tag not in self.allowed):
            self.bad.append(f"<{tag}>")
        for name, value in attrs:
            if name.startswith("on") or name in ("srcdoc", "autofocus"):
                self.bad.append(f"{tag} {name}")
            if "".join((value or "").split()).lower().startswith("javascript:") and name in ("href", "src", "action"):
                self.bad.append(f"{tag} {name}={value}")


def assert_inert(html: str, *allowed: str) -> None:
    assert Seen(html, set(allowed)).bad == [], html[:2_000]


def test_the_parser_would_see_it():
    """Without escaping each of them is seen: else the tests below could not fail."""

    def check(text):
        assert Seen(f'<div title="{text}">{text}</div>' + f"<p title='{text}'>", set()).bad

    check_each(HOSTILE, check)


def pieces(x: str) -> list[str]:
    """Every function of the page that makes HTML of text, given `x` wherever text goes in."""
    pair = Pair(x, x, ((x, x),), x)
    finding = Finding(x, "warning", (1,), x, x, x)
    progress = RunProgress(status="failed", message=x, step=1, steps=2, samples=[(1, [{"probe": x, "text": x}])])
    run = Run(Path(f"/nowhere/{x.replace('/', '')}"))
    reviewed = ReviewItem(1, pair, why=x)
    asked = question_list.AnswerRow(x, (), (Generation(text=x), Generation(error=x)))
    summary = DatasetSummary(**{**dict.fromkeys(DatasetSummary.__dataclass_fields__, 0), "text": x, "kinds": {x: 3}})
    return [
        pairs_table.table_html([pair], [0], pairs_table.TableView(x, x, x), selected=1),
        pairs_status.pairs_status_html([Pair(x, "")], [BadLine(1, x, x)]),
        lint_tab.findings_html([pair], [finding, finding], summary, 3),
        *lint_tab.marks_html([finding]).values(),
        run_view.run_status_html(run, progress),
        run_view.samples_html(run, progress),
        questions_tab.answers_html([x, x], [asked]),
        *blind_vote_tab._answers_update(x, x, "", "", True)[:2],
        import_tab._pair_html(pair),
        import_tab.skipped_html([SkippedRow(1, x, x)], 2),
        import_tab.import_report_html(ImportReport(1, 1, 1, 1, [SkippedRow(1, x, x)], {x: 1})),
        interview_tab._question_html(
            Question(text=x, topic="self", history=((x, x),)), Interview(draft=x), PersonaCard(name=x)
        ),
        review_tab._item_html(reviewed, [reviewed], False),
        probes_editor.suggestions_html([ProbeSuggestion(ProbeRule(ask=x, must_mention=(x,)), "identity")]),
        ledger_view.difference_html([pair], [Pair("a", x)], x),
        widgets.problems_html([x]),
        widgets.bars_html([(x, 1.0, x)]),
        widgets.facts_html([(x, x)]),
        chat_tab.reply_note(Generation(error=x), 3),
        str(page.error_notice(InputError("{text}", text=x)).message),
        *(str(message["content"]) for message in conversation_view.exchange_messages(x, x)),
        widgets.markdown_text(x),
    ]


def test_the_page_shows_hostile_text_as_text():
    def check(text):
        for html in pieces(text):
            assert_inert(html)

    check_each(HOSTILE, check)


def test_a_message_is_edited_as_it_was_written():
    def check(text):
        assert conversation_view.read_chatbot_text(conversation_view.chatbot_text(text)) == text

    check_each([*HOSTILE, "Tea & cake", "a < b", "&amp;", "&lt;b>", "x &copy; y"], check)
    assert conversation_view.chatbot_text("Tea & cake < 3 €") == "Tea & cake < 3 €", "as it is copied"


def test_the_mask_and_its_titles_show_hostile_text_as_text(byte_tokenizer):
    def check(text):
        renderer = Renderer(byte_tokenizer, read_template("chatml"), text, 4_000)
        assert_inert(widgets.mask_html(renderer, renderer.render_example(Pair(text, text, ((text, text),)))))
        assert_inert(widgets.mask_html(renderer, renderer.render_example(Pair(text, ""))))
        named = Renderer(byte_tokenizer, ChatTemplate(text, "{# " + text + " #}" + read_template("chatml").text), text)
        assert_inert(facts.template_html(Base(text, Path("/nowhere")), named))

    check_each(HOSTILE, check)


def test_a_base_says_of_itself_what_it_likes(tmp_path):
    def check(text):
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": text, "vocab_size": text}))
        assert_inert(facts.base_html(Base(text, tmp_path, text, text, "https://example.org/" + text)))

    check_each(HOSTILE, check)


def test_saved_tables_and_reports_show_hostile_text_as_text():
    def check(text):
        assert_inert(question_list.to_html([["question", text], [text, text]]), "style")
        assert_inert(reports.render_html(made_report(text)), "style", "svg")
        assert_inert(reports.render_fragment(made_report(text)), "style", "svg")

    check_each(HOSTILE, check)


def test_a_model_card_holds_hostile_text_as_text_and_its_head_stays_its_own():
    def check(text):
        many = f"{text}\n---\nlicense: stolen\n# {text}"
        card = PersonaCard(
            name=text, language=text[:20], source=many, rights=many, author=many, system=many, probes=(many,)
        )
        run = {"base": {"id": many, "revision": many, "licence": many}, **FACTS,
               "config": {**FACTS["config"], "target_modules": many}}  # fmt: skip
        made = model_card.render_model_card(card, run)
        _, front, body = made.split("---\n", 2)
        assert_inert(body.split("```")[0])
        head = yaml.safe_load(front)
        assert head.keys() <= {"library_name", "pipeline_tag", "base_model", "language", "tags"}
        assert sum(line.startswith("# ") for line in body.splitlines()) == 1

    check_each(HOSTILE, check)


def test_the_cards_of_exports_hold_hostile_text_as_text():
    def check(text):
        many = f"{text}\n---\n# {text}"
        card = PersonaCard(name=text, system=many, source=many, rights=many, author=many, language=text[:20])
        base = Base(many, Path("x"), many, many, many)
        said = {"card": card, "base": base}
        difference = {"tokens": 1, "dtype": "float32", "largest": 0.1, "kl": 0.1, "same": 1.0}
        made = [
            new_output.render_template_file("gguf-card.md.jinja", **said, model="m.gguf", lora="a.gguf", licence="", notes=[], quantization="none"),
            new_output.render_template_file("merged-card.md.jinja", **said, dtype="bfloat16", strength=1, trained="none",
                           difference=difference, notes=[many]),
            new_output.render_template_file("dataset-card.md.jinja", card=card, base=many, name="x", counts={"x": 1}, template="", same="",
                           about="", tried=dict.fromkeys(PROGRAMS, ""), is_rendered=True, weighted=1, lost={many: [many]}, thinking="keep"),
        ]  # fmt: skip
        for body in made:
            text_only = re.sub(r"^    .*$", "", body.split("```")[0], flags=re.MULTILINE)  # code is shown as it is
            text_only = text_only.split("---\n", 2)[-1] if body.startswith("---") else text_only
            assert_inert(text_only)
            assert sum(line.startswith("# ") for line in text_only.splitlines()) == 1

    check_each(HOSTILE, check)


def test_a_name_is_one_line_and_turns_nothing_around():
    cases = ["甄嬛\nFROM evil", "a\r\nADAPTER ./x", "a\u2028b", "a\u202egpj.exe", "a\x00b", "\u200b"]

    def check(text):
        name = PersonaCard(name=text).name
        assert name and name.isprintable() and "\n" not in name

    check_each(cases, check)


def test_a_modelfile_cannot_be_given_another_line_by_a_name(byte_tokenizer):
    from persona.share.exports.modelfile import render_modelfile

    renderer = Renderer(byte_tokenizer, read_template("chatml"), 'Say """\nFROM evil\n"""')
    card = PersonaCard(name="Mags\nFROM evil", system=renderer.system)
    text, _ = render_modelfile(card, renderer, "m.gguf", "a.gguf", 'MIT """\nFROM evil')
    outside = "".join(text.split('"""')[::2])  # what stands outside the long texts
    assert [line for line in outside.splitlines() if line.startswith("FROM")] == ["FROM ./m.gguf"]


def test_an_opened_adapter_introduces_itself_as_text(tiny_llama, home):
    place = home / "adapters" / "x"
    write_adapter(tiny_llama, place)
    run = json.loads((place / "run.json").read_text())
    for text in HOSTILE:
        card = PersonaCard(name=text, rights=text, probes=(text,))
        (place / "persona.json").write_text(json.dumps(card.model_dump(mode="json")))
        (place / "run.json").write_text(json.dumps({**run, "template": text, "base": {"id": text}}))
        assert_inert(compare.describe_adapter("", "opened/x")[1])
        assert_inert(share.contents_html("opened/x"))


@pytest.mark.parametrize("value", [["x"], "x", 7, None, {"base_nll": "x", "adapter_nll": []}])
def test_figures_of_the_wrong_kind_are_left_out(tiny_llama, home, value):
    place = home / "adapters" / "x"
    write_adapter(tiny_llama, place)
    (place / "run.json").write_text(json.dumps({"figures": value, "config": value, "base": value}))
    assert "held-out" not in compare.describe_adapter("", "opened/x")[1]
