"""`persona new`, `import`, `filter`, `lint` and `render`: the pairs and how the model reads them."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona.cli.output import (
    BASE_HELP,
    AsJson,
    PersonaDir,
    Thinking,
    open_persona,
    print_note,
    print_result,
    split_key_value,
)
from persona.errors import InputError, PersonaError, format_counts

MAX_PRINTED = 20  # skipped rows that are printed; --json has all of them


def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new folder for the persona.")],
    name: Annotated[str, typer.Option(help="The persona's name.")],
    system: Annotated[str, typer.Option(help="System prompt of every training row and chat. Default: none.")] = "",
    as_json: AsJson = False,
) -> None:
    """Start a persona: a folder with persona.json and an empty pairs.jsonl."""
    from persona.store import persona_folder

    card = persona_folder.parse_card({"name": name, "system": system}, "--name/--system")
    persona = persona_folder.create_persona_at(directory.expanduser(), card)
    text = f"{persona.path}: write pairs into pairs.jsonl, or open it in the page."
    print_result({"persona": str(persona.path)}, text, as_json)


def import_(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A file, '-' for standard input, or a Hub dataset id; with a slice 'FILE[:1000]' only these rows.",
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="The persona's folder. A new one becomes a new persona.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="Format of the file: alpaca, character, chat, messages, prose, screenplay, sharegpt or table. "
            "Default: detected."
        ),
    ] = "",
    speaker: Annotated[
        list[str] | None, typer.Option(help="The persona's name in the file. Repeat for other names of it.")
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=NAME", help="The column of a field, e.g. instruction=Question. Repeat for more."),
    ] = None,
    actions: Annotated[str, typer.Option(help="Stage directions in a reply: drop, or keep as *action*.")] = "drop",
    history: Annotated[
        int | None,
        typer.Option(
            help="Earlier exchanges to keep with each pair. Default: all those of a conversation in a row of data, "
            "none of a scene or a chat log.",
            min=0,
        ),
    ] = None,
    join_input: Annotated[
        str,
        typer.Option(
            help="Between an instruction and its input: line, paragraph, none, or Alpaca's own block, alpaca-zh "
            "(### 输入:) or alpaca-en (### Input:)."
        ),
    ] = "line",
    split: Annotated[
        str, typer.Option(help="Split of a Hub dataset, a slice of the rows, or both: 'train[:1000]'. Default: train.")
    ] = "",
    rows: Annotated[int | None, typer.Option(help="At most so many rows, of the slice. Default: all.")] = None,
    shuffle: Annotated[
        int | None,
        typer.Option(metavar="SEED", help="Pick the --rows at random with this seed. Default: the first ones."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with mood=sad, score>3, 'len(output)>50'. Repeat for more conditions."),
    ] = None,
    member: Annotated[
        str, typer.Option(metavar="NAME", help="Which file in a .zip or .tar. Default: the only one with data.")
    ] = "",
    thinking: Annotated[
        Literal["drop", "keep"],
        typer.Option(help="Thinking of a reply in messages: drop, or keep it as a <think> block. Default: drop."),
    ] = "drop",
    preferences: Annotated[
        bool,
        typer.Option(
            "--preferences",
            help="Keep both answers of rows with chosen and rejected, for `persona prefer`: no pairs are added.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add pairs from a file of another format. Rows that are no pair are listed."""
    from persona.store.preferences import is_preference_row
    from persona.write import importers
    from persona.write.importers import hub_dataset, json_reader, registry, row_selection, text_source
    from persona.write.importers.columns import INPUT_JOINS

    if join_input not in INPUT_JOINS:
        raise InputError("--join-input {join}: choose one of {known}.", join=join_input, known=", ".join(INPUT_JOINS))
    if source != "-" and not Path(source).expanduser().exists():
        source, piece = row_selection.split_source_slice(source)
        if piece and "[" in split:
            raise InputError("{source}: the slice is given twice, here and with --split.", source=source + piece)
        split += piece
    selection = row_selection.parse_selection(split, where or (), rows, shuffle)
    if actions not in ("drop", "keep"):
        raise InputError("--actions {actions}: write drop or keep.", actions=actions)
    columns = dict(split_key_value(x, "--column") for x in column or [])
    options = importers.ImportOptions(
        columns, tuple(speaker or ()), "keep" if actions == "keep" else "drop", history, join_input, selection,
        thinking,
    )  # fmt: skip
    pasted = source == "-"
    with text_source.save_pasted(sys.stdin.buffer.read()) if pasted else nullcontext(Path(source).expanduser()) as path:
        if not path.exists() and "/" in source and not path.is_absolute() and not path.parent.is_dir():
            path = hub_dataset.download_dataset(source, split=selection.split)
        else:
            row_selection.require_file_split(path.name, selection)
        opened = text_source.open_source(path, member=member)
        if preferences:
            _import_preferences(opened.path, directory, as_json)
            return
        if json_reader.score_first_rows(opened, is_preference_row):
            print_note(
                f"{opened.name}: holds preferences. Their chosen answers become pairs; --preferences keeps both."
            )
        chosen_format = format or registry.detect_format(opened)
        existed = directory.expanduser().exists()
        persona = _open_or_create(directory, opened, chosen_format, options)
        try:
            report = registry.import_into(persona, opened, chosen_format, options)
            if not report.replies:
                _print_import(opened, chosen_format, report, as_json)
                raise InputError(registry.explain_empty_import(opened, chosen_format, report))
        except PersonaError:
            if not existed:
                shutil.rmtree(persona.path)
            raise
    _print_import(opened, chosen_format, report, as_json)


def _import_preferences(file: Path, directory: Path, as_json: bool) -> None:
    """Add a file's preferences to those of the persona."""
    from persona.store.preferences import add_preferences, load_preferences, read_preferences

    persona, found = open_persona(directory), read_preferences(file)
    added = add_preferences(persona, found.preferences)
    value = {"preferences": added, "known": len(found.preferences) - added, "left_out": list(found.left_out)}
    count = len(load_preferences(persona).preferences)
    lines = [
        f"{added:,} preferences added, {value['known']:,} were there. There are {count:,}: persona prefer {directory}"
    ]
    print_result(value, "\n".join([*lines, *found.left_out[:MAX_PRINTED]]), as_json)


def _print_import(source: Any, format: str, report: Any, as_json: bool) -> None:
    """source: a SourceFile, report: an ImportReport."""
    from persona.write.importers.registry import describe_replies

    skipped = [{"line": s.line, "why": s.why} for s in report.skipped]
    value = {"read": report.read, "pairs": report.added, "known": report.known, "left_out": report.left_out,
             "replies": report.replies, "conversations": report.conversations,
             "skipped": skipped, "notes": report.notes, "format": format, "encoding": source.encoding}  # fmt: skip
    added = format_counts("{read:,} read, {added:,} pair(s) added", {"read": report.read, "added": report.added})
    lines = [f"{source.name} ({format}, {source.encoding}): {added}"]
    lines += filter(None, [describe_replies(report.replies, report.conversations)])
    lines += [f"{report.known:,} were there already"] * bool(report.known)
    lines += [f"{source.name} line {s.line}: skipped, {s.why}" for s in report.skipped[:MAX_PRINTED]]
    more = report.left_out - MAX_PRINTED
    lines += [f"… and {more:,} more skipped (--json lists them)"] * (more > 0)
    lines += [f"{what}: {count:,} times" for what, count in report.notes.items()]
    print_result(value, "\n".join(lines), as_json)


def _open_or_create(directory: Path, source: Any, format: str, options: Any) -> Any:
    """The persona at `directory`; if nothing is there a new one, named by the file's card or the speaker."""
    from persona.store import kept_card, persona_folder
    from persona.write.importers import registry

    directory = directory.expanduser()
    if directory.exists() and any(directory.iterdir()):
        return persona_folder.open_persona(directory)
    survey = registry.get_importer(format).survey(source)
    name = options.speakers[0] if options.speakers else directory.name
    persona = persona_folder.create_persona_at(
        directory, survey.card or persona_folder.parse_card({"name": name}, str(directory))
    )
    kept_card.keep_card(persona, survey.original, survey.container)
    return persona


def filter_(
    directory: PersonaDir,
    min_answer: Annotated[int, typer.Option(help="Drop pairs with a shorter answer, in characters.", min=0)] = 0,
    max_answer: Annotated[int, typer.Option(help="Drop pairs with a longer answer; 0: no limit.", min=0)] = 0,
    min_question: Annotated[int, typer.Option(help="Drop pairs with a shorter question.", min=0)] = 0,
    max_question: Annotated[int, typer.Option(help="Drop pairs with a longer question; 0: no limit.", min=0)] = 0,
    apply: Annotated[bool, typer.Option("--apply", help="Drop them. Default: only show which.")] = False,
    as_json: AsJson = False,
) -> None:
    """Drop pairs by length, in bulk: shows which, and drops them with --apply. The page can undo it."""
    from persona.write import length_filter

    persona = open_persona(directory)
    limits = length_filter.LengthLimits(min_answer, max_answer, min_question, max_question)
    pairs, _ = persona.scan()
    dropped = length_filter.find_outside(pairs, limits)
    if apply:
        length_filter.drop_outside(persona, limits)
    value = {"pairs": len(pairs), "dropped": len(dropped), "rows": [d.at + 1 for d in dropped], "applied": apply}
    lines = [f"pair {d.at + 1}: {length_filter.describe(d)}" for d in dropped[:MAX_PRINTED]]
    lines += [f"… and {len(dropped) - MAX_PRINTED:,} more (--json lists them)"] * (len(dropped) > MAX_PRINTED)
    done = "dropped" if apply else "would be dropped; --apply drops them"
    print_result(value, "\n".join([*lines, f"{len(dropped):,} of {len(pairs):,} pairs {done}"]), as_json)


def lint(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help=f"Measure rows with its tokenizer. {BASE_HELP}")] = "",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; 0: measured with --base only.", min=0)] = 0,
    thinking: Thinking = "none",
    as_json: AsJson = False,
) -> None:
    """Check the pairs: what is wrong with each, and whether there are enough of them."""
    from persona.models import open_renderer
    from persona.template.render import MAX_LENGTH
    from persona.write import lint as linting
    from persona.write.importers.registry import count_conversations, describe_replies
    from persona.write.lint.finding import count_by_rule
    from persona.write.lint.summary import summarize_dataset

    persona = open_persona(directory)
    pairs, card = persona.pairs(), persona.card()
    length = None
    if max_length or base:
        _, renderer = open_renderer.open_renderer(card, base, "auto", progress=print_note, thinking=thinking)
        length = replace(renderer, max_length=max_length or MAX_LENGTH).length_if_near_limit
    ignored = linting.read_ignored(persona)
    findings = linting.lint_pairs(pairs, card, length, max_length or MAX_LENGTH, ignored, thinking)
    summary = summarize_dataset(pairs, card, findings)
    value = {
        "pairs": len(pairs),
        "conversations": (conversations := count_conversations(pairs)),
        "counts": count_by_rule(findings),
        "findings": [
            {"rule": f.rule, "severity": f.severity, "pairs": list(f.pairs), "message": f.message} for f in findings
        ],
        "summary": summary.text,
        "kinds": dict(summary.kinds),
    }
    colours = {"error": "red", "warning": "yellow", "hint": "blue"}
    lines = [f"{typer.style(f.rule, fg=colours[f.severity])}: {f.message}" for f in findings]
    lines += filter(None, [describe_replies(len(pairs), conversations)])
    print_result(value, "\n".join([*lines, summary.text]), as_json)


def render(
    directory: PersonaDir,
    pair: Annotated[int, typer.Option(help="Number of the pair, from 1.", min=1)] = 1,
    base: Annotated[str, typer.Option(help=BASE_HELP)] = "",
    template: Annotated[
        str,
        typer.Option(help="Chat template: a name from templates/chat, a .jinja file, or auto for the base's."),
    ] = "auto",
    thinking: Thinking = "none",
    as_json: AsJson = False,
) -> None:
    """Show a pair as the model reads it, and which tokens it learns: rendered as for training."""
    from persona.models import open_renderer, stop_token

    persona = open_persona(directory)
    opened, rendered = open_renderer.render_pair(persona, pair, base, template, print_note, thinking)
    if warning := stop_token.explain_untrained_stop(opened, rendered.renderer):
        print_note(warning)
    example, tokens = rendered.example, rendered.tokens
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
