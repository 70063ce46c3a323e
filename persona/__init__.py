"""Persona: write pairs, train a LoRA, talk to base and persona side by side, share the adapter.

    mags = persona.open_persona("lighthouse-keeper")
    run = persona.train_persona(mags, epochs=2)
    for turn in persona.chat(run.adapter, ["Who are you?"]):
        print(turn["base"], turn["adapter"])
    persona.export_adapter(run.adapter, "mags.zip")

Importing this package imports nothing heavy: torch and the rest come with the first call that needs them.
"""

import os
import tomllib
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona.compare.question_list import Answers
    from persona.store.persona_folder import Persona
    from persona.template.mask_html import RenderedPair
    from persona.template.render import Renderer
    from persona.train.config import RunConfig
    from persona.train.run_folder import Run

# before huggingface_hub is imported: else TRL reports each trainer that is built, and hf_xet each transfer
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__all__ = [
    "Persona", "Renderer", "RunConfig", "__version__", "chat", "export_adapter", "open_persona", "render_pair",
    "train_persona",
]  # fmt: skip

_CLASSES = {
    "Persona": "persona.store.persona_folder",
    "Renderer": "persona.template.render",
    "RunConfig": "persona.train.config",
}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return getattr(import_module(_CLASSES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def open_persona(name: "str | Path") -> "Persona":
    """The persona in a folder, or the user's persona of that name.

    By the name of an example ("zhen-huan", "lighthouse-keeper") it is the user's own copy, made on first use under
    PERSONA_HOME. Raises InputError.
    """
    from persona.store import persona_folder

    return persona_folder.open_by_name(name)


def render_pair(
    persona: "Persona", number: int = 1, base: str = "", template: str = "auto"
) -> "RenderedPair":  # fmt: skip
    """Pair `number`, from 1, as the model reads it: `.tokens`, each learned or masked; coloured in a notebook.

    base: default the embedded one. template: a shipped one's name, a file, or auto: the base's. Raises InputError where
    there is no such pair, BaseError or TemplateError.
    """
    from persona.models import open_renderer

    return open_renderer.render_pair(persona, number, base, template)[1]


def train_persona(persona: "Persona", preset: str = "", *, parent: "str | Path" = "", **settings: Any) -> "Run":
    """Train a LoRA on the persona's pairs, in a process of its own, and wait for its end, with a progress bar.

    preset: quick (the default), balanced or thorough; further (the default with `parent`). parent: an adapter to go on
    from, as in chat(). settings: fields of RunConfig on top of it, e.g. base="Qwen/Qwen3-0.6B". What is not given is
    fitted to this machine. The adapter is in `run.adapter`, figures in `run.progress().result`. Raises InputError for
    settings or pairs that cannot work, RunError when the run failed.
    """
    from persona.train import launcher
    from persona.train.aliases import resolve_aliases
    from persona.train.config import FURTHER, make_config
    from persona.train.progress_bar import show_progress_bar

    begin = None
    if parent:
        from persona.share.adapter_ref import AdapterRef
        from persona.share.open_adapter import open_parent

        begin = open_parent(AdapterRef.parse(parent))
    config = make_config(preset or (FURTHER if begin else "quick"), **settings)
    run, _ = launcher.create_fitted_run(persona, config, resolve_aliases(settings), begin)
    launcher.start_run(run)
    with show_progress_bar() as move_bar:
        launcher.wait_for_run(run, move_bar)
    return run


def chat(
    adapter: "str | Path", prompts: Sequence[str], base: str = "", quantization: str = "auto", template: str = "",
    system: str | None = None, **sampling: Any,
) -> "Answers":  # fmt: skip
    """Ask base and persona the same questions in one batch. Each prompt is a conversation of its own.

    adapter: a folder, run, zip, USER/NAME on the Hub or the name of a persona. base: if not its own.
    quantization: of the base in memory: auto (as the adapter was trained; on a CPU in full precision if that fits),
    none, nf4 or int8. template: that an adapter without one was trained with. system: instead of the persona's own
    prompt. sampling: fields of Sampling, e.g. temperature=0, max_new_tokens=64. Returns a list of
    {"prompt", "base", "adapter"}, one for each prompt; a table in a notebook. Raises PersonaError.
    """
    from persona.compare import question_list, session
    from persona.models.sampling import Sampling
    from persona.share.adapter_ref import AdapterRef
    from persona.share.open_adapter import open_adapter, read_supplement

    opened = open_adapter(AdapterRef.parse(adapter), read_supplement(template))
    model = session.open_model(session.base_of(opened, base), quantization, opened.quantization)
    voices = session.default_voices(model, opened, system=system)
    rows = question_list.ask_questions(model, voices, list(prompts), Sampling(**sampling))
    return question_list.Answers(
        {"prompt": r.question, "base": r.replies[0].text, "adapter": r.replies[1].text} for r in rows
    )


def export_adapter(adapter: "str | Path", out: "str | Path", form: str = "zip") -> Path:
    """Write an adapter as zip, merged, gguf, card or dataset; `out` must not exist yet. Returns the file or folder.

    Raises InputError or AdapterError where this form is not possible.
    """
    from persona.share.exports import formats

    made = formats.write_export(Path(adapter), Path(out), formats.ExportFormat(form))
    return Path(made.get("folder") or made["file"])


def _version() -> str:
    """pyproject.toml's of a checkout, whatever else is installed; else that of the installed package.

    Code that was sent to a machine by itself, as to the workers of a cluster, has neither.
    """
    project = Path(__file__).resolve().parent.parent / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    try:
        return metadata.version("persona")
    except metadata.PackageNotFoundError:
        return "0+unknown"


__version__ = _version()
