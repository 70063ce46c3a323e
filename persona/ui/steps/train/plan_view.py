"""Step 3, before the start: what a run would do, in words: steps, pairs, device, memory and time."""

import math
from html import escape
from typing import Any

from persona.errors import PersonaError
from persona.judge import verdict
from persona.models import hardware
from persona.train import launcher, queue
from persona.train import plan as train_plan
from persona.train.config import ALL_PRESETS, RunConfig
from persona.train.parent import adopt_settings, split_since
from persona.train.plan import TrainingEstimate
from persona.ui.i18n import localized, t
from persona.ui.page import open_current_persona
from persona.ui.steps.train import further, settings_form
from persona.ui.steps.write.pairs_status import replies_text
from persona.ui.widgets import problems_html
from persona.write.importers.registry import count_conversations


def plan_html(slug: str, preset: str, *form: Any, parent_id: str = "") -> str:
    """What Start would do, or why it cannot. form: the RenderSettings and the expert settings.

    parent_id: the adapter to go on from.
    """
    try:
        config, persona = settings_form.form_to_config(preset, *form), open_current_persona(slug)
        chosen, parent = config, further.open_parent(parent_id)
        if parent:
            config = adopt_settings(config, parent, further.fixed_settings(config))
        pairs = persona.pairs()
        if len(pairs) < launcher.MIN_PAIRS:
            few = t(
                "{n} pair(s); a run needs at least {least}. Write more first.", n=len(pairs), least=launcher.MIN_PAIRS
            )
            return f'<div class="hint">{few}</div>'
        estimate = train_plan.estimate_on_this_machine(persona, config, pairs, parent)
    except PersonaError as e:
        return problems_html([e.message])
    about = escape(t(ALL_PRESETS[preset][1]))
    if parent:
        about += f"<br>{further.plan_text(parent, split_since(pairs, parent, config), config.new_pair_repeats)}"
    if changed := settings_form.describe_deviations(chosen, preset):
        about += f"<br><b>{escape(t('Changed in the expert settings: {changes}.', changes=changed))}</b>"
    if estimate is None:
        reason = localized(hardware.plan_device(hardware.this_machine(), config.dtype).reason)
        unknown = t(
            "{n} pair(s). {reason} Memory and time can be estimated once the base is on this disk; step 2 "
            "downloads it.",
            n=len(pairs),
            reason=escape(reason),
        )
        return f'<div class="quiet">{about}<br>{unknown}</div>'
    return (
        f'<div class="quiet">{about}<br>{replies_text(len(pairs), count_conversations(pairs))}{_steps_text(estimate)} '
        f"{_rehearsal_text(estimate.rehearsal)}{escape(localized(estimate.plan.reason))}<br>"
        f"{_memory_text(estimate)}</div>{_busy_html(estimate)}{_wait_html()}{_too_few_html(estimate)}"
        f"{_too_large_html(config, estimate)}{_notes_html(estimate.warn_of_evaluation())}"
    )


def _steps_text(estimate: TrainingEstimate) -> str:
    """The number of pairs and steps, and about how long they take."""
    rows = {"learn": estimate.train_rows, "held": estimate.held_out, "steps": estimate.steps}
    if estimate.seconds is None:
        return t("{learn} pair(s) to learn from, {held} held out to measure on; {steps} step(s).", **rows)
    time = _about_text(estimate.seconds)
    if estimate.from_run:
        return t("{learn} pair(s) to learn from, {held} held out to measure on; {steps} step(s), <b>about {time}</b> "
                 "at the speed of your last such run.", **rows, time=time)  # fmt: skip
    return t("{learn} pair(s) to learn from, {held} held out to measure on; {steps} step(s), <b>about {time}</b> by "
             "a quick measurement of this machine.", **rows, time=time)  # fmt: skip


def _rehearsal_text(rows: int) -> str:
    """rows: that an epoch rehearses."""
    if not rows:
        return ""
    return t("Beside the pairs, an epoch rehearses {rows} general rows; the base answers them first.", rows=rows) + " "


def _about_text(seconds: float) -> str:
    minutes = math.ceil(seconds / 60)
    if minutes >= 90:
        return t("{n} hour(s)", n=f"{seconds / 3600:.1f}")
    return t("{n} minute(s)", n=minutes)


def _busy_html(estimate: TrainingEstimate) -> str:
    """That other programs make the run slower; "" where they do not."""
    if not estimate.is_slowed_down:
        return ""
    text = t("Other programs are using this machine now: it may take longer.")
    if estimate.idle_seconds is not None:
        idle = _about_text(estimate.idle_seconds)
        if estimate.seconds is not None and idle == _about_text(estimate.seconds):
            return ""  # in such words no longer
        text = t(
            "Other programs are using this machine now; at the best speed measured since this page was started it "
            "would take about {time}.",
            time=idle,
        )
    return f'<div class="hint">{text}</div>'


def _wait_html() -> str:
    """How long a run that is started now waits for its turn; "" where nothing trains."""
    wait = queue.estimate_wait()
    if wait == 0:
        return ""
    text = t("Another run trains now, so this one waits for its turn first.")
    if wait is not None:
        text = t("Another run trains now, so this one waits for its turn first: about {time}.", time=_about_text(wait))
    return f'<div class="hint">{text}</div>'


def _too_few_html(estimate: TrainingEstimate) -> str:
    """What a run of so few pairs cannot show, or how it will not be measured; "" when there are enough."""
    texts = []
    if estimate.train_rows < verdict.FEW_PAIRS:
        texts.append(t("{n} pairs are too few for a persona to show; it takes about 100. Such a run is good for trying "
                       "out how training works.", n=estimate.train_rows))  # fmt: skip
    if not estimate.held_out:
        texts.append(t("No pair is held out, so nobody will know whether it learned."))
    elif estimate.held_out < verdict.MIN_ROWS:
        texts.append(t("Held out to measure on: {n}. That is too few to tell afterwards whether it learned; the result "
                       "will say so.", n=estimate.held_out))  # fmt: skip
    return "".join(f'<div class="hint">{text}</div>' for text in texts)


def _notes_html(notes: list[str]) -> str:
    return "".join(f'<div class="hint">{escape(localized(note))}</div>' for note in notes)


def _memory_text(estimate: TrainingEstimate) -> str:
    m, plan = estimate.plan.memory, estimate.plan
    sizes = {"all": m.total, "limit": plan.limit, "weights": m.weights, "training": m.training,
             "activations": m.activations, "logits": m.logits, "runtime": m.runtime}  # fmt: skip
    return t(
        "Memory: about <b>{all} GB</b> of {limit} GB that it may use (weights {weights}, LoRA and optimizer "
        "{training}, activations {activations}, logits {logits}, runtime {runtime}).",
        **{name: f"{size / 1e9:.1f}" for name, size in sizes.items()},
    )


def _too_large_html(config: RunConfig, estimate: TrainingEstimate) -> str:
    """What to change when the run does not fit into memory; "" when it fits."""
    plan, free = estimate.plan, f"{estimate.plan.limit / 1e9:.1f}"
    if plan.fits and plan.quantization == config.quantization:
        return ""
    others = t("Choose a smaller base, close other programs, or shorten the longest rows (about {n} tokens).",
               n=estimate.longest)  # fmt: skip
    if plan.fits:
        words = t(
            "This base does not fit into {free} GB, even one row at a time. With quantized weights "
            "(quantization={how}) it would. Otherwise:",
            free=free,
            how=plan.quantization,
        )
    else:
        words = t(
            "This will not fit: the smallest setting (batch {batch}, quantization {how}) needs {need} GB, and {free} "
            "GB can be used.",
            batch=plan.batch_size,
            how=plan.quantization,
            need=f"{plan.memory.total / 1e9:.1f}",
            free=free,
        )
    return f'<div class="problem">{words} {others}</div>'
