"""new, import, lint, render: the pairs."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import AsJson, PersonaDir, open_persona, print_note, print_result, split_key_value
from persona.errors import InputError, PersonaError


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the persona's folder is to be.")],
    name: Annotated[str, typer.Option(help="The persona's name.")],
    system: Annotated[str, typer.Option(help="System prompt, part of every row and chat.")] = "",
    as_json: AsJson = False,
) -> None:
    """Start a persona: a folder with persona.json and an empty pairs.jsonl."""
    from persona.store import persona_folder

    card = persona_folder.parse_card({"name": name, "system": system}, "--name/--system")
    made = persona_folder.create_persona_at(directory.expanduser(), card)
    print_result(
        {"persona": str(made.path)}, f"{made.path}: write pairs into pairs.jsonl, or open it in the page.", as_json
    )


def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file, '-' for standard input, or a Hub dataset id.")],
    directory: PersonaDir,
    format: Annotated[str, typer.Option(help="Found by itself; or alpaca, sharegpt, table, screenplay, …")] = "",
    speaker: Annotated[list[str] | None, typer.Option(help="Who the persona is in it; again for other names.")] = None,
    column: Annotated[list[str] | None, typer.Option(metavar="FIELD=NAME", help="instruction=Question, …")] = None,
    actions: Annotated[str, typer.Option(help="Stage directions in a reply: drop, or keep as *action*.")] = "drop",
    history: Annotated[int, typer.Option(help="Earlier exchanges of the scene kept with each pair.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Add pairs from a file of another kind; what is no pair is listed. The persona is made if DIR is not there."""
    from persona.write import importers
    from persona.write.importers import hub_dataset, registry, text_source

    if actions not in ("drop", "keep"):
        raise InputError("--actions {actions}: write drop or keep.", actions=actions)
    columns = dict(split_key_value(x, "--column") for x in column or [])
    options = importers.ImportOptions(columns, tuple(speaker or ()), "keep" if actions == "keep" else "drop", history)
    typed = source == "-"
    with text_source.save_pasted(sys.stdin.buffer.read()) if typed else nullcontext(Path(source).expanduser()) as path:
        if not path.exists() and "/" in source and not path.is_absolute() and not path.parent.is_dir():
            path = hub_dataset.download_dataset(source)
        opened = text_source.open_source(path)
        chosen = format or registry.detect_format(opened)
        there = directory.expanduser().exists()
        persona = _open_or_create(directory, opened, chosen, options)
        try:
            done = registry.import_into(persona, opened, chosen, options)
        except PersonaError:
            if not there:
                shutil.rmtree(persona.path)
            raise
    skipped = [{"line": s.line, "why": s.why} for s in done.skipped]
    value = {"read": done.read, "pairs": done.added, "known": done.known, "left_out": done.left_out,
             "skipped": skipped, "notes": done.notes, "format": chosen, "encoding": opened.encoding}  # fmt: skip
    lines = [f"{opened.name} ({chosen}, {opened.encoding}): {done.read:,} read, {done.added:,} pairs added"]
    lines += [f"{done.known:,} were there already"] * bool(done.known)
    lines += [f"{opened.name} line {s.line}: skipped, {s.why}" for s in done.skipped[:20]]
    lines += [f"… and {done.left_out - 20:,} more skipped (--json lists them)"] * (done.left_out > 20)
    lines += [f"{what}: {count:,} times" for what, count in done.notes.items()]
    print_result(value, "\n".join(lines), as_json)


def _open_or_create(directory: Path, source: Any, format: str, options: Any) -> Any:
    """The persona at `directory`; a new one, named by the file's card or the speaker, if nothing is there."""
    from persona.store import persona_folder
    from persona.write.importers import registry

    directory = directory.expanduser()
    if directory.exists() and any(directory.iterdir()):
        return persona_folder.open_persona(directory)
    card = registry.get_importer(format).survey(source).card
    name = options.speakers[0] if options.speakers else directory.name
    return persona_folder.create_persona_at(
        directory, card or persona_folder.parse_card({"name": name}, str(directory))
    )


def lint(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help="Base model, for the length of rows.")] = "",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; 0: do not measure.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with the pairs, and whether there are enough of them."""
    from persona.models import open_renderer
    from persona.template.render import MAX_LENGTH
    from persona.write import lint as linting
    from persona.write.lint import finding
    from persona.write.lint import summary as write_lint_summary

    persona = open_persona(directory)
    pairs, card = persona.pairs(), persona.card()
    length = None
    if max_length or base:
        _, renderer = open_renderer.open_renderer(card, base, "auto", progress=print_note)
        length = replace(renderer, max_length=max_length or MAX_LENGTH).length
    found = linting.lint_pairs(pairs, card, length, max_length or MAX_LENGTH, linting.read_ignored(persona))
    summary = write_lint_summary.summarize_dataset(pairs, card, found)
    value = {
        "pairs": len(pairs),
        "counts": finding.count_by_rule(found),
        "findings": [
            {"rule": f.rule, "severity": f.severity, "pairs": list(f.pairs), "message": f.message} for f in found
        ],
        "summary": summary.text,
        "kinds": dict(summary.kinds),
    }
    colours = {"error": "red", "warning": "yellow", "hint": "blue"}
    lines = [f"{typer.style(f.rule, fg=colours[f.severity])}: {f.message}" for f in found]
    print_result(value, "\n".join([*lines, summary.text]), as_json)


def render(
    directory: PersonaDir,
    pair: Annotated[int, typer.Option(help="Which pair, from 1.", min=1)] = 1,
    base: Annotated[str, typer.Option(help="Base model.")] = "",
    template: Annotated[str, typer.Option(help="Template name or .jinja file.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what the model reads and which tokens it learns: the very function that the trainer uses."""
    from persona.models import open_renderer, stop_token

    persona = open_persona(directory)
    pairs = persona.pairs()
    if pair > len(pairs):
        raise InputError(
            "{path}: has {count} pairs, there is no pair {pair}.", path=persona.pairs_file, count=len(pairs), pair=pair
        )
    found, renderer = open_renderer.open_renderer(persona.card(), base, template, progress=print_note)
    if unknown := stop_token.explain_untrained_stop(found, renderer):
        print_note(unknown)
    example = renderer.render_example(pairs[pair - 1])
    tokens = renderer.tokens(example)
    value = {
        "text": example.text,
        "tokens": [{"id": t.id, "text": t.text, "learned": t.learned} for t in tokens],
        "learned": example.learned,
        "masked": len(tokens) - example.learned,
        "problems": list(example.problems),
    }
    painted = "".join(typer.style(t.text, fg="green", bold=True) if t.learned else typer.style(t.text, dim=True)
                      for t in tokens)  # fmt: skip
    totals = f"\n\n{example.learned} learned, {len(tokens) - example.learned} masked tokens"
    print_result(value, painted + totals + "".join(f"\nProblem: {p}" for p in example.problems), as_json)
