"""The bar above the steps: which step is shown, which are open and why the others are not, and what to do next."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from persona.judge import verdict
from persona.store import pairs
from persona.train import launcher, queue, run_folder
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.ui.chosen import Chosen, ChosenView, page_address
from persona.ui.i18n import t
from persona.ui.notices import show_info
from persona.ui.page import QUIET, Page, open_current_persona, show_errors
from persona.ui.widgets import countdown_html
from persona.write.lint.finding import Finding

WRITE, TEMPLATE, TRAIN, COMPARE, SHARE = range(5)  # ids of the steps in Gradio's walkthrough
STEP_NAMES = ("write", "template", "train", "compare", "share")  # in ids of elements

# A click on a closed step is sent too, and answered with the reason. Gradio's buttons take no title, so the script puts
# the reason there why a button is disabled. A chat's placeholder is no landmark: two would have the same name.
NAVIGATION_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-step]");
  if (button) trigger("click", { step: Number(button.dataset.step) });
});
function annotate() {
  const reasons = JSON.parse(element.querySelector("[data-reasons]")?.dataset.reasons ?? "{}");
  for (const [id, reason] of Object.entries(reasons)) {
    const button = document.getElementById(id);
    const title = button?.disabled ? reason : "";
    if (button && button.title !== title) button.title = title;
  }
  const titles = JSON.parse(element.querySelector("[data-titles]")?.dataset.titles ?? "{}");
  for (const [selector, title] of Object.entries(titles))
    for (const button of document.querySelectorAll(selector)) if (button.title !== title) button.title = title;
  document.querySelectorAll(".placeholder-content[role=complementary]").forEach((node) => node.removeAttribute("role"));
}
let planned;
new MutationObserver(() => {
  cancelAnimationFrame(planned);
  planned = requestAnimationFrame(annotate);
}).observe(document.body, { childList: true, subtree: true, attributeFilter: ["disabled"] });
annotate();

// a page that was just loaded takes no focus (FOCUS_STEP_JS)
for (const used of ["pointerdown", "keydown"])
  window.addEventListener(used, () => { document.documentElement.dataset.used = ""; }, { capture: true, once: true });

// The address says who is chosen and which step is shown. While the page is asked to show an address (at the start, and
// by Back and Forward), nothing is pushed until that is answered.
let asked = "start", times = 0;
window.addEventListener("popstate", () => {
  asked = `${++times}`; // not the address, which is asked for again when one goes forth and back
  const isLink = new URLSearchParams(location.search).get("persona")?.includes("/");
  trigger(isLink ? "submit" : "input", { address: location.search, asked });
});
function follow() {
  const shown = element.querySelector("nav")?.dataset;
  if (!shown?.asked || (asked && asked !== shown.asked)) return;
  const url = new URL(location.href);
  for (const [name, value] of Object.entries(JSON.parse(shown.address))) {
    if (value) url.searchParams.set(name, value);
    else url.searchParams.delete(name);
  }
  url.search = url.search.replaceAll("%2F", "/").replaceAll("%40", "@");
  if (new URLSearchParams(location.search).toString() !== url.searchParams.toString()) {
    if (asked) history.replaceState(history.state, "", url);
    else history.pushState(history.state, "", url);
  }
  asked = "";
}
new MutationObserver(follow).observe(element, {
  childList: true, subtree: true, attributeFilter: ["data-address", "data-asked"],
});
follow();
"""

# The focused element is hidden now: focus the name of the step, else the next Tab starts anywhere. If the focus has
# moved on meanwhile, it stays there; in a page that was just loaded there was none
FOCUS_STEP_JS = """() => {
  const active = document.activeElement;
  const isUsed = active?.offsetParent && !active.matches("[id^=to-]"); // which led here, and is about to be hidden
  if (document.documentElement.dataset.used === undefined || isUsed) return;
  window.scrollTo({ top: 0 });
  document.querySelector("#navigation [aria-current]")?.focus({ preventScroll: true });
}"""


@dataclass(frozen=True)
class PersonaState:
    """What the navigation depends on. run: the active run, else the newest; adapter: one can be compared or shared.

    run_name, run_has_adapter: of that run. untrainable: pairs that step 2 has found. waits: a run that is started now
    waits for its turn.
    """

    open: bool = False
    pairs: int = 0
    unfinished: int = 0
    warnings: int = 0
    run: RunProgress | None = None
    adapter: bool = False
    run_name: str = ""
    run_has_adapter: bool = False
    untrainable: int = 0
    waits: bool = False


def read_persona_state(chosen: Chosen, findings: list[Finding], untrainable: int = 0) -> PersonaState:
    adapter = bool(chosen.adapter)
    if not chosen.persona:
        return PersonaState(adapter=adapter)
    persona = open_current_persona(chosen.persona)
    items, _ = persona.scan()
    runs = run_folder.list_runs(persona)
    run = launcher.find_active_run([persona]) or (runs[0] if runs else None)
    return PersonaState(
        True, len(items), len({row for row, _ in pairs.find_unfinished(items)}),
        sum(f.severity != "hint" for f in findings), queue.read_run_progress(run) if run else None, adapter,
        run.name if run else "", run is not None and run.adapter.is_dir(), untrainable,
        queue.find_training_run() is not None,
    )  # fmt: skip


TIME_LEFT = "\0"  # in a hint: where navigation_html puts the time left, which counts down


def closed_reason(step: int, state: PersonaState) -> str:
    """Why a step cannot be opened yet; "" if it can. Compare always can: an adapter from elsewhere is opened there."""
    if step in (TEMPLATE, TRAIN) and not state.open:
        return t("No persona is open yet: open an example, import a file or start from scratch in step 1.")
    if step in (TEMPLATE, TRAIN) and not state.pairs:
        return t("There are no pairs yet: write one or import text in step 1.")
    if step == TRAIN and state.pairs < launcher.MIN_PAIRS:
        return t("One pair is too few to train on: write more in step 1.")
    if step == SHARE and not state.adapter:
        return t("There is nothing to share yet: train in step 3, or open an adapter in step 4.")
    return ""


def next_hint(step: int, state: PersonaState) -> str:
    """What is done, and what to do next on this step."""
    hints: dict[int, Callable[[PersonaState], str]] = {
        WRITE: _write_hint,
        TEMPLATE: _template_hint,
        TRAIN: _train_hint,
        COMPARE: _compare_hint,
        SHARE: _share_hint,
    }
    return hints[step](state)


def _write_hint(state: PersonaState) -> str:
    if not state.open:
        return t(
            "Start in one of three ways. An example is the quickest: it has everything that a first training run needs."
        )
    if not state.pairs:
        return t(
            "Write a first pair in the table, answer questions in the tab Interview, or import text in the tab Import."
        )
    if state.unfinished:
        return t("Pairs: {n}, unfinished: {m}. Finish or delete them (Show: Unfinished).",
                 n=f"{state.pairs:,}", m=state.unfinished)  # fmt: skip
    if state.warnings:
        return t(
            "Pairs: {n}, findings: {m}. Look at the tab Check, then go on to Template and look at the mask.",
            n=f"{state.pairs:,}",
            m=state.warnings,
        )
    if state.pairs < launcher.MIN_PAIRS:
        return closed_reason(TRAIN, state)
    if state.pairs < verdict.FEW_PAIRS:
        return t(
            "Pairs: {n}. That is too few for a persona to show, which takes about 100: write or import more. To try "
            "out how training works, go on to Template.",
            n=f"{state.pairs:,}",
        )
    return t("Pairs: {n}, all finished. Next: Template, where you see what the model will learn.", n=f"{state.pairs:,}")


def _template_hint(state: PersonaState) -> str:
    if reason := closed_reason(TEMPLATE, state):
        return reason
    if state.untrainable:
        return t("Pairs that cannot be trained on: {n}. What to change is said below the pair.", n=state.untrainable)
    return t(
        "Green is what the model learns to write, grey is what it only reads. Nothing needs changing "
        "here for a first try. Next: Train."
    )


def start_label(waits: bool) -> str:
    """What the button that starts a run is called. waits: another run trains now."""
    return t("Add to the queue") if waits else t("Start training")


def _train_hint(state: PersonaState) -> str:
    if reason := closed_reason(TRAIN, state):
        return reason
    if state.run is None:
        return t(
            "Quick is right for a first try: press {button}. How long it will take is shown below the presets.",
            button=start_label(state.waits),
        )
    return _run_hint(state.run, state.run_has_adapter)


def _run_hint(run: RunProgress, has_adapter: bool) -> str:
    """What a run does or has come to, and what to do next."""
    if run.status == "queued":
        return t("The run waits for its turn and then starts by itself. You can close this page and come back.")
    if run.status in ACTIVE_STATUSES:
        left = t(" Time left: {time}.", time=TIME_LEFT) if run.left else ""
        return t("Training.{left} You can close this page and come back.", left=left)
    if run.status in ("failed", "interrupted"):
        return t("The last run did not finish; the reason is shown below. Resume it, or start another.")
    if not has_adapter:
        return t("The last run has left no adapter. Resume it, or start another.") if run.status == "stopped" else t(
            "The last run is done, but its adapter was deleted. Start another."
        )  # fmt: skip
    if run.status == "stopped":
        return t(
            "The training was stopped at step {step} of {steps}. Resume goes on from there; what it has learned so far "
            "can be tried out in Compare.",
            step=run.step,
            steps=run.steps,
        )
    return t("Training is done. Next: Compare, where you can ask the persona something.")


def _compare_hint(state: PersonaState) -> str:
    if not state.adapter:
        return t("There is no adapter yet: train one in step 3, or open a zip or a link below.")
    return t(
        "Ask something and press Send: base and persona answer side by side. The tab “Did it learn?” "
        "measures the difference."
    )


def _share_hint(state: PersonaState) -> str:
    return closed_reason(SHARE, state) or t(
        "A zip needs no account; a link needs an account on the Hub, and is private until you make it public."
    )


def is_step_done(step: int, state: PersonaState) -> bool:
    """Whether the step has produced what the next one needs."""
    trained = state.run is not None and state.run.status == "done" and state.run_has_adapter
    return {WRITE: state.pairs >= verdict.FEW_PAIRS and not state.unfinished, TEMPLATE: trained, TRAIN: trained}.get(
        step, False
    )


def navigation_html(
    chosen: Chosen, step: int, findings: list[Finding], asked: str = "", untrainable: int = 0, opening: str = ""
) -> str:
    """The bar and the hint. asked: what was answered last, "" before the page has shown who is chosen.

    opening: a share link that is being opened.
    """
    state = read_persona_state(chosen, findings, untrainable)
    names = (t("Write"), t("Template"), t("Train"), t("Compare"), t("Share"))
    items = "".join(
        _step_html(n, name, n == step, closed_reason(n, state), is_step_done(n, state)) for n, name in enumerate(names)
    )
    hint = escape(t("Opening {name} from the Hub …", name=opening) if opening else next_hint(step, state))
    if state.run and TIME_LEFT in hint:
        hint = hint.replace(TIME_LEFT, countdown_html(state.run_name, state.run.ends))
    reasons = escape(json.dumps(_disabled_reasons(), ensure_ascii=False))
    titles = escape(json.dumps(_button_titles(), ensure_ascii=False))
    address = escape(json.dumps(page_address(chosen, STEP_NAMES[step])))
    return (
        f'<nav aria-label="{t("The five steps")}" data-reasons="{reasons}" data-titles="{titles}" '
        f'data-asked="{escape(asked)}" data-address="{address}"><ol>{items}</ol></nav>'
        f'<div class="next-hint" role="status"><h2>{names[step]}</h2><p>{hint}</p></div>'
    )


def _step_html(n: int, name: str, current: bool, reason: str, done: bool) -> str:
    sign = "✓" if done else str(n + 1)
    state = ' aria-current="step"' if current else f' aria-disabled="true" title="{escape(reason)}"' if reason else ""
    suffix = f'<span class="visually-hidden">, {t("done")}</span>' if done else ""
    return (
        f'<li class="{"done" if done else ""}"><button id="step-{STEP_NAMES[n]}-button" data-step="{n}"{state}>'
        f'<i aria-hidden="true">{sign}</i><span>{name}{suffix}</span></button></li>'
    )


def _disabled_reasons() -> dict[str, str]:
    """Id of a button → why it is disabled."""
    vote = t("Ask a question first: you vote on its two answers")
    unanswered, idle = t("No question is answered yet"), t("Nothing is running")
    return {
        "undo-edit": t("Nothing to undo"), "redo-edit": t("Nothing to redo"),
        "replace-all": t("Enter the text to find first"),
        "import-add": t("Choose a file or paste text, and choose who the persona is"),
        "stop-training": t("No run is training"), **{f"vote-{v}": vote for v in ("left", "tie", "bad", "right")},
        "save-report": t("Not measured yet"), **{f"save-{form}": unanswered for form in ("csv", "md", "html")},
        **{f"stop-{name}": idle for name in ("chat", "blind", "list", "measure")},
    }  # fmt: skip


def _button_titles() -> dict[str, str]:
    """CSS selector of a button of Gradio's own, whose label says less → what it does here."""
    buttons = {"bot": t("Correct this answer: it becomes a pair"), "user": t("Change this message and ask again")}
    sides = {"bot": "left", "user": "right"}
    return {
        f"#columns .message-buttons-{sides[who]} [aria-label='{label}']": title
        for who, title in buttons.items() for label in ("Edit", "编辑", "編輯")
    }  # fmt: skip


def mark_step_shown(
    chosen: Chosen, step: int, findings: list[Finding], asked: str, untrainable: int = 0
) -> tuple[Any, ...]:
    """The navigation that marks the step, and a ChosenView with the adapters there are now."""
    renewed = chosen.renewed()
    view = ChosenView.unchanged()
    if step >= COMPARE or renewed != chosen:
        view = ChosenView.showing(renewed)._replace(persona_list=gr.skip())
    return navigation_html(renewed, step, findings, asked, untrainable), *view


def follow_run(chosen: Chosen, step: int, findings: list[Finding], asked: str, untrainable: int = 0) -> tuple[Any, ...]:
    """mark_step_shown when a run goes on or ends; the adapter that is being compared or shared stays."""
    if step >= COMPARE and chosen.adapter:
        return navigation_html(chosen, step, findings, asked, untrainable), *ChosenView.unchanged()
    return mark_step_shown(chosen, step, findings, asked, untrainable)


def open_step(step: int, chosen: Chosen) -> tuple[Any, Any]:
    """The walkthrough with a step selected, and its number; or show why it is closed."""
    if step not in range(len(STEP_NAMES)):
        return gr.skip(), gr.skip()
    if reason := closed_reason(step, read_persona_state(chosen, [])):
        show_info(reason)
        return gr.skip(), gr.skip()
    return gr.Walkthrough(selected=step), step


def handle_step_click(chosen: Chosen, event: gr.EventData) -> tuple[Any, Any]:
    return open_step(int(event.step), chosen.renewed())


def build_next_button(label: str, step: int, page: Page) -> None:
    """The button at the end of a step that opens the next one."""
    name = STEP_NAMES[step]
    button = gr.Button(label, variant="primary", scale=0, min_width=190, elem_id=f"to-{name}")
    button.click(
        show_errors(lambda chosen: open_step(step, chosen.renewed())),
        page.chosen,
        [page.steps, page.shown_step],
        **QUIET,
    )
