"""Updates an adapter's model card from its run: figures, answers, the loss curve, the persona's rights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message, PersonaError
from persona.models.model_card import LOSS_PICTURE, CardEvidence, SampleAnswers, render_model_card
from persona.share.loss_plot import draw_loss_plot
from persona.store.files import read_json, to_json, write_atomic
from persona.store.persona_folder import PersonaCard, parse_card
from persona.train.run_folder import PRESENT_FIELDS, Run, trained_questions
from persona.write.lint.finding import normalize_text

MAX_SAMPLES = 6


def refresh_model_card(adapter: Path, persona: PersonaCard | None = None) -> None:
    """Rewrite persona.json and README.md of an adapter that is still in the folder of its run.

    What no weights depend on (PRESENT_FIELDS) becomes that of `persona`; what it was trained with (name, system prompt,
    probes) stays. Any other adapter is left as it is.
    """
    run = Run(adapter.parent)
    if not (run.path / "run.json").is_file() or not (adapter / "run.json").is_file():
        return
    card = parse_card(read_json(adapter / "persona.json", Message("a persona")), "persona.json")
    if persona:
        card = card.model_copy(update={name: getattr(persona, name) for name in PRESENT_FIELDS})
    facts = read_json(adapter / "run.json", Message("a run"))
    evidence = collect_evidence(run, facts, adapter / LOSS_PICTURE)
    _write_if_changed(adapter / "persona.json", to_json(card.model_dump(mode="json")))
    _write_if_changed(adapter / "README.md", render_model_card(card, facts, evidence))


def _write_if_changed(file: Path, text: str) -> None:
    if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
        write_atomic(file, text)


def collect_evidence(run: Run, facts: dict[str, Any], picture: Path) -> CardEvidence:
    """Samples, verdict and loss curve of the adapter with these facts, from the run's events and report.

    picture: where the loss curve is drawn.
    """
    progress = run.progress()
    step = facts.get("figures", {}).get("steps")
    report = _read_matching_report(run.path / "report.json", step)
    samples = dict(progress.samples)
    trained = samples.get(progress.chosen if progress.chosen is not None else step, [])
    untrained = {a["probe"]: a["text"] for a in samples.get(0, [])}
    from_training = [SampleAnswers(a["probe"], untrained.get(a["probe"], ""), a["text"]) for a in trained]
    told = [s for s in _samples_of_report(report) or from_training if s.adapter.strip()]
    return CardEvidence(
        tuple(_mark_trained_on(told[:MAX_SAMPLES], run)),
        str((report.get("verdict") or {}).get("said") or ""),
        draw_loss_plot(progress.train, progress.held_out, picture),
    )


def _read_matching_report(file: Path, step: Any) -> dict[str, Any]:
    """report.json, or {} where there is none or it is about another step of the run."""
    try:
        report = read_json(file, Message("a report"))
    except InputError:
        return {}
    return report if report.get("steps") in (None, step) else {}


def _mark_trained_on(samples: list[SampleAnswers], run: Run) -> list[SampleAnswers]:
    """The samples with `trained_on`, by the run's own rows; not known where these are gone or damaged."""
    try:
        trained = trained_questions(run.rows())
    except (OSError, PersonaError):
        return samples
    return [replace(s, trained_on=normalize_text(s.question) in trained) for s in samples]


def _samples_of_report(report: dict[str, Any]) -> list[SampleAnswers]:
    """Its probes. Its held-out pairs are the author's text and are not shared."""
    probes = report.get("probes") or []
    return [SampleAnswers(p["ask"], p["base"]["text"], p["replies"][0]["text"]) for p in probes if p.get("replies")]
