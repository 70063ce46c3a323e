"""Which models a server offers: bases and adapters, each under a name of its own."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from persona import adapter as adapters
from persona import base as bases
from persona import files, folder, runs, sources
from persona.adapter import Adapter
from persona.api.refusal import Refusal
from persona.base import Base
from persona.chat import base_of, renderer_of
from persona.choose import choose_template
from persona.errors import PersonaError
from persona.render import Renderer
from persona.templates import Template


@dataclass(frozen=True)
class Served:
    """A model by its name in the API. adapter: None for the base alone, which is then asked with `template`."""

    id: str
    base: Base
    adapter: Adapter | None = None
    template: Template | None = None

    @property
    def created(self) -> int:
        """When it was written, in seconds since 1970."""
        path = self.adapter.path / "adapter_config.json" if self.adapter else self.base.path / "config.json"
        return int(path.stat().st_mtime) if path.is_file() else 0

    def renderer(self, system: str | None) -> Renderer:
        """As in its training. system: the request's own, else the persona's counts; a bare base has none."""
        tokenizer = bases.load_tokenizer(self.base)
        if self.adapter:
            return renderer_of(self.adapter, tokenizer, system)
        return Renderer(tokenizer, self.template or _template_of(self.base), system or "")


@lru_cache(maxsize=4)
def _template_of(base: Base) -> Template:
    return choose_template(bases.load_tokenizer(base))


def named(spelled: Sequence[str], base: str = "") -> list[Served]:
    """What the command line names: ADAPTER or NAME=ADAPTER (see sources.open_adapter), and the bases below them.

    base: instead of what the adapters name. Without adapters it is this base alone, or the home's menu.
    """
    if not spelled and not base:
        return at_home() or menu([], [bases.resolve("")])
    found = []
    for text in spelled:
        name, sign, rest = text.partition("=")
        if not sign or Path(text).expanduser().exists():
            name, rest = "", text
        adapter = sources.open_adapter(rest)
        found.append((name.strip(), adapter, base_of(adapter, base)))
    return menu(found, [bases.resolve(base)] if base else [])


def at_home() -> list[Served]:
    """Each persona's newest adapter, the adapters that were opened on the page, and their bases, if on this disk.

    A request can so never start a download. On a shared server they are the owner's, never a visitor's.
    """
    with files.asking(""):
        return _of_home()


def _of_home() -> list[Served]:
    paths = [next((r.adapter for r in runs.list_runs(p) if r.adapter.is_dir()), None) for p in folder.list_personas()]
    opened = [p.parent for p in (files.home() / "adapters").glob("*/adapter_config.json")]
    found = []
    for path in sorted(p for p in [*paths, *opened] if p):
        with contextlib.suppress(OSError):
            adapter = _checked(path, (path / "adapter_model.safetensors").stat().st_mtime)
            base = bases.ready(adapter.base_id) if adapter and adapter.base_id else None
            if adapter and base:
                found.append(("", adapter, base))
    default = bases.ready("")
    return menu(found, [default] if default else [])


@lru_cache(maxsize=64)
def _checked(path: Path, _stamp: float) -> Adapter | None:
    try:
        return adapters.check(path)
    except PersonaError:
        return None  # the page says why; there is nothing here to offer


def menu(found: Iterable[tuple[str, Adapter, Base]], more: Iterable[Base]) -> list[Served]:
    """Bases first, then adapters; a name that is taken gets a number.

    A base is asked with its first adapter's template, so that base and persona can be given the same prompt.
    """
    listed = list(found)
    templates: dict[Base, Template | None] = {}
    for _, adapter, base in listed:
        templates.setdefault(base, adapter.template)
    for base in more:
        templates.setdefault(base, None)
    served: dict[str, Served] = {}
    for base, template in templates.items():
        name = _free(base.id, served)
        served[name] = Served(name, base, None, template)
    for given, adapter, base in listed:
        name = _free(given or name_of(adapter), served)
        served[name] = Served(name, base, adapter)
    return list(served.values())


def _free(name: str, taken: Iterable[str]) -> str:
    known, n = set(taken), 1
    while (free := name if n == 1 else f"{name}-{n}") in known:
        n += 1
    return free


def name_of(adapter: Adapter) -> str:
    """The folder that people gave a name to: the persona's for a run's adapter (…@STEP for a moment), else its own."""
    path = adapter.path.resolve()
    if path.name == "adapter" and path.parent.parent.name == "runs":
        return path.parents[2].name
    if path.parent.name == "moments" and path.parents[2].name == "runs":
        return f"{path.parents[3].name}@{path.name.removeprefix('step-')}"
    return files.slug(adapter.card.name) if path.name == "adapter" else path.name


def find(served: Sequence[Served], name: str) -> Served:
    """Raises Refusal, 404, when there is no such model."""
    for one in served:
        if one.id == name:
            return one
    have = ", ".join(s.id for s in served[:20])
    raise Refusal(404, f"The model '{name[:200]}' does not exist. There are: {have}.", param="model",
                  code="model_not_found")  # fmt: skip
