"""Step 2's own functions: the X-ray of white space, the histogram, own templates, and scores that tell templates apart."""

import re

import pytest

from persona import evaluate, folder
from persona.base import open_renderer, resolve
from persona.chat import open_voices
from persona.errors import TemplateError
from persona.files import SHIPPED_PERSONAS
from persona.folder import Card
from persona.pairs import Pair
from persona.render import Renderer
from persona.templates import Template, shipped_templates
from persona.ui import common, template

PAIRS = [Pair(f"Who are you, {n}?", f"Mags, keeper number {n}.") for n in range(6)]


@pytest.fixture
def persona(home):
    return folder.create(folder.personas_dir() / "mags", Card(name="Mags", system="Be dry."), PAIRS)


def test_white_space_is_drawn_and_the_text_stays_what_it_is(byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"])
    text = "a  b\tc\u3000d\u00a0e <b>&amp;\nf"
    html = common.mask_html(renderer, renderer.example(Pair("q", text)))
    mask = html[html.index("data-testid='mask'>") : html.index("</div><div class='quiet'>")]
    for kind in ("space", "tab", "wide", "hard"):
        assert f'<i class="{kind}">' in mask
    assert "↵" in mask and "<b>" not in mask and "&lt;b&gt;&amp;amp;" in re.sub(r"</?(?:span|i)[^>]*>", "", mask)


def test_what_is_too_long_is_counted(byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"], max_length=20)
    example = renderer.example(Pair("question", "word " * 20))
    assert f"<b>{len(example.input_ids) - 20} too many</b>" in common.mask_html(renderer, example)


def test_the_histogram_counts_every_row_and_shows_the_limit():
    html = template.lengths_html([10, 10, 50, 120], 100)
    counts = [int(n.replace(",", "")) for n in re.findall(r"tokens: ([\d,]+) pairs", html)]
    assert sum(counts) == 4 and 'class="limit"' in html and html.count('class="long"') == 1
    assert 'class="limit"' not in template.lengths_html([10, 20], 512)
    assert "up to 0 tokens" in template.lengths_html([], 512)


@pytest.mark.parametrize(
    ("name", "words"), [("chatml", ""), ("gemma-base", "opens the first question"), ("nothing", "left out")]
)
def test_it_says_where_the_system_prompt_goes(byte_tokenizer, sentencepiece_tokenizer, name, words):
    known = shipped_templates()
    text = (
        "{%- for m in messages if m['role'] != 'system' -%}{{ m['content'] }}{%- endfor -%}"
        if name == "nothing"
        else known[name].text
    )
    tokenizer = sentencepiece_tokenizer if name == "gemma-base" else byte_tokenizer
    said = template.system_words(Renderer(tokenizer, Template("t", text), "Be brief."))
    assert words in said if words else said == ""
    assert template.system_words(Renderer(tokenizer, Template("t", text), "")) == ""


def test_a_template_of_ones_own_is_checked_kept_and_chosen(persona, tiny_llama):
    good = shipped_templates()["chatml"].text.replace("{#-", "{#- Mine.", 1)
    settings = (str(tiny_llama), "auto", 512, False)
    chosen, said = template.adopt("mags", good, *settings)
    file = persona.path / "template.jinja"
    assert file.read_text(encoding="utf-8") == good and chosen.value == str(file) and "fits" in said
    _, renderer = open_renderer(persona.card(), str(tiny_llama), chosen.value)
    assert renderer.template.text == good and not renderer.example(PAIRS[0]).problems
    assert template.templates_of("mags", "auto").value == "auto"
    assert template.templates_of("", "own").value == "auto"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Paste a template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no token would be learned"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "which a chat template does not need"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 2 seconds"),
        ("{{ 'a' * 999999999 }}", "multiplies"),
    ],
)
def test_a_template_that_cannot_be_right_is_refused_and_not_kept(persona, tiny_llama, text, why):
    with pytest.raises(Exception, match=why):
        template.adopt("mags", text, str(tiny_llama), "auto", 512, False)
    assert not (persona.path / "template.jinja").exists()


NOISE = """
{%- for m in messages -%}
    {{ 'qx zv ' ~ m['role'] ~ ' 0x1f;' }}
    {%- if m['role'] == 'assistant' -%}
        {% generation %}{{ m['content'] ~ '<|im_end|>' }}{% endgeneration %}
    {%- else -%}{{ m['content'] }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'qx zv assistant 0x1f;' }}{%- endif -%}"""


@pytest.mark.release
@pytest.mark.slow
def test_a_wrong_template_scores_worse_on_the_pairs(smollm2_tokenizer, home):
    """A tuned base knows turns of its own form; letters in their place tell it nothing."""
    pairs = folder.open_persona(SHIPPED_PERSONAS / "lighthouse-keeper").pairs()
    found, own = open_renderer(Card(name="Mags"), "smollm2-135m-instruct")
    wrong = Renderer(own.tokenizer, Template("noise", NOISE))
    scored = evaluate.score_templates(open_voices(found), wrong, own.template, pairs)
    assert [name for name, _ in scored][-1] == "noise" and scored[0][0] == "smollm2"
    assert dict(scored)["noise"] > dict(scored)["smollm2"] + template.SAME


def test_a_template_under_which_nothing_can_be_rendered_is_refused(tiny_llama, byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"], max_length=3)
    with pytest.raises(TemplateError, match="none of the pairs"):
        evaluate.base_nll(open_voices(resolve(str(tiny_llama))), renderer, PAIRS)
