"""`persona chat`: base, persona and other voices answer the same questions."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import (
    ADAPTER_BASE_HELP,
    ADAPTER_HELP,
    AdapterTemplate,
    AsJson,
    Quantization,
    print_note,
    print_result,
)
from persona.errors import InputError
from persona.models.sampling import Sampling


def chat(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP)],
    prompt: Annotated[
        list[str] | None, typer.Option(help="A question. Repeat for more; each is a conversation of its own.")
    ] = None,
    strength: Annotated[float, typer.Option(help="Of the adapter. 0: the base, 1: as trained.")] = 1.0,
    others: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            help="One more column, up to two: base (without a prompt), base+prompt, ADAPTER, ADAPTER*0.7 (at that "
            "strength), 'A*0.6 + B*0.4' (a blend). Repeat for the second.",
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="A text file of questions, one per line. Default: none.")
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="A .csv, .md or .html file for the answers as a table. Default: none.")
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Randomness of the replies; 0: always the likeliest token.")
    ] = Sampling.temperature,
    min_p: Annotated[
        float, typer.Option(help="Leave out tokens less likely than this share of the likeliest one; 0: off.")
    ] = Sampling.min_p,
    top_k: Annotated[
        int, typer.Option(help="Choose among so many of the likeliest tokens; 0: all, 1: always the likeliest.")
    ] = Sampling.top_k,
    top_p: Annotated[
        float, typer.Option(help="Choose among the likeliest tokens that together have this probability; 1: all.")
    ] = Sampling.top_p,
    repetition_penalty: Annotated[
        float, typer.Option(help="Makes tokens that the reply has already less likely; 1: off.")
    ] = Sampling.repetition_penalty,
    system: Annotated[
        str | None, typer.Option(help="System prompt instead of the persona's own; '': none. Default: its own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the sampling, the same for all columns.")] = Sampling.seed,
    max_new_tokens: Annotated[
        int, typer.Option(help="Longest reply, in tokens, if it does not end before.")
    ] = Sampling.max_new_tokens,
    base: Annotated[str, typer.Option(help=ADAPTER_BASE_HELP)] = "",
    template: AdapterTemplate = "",
    quantization: Quantization = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare base and persona: both answer the same questions, in one batch and with the same seed."""
    from persona.compare import question_list, session

    asked = [*(prompt or []), *(question_list.read_questions(questions) if questions else [])]
    if not asked:
        raise typer.BadParameter("Nothing to ask. Give --prompt TEXT or --questions FILE.", param_hint="--prompt")
    if save:
        question_list.require_table_format(save)
    sampling = Sampling(temperature, top_p, top_k, min_p, repetition_penalty, seed, max_new_tokens)
    session.check_strength(strength)
    model, voices = _open_voices(adapter, others or [], base, strength, quantization, system, template)
    start, rows = time.perf_counter(), []
    for row in question_list.ask_questions(model, voices, asked, sampling):
        rows.append(row)
        if questions:
            print_note(f"{len(rows)} of {len(asked)} asked")
    rate = sum(r.tokens for row in rows for r in row.replies) / (time.perf_counter() - start)
    labels = [v.label for v in voices]
    if save:
        question_list.save_table(save, labels, rows)
        print_note(f"Saved {save}")
    text = "\n\n".join(_format_row(labels, row) for row in rows)
    print_result({"turns": [_turn_json(labels, row) for row in rows], "tokens_per_s": round(rate, 2)}, text, as_json)


def _open_voices(
    adapter: str, others: list[str], base: str, strength: float, quantization: str, system: str | None, template: str
) -> tuple[Any, list[Any]]:
    """The model and its columns: base, persona, then `others`. base, template: "" for the adapter's own."""
    from persona.compare import session
    from persona.share.adapter_ref import AdapterRef
    from persona.share.open_adapter import open_adapter, open_voice, read_supplement

    if len(others) > session.MAX_COLUMNS - 2:
        raise InputError(
            "{count} columns: base and persona, and {limit} more at most.",
            count=len(others) + 2,
            limit=session.MAX_COLUMNS - 2,
        )
    told = read_supplement(template)
    main = open_adapter(AdapterRef.parse(adapter), told)
    how = session.base_of(main, base, print_note), quantization, main.quantization
    print_note(session.plan_opening(*how).describe())
    model = session.open_model(*how)
    voices = session.default_voices(model, main, strength, system)
    for text in others:
        voice = open_voice(model, text, main, any_base=bool(base), system=system, supplement=told)
        if any(voice.label == v.label for v in voices):
            raise InputError(
                "--with {text}: there is a column {label} already. Name each column once.",
                text=text,
                label=repr(voice.label),
            )
        voices.append(voice)
    return model, voices


def _turn_json(labels: list[str], row: Any) -> dict[str, Any]:
    """base and adapter are the first two columns: the base is given the adapter's very prompt."""
    columns = [
        {"label": label, "rendered": c.prompt.text, "text": r.text, "tokens": r.tokens, "ended": r.ended,
         "error": r.error, "book_entries": list(c.prompt.entries)} | ({"thinking": r.thinking} if r.thinking else {})
        for label, c, r in zip(labels, row.columns, row.replies, strict=True)
    ]  # fmt: skip
    base, persona = columns[:2]
    return {"prompt": row.question, "rendered": persona["rendered"], "base": base["text"], "adapter": persona["text"],
            "columns": columns}  # fmt: skip


def _format_row(labels: list[str], row: Any) -> str:
    width = max(map(len, labels)) + 2
    answers = (
        f"{f'{label}:':<{width}}{r.error or _reply_text(r)}" for label, r in zip(labels, row.replies, strict=True)
    )
    fired = dict.fromkeys(entry for column in row.columns for entry in column.prompt.entries)
    book = [f"(from the book: {', '.join(fired)})"] if fired else []
    return "\n".join([f"> {row.question}", *book, *answers])


def _reply_text(reply: Any) -> str:
    """A reply, and that it thought first; of one that ended within its thinking, how it thought."""
    if not reply.thinking:
        return reply.text
    return f"(thought first) {reply.text}" if reply.text else f"(still thinking: {reply.thinking} …)"
