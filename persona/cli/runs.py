"""`persona runs` and `persona compare`: the ledger of a persona's runs, and two of them beside each other."""

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import AsJson, PersonaDir, open_persona, print_result
from persona.errors import format_counts

RunName = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's folder, its name, or PERSONA/RUN where that is not enough.")
]


def runs(directory: PersonaDir, as_json: AsJson = False) -> None:
    """All runs of a persona, newest first: settings, pairs, held-out loss, probes kept, notes."""
    from persona.judge import ledger

    rows = ledger.read_ledger(open_persona(directory))
    value = {"runs": [_row_value(row) for row in rows]}
    print_result(value, "\n".join(map(_row_text, rows)) or "No runs yet.", as_json)


def _row_value(row: Any) -> dict[str, Any]:
    since = row.since.model_dump() if row.since else None
    return {**row.figures.model_dump(exclude={"fingerprints"}), "note": row.note.model_dump(), "pairs_since": since}


def _row_text(row: Any) -> str:
    f, note = row.figures, row.note
    parts = [f.status, f"{f.minutes:.0f} min", f"{f.base}" + (f" from {f.parent}" if f.parent else "")]
    learned = "{n} preference(s)" if f.learns_preferences else "{n} pair(s)"
    parts.append(format_counts(learned, {"n": f.pairs}) + _since_text(row.since))
    if f.nll:
        interval = f" [{f.nll.low:.3f}, {f.nll.high:.3f}]" if f.nll.low < f.nll.high else ""
        parts.append(f"NLL {f.nll.value:.3f}{interval}")
    parts += [f"{name} {s.kept}/{s.of}" for name, s in (("probes", f.probes), ("stops", f.stops)) if s]
    parts += [f"{name}={value}".lower() for name, value in f.settings.items()]
    title = f"{'*' if note.starred else ' '} {f.name}" + (f" ({note.name})" if note.name else "")
    return "  ".join([title, *parts]) + (f"\n      {note.note}" if note.note else "")


def _since_text(since: Any) -> str:
    counts = [(since.added, "+"), (since.removed, "-"), (since.changed, "~")] if since else []
    shown = " ".join(f"{sign}{n}" for n, sign in counts if n)
    return f" (since then {shown})" if shown else ""


def compare(first: RunName, second: RunName, as_json: AsJson = False) -> None:
    """What differs between two runs, and which is better on the rows that both held out."""
    from persona.judge import compare_runs

    found = compare_runs.compare_runs(_open_run(first), _open_run(second))
    print_result({**found.model_dump(mode="json"), "said": found.describe()}, _comparison_text(found), as_json)


def _open_run(name: str) -> Any:
    """The run in a folder, by its name among the user's personas, or PERSONA/RUN. Raises RunError, InputError."""
    from persona.store.files import expand_home, is_folder, safe_join
    from persona.store.persona_folder import list_personas
    from persona.train import run_folder

    persona, _, run = name.rpartition("/")
    if is_folder(expand_home(name)) or "/" in persona:
        return run_folder.open_run(Path(name))
    if persona:
        return run_folder.open_run(safe_join(open_persona(Path(persona)).runs_dir, run))
    found = [p.runs_dir / name for p in list_personas() if (p.runs_dir / name).is_dir()]
    return run_folder.open_run(found[0] if len(found) == 1 else Path(name))


def _comparison_text(found: Any) -> str:
    lines = [f"{found.first} → {found.second}", str(found.describe())]
    lines += [f"  {name}: {a} → {b}" for name, (a, b) in found.settings.items()]
    if found.pairs is not None:
        lines.append(f"  pairs: {len(found.pairs)} differ")
    for title, rows in (("Worse", found.worse), ("Better", found.better)):
        for row in rows:
            lines.append(f"{title} ({row.first_nll:.2f} → {row.second_nll:.2f}): {row.question}")
            lines += [f"    {a}" for a in (row.first_answer, row.second_answer) if a]
    for probe in found.probes:
        lines += [probe.probe, f"    {probe.first or '–'}", f"    {probe.second or '–'}"]
    return "\n".join(lines)
