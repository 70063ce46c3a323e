"""chat: base and persona, from the shell."""

from pathlib import Path
from typing import Annotated

import typer

from persona.cli.common import AsJson, put


def chat(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder, or a zip.")],
    prompt: Annotated[list[str], typer.Option(help="What to say; give it again for more, each on its own.")],
    strength: Annotated[float, typer.Option(help="0: the base, 1: as trained.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.4,
    seed: Annotated[int, typer.Option(help="The same for both columns.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    base: Annotated[str, typer.Option(help="Base model, if not the adapter's own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask base and persona the same, in one batch, with the same randomness."""
    from persona import adapter as adapters
    from persona import chat as chats
    from persona import files, share

    path = adapter.expanduser()
    found = share.unpack(path, files.home() / "adapters") if path.suffix == ".zip" else adapters.locate(path)
    sampling = chats.Sampling(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens)
    turns, rate = chats.answer(adapters.check(found), prompt, sampling, strength, base)
    text = "\n\n".join(f"> {t['prompt']}\nbase:    {t['base']}\npersona: {t['adapter']}" for t in turns)
    turns = [{k: t[k] for k in ("prompt", "rendered", "base", "adapter")} for t in turns]
    put({"turns": turns, "tokens_per_s": round(rate, 2)}, text, as_json)
