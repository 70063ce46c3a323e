"""Chat templates of unknown origin: real ones pass, attacks end in a message, soon."""

import importlib.util
import time
from pathlib import Path

import pytest
from cases import check_each
from transformers.utils.chat_template_utils import render_jinja_template

from persona.errors import TemplateError
from persona.store.workspace import TEMPLATES_DIR
from persona.template.sandbox import inspect_template, limit_rendering

CHAT = [[{"role": "user", "content": "hi " * 50}, {"role": "assistant", "content": "yes"}] * 20]
OFFICIAL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"


def test_templates_of_real_models_are_accepted():
    cases = [*OFFICIAL.glob("*.jinja"), *(TEMPLATES_DIR / "chat").glob("*.jinja")]

    def check(file):
        inspect_template(file.read_text(encoding="utf-8"))

    check_each(cases, check)


def test_what_a_chat_template_has_no_use_for_is_refused_with_its_line():
    cases = [
        ("{{ 'a' * 9999999999 }}", "multiplies"),
        ("{{ 9 ** 9 ** 9 }}", "multiplies"),
        ("{{ '%999999999d' % 1 }}", "formats text"),
        ("{{ messages[0].content % [1] }}", "formats text"),
        ("{{ '{:>999999999}'.format(1) }}", "method 'format'"),
        ("{{ 'a'|center(999999999) }}", "filter 'center'"),
        ("{{ 'a'.center(n) }}", "method 'center'"),
        ("{{ 'a'.ljust(999999999) }}", "method 'ljust'"),
        ("{{ x|replace('a', x) }}", "not written there"),
        ("{{ x.replace('a', x) }}", "not written there"),
        ("{{ x|join(x) }}", "not written there"),
        ("{{ x.join(x) }}", "not written there"),
        ("{{ x|replace('a', '" + "a" * 1001 + "') }}", "1,001 times"),
        ("{{ x" + "|replace('a','aa')" * 11 + " }}", "2,048 times"),
        ("{{ x" + ".replace('','aaaaaaaaa')" * 4 + " }}", "10,000 times"),
        ("{{ 'aaaaaaaaa'.join('aaaaaaaaa'.join('aaaaaaaaa'.join('aaaaaaaaa'.join(x)))) }}", "10,000 times"),
        ("{{ x|tojson|tojson|tojson|tojson|tojson }}", "times as long"),
        ("{{ x|tojson(indent=900) }}", "indents"),
        ("{{ x|tojson(indent=n) }}", "not written there"),
        ("{{ 99999999999 }}", "number"),
        ("{% include '/etc/passwd' %}", "another file"),
        ("{% import 'os' as os %}", "another file"),
        ("{% extends 'x' %}", "another file"),
        ("{{ lipsum() }}", "calls lipsum"),
        ("{{ cycler('a') }}", "calls cycler"),
        ("{{ messages[0]['content']['x']() }}", "no name"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__subclasses__"),
        ("{{ x|attr('__class__') }}", "filter 'attr'"),
        ("{{ " + " ~ ".join(["x"] * 60) + " }}", "joins more than"),
        ("{{ " + " + ".join(["x"] * 60) + " }}", "adds more than"),
        ("{% for m in messages %}", "line 1"),
        ("{{ unclosed", "line 1"),
        ("x" * 64_001, "64,001 characters"),
    ]

    def check(text, why):
        with pytest.raises(TemplateError, match=why.replace("(", r"\(")):
            inspect_template(text)

    check_each(cases, check)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than"),
        (
            "{% set ns = namespace(s='a') %}{% for m in messages %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "without end",
        ),
        (
            "{% set ns = namespace(l=[1]) %}{% for m in messages %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
            "without end",
        ),
        (
            "{% set ns = namespace(n=1) %}{% for a in range(99) %}{% set ns.n = ns.n + ns.n %}{% endfor %}",
            "without end",
        ),
        ("{% for a in range(99999) %}{{ messages }}{% endfor %}", "without end"),
        ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|recursion|longer"),
    ],
)
def test_what_never_ends_is_stopped(text, why):
    inspect_template(text)
    with pytest.raises((TemplateError, RecursionError), match=why), limit_rendering(0.5):
        render_jinja_template(conversations=CHAT, chat_template=text)


def test_a_good_template_renders_the_same_within_the_limits():
    text = (TEMPLATES_DIR / "chat" / "chatml.jinja").read_text(encoding="utf-8")
    free = render_jinja_template(conversations=CHAT, chat_template=text)
    with limit_rendering():
        assert render_jinja_template(conversations=CHAT, chat_template=text) == free


def test_a_good_template_is_not_refused_for_having_waited():
    """On a busy machine: what counts is its own work."""
    with limit_rendering(0.2):
        time.sleep(0.4)
        assert render_jinja_template(conversations=CHAT[:1], chat_template="yes")[0] == ["yes"]


def test_a_value_that_is_not_there_stays_one_that_is_not_there():
    text = "{% set x = messages[0].thinking %}{% if x is defined %}yes{% else %}no{% endif %}"
    with limit_rendering():
        assert render_jinja_template(conversations=CHAT[:1], chat_template=text)[0] == ["no"]


def test_the_limits_end_with_the_block():
    import sys

    before = sys.gettrace()
    with pytest.raises(TemplateError), limit_rendering(0):
        render_jinja_template(conversations=CHAT, chat_template="{{ messages }}")
    assert sys.gettrace() is before
