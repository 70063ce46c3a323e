"""`persona export` and `persona push`: hand the persona to other programs and people."""

from pathlib import Path
from typing import Annotated, Any

import typer

from persona.cli.output import ADAPTER_HELP, AdapterTemplate, AsJson, print_note, print_result
from persona.share.exports import formats
from persona.share.exports.formats import ExportFormat, Quantization


def export(
    adapter: Annotated[
        str,
        typer.Argument(metavar="ADAPTER", help=f"{ADAPTER_HELP} For card and dataset also a persona without a run."),
    ],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="A new file (zip, card) or a new folder (merged, gguf, dataset).")
    ],
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--as",
            help="zip: the adapter, for Persona. merged: a whole model for Hugging Face programs. gguf: for llama.cpp "
            "and Ollama. card: a character card. dataset: pairs and settings for other trainers.",
            show_choices=True,
        ),
    ] = ExportFormat.zip,
    base: Annotated[
        str,
        typer.Option(
            help="For merged and gguf: base model, by name, Hub id, folder or .gguf file. Default: the adapter's own."
        ),
    ] = "",
    strength: Annotated[
        float, typer.Option(help="For merged and gguf --merge: 0 is the base, 1 the adapter as trained, 2 the most.")
    ] = 1.0,
    merge: Annotated[
        bool, typer.Option("--merge", help="For gguf: one whole model instead of an adapter beside its base.")
    ] = False,
    quantize: Annotated[
        Quantization, typer.Option(help="For gguf --merge: bits of the weights; none is 16 bits.", show_choices=True)
    ] = Quantization.none,
    version: Annotated[int, typer.Option(help="For a card in a .json file: version 2 or 3 of its format.")] = 3,
    picture: Annotated[
        Path | None, typer.Option(help="For a card in a .png file: an image file. Default: the initials, drawn.")
    ] = None,
    template: AdapterTemplate = "",
    as_json: AsJson = False,
) -> None:
    """Write the persona as a file or folder, for this app or for other programs."""
    from persona.share.adapter_ref import AdapterRef
    from persona.share.open_adapter import locate_folder, read_supplement

    options = formats.ExportOptions(base, strength, merge, quantize, version, picture)
    folder = locate_folder(AdapterRef.parse(adapter), read_supplement(template))
    result = formats.write_export(folder, out.expanduser(), form, options, print_note)
    print_result(result, "\n".join([str(result.get("folder") or result["file"]), *_format_notes(result)]), as_json)


def blend(
    voice: Annotated[
        str, typer.Argument(metavar="BLEND", help="'A*0.6 + B*0.4', or 'A*0.7': adapters as in `persona chat`.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    rank: Annotated[
        int, typer.Option(help="Reduce it to this rank, by an SVD; the error is printed. Default: exact.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Save a blend, or an adapter at a strength, as an adapter of its own: to share, export or train further."""
    from persona.share import open_adapter
    from persona.share.adapter_ref import AdapterRef

    made = open_adapter.save_blend(AdapterRef.parse_voice(voice), out.expanduser(), rank)
    how = f"{made.error:.1%} of the update is missing" if made.error else "exact"
    value = {"folder": str(made.folder), "rank": made.rank, "error": made.error}
    print_result(value, f"{made.folder}\nRank {made.rank}, {how}", as_json)


def _format_notes(result: dict[str, Any]) -> list[str]:
    lines = list(result.get("notes", []))
    if d := result.get("difference"):
        lines.append(
            f"Measured over {d['tokens']} tokens: the same likeliest token {100 * d['same']:.1f} % of the time, KL "
            f"{d['kl']:.2g} nats per token, largest difference of a logit {d['largest']:.3g}"
        )
    return lines


def push(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help=ADAPTER_HELP)],
    repo: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository; it is made if it is not there. Or NAME alone.")
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="Visible to everyone; needs 'rights' in persona.json. Default: private."),
    ] = False,
    template: AdapterTemplate = "",
    as_json: AsJson = False,
) -> None:
    """Upload the adapter to the Hugging Face Hub, private unless --public. Needs `hf auth login` or HF_TOKEN."""
    from persona.models import adapter as adapters
    from persona.share import hub, refresh_card
    from persona.share.adapter_ref import AdapterRef
    from persona.share.open_adapter import locate_folder, read_supplement
    from persona.train.run_folder import find_persona_card

    folder = adapters.locate_adapter(locate_folder(AdapterRef.parse(adapter), read_supplement(template)))
    refresh_card.refresh_model_card(folder, find_persona_card(folder))
    result = hub.push_adapter(folder, repo, public=public)
    print_result({"url": result["url"], "link": result["link"]}, f"{result['url']}\n{result['link']}", as_json)
