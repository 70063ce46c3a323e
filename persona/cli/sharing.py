"""export, push: the persona leaves the house."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.common import AsJson, note, put
from persona.errors import InputError


class Form(StrEnum):
    """What an export may be."""

    zip = "zip"
    merged = "merged"
    gguf = "gguf"
    card = "card"
    dataset = "dataset"


def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    out: Annotated[Path, typer.Argument(help="The file (zip, card) or folder to write.")],
    form: Annotated[Form, typer.Option("--as", help="zip: for this app. merged: a whole model. gguf: for llama.cpp and "
                                       "Ollama. card: a character card (.json, .png). dataset: for other trainers.",
                                       show_choices=True)] = Form.zip,
    base: Annotated[str, typer.Option(help="merged, gguf: the base, if not the adapter's own.")] = "",
    strength: Annotated[float, typer.Option(help="merged, gguf --merge: 0: the base, 1: as trained.")] = 1.0,
    merge: Annotated[bool, typer.Option("--merge", help="gguf: one whole model in place of an adapter.")] = False,
    version: Annotated[int, typer.Option(help="card, .json: version 2 or 3.")] = 3,
    picture: Annotated[Path | None, typer.Option(help="card, .png: its picture.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Write the persona for this app or for other programs."""
    out = out.expanduser()
    if form in (Form.card, Form.dataset):
        made = _of_pairs(adapter.expanduser(), out, form, version, picture)
    else:
        made = _of_weights(adapter.expanduser(), out, form, base, strength, merge)
    put(made, "\n".join([str(made.get("file") if "folder" not in made else made["folder"]), *_said(made)]), as_json)


def _of_pairs(path: Path, out: Path, form: Form, version: int, picture: Path | None) -> dict[str, Any]:
    from persona.exports import cards, trainers

    made = trainers.material(path)
    if form is Form.dataset:
        return trainers.export(made, out)
    return cards.export(made.card, made.pairs, out, version, picture)


def _of_weights(path: Path, out: Path, form: Form, base: str, strength: float, merge: bool) -> dict[str, Any]:
    from persona import adapter as adapters

    if strength != 1 and (form is Form.zip or (form is Form.gguf and not merge)):
        raise InputError(f"--strength {strength}: an adapter goes out as it was trained; only a merged model has one.")
    folder = adapters.locate(path)
    if form is Form.zip:
        from persona import modelcard, share
        from persona.exports import place

        place.must_be_new(out)
        modelcard.restate(folder, modelcard.persona_of(folder))
        packed = share.pack(folder, out)
        return {"file": str(packed), "bytes": packed.stat().st_size}
    from persona import chat
    from persona.exports import llamacpp, merged

    adapter = adapters.check(folder)
    found = chat.base_of(adapter, base)
    if form is Form.merged:
        return merged.export(adapter, found, out, strength, note)
    if merge:
        return llamacpp.export_merged(adapter, found, out, base, strength, note)
    return llamacpp.export_adapter(adapter, found, out, base, note)


def _said(made: dict[str, Any]) -> list[str]:
    lines = list(made.get("notes", []))
    if d := made.get("difference"):
        lines.append(
            f"Measured over {d['tokens']} tokens: the same likeliest token {100 * d['same']:.1f} % of the time, KL "
            f"{d['kl']:.2g} nats per token, largest difference of a logit {d['largest']:.3g}"
        )
    return lines


def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; wants the rights field.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the adapter on the Hugging Face Hub, private unless --public. Token: `hf auth login` or HF_TOKEN."""
    from persona import adapter as adapters
    from persona import hub, modelcard

    found = adapters.locate(adapter.expanduser())
    modelcard.restate(found, modelcard.persona_of(found))
    done = hub.push(found, repo, public=public)
    put({"url": done["url"], "link": done["link"]}, f"{done['url']}\n{done['link']}", as_json)
