"""A report as HTML, a file of its own or a fragment for the page; templates/report.html.jinja, all text escaped."""

from collections.abc import Callable

import jinja2
from markupsafe import Markup

from persona.errors import Message
from persona.judge import charts
from persona.judge.metrics import format_percent
from persona.judge.report_model import EvalReport, LongTalk
from persona.store.workspace import TEMPLATES_DIR


def render_html(report: EvalReport) -> str:
    """A self-contained file: styles and charts are inside, nothing is fetched."""
    return _template().render(report=report, charts=_draw_charts(report, str), say=str)


def render_fragment(report: EvalReport, say: Callable[[str], str] = str) -> str:
    """Verdict, remarks, main figures and charts in the page's own style. say: translates each text."""
    drawn = _draw_charts(report, say)
    macros = _template().make_module({"report": report, "charts": drawn, "say": say})
    return str(macros.fragment(report, drawn))  # type: ignore[attr-defined]


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


def _draw_charts(r: EvalReport, say: Callable[[str], str]) -> dict[str, Markup]:
    """name → SVG, for each part that was measured."""
    drawn: dict[str, Markup] = {}
    if r.likelihood:
        rows = [(say(Message("base")), r.likelihood.base), (say(Message("persona")), r.likelihood.adapter)]
        drawn["likelihood"] = charts.interval_bars(
            rows, say(Message("Held-out NLL of base and persona with 95 % intervals"))
        )
        title = say(Message("Gain of each held-out pair, in nats per token"))
        drawn["gains"] = charts.histogram(r.likelihood.gains, title, say(Message("pairs")))
    if r.drift:
        rows = [(say(Message("base")), r.drift.base), (say(Message("persona")), r.drift.adapter)]
        drawn["drift"] = charts.interval_bars(
            rows, say(Message("NLL of right answers to general questions, base and persona"))
        )
    if r.talk:
        drawn["talk"] = charts.lines_by_turn(_talk_series(r.talk, say), say(Message("The long talk, turn by turn")))
    if r.answers:
        sides = [
            (say(Message("base")), r.answers.base),
            (say(Message("persona")), r.answers.adapter),
            (say(Message("the pairs")), r.answers.pairs),
        ]
        drawn["lengths"] = charts.box_plot(
            [(n, v.length) for n, v in sides], say(Message("Length of the answers in words"))
        )
    return drawn


def _talk_series(talk: LongTalk, say: Callable[[str], str]) -> list[tuple[str, list[float | None]]]:
    """Shares by turn; that of the rules only where some were asked."""
    series: list[tuple[str, list[float | None]]] = [
        (say(Message("answers in circles")), [t.circles / t.answers for t in talk.turns]),
              (say(Message("answers in another language")), [t.foreign / t.answers for t in talk.turns])]  # fmt: skip
    if not talk.rules:
        return series
    kept = [sum(t.kept) / len(t.kept) if t.kept else None for t in talk.turns]
    return [(say(Message("rules kept")), kept), *series]
