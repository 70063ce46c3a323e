"""Step 3, Details: what LoRA is, in a picture and three sentences, and what it is for this run: figures and layers."""

from typing import Any

import gradio as gr
from markupsafe import Markup

from persona.errors import PersonaError
from persona.models import base, memory
from persona.models.memory import ModelShape, StepShape
from persona.train import plan as train_plan
from persona.train import row_tokens, target_modules
from persona.train.config import RunConfig
from persona.train.target_modules import LayerKind
from persona.ui.i18n import t
from persona.ui.page import open_current_persona
from persona.ui.steps.train import settings_form
from persona.ui.widgets import problems_html

# x → W, frozen, and beside it x → A → B, trained; both are added
_PICTURE = Markup(
    '<svg viewBox="0 0 360 150" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg" font-size="13" '
    'font-family="system-ui, sans-serif" fill="currentColor" text-anchor="middle">'
    '<g stroke="currentColor" fill="none" opacity=".6"><path d="M26 75H50M50 75V44H70M50 75V116H70"/>'
    '<path d="M170 44H228V66M222 60l6 6 6-6M206 116H228V84M222 90l6-6 6 6M240 75H290M284 69l6 6-6 6M112 116H140"/></g>'
    '<rect x="70" y="8" width="100" height="72" rx="3" fill="#8b8680" opacity=".35"/>'
    '<rect x="70" y="106" width="42" height="20" rx="3" fill="#059669" opacity=".55"/>'
    '<rect x="140" y="92" width="66" height="48" rx="3" fill="#059669" opacity=".55"/>'
    '<circle cx="228" cy="75" r="9" fill="none" stroke="currentColor"/><text x="228" y="80">+</text>'
    '<text x="18" y="79" font-style="italic">x</text><text x="120" y="40" font-weight="600">W</text>'
    '<text x="120" y="60" font-size="11" opacity=".8">d × d</text><text x="91" y="120" font-weight="600">A</text>'
    '<text x="91" y="142" font-size="11" opacity=".8">r × d</text><text x="173" y="113" font-weight="600">B</text>'
    '<text x="173" y="131" font-size="11" opacity=".8">d × r</text>'
    '<text x="258" y="112" font-size="11" opacity=".8">× α / r</text>'
    '<text x="302" y="79" font-style="italic">h</text></svg>'
)


def lesson(slug: str, preset: str, *form: Any) -> tuple[str, gr.CheckboxGroup]:
    """The text, and the base's layers to tick. form: the RenderSettings and the expert settings."""
    try:
        config, persona = settings_form.form_to_config(preset, *form), open_current_persona(slug)
        local_base = base.find_local_base(config.base)
        shape = train_plan.read_base_shape(local_base) if local_base else None
        if local_base is None or shape is None:
            unknown = t("The figures of this run follow once the base is on this disk; step 2 downloads it.")
            return _explanation_html(config) + f'<p class="quiet">{unknown}</p>', gr.CheckboxGroup(visible=False)
        kinds = target_modules.list_layer_kinds(local_base, config.target_modules)
        card = persona.card()
        rows = [
            row_tokens.estimate_row_tokens(card, p, config.learn_history, thinking=config.thinking)
            for p in persona.pairs()
        ] or [(config.max_length, config.max_length)]
    except PersonaError as e:
        return problems_html([e.message]), gr.CheckboxGroup(visible=False)
    step = row_tokens.find_heaviest_step(config, rows)
    html = _explanation_html(config) + _figures_html(shape, step, kinds, config)
    return html, _layer_choice(kinds)


def _explanation_html(config: RunConfig) -> str:
    """The picture and three sentences, with this run's rank and alpha."""
    scale = config.lora_alpha / (config.lora_r**0.5 if config.use_rslora else config.lora_r)
    picture = _PICTURE.format(
        t("A frozen matrix W, and beside it two small trained ones, A and B, whose product is added")
    )
    sentences = [
        t("A layer of the base multiplies by a matrix W, which stays as it is; LoRA adds to it the product of two "
          "small ones, <b>ΔW = B·A</b>, and trains those alone."),
        t("The rank r (here {rank}) is how many directions ΔW can have; it is scaled by alpha / r, here {alpha} / {r} "
          "= <b>{scale}</b>, so that another rank needs no other learning rate.", rank=config.lora_r,
          alpha=config.lora_alpha, r=f"√{config.lora_r}" if config.use_rslora else config.lora_r, scale=f"{scale:g}"),
        t("With 4 bits (QLoRA) the frozen W is kept as 16 levels with a scale for each 64 weights and is unpacked for "
          "every product; A and B stay as exact as before."),
    ]  # fmt: skip
    return f'<figure class="lora">{picture}</figure>' + "".join(f"<p>{s}</p>" for s in sentences)


def _figures_html(shape: ModelShape, step: StepShape, kinds: list[LayerKind], config: RunConfig) -> str:
    """How many parameters are trained, and the memory of three ways to train."""
    trained = target_modules.count_trainable(kinds, config.lora_r)
    total = shape.parameters + trained
    share = t("This run trains <b>{trained}</b> of {total} parameters: <b>{percent} %</b>.", trained=f"{trained:,}",
              total=f"{total:,}", percent=f"{100 * trained / total:.2f}")  # fmt: skip
    names = {"full": t("All weights"), "lora": t("LoRA"), "qlora": t("QLoRA (4 bits)")}
    heads = [t("Weights"), t("Gradients"), t("Optimizer"), t("Activations"), t("Together")]
    table = "".join(f"<th>{head}</th>" for head in ["", *heads])
    lines = ""
    for name, m in memory.compare_methods(shape, step, trained).items():
        sizes = (m.weights, m.gradients, m.optimizer, m.activations, m.total)
        cells = "".join(f"<td>{size / 1e9:.2f}</td>" for size in sizes)
        lines += f"<tr><th>{names[name]}</th>{cells}</tr>"
    note = t("GB for this base with a batch of {batch} × {length} tokens, without what the libraries take. Weights are "
             "in 16 bits; for all weights, gradients in 16 bits and Adam's moments in 8 are counted, the least that "
             "it takes. This app trains by LoRA and QLoRA.", batch=step.batch, length=step.length)  # fmt: skip
    return f'<p>{share}</p><div class="answers"><table><tr>{table}</tr>{lines}</table></div><p class="quiet">{note}</p>'


def _layer_choice(kinds: list[LayerKind]) -> gr.CheckboxGroup:
    sizes = {k.name: _short(k.parameters // k.layers) for k in kinds}
    labels = [
        (t("{name}: {layers} × {parameters}", name=k.name, layers=k.layers, parameters=sizes[k.name]), k.name)
        for k in kinds
    ]
    return gr.CheckboxGroup(labels, value=[k.name for k in kinds if k.chosen], visible=True)


def _short(number: int) -> str:
    """A number of parameters for people: 4.2 M, 655 k."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def choose_layers(names: list[str], preset: str, *form: Any) -> str:
    """The target_modules for the layers that are ticked; as before where none is."""
    config = settings_form.form_to_config(preset, *form)
    local_base = base.find_local_base(config.base)
    if local_base is None or not names:
        return config.target_modules
    kinds = target_modules.list_layer_kinds(local_base, "all-linear")
    all_linear = {kind.name for kind in kinds if kind.chosen}
    return "all-linear" if set(names) == all_linear else ",".join(k.name for k in kinds if k.name in names)


def build() -> tuple[gr.HTML, gr.CheckboxGroup]:
    """The text and the choice of layers, folded away; both are filled by lesson()."""
    with gr.Accordion(t("Details: what LoRA is, and what this run trains"), open=False, elem_id="lora-lesson"):
        text = gr.HTML(elem_id="lora-lesson-text")
        layers = gr.CheckboxGroup(
            [], label=t("Layers with a LoRA"), visible=False, elem_id="lora-layers",
            info=t("Linear layers of this base by name, with how many there are and their parameters each. What is "
                   "ticked here is “Target modules” in the expert settings."),
        )  # fmt: skip
    return text, layers
