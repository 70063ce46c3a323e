"""Step 2's own functions: the X-ray of white space, the histogram, own templates, and scores that tell templates apart."""

import re
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext

from persona.compare.session import open_model
from persona.errors import TemplateError
from persona.judge import template_scores
from persona.models.base import resolve_base
from persona.models.open_renderer import open_renderer
from persona.store import persona_folder
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.store.workspace import EXAMPLES_DIR
from persona.template.chat_template import ChatTemplate, shipped_templates
from persona.template.render import Renderer
from persona.ui import widgets
from persona.ui.steps import template
from persona.ui.steps.template import facts

PAIRS = [Pair(f"Who are you, {n}?", f"Mags, keeper number {n}.") for n in range(6)]


@pytest.fixture
def persona(home):
    return persona_folder.create_persona_at(
        persona_folder.personas_dir() / "mags", PersonaCard(name="Mags", system="Be dry."), PAIRS
    )


def test_white_space_is_drawn_and_the_text_stays_what_it_is(byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"])
    text = "a  b\tc\u3000d\u00a0e <b>&amp;\nf"
    html = widgets.mask_html(renderer, renderer.render_example(Pair("q", text)))
    mask = html[html.index("data-testid='mask'>") : html.index("</div><div class='quiet'>")]
    for kind in ("space", "tab", "wide", "hard"):
        assert f'<i class="{kind}">' in mask
    assert "↵" in mask and "<b>" not in mask and "&lt;b&gt;&amp;amp;" in re.sub(r"</?(?:span|i)[^>]*>", "", mask)


def test_what_is_too_long_is_counted(byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"], max_length=20)
    example = renderer.render_example(Pair("question", "word " * 20))
    assert f"<b>{len(example.input_ids) - 20} too many</b>" in widgets.mask_html(renderer, example)


def test_the_histogram_counts_every_row_and_shows_the_limit():
    html = facts.length_histogram_html([10, 10, 50, 120], 100)
    counts = [int(n.replace(",", "")) for n in re.findall(r"tokens: ([\d,]+) pairs?", html)]
    assert sum(counts) == 4 and 'class="limit"' in html and html.count('class="long"') == 1
    assert 'class="limit"' not in facts.length_histogram_html([10, 20], 512)
    assert "up to 0 tokens" in facts.length_histogram_html([], 512)


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
    said = facts.system_prompt_note(Renderer(tokenizer, ChatTemplate("t", text), "Be brief."))
    assert words in said if words else said == ""
    assert facts.system_prompt_note(Renderer(tokenizer, ChatTemplate("t", text), "")) == ""


def test_a_template_of_ones_own_is_checked_kept_and_chosen(persona, tiny_llama):
    good = shipped_templates()["chatml"].text.replace("{#-", "{#- Mine.", 1)
    settings = (str(tiny_llama), "auto", 512, False)
    chosen, said = template.adopt_template("mags", good, *settings)
    file = persona.path / "template.jinja"
    assert file.read_text(encoding="utf-8") == good and chosen.value == str(file) and "fits" in said
    _, renderer = open_renderer(persona.card(), str(tiny_llama), chosen.value)
    assert renderer.template.text == good and not renderer.render_example(PAIRS[0]).problems
    assert template.template_dropdown("mags", "auto").value == "auto"
    assert template.template_dropdown("", "own").value == "auto"


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
        template.adopt_template("mags", text, str(tiny_llama), "auto", 512, False)
    assert not (persona.path / "template.jinja").exists()


def test_a_pair_that_cannot_be_trained_on_is_explained_in_the_visitors_language(persona, tiny_llama):
    LocalContext.request.set(SimpleNamespace(headers={"accept-language": "zh-CN"}))
    try:
        html, _ = template.check_all_pairs("mags", str(tiny_llama), "chatml", 10, False)
    finally:
        LocalContext.request.set(None)
    assert "第 1 条对话对：回复会被截断" in html and "would be cut" not in html


def test_the_check_counts_what_cannot_be_trained_on_and_leads_to_the_pair_and_the_setting(persona, tiny_llama):
    """The hint above follows this count (test_navigation.py): the two cannot contradict each other."""
    persona.save_pairs([*PAIRS[:2], Pair("Tell me all.", "word " * 200), *PAIRS[3:]])
    html, refused = template.check_shown_persona(template.TEMPLATE, "mags", str(tiny_llama), "chatml", 300, False)
    assert refused == 1 and "pair 3: the reply would be cut" in html and html.count("data-do='pair'") == 1
    data = dict(re.findall(r"data-(do|row)='(\w+)'", re.search(r"<button[^>]*data-do='pair'[^>]*>", html)[0]))
    assert template.show_refused(SimpleNamespace(_data=data))[0] == 3
    assert "data-do='setting'" in html and template.show_refused(SimpleNamespace(_data={"do": "setting"}))[1].open
    html, refused = template.check_shown_persona(template.TEMPLATE, "mags", str(tiny_llama), "chatml", 4096, False)
    assert refused == 0 and "data-do" not in html and "Every pair can be trained on" in html
    assert template.check_shown_persona(template.TRAIN, "mags", str(tiny_llama), "chatml", 300, False) == ("", 0)


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
    pairs = persona_folder.open_persona(EXAMPLES_DIR / "lighthouse-keeper").pairs()
    found, own = open_renderer(PersonaCard(name="Mags"), "smollm2-135m-instruct")
    wrong = Renderer(own.tokenizer, ChatTemplate("noise", NOISE))
    scored = template_scores.score_templates(open_model(found), wrong, own.template, pairs)
    assert [name for name, _ in scored][-1] == "noise" and scored[0][0] == "smollm2"
    assert dict(scored)["noise"] > dict(scored)["smollm2"] + template.CLEAR_DIFFERENCE_NATS


def test_a_template_under_which_nothing_can_be_rendered_is_refused(tiny_llama, byte_tokenizer):
    renderer = Renderer(byte_tokenizer, shipped_templates()["chatml"], max_length=3)
    with pytest.raises(TemplateError, match="none of the pairs"):
        template_scores.base_nll(open_model(resolve_base(str(tiny_llama))), renderer, PAIRS)
