"""Above the steps: where one is, which steps are open and why the others are not, and what to do next."""

import json
from dataclasses import dataclass
from html import escape

import gradio as gr

from persona.store import pairs
from persona.train import launcher, queue, run_folder
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.ui import voice_picker
from persona.ui.i18n import t
from persona.ui.page import COMPARE, SHARE, TEMPLATE, TRAIN, WRITE, open_current_persona
from persona.ui.widgets import format_duration
from persona.write.lint.finding import Finding

STEP_NAMES = ("write", "template", "train", "compare", "share")

# a click on a step that is closed is sent too: the answer says why. `why` is the title of buttons that are greyed out;
# Gradio's buttons take no title of their own. A chat's placeholder is no landmark: two of them would be called alike.
NAVIGATION_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-step]");
  if (button) trigger("click", { step: Number(button.dataset.step) });
});
function mend() {
  const reasons = JSON.parse(element.querySelector("[data-why]")?.dataset.why ?? "{}");
  for (const [id, why] of Object.entries(reasons)) {
    const button = document.getElementById(id);
    const title = button?.disabled ? why : "";
    if (button && button.title !== title) button.title = title;
  }
  document.querySelectorAll(".placeholder-content[role=complementary]").forEach((node) => node.removeAttribute("role"));
}
let planned;
new MutationObserver(() => {
  cancelAnimationFrame(planned);
  planned = requestAnimationFrame(mend);
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ["disabled"] });
mend();
"""

# what had the keyboard is hidden now: on to the name of the step, else the next Tab begins anywhere. Who has moved on
# meanwhile is left alone
FOCUS_STEP_JS = """() => {
  if (document.activeElement?.offsetParent) return;
  window.scrollTo({ top: 0 });
  document.querySelector("#way [aria-current]")?.focus({ preventScroll: true });
}"""


@dataclass(frozen=True)
class PersonaState:
    """What is known of the open persona. run: the one that trains now, else the newest; adapter: one can be heard."""

    open: bool = False
    pairs: int = 0
    unfinished: int = 0
    warnings: int = 0
    run: RunProgress | None = None
    adapter: bool = False


def read_persona_state(slug: str, findings: list[Finding]) -> PersonaState:
    adapter = bool(voice_picker.list_adapters(slug))
    if not slug:
        return PersonaState(adapter=adapter)
    persona = open_current_persona(slug)
    items, _ = persona.scan()
    found = run_folder.list_runs(persona)
    run = launcher.find_active_run([persona]) or (found[0] if found else None)
    return PersonaState(
        True, len(items), len({row for row, _ in pairs.find_unfinished(items)}),
        sum(f.severity != "hint" for f in findings), queue.read_run_progress(run) if run else None, adapter,
    )  # fmt: skip


def why_closed(step: int, seen: PersonaState) -> str:
    """Why a step cannot be opened yet; "" if it can. Compare always can: an adapter of others opens there."""
    if step in (TEMPLATE, TRAIN) and not seen.open:
        return t("No persona is open yet: open an example, import a file or start from scratch in step 1.")
    if step in (TEMPLATE, TRAIN) and not seen.pairs:
        return t("There are no pairs yet: write one or import text in step 1.")
    if step == TRAIN and seen.pairs < launcher.MIN_PAIRS:
        return t("One pair is too few to train on: write more in step 1.")
    if step == SHARE and not seen.adapter:
        return t("There is nothing to share yet: train in step 3, or open an adapter in step 4.")
    return ""


def next_hint(step: int, seen: PersonaState) -> str:
    """What is done, and what to do next on this step."""
    says = {
        WRITE: _write_hint,
        TEMPLATE: _template_hint,
        TRAIN: _train_hint,
        COMPARE: _compare_hint,
        SHARE: _share_hint,
    }
    return says[step](seen)


def _write_hint(seen: PersonaState) -> str:
    if not seen.open:
        return t(
            (
                "Start in one of three ways. An example is the quickest: it has everything that a first "
                "training run needs."
            )
        )
    if not seen.pairs:
        return t("Write a first pair in the table, or import text in the tab Import.")
    if seen.unfinished:
        return t("Pairs: {n}, unfinished: {m}. Finish or delete them (Show: Unfinished).",
                 n=f"{seen.pairs:,}", m=seen.unfinished)  # fmt: skip
    if seen.warnings:
        return t(("Pairs: {n}, findings: {m}. Look at the tab Check, then go on to Template and look at the "
"mask."),
                 n=f"{seen.pairs:,}", m=seen.warnings)  # fmt: skip
    return t("Pairs: {n}, all finished. Next: Template, where you see what the model will learn.", n=f"{seen.pairs:,}")


def _template_hint(seen: PersonaState) -> str:
    return why_closed(TEMPLATE, seen) or t(
        (
            "Green is what the model learns to write, grey is what it only reads. Nothing needs changing "
            "here for a first try. Next: Train."
        )
    )


def _train_hint(seen: PersonaState) -> str:
    if why := why_closed(TRAIN, seen):
        return why
    run = seen.run
    if run is None:
        return t(
            ("Quick is right for a first try: press Start training. How long it will take is shown below the presets.")
        )
    if run.status in ACTIVE_STATUSES:
        left = t(" About {time} left.", time=format_duration(run.left)) if run.left is not None else ""
        return t("Training.{left} You can close this page and come back.", left=left)
    if run.status in ("done", "stopped") and seen.adapter:
        return t("Training is done. Next: Compare, where you can ask the persona something.")
    return t("The last run did not finish; the reason is shown below. Resume it, or start another.")


def _compare_hint(seen: PersonaState) -> str:
    if not seen.adapter:
        return t("There is no adapter yet: train one in step 3, or open a zip or a link below.")
    return t(
        (
            "Ask something and press Send: base and persona answer side by side. The tab “Did it learn?” "
            "measures the difference."
        )
    )


def _share_hint(seen: PersonaState) -> str:
    return why_closed(SHARE, seen) or t(
        ("A zip needs no account; a link needs an account on the Hub, and is private until you make it public.")
    )


def is_step_done(step: int, seen: PersonaState) -> bool:
    """Whether a step has what it is for."""
    trained = seen.run is not None and seen.run.status in ("done", "stopped") and seen.adapter
    return {WRITE: seen.pairs >= launcher.MIN_PAIRS and not seen.unfinished, TEMPLATE: trained, TRAIN: trained}.get(
        step, False
    )


def navigation_html(slug: str, step: int, findings: list[Finding]) -> str:
    seen = read_persona_state(slug, findings)
    names = (t("Write"), t("Template"), t("Train"), t("Compare"), t("Share"))
    items = "".join(
        _step_html(n, name, n == step, why_closed(n, seen), is_step_done(n, seen)) for n, name in enumerate(names)
    )
    why = escape(json.dumps(_disabled_reasons(), ensure_ascii=False))
    return (
        f'<nav aria-label="{t("The five steps")}" data-why="{why}"><ol>{items}</ol></nav>'
        f'<div class="next-hint" role="status"><h2>{names[step]}</h2><p>{escape(next_hint(step, seen))}</p></div>'
    )


def _step_html(n: int, name: str, here: bool, why: str, ready: bool) -> str:
    sign = "✓" if ready else str(n + 1)
    state = ' aria-current="step"' if here else f' aria-disabled="true" title="{escape(why)}"' if why else ""
    said = f'<span class="unseen">, {t("done")}</span>' if ready else ""
    return (
        f'<li class="{"ready" if ready else ""}"><button id="step-{STEP_NAMES[n]}-button" data-step="{n}"{state}>'
        f'<i aria-hidden="true">{sign}</i><span>{name}{said}</span></button></li>'
    )


def _disabled_reasons() -> dict[str, str]:
    """Button → why it is greyed out."""
    vote = t("Ask a question first: you vote on its two answers")
    return {
        "undo-edit": t("Nothing to undo"), "redo-edit": t("Nothing to redo"),
        "replace-all": t("Enter the text to find first"), "import-add": t("Choose a file or paste text, and choose who the persona is"),
        "stop-training": t("No run is training"), **{f"vote-{v}": vote for v in ("left", "tie", "bad", "right")},
    }  # fmt: skip


def mark_step_shown(step: int, slug: str, findings: list[Finding]) -> tuple[int, str]:
    """A step is shown now."""
    return step, navigation_html(slug, step, findings)


def open_step(step: int, slug: str) -> gr.Walkthrough:
    """Show a step, or say why it is closed."""
    if step not in range(len(STEP_NAMES)):
        return gr.skip()
    if why := why_closed(step, read_persona_state(slug, [])):
        gr.Info(why)
        return gr.skip()
    return gr.Walkthrough(selected=step)


def handle_step_click(slug: str, event: gr.EventData) -> gr.Walkthrough:
    return open_step(int(event.step), slug)
