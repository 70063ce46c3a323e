"""chat: base and persona, and others beside them, from the shell."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import AsJson, print_note, print_result
from persona.errors import InputError
from persona.models.sampling import Sampling


def chat(
    adapter: Annotated[str, typer.Argument(help="An adapter, run or persona folder, zip, RUN@STEP, USER/NAME@REV.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to say; again for more, each on its own.")] = None,
    strength: Annotated[float, typer.Option(help="0: the base, 1: as trained.")] = 1.0,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with", help="One more column: base (no prompt), base+prompt, ADAPTER, ADAPTER*0.7, A*0.6 + B*0.4."
        ),
    ] = None,
    questions: Annotated[Path | None, typer.Option(help="A file of questions, one a line, put to all columns.")] = None,
    save: Annotated[Path | None, typer.Option(help="The answers as a table: .csv, .md or .html.")] = None,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = Sampling.temperature,
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this share of the likeliest; 0: none.")
    ] = Sampling.min_p,
    seed: Annotated[int, typer.Option(help="The same for all columns.")] = Sampling.seed,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = Sampling.max_new_tokens,
    base: Annotated[str, typer.Option(help="Base model, if not the adapter's own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask base and persona the same, in one batch, with the same randomness."""
    from persona.compare import question_list as asking
    from persona.compare import session as chats
    from persona.share import open_adapter as opening
    from persona.share.adapter_ref import AdapterRef

    said = [*(prompt or []), *(asking.read_questions(questions) if questions else [])]
    if not said:
        raise typer.BadParameter("Nothing to ask. Give --prompt TEXT or --questions FILE.", param_hint="--prompt")
    if save:
        asking.require_table_format(save)
    if len(others or []) > chats.MAX_COLUMNS - 2:
        raise InputError(
            "{count} columns: base and persona, and {limit} more at most.",
            count=len(others or []) + 2,
            limit=chats.MAX_COLUMNS - 2,
        )
    sampling = Sampling(temperature=temperature, min_p=min_p, seed=seed, max_new_tokens=max_new_tokens)
    chats.check_strength(strength)
    main = opening.open_adapter(AdapterRef.parse(adapter))
    voices = chats.open_model(chats.base_of(main, base, print_note))
    speakers = chats.default_voices(voices, main, strength)
    for text in others or []:
        speaker = opening.open_voice(voices, text, main, any_base=bool(base))
        if any(speaker.label == s.label for s in speakers):
            raise InputError(
                "--with {text}: there is a column {label} already. Name each column once.",
                text=text,
                label=repr(speaker.label),
            )
        speakers.append(speaker)
    start = time.perf_counter()
    rows = []
    for row in asking.ask_questions(voices, speakers, said, sampling):
        rows.append(row)
        if questions:
            print_note(f"{len(rows)} of {len(said)} asked")
    rate = sum(r.tokens for row in rows for r in row.replies) / (time.perf_counter() - start)
    labels = [s.label for s in speakers]
    if save:
        asking.save_table(save, labels, rows)
        print_note(f"Saved {save}")
    text = "\n\n".join(_format_row(labels, row) for row in rows)
    print_result({"turns": [_turn_json(labels, row) for row in rows], "tokens_per_s": round(rate, 2)}, text, as_json)


def _turn_json(labels: list[str], row: Any) -> dict[str, Any]:
    """base and adapter are the first two columns: the base is given the very prompt of the adapter."""
    columns = [
        {"label": label, "rendered": c.prompt.text, "text": r.text, "tokens": r.tokens, "ended": r.ended,
         "error": r.error}
        for label, c, r in zip(labels, row.columns, row.replies, strict=True)
    ]  # fmt: skip
    base, persona = columns[:2]
    return {"prompt": row.question, "rendered": persona["rendered"], "base": base["text"], "adapter": persona["text"],
            "columns": columns}  # fmt: skip


def _format_row(labels: list[str], row: Any) -> str:
    width = max(map(len, labels)) + 2
    said = (f"{f'{label}:':<{width}}{r.error or r.text}" for label, r in zip(labels, row.replies, strict=True))
    return "\n".join([f"> {row.question}", *said])
