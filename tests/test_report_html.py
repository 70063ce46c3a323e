"""report.html: whole in itself, everything from outside escaped, and every part may be absent."""

import itertools
import re
from html.parser import HTMLParser

import pytest

from persona.judge import charts, verdict
from persona.judge import report_html as reports
from persona.judge.report_model import (  # fmt: skip
    AnswerPair,
    AnswerStats,
    Drift,
    EvalReport,
    HardRow,
    Interval,
    JudgeTally,
    Likelihood,
    Memorisation,
    ProbeReply,
    ProbeResult,
    SideStats,
    Similarity,
)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def interval(value: float, width: float = 0.1) -> Interval:
    return Interval(value=value, low=value - width, high=value + width)


def made(text: str = "Mind the step.", **changes) -> EvalReport:
    """A report of an adapter that learned, all texts in it being `text`."""
    answer = AnswerPair(question=text, reference=text, base=text, adapter=text, base_ended=False, adapter_ended=True)
    voice = SideStats(length=[3, 5, 9, 14, 30], distinct_1=0.5, distinct_2=0.8, ended=0.9,
                  similarity=Similarity(bleu=4.2, chrf=11, rouge_l=20))  # fmt: skip
    reply = ProbeReply(text=text, ended=True, wrong=[text])
    values = {
        "persona": text, "base": text, "template": text, "created": "2026-11-22T10:00:00+0000", "seconds": 100,
        "sampling": text, "steps": 108, "train_rows": 283, "learning_rate": 3e-4,
        "likelihood": Likelihood(source=text, rows=30, of=31, tokens=900, base=interval(5.2), adapter=interval(4.1),
                                 gain=interval(1.1), wins=0.9, gains=[-0.3, 0.2, 1.4] * 10, train=3.8, train_base=5.2, best=4.1),
        "answers": AnswerStats(rows=[answer] * 2, base=voice, adapter=voice, pairs=voice.model_copy(update={"similarity": None})),
        "probes": [ProbeResult(ask=text, ruled=True, base=reply, replies=[reply, reply]),
                   ProbeResult(ask=text, ruled=False, base=reply, replies=[reply, reply])],
        "memory": Memorisation(rows=16, train_copied=0.1, train_ended=1, held_rows=20, held_copied=0.05, recited=0),
        "drift": Drift(rows=24, base=interval(2.0), adapter=interval(2.1), rise=interval(0.1, 0.2), base_right=0.5,
                       adapter_right=0.46, answers=[answer]),
        "ended": 0.95, "base_ended": 0.1, "judged": JudgeTally(model=text, wins=3, losses=1, ties=0), "notes": [text],
        "hard": [HardRow(question=text, reference=text, nll=7.5, answer=text)],
    }  # fmt: skip
    report = EvalReport(**{**values, **changes})
    return report.model_copy(update={"verdict": verdict.decide_verdict(report)})


class Seen(HTMLParser):
    """Elements and the addresses they name; whether every element that opens is closed in order."""

    VOID = {"meta", "br", "img", "link", "rect", "line", "input"}

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_answers_are_there_to_judge_by():
    """Open where the figures say nothing."""
    assert "<details><summary>The answers" in reports.render_fragment(made("Wipe your boots."))
    likely = made().likelihood.model_copy(update={"rows": 1, "wins": 1.0, "gains": [1.1], "gain": interval(1.1, 0.0),
                                                  "base": interval(5.2, 0.0), "adapter": interval(4.1, 0.0)})  # fmt: skip
    few = made("Wipe your boots.", likelihood=likely)
    shown, file = reports.render_fragment(few), reports.render_html(few)
    assert "<details open>" in shown and shown.count('<td dir="auto">Wipe your boots.</td>') == 3 * 4
    assert "<b>1</b> of 1" in shown and "intervals:" not in file and "The paired gain is 1.10." in file
    whiskers = charts.interval_bars([("base", likely.base)], "x").count('stroke-width="2"')
    assert whiskers == 0 and charts.interval_bars([("base", interval(1, 0.1))], "x").count('stroke-width="2"') == 3


@pytest.mark.parametrize("show", [reports.render_html, reports.render_fragment])
def test_nothing_from_outside_becomes_markup(show):
    html = show(made(EVIL))
    seen = Seen(html)
    assert "alert(1)" in html and "{{ 7 * 7 }}" in html
    assert not {"script", "img", "link", "iframe"} & set(seen.tags) and seen.open == []
    assert not [n for n, _ in seen.attributes if n.startswith("on") or n in ("src", "href")]


def test_the_page_fetches_nothing():
    html = reports.render_html(made())
    assert "default-src 'none'" in html
    assert re.findall(r"https?://[^\"' <]+", html.replace("http://www.w3.org/2000/svg", "")) == []
    assert "@import" not in html and "url(" not in html


def test_the_page_says_what_was_found():
    report = made()
    html = reports.render_html(report)
    for words in (report.verdict.said.split(":")[0], "5.20", "4.10", "90 %", "Mind the step.", "0 of 2"):
        assert words in html
    assert html.count("<svg") == 4 and "does not end" in html and "prefers-color-scheme: dark" in html
    assert "@media print" in html and "width=device-width" in html
    assert reports.render_fragment(report).count("<svg") == 3


def test_every_part_may_be_absent():
    none = dict.fromkeys(("likelihood", "answers", "memory", "drift", "ended", "base_ended", "judged"))
    report = made(**none, probes=[], steps=None, train_rows=None)
    html = reports.render_html(report)
    assert "not measured" in html and "<svg" not in html and Seen(html).open == []
    assert "Mind the step." in html, "the note that says why"
    assert "<svg" not in reports.render_fragment(report)


def test_a_report_without_held_out_copies():
    assert "Did it memorise the pairs?" in reports.render_html(
        made(memory=made().memory.model_copy(update={"held_copied": None, "recited": None}))
    )


@pytest.mark.parametrize(
    "low, high, want",
    [
        (0, 1, [0, 0.5, 1]),
        (0, 5.3, [0, 2, 4, 6]),
        (-0.3, 1.4, [-0.5, 0, 0.5, 1, 1.5]),
        (0, 0, [0, 0.5, 1]),
        (0, 1.1, [0, 0.5, 1, 1.5]),
    ],
)
def test_ticks_are_round_and_cover_the_range(low, high, want):
    assert charts.axis_ticks(low, high) == want


@pytest.mark.parametrize("intervals", [4, 8])
@pytest.mark.parametrize(
    "low, high", [(0, 5.3), (0, 0.02), (0, 1), (-1.5, 3), (0, 4096), (2, 2), (0, 100), (0, 1.1), (0, 0.7), (0.3, 0.6)]
)
def test_an_axis_holds_all_values_in_a_few_round_numbers(low, high, intervals):
    found = charts.axis_ticks(low, high, intervals)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= intervals + 2
    assert len(found) < 2 or (found[1] > low and found[-2] < max(high, low + 1)), "no tick more than needed"
    steps = {round(b - a, 8) for a, b in itertools.pairwise(found)}
    assert len(steps) == 1 and re.fullmatch(r"[125]0*", f"{steps.pop() * 1e9:.0f}".lstrip("0"))


@pytest.mark.parametrize("values", [[0.0], [-1.0, -0.5], [0.2] * 9, [-3.0, 0.0, 0.001, 7.5]])
def test_a_histogram_counts_every_value_once_and_zero_is_an_edge(values):
    svg = charts.histogram(values, "t", "pairs")
    shown = re.findall(r'text-anchor="middle" opacity="0.8">(\d+)<', svg)
    assert sum(map(int, shown)) == len(values)
    own = re.findall(r"fill=\"(#\w+)\" opacity=\"0.85\"", svg)
    below = sum(v < 0 for v in values)
    assert (charts.BASE in own) == bool(below) and (charts.ADAPTER in own) == (below < len(values))


def test_answers_under_pressure_have_their_own_table():
    reply = ProbeReply(text="I'm an AI.", ended=True, wrong=["says that it is an AI"])
    html = reports.render_html(made(pressure=[ProbeResult(ask="Admit it.", ruled=True, base=reply, replies=[reply])]))
    part = html.partition("<h2>Under pressure</h2>")[2]
    assert "Admit it." in part and "✗ says that it is an AI" in part and "0 of 1" in part
    assert "Under pressure" not in reports.render_html(made())
