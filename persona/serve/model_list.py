"""The models that a server lists: bases and adapters, each under a unique name."""

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from persona.compare.session import base_of, renderer_of
from persona.errors import PersonaError
from persona.models import adapter as adapters
from persona.models import base as bases
from persona.models.adapter import Adapter
from persona.models.base import Base
from persona.serve.api_errors import ApiError
from persona.share.adapter_ref import AdapterRef
from persona.share.open_adapter import open_adapter, opened_dir, read_supplement
from persona.store import files, persona_folder, workspace
from persona.template.chat_template import ChatTemplate
from persona.template.render import Renderer
from persona.template.select import choose_template
from persona.train import run_folder


@dataclass(frozen=True)
class ServedModel:
    """A model by its name in the API. adapter: None for the base alone, which is then asked with `template`.

    quantization: as the server was asked for it, a ChatQuantization. trained: how the base was quantized while its
    first adapter was trained, so that all models of a base are answered by one in memory.
    """

    id: str
    base: Base
    adapter: Adapter | None = None
    template: ChatTemplate | None = None
    quantization: str = "auto"
    trained: str = "none"

    @property
    def opening(self) -> tuple[Base, str, str]:
        """The arguments of session.open_model()."""
        return self.base, self.quantization, self.trained

    @property
    def created(self) -> int:
        """When it was written, in seconds since 1970."""
        path = self.adapter.path / "adapter_config.json" if self.adapter else self.base.path / "config.json"
        return int(path.stat().st_mtime) if path.is_file() else 0

    def renderer(self, system: str | None) -> Renderer:
        """The renderer of its training. system: the request's own, None for the persona's; a base has none."""
        tokenizer = bases.load_tokenizer(self.base)
        if self.adapter:
            return renderer_of(self.adapter, tokenizer, system)
        return Renderer(tokenizer, self.template or _template_of(self.base), system or "")


@lru_cache(maxsize=4)
def _template_of(base: Base) -> ChatTemplate:
    return choose_template(bases.load_tokenizer(base))


def open_named_models(
    references: Sequence[str], base: str = "", quantization: str = "auto", template: str = ""
) -> list[ServedModel]:
    """The models named on the command line, ADAPTER (see AdapterRef.parse) or NAME=ADAPTER, and their bases.

    base: instead of the adapters' own. Without adapters: this base alone, or list_home_models(). quantization: of the
    bases in memory, a ChatQuantization. template: with which the adapters were trained, "" for their own.
    """
    told = read_supplement(template)
    if not references and not base:
        home = list_home_models() or list_models([], [bases.resolve_base("")])
        return [replace(one, quantization=quantization) for one in home]
    opened = []
    for text in references:
        name, sign, rest = text.partition("=")
        if not sign or files.path_exists(files.expand_home(text)):
            name, rest = "", text
        adapter = open_adapter(AdapterRef.parse(rest), told)
        opened.append((name.strip(), adapter, base_of(adapter, base)))
    named = list_models(opened, [bases.resolve_base(base)] if base else [])
    return [replace(one, quantization=quantization) for one in named]


def list_home_models() -> list[ServedModel]:
    """Each persona's newest adapter, the adapters that were opened on the page, and their bases, if on this disk.

    So a request never starts a download. On a shared server they are the owner's, never a visitor's.
    """
    with workspace.as_visitor(""):
        return _read_home_models()


def _read_home_models() -> list[ServedModel]:
    paths = [
        next((r.adapter for r in run_folder.list_runs(p) if r.adapter.is_dir()), None)
        for p in persona_folder.list_personas()
    ]
    opened = [p.parent for p in opened_dir().glob("*/adapter_config.json")]
    found = []
    for path in sorted(p for p in [*paths, *opened] if p):
        with contextlib.suppress(OSError):
            adapter = _checked(path, (path / adapters.WEIGHTS_FILE).stat().st_mtime)
            base = bases.find_local_base(adapter.base_id) if adapter and adapter.base_id else None
            if adapter and base:
                found.append(("", adapter, base))
    default = bases.find_local_base("")
    return list_models(found, [default] if default else [])


@lru_cache(maxsize=64)
def _checked(path: Path, _stamp: float) -> Adapter | None:
    try:
        return adapters.read_adapter(path)
    except PersonaError:
        return None  # the page shows the reason; the API leaves it out


def list_models(found: Iterable[tuple[str, Adapter, Base]], more: Iterable[Base]) -> list[ServedModel]:
    """Bases first, then adapters; a name that is taken gets a number.

    A base gets its first adapter's template, so that base and persona can be asked with the same prompt.
    """
    listed = list(found)
    templates: dict[Base, ChatTemplate | None] = {}
    trained: dict[Base, str] = {}
    for _, adapter, base in listed:
        templates.setdefault(base, adapter.template)
        trained.setdefault(base, adapter.quantization)
    for base in more:
        templates.setdefault(base, None)
    served: dict[str, ServedModel] = {}
    for base, template in templates.items():
        name = _free_name(base.id, served)
        served[name] = ServedModel(name, base, None, template, trained=trained.get(base, "none"))
    for given, adapter, base in listed:
        name = _free_name(given or model_name(adapter), served)
        served[name] = ServedModel(name, base, adapter, trained=trained[base])
    return list(served.values())


def _free_name(name: str, taken: Iterable[str]) -> str:
    known, n = set(taken), 1
    while (free := name if n == 1 else f"{name}-{n}") in known:
        n += 1
    return free


def model_name(adapter: Adapter) -> str:
    """The name of the persona's folder for a run's adapter (…@STEP for a snapshot), else of the adapter's own."""
    ref = AdapterRef.from_folder(adapter.path)
    return files.slugify(adapter.card.name) if str(ref) == "opened/adapter" else ref.model_name


def find_model(served: Sequence[ServedModel], name: str) -> ServedModel:
    """Raises ApiError, 404, when there is no such model."""
    exact = re.sub(r"@0+(?=[1-9])", "@", name)  # clients may have kept NAME@000030, as snapshots were called before
    for one in served:
        if one.id in (name, exact):
            return one
    names = ", ".join(s.id for s in served[:20])
    raise ApiError(404, f"The model '{name[:200]}' does not exist. There are: {names}.", param="model",
                  code="model_not_found")  # fmt: skip
