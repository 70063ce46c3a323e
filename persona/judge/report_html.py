"""A report as HTML: a page of its own, or a fragment for ours; templates/report.html.jinja, all text escaped."""

from collections.abc import Callable

import jinja2
from markupsafe import Markup

from persona.errors import Message
from persona.judge import charts as draw
from persona.judge.report_model import EvalReport
from persona.judge.verdict import format_percent
from persona.store.workspace import TEMPLATES_DIR


def render_html(report: EvalReport) -> str:
    """One file that needs no other: styles and charts are inside, nothing is fetched."""
    return _template().render(report=report, charts=_charts(report, str), say=str)


def render_fragment(report: EvalReport, say: Callable[[str], str] = str) -> str:
    """Verdict, remarks, main figures and charts, for a page with a style of its own; `say` may translate it."""
    charts = _charts(report, say)
    macros = _template().make_module({"report": report, "charts": charts, "say": say})
    return str(macros.fragment(report, charts))  # type: ignore[attr-defined]


def _template() -> jinja2.Template:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES_DIR), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    env.globals["text"] = Message
    env.filters["share"] = format_percent
    env.filters["figure"] = lambda x, places=2: "–" if x is None else f"{x:.{places}f}"
    env.filters["exp"] = lambda x: f"{2.718281828459045**x:,.1f}" if x < 50 else "–"
    return env.get_template("report.html.jinja")


def _charts(r: EvalReport, say: Callable[[str], str]) -> dict[str, Markup]:
    """name → SVG, of what was measured."""
    made: dict[str, Markup] = {}
    if r.likelihood:
        rows = [(say(Message("base")), r.likelihood.base), (say(Message("persona")), r.likelihood.adapter)]
        made["likelihood"] = draw.interval_bars(
            rows, say(Message("Held-out NLL of base and persona with 95 % intervals"))
        )
        title = say(Message("Gain of each held-out pair, in nats per token"))
        made["gains"] = draw.histogram(r.likelihood.gains, title, say(Message("pairs")))
    if r.drift:
        rows = [(say(Message("base")), r.drift.base), (say(Message("persona")), r.drift.adapter)]
        made["drift"] = draw.interval_bars(
            rows, say(Message("NLL of right answers to general questions, base and persona"))
        )
    if r.answers:
        sides = [
            (say(Message("base")), r.answers.base),
            (say(Message("persona")), r.answers.adapter),
            (say(Message("the pairs")), r.answers.pairs),
        ]
        made["lengths"] = draw.box_plot(
            [(n, v.length) for n, v in sides], say(Message("Length of the answers in words"))
        )
    return made
