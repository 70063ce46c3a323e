"""What rehearsal has cost a run in time, and what it has saved in forgetting, from the runs' own figures."""

from persona.errors import Message, PersonaError, join
from persona.store.files import read_json
from persona.store.persona_folder import Persona
from persona.train.progress import RunProgress, is_number
from persona.train.run_folder import Run, list_runs


def describe_rehearsal(run: Run, p: RunProgress) -> str:
    """Both in words, where the run is measured also what it forgot; "" for a run that rehearses nothing."""
    rows, tokens = p.plan.get("rehearsal"), p.plan.get("tokens")
    if not rows or not tokens:
        return ""
    steps = p.seconds * p.plan.get("rehearsal_tokens", 0) / tokens
    cost = Message(
        "Rehearsal: {rows} general rows an epoch took about {steps:.0f} s of the training steps, and the base's "
        "answers {answering:.0f} s.", rows=rows, steps=steps, answering=p.rehearsal.get("seconds", 0),
    )  # fmt: skip
    return join(" ", [cost, _describe_forgetting(run)])


def _describe_forgetting(run: Run) -> str:
    rise = read_rise(run)
    if rise is None:
        return Message("Measure it in step 4, tab “Did it learn?”, to see how much it forgot.")
    lost = Message(
        "On general questions, the NLL of right answers changed by {rise:+.2f} nats per token (less is better).",
        rise=rise,
    )  # fmt: skip
    other = _find_run_without(run)
    if other is None:
        return lost
    without = Message("Without rehearsal ({run}) by {rise:+.2f}.", run=other.name, rise=read_rise(other))
    return join(" ", [lost, without])


def read_rise(run: Run) -> float | None:
    """By how much right answers to general questions became less likely, in nats per token; None: not measured."""
    try:
        rise = read_json(run.path / "report.json", Message("a report"))["drift"]["rise"]["value"]
    except (PersonaError, KeyError, TypeError):
        return None
    return rise if is_number(rise) else None


def _find_run_without(run: Run) -> Run | None:
    """The newest measured run of the persona on the same base, with the same settings but for the rehearsal."""
    config = run.config().model_copy(update={"rehearsal_fraction": 0.0, "rehearsal_system": False})
    for other in list_runs(Persona(run.path.parent.parent)):
        try:
            same = other.config().model_copy(update={"rehearsal_system": False}) == config
        except PersonaError:  # damaged
            continue
        if same and read_rise(other) is not None:
            return other
    return None
