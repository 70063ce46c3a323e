"""Nothing on the page is said in one language only: every text goes through t(), and zh.json holds each of them."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from messages_in_source import MAKERS, made

from persona.template import chat_template
from persona.train.config import ALL_PRESETS, PRESETS
from persona.ui import i18n, navigation, next_steps, voice_picker, widgets
from persona.ui.middleware import front_end
from persona.ui.steps import share, template
from persona.ui.steps.compare import base_note, blind_vote_tab, chat_tab, train_on_votes
from persona.ui.steps.share import export_tab
from persona.ui.steps.train import ledger_view, run_view, settings_form
from persona.ui.steps.write import (
    book_editor,
    card_tab,
    import_tab,
    interview_tab,
    lint_tab,
    pairs_tab,
    pairs_table,
    probes_editor,
    review_tab,
    suggest_tab,
)
from persona.write.importers import registry

UI = Path(i18n.__file__).parent
FILES = {file.relative_to(UI).as_posix(): file for file in sorted(UI.rglob("*.py"))}
CATALOGUE = json.loads((UI / "locales" / "zh.json").read_text(encoding="utf-8"))
HOLE = "\0"  # stands for what an f-string puts in


def rules() -> set[str]:
    """Every rule of lint, as its findings name it."""
    found = set()
    for file in (UI.parent / "write" / "lint").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Finding", "make_finding", "TextRule"):
                found |= {a.value for a in node.args[:1] if isinstance(a, ast.Constant)}
    return found


# where t() is called with a text of a table: file, and the call's first argument → all that it can be
TABLES: dict[tuple[str, str], set[str]] = {
    ("steps/compare/blind_vote_tab.py", "label"): set(blind_vote_tab.VOTE_CHOICES.values()),
    ("steps/write/card_tab.py", "CARD_FIELDS[name]"): set(card_tab.CARD_FIELDS.values()),
    ("steps/write/card_tab.py", "label"): set(card_tab.CARD_FIELDS.values()),
    ("steps/write/book_editor.py", "label"): set(book_editor.POSITIONS.values()),
    ("steps/write/probes_editor.py", "KIND_TITLES[s.kind]"): set(probes_editor.KIND_TITLES.values()),
    ("steps/write/lint_tab.py", "RULE_TITLES.get(rule) or rule.replace('-', ' ').capitalize()"): {
        lint_tab.RULE_TITLES.get(r) or r.replace("-", " ").capitalize() for r in rules()
    },
    ("steps/write/pairs_table.py", "name"): {*pairs_table.PAIR_FILTERS, *pairs_table.SORT_ORDERS},
    ("steps/share/export_tab.py", "choice"): set(export_tab.EXPORT_CHOICES),
    ("steps/share/export_tab.py", "name"): set(export_tab.QUANTIZATIONS.values()),
    ("steps/write/interview_tab.py", "TOPIC_TITLES[question.topic]"): set(interview_tab.TOPIC_TITLES.values()),
    ("steps/write/import_tab.py", "NO_COLUMN"): {import_tab.NO_COLUMN},
    ("steps/write/import_tab.py", "label"): {*import_tab.COLUMN_LABELS, *import_tab.INPUT_JOINS.values()},
    ("steps/write/import_tab.py", "module.TITLE"): {m.TITLE for m in registry.import_formats().values()},
    ("steps/write/import_tab.py", "importer.TITLE"): {m.TITLE for m in registry.import_formats().values()},
    ("steps/train/settings_form.py", "setting_label(name)"): set(
        map(settings_form.setting_label, settings_form.EXPERT_FIELDS)
    ),
    ("steps/train/settings_form.py", "setting_help(name)"): set(
        map(settings_form.setting_help, settings_form.EXPERT_FIELDS)
    ),
    ("steps/train/settings_form.py", "group"): set(settings_form.SETTING_GROUPS),
    ("steps/share/__init__.py", "SPACE_LINK if deployment.has_sign_in() else HOME_LINK"): {
        share.SPACE_LINK,
        share.HOME_LINK,
    },
    ("steps/write/suggest_tab.py", "NO_SERVER_NOTE"): {suggest_tab.NO_SERVER_NOTE},
    ("steps/write/suggest_tab.py", "name"): {*suggest_tab.WRITERS, *suggest_tab.MATERIALS},
    ("steps/template/facts.py", "renderer.template.about"): {
        x.about for x in chat_template.shipped_templates().values()
    },
    ("steps/write/pairs_table.py", "label"): {label for *_, label in pairs_table.ROW_TOOLS},
    ("steps/write/pairs_table.py", "title"): {title for _, _, title, _ in pairs_table.ROW_TOOLS},
    ("steps/write/pairs_table.py", "word"): {word for _, word, _, _ in pairs_table.ROW_TOOLS},
    ("next_steps.py", "LABELS[step]"): set(next_steps.LABELS.values()),
    ("steps/train/plan_view.py", "ALL_PRESETS[preset][1]"): {about for _, about in ALL_PRESETS.values()},
    ("steps/train/further.py", "p.capitalize()"): {p.capitalize() for p in ALL_PRESETS},
    ("steps/train/__init__.py", "p.capitalize()"): {p.capitalize() for p in PRESETS},
    ("steps/train/run_view.py", "STATUS_LABELS[p.status]"): set(run_view.STATUS_LABELS.values()),
    ("steps/train/ledger_view.py", "run_view.STATUS_LABELS[f.status]"): set(run_view.STATUS_LABELS.values()),
    ("steps/train/ledger_view.py", "setting_label(name)"): {
        *map(settings_form.setting_label, settings_form.EXPERT_FIELDS),
        *ledger_view.OTHER_LABELS.values(),
    },
    ("steps/train/run_view.py", "chart.title"): {
        chart.title for chart in (*run_view.CHARTS.values(), *run_view.PREFERENCE_CHARTS.values())
    },
    ("steps/train/run_view.py", "label"): set(run_view.LINE_COLORS),
    ("steps/compare/train_on_votes.py", "SOURCES[preference.pair.source]"): set(train_on_votes.SOURCES.values()),
    ("steps/write/export_tab.py", "m.TITLE"): {
        m.TITLE for m in registry.import_formats().values() if hasattr(m, "dump")
    },
}

# constants that look like a text for the reader and are none: why → file: texts
NOT_SHOWN: dict[str, dict[str, set[str]]] = {
    "a name, the same in every language": {
        "app.py": {"Persona", f"<h1>Persona</h1><p>{HOLE}</p>"},
        "steps/compare/__init__.py": {"Top-p", "Top-k", "Min-p"},
    },
    "labels of Gradio's own buttons": {"navigation.py": {"Edit"}},
    "compared with what the page sends": {
        "steps/write/pairs_table.py": set(pairs_table.PAIR_FILTERS), "steps/write/review_tab.py": {"Imported", "With findings"},
    },
    "a card's name where no other is known, kept on disk": {"voice_picker.py": {"Persona"}},
    "where a fault is, as the library says it": {
        "steps/write/import_tab.py": {"the file's card"}, "steps/template/own_template.py": {"your own"},
    },
    "script": {"widgets.py": {widgets.COUNTDOWN_JS, widgets.FORWARD_CLICKS_JS}, "steps/write/pairs_tab.py": {pairs_tab.PAINT_MARKS_JS, pairs_tab.ANSWERED_JS, pairs_tab.PREVIEWED_JS},
               "steps/write/interview_tab.py": {interview_tab.ANSWERED_JS, interview_tab.KEPT_JS},
               "steps/write/review_tab.py": {review_tab.ANSWERED_JS},
               "navigation.py": {navigation.NAVIGATION_JS, navigation.FOCUS_STEP_JS},
               "steps/compare/base_note.py": {base_note.CHOOSE_BASE_JS}, "steps/compare/chat_tab.py": {chat_tab.SHOW_ANSWERS_JS},
               "steps/template/__init__.py": {template.SHOW_REFUSED_JS}, "steps/train/run_view.py": {run_view.WHOLE_STEPS_JS},
               "middleware/front_end.py": {js for mends in front_end.MENDED.values() for pair in mends.items() for js in pair}},
    "told to programs: no browser with the page open asks so": {
        "middleware/event_limits.py": {"The request ended early."},
        "middleware/visitors.py": {"Not found.", "The request is no JSON object."},
    },
    "for the log of the server": {
        "middleware/workspaces.py": {"%s: could not be removed (%s)", "The idle workspaces could not be swept"},
    },
    "a regular expression": {
        "middleware/workspaces.py": {"[A-Za-z0-9_-]{43}"}, "middleware/front_end.py": {front_end.SERVED.pattern},
    },
    "how files of Gradio's are called": {"middleware/front_end.py": set(front_end.MENDED)},
}  # fmt: skip
CODE = {
    "i18n.py": "scripts for the browser",
    "theme.py": "names of fonts",
    "middleware/trusted_hosts.py": "header lines",
    "middleware/origins.py": "header lines",
    "middleware/visitor_cookie.py": "header lines",
    "middleware/head_scripts.py": "a script for the browser",
}
# arguments that hold no text for a reader
NO_TEXT = {"elem_classes", "elem_id", "js", "js_on_load", "secret", "storage_key", "id", "selected", "concurrency_id",
           "variant", "language", "type", "file_types", "footer_links"}  # fmt: skip


SEPARATORS = {" ", ", ", "; ", " and ", " and which the "}  # of errors.join


def said(tree: ast.AST) -> Iterator[ast.expr]:
    """The first argument of every t()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "t":
            yield node.args[0]


def constant(node: ast.expr) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


@cache
def texts() -> set[str]:
    """All that t() is called with anywhere on the page."""
    found = {c for file in FILES.values() for node in said(ast.parse(file.read_text("utf-8"))) if (c := constant(node))}
    return found.union(*TABLES.values())


def test_what_t_is_given_is_known():
    variables = {
        (name, ast.unparse(node))
        for name, file in FILES.items()
        for node in said(ast.parse(file.read_text("utf-8")))
        if constant(node) is None
    }
    assert variables == set(TABLES), "a text that is not written out: say in TABLES what it can be"


def test_every_text_has_its_chinese_and_no_chinese_is_left_over():
    """In zh.json: what t() is given, the templates of Message and PersonaError, and what errors.join puts between."""
    known = texts() | SEPARATORS | {m.template for m in made() if m.template is not None}
    assert sorted(known - set(CATALOGUE)) == [], "missing in zh.json"
    assert sorted(set(CATALOGUE) - known) == [], "in zh.json, but nobody says it"
    untranslated = {e for e, c in CATALOGUE.items() if not re.search("[\u3001-\u3002\u4e00-\u9fff\uff00-\uffef]", c)}
    figures = {*map(str, voice_picker.MONTHS), "{day} {month} {time}", "{share} {first} + {rest} {second}"}
    assert untranslated == {"中文", "%d %b %H:%M", "{text}", " ", "the Hub", "ModelScope", *figures}, (
        "no Chinese in them"
    )
    assert list(CATALOGUE) == sorted(CATALOGUE), "sorted, so that branches merge"


def for_readers(text: str) -> str:
    """What a reader would see of a string, HTML or plain: "" where it is code. HOLE stands for what is put in."""
    if re.fullmatch(rf"[\w{HOLE}*/-]*\.[\w{HOLE}.]*", text) and " " not in text and not text[0].isupper():
        return ""  # a file's name, or the path of a field
    seen = re.findall(r"""\b(?:title|aria-label|alt|placeholder)=(["'])(.*?)\1""", text)
    tagged = re.search(r"<[a-z/]", text)
    bare = re.sub(r"&#?\w+;", " ", re.sub(r"<[^<>]*>|<[^<>]*$|^[^<>]*>", " ", text) if tagged else text)
    shown = " ".join([bare, *(value for _, value in seen)]).replace(HOLE, " ")
    sign = r"[A-Za-z]{2,}" if tagged else r"[A-Za-z]{2,}[,.:;]? +[A-Za-z]{2,}|\b[A-Z][a-z]+|[A-Za-z]{2,}[.!?…]"
    return shown.strip() if re.search(sign, shown) else ""


def excused(file: str, text: str) -> bool:
    pattern = "(?P<" in text or "(?=" in text  # a regular expression
    return pattern or any(text in named.get(file, ()) for named in NOT_SHOWN.values())


class Hard(ast.NodeVisitor):
    """Collects the texts for a reader that do not go through t()."""

    def __init__(self, file: str) -> None:
        self.file, self.inside, self.found = file, 0, []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self.inside += 1
        self.generic_visit(node)
        self.inside -= 1

    def visit_Call(self, node: ast.Call) -> None:
        translated = isinstance(node.func, ast.Name) and node.func.id in MAKERS | {"t", "TypeVar"}
        for child in [node.func, *node.args[translated:], *node.keywords]:
            self.visit(child)

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg not in NO_TEXT:
            self.visit(node.value)

    def visit_Expr(self, node: ast.Expr) -> None:
        if constant(node.value) is None:  # else a docstring
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.text(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self.text("".join(constant(v) or HOLE for v in node.values))
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                self.visit(part.value)

    def text(self, text: str) -> None:
        seen = for_readers(text)
        table_of_texts = not self.inside and text in texts()  # shown by a t() further down, see TABLES
        if seen and not table_of_texts and not excused(self.file, text):
            self.found.append(f"{self.file}: {text!r}")


def hard_coded(source: str, file: str) -> list[str]:
    visitor = Hard(file)
    visitor.visit(ast.parse(source))
    return visitor.found


def test_no_text_is_hard_coded():
    found = [x for name, f in FILES.items() if name not in CODE for x in hard_coded(f.read_text("utf-8"), name)]
    assert found == [], "put these through t()"


def test_no_excuse_is_left_over():
    for named in NOT_SHOWN.values():
        for file, excuses in named.items():
            parts = ast.walk(ast.parse((UI / file).read_text("utf-8")))
            used = {n.value for n in parts if isinstance(n, ast.Constant)}
            joined = {e for e in excuses if HOLE in e}
            assert excuses - joined <= used, file


@pytest.mark.parametrize("line", [
    'gr.Button("Hello there")', 'gr.Button("Hello")', 'gr.Button(value="Go on")', 'f"<div>Some text</div>"',
    'f"<b>{n}</b> learned"', 'f"{n} pairs left"', '"<p title=\'more words\'>" + x', 'gr.Textbox(info="half a line.")',
    't("{n}", n="Not so")', 'gr.Info("Saved.")', 'show_info("Saved.")', 'x = f\'<button aria-label="close">×</button>\'',
    'raise gr.Error("There is none.")', 'def f():\n    return "Add"', 'gr.Radio(["Leave out"])',
])  # fmt: skip
def test_a_hard_coded_text_is_found(line):
    source = line if line.startswith("def") else f"def f():\n    {line}"
    assert hard_coded(source, "write.py")


@pytest.mark.parametrize("line", [
    't("Hello there")', 'f"<div class=\'quiet status\'>{t(\'Some text\')}</div>"', 'gr.HTML(elem_classes="quiet status")',
    'gr.Row(elem_id="some-row")', 'x.get("text", "")', 'f"run/{slug}/{name}"', '"report.json"',
])  # fmt: skip
def test_code_is_no_text(line):
    assert hard_coded(f"def f():\n    {line}", "write.py") == []


def test_no_text_is_hard_coded_in_the_script():
    script = re.sub(r"//.*", "", pairs_table.TABLE_JS)
    literals = [a or b or c for a, b, c in re.findall(r'"([^"\n]*)"|\'([^\'\n]*)\'|`([^`]*)`', script)]
    said = [x for x in literals if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}|\b[A-Z][a-z]+ ?…?$|[A-Za-z]{2,} ?[.…!?]$", x)]
    assert set(said) <= {"Enter", "Escape", "ArrowUp", "ArrowDown"}, "names of keys; texts come as data-… from Python"


def strings(value: object) -> Iterator[str]:
    """Every text in a value of JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def test_the_browser_can_translate_what_is_built():
    """In one text it replaces one marker, and takes the marker's first closing brace for its end."""
    found = [s for s in strings(json.loads(json.dumps(page_config(), default=str))) if "__i18n__" in s]
    assert len(found) > 30, "nothing was built"
    assert [s for s in found if s.count("__i18n__") > 1] == []
    assert [key for key in i18n.BROWSER_I18N.translations_dict["zh"] if "}" in key] == []


def page_config() -> dict:
    from persona.ui.app import build_app

    return build_app().config
