"""What an export of pairs is made from: read from a run, an adapter or a persona."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona.errors import PersonaError
from persona.models import adapter as adapters
from persona.store.kept_card import read_kept_card
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, open_persona
from persona.template.chat_template import ChatTemplate
from persona.train.config import RunConfig, make_config
from persona.train.run_folder import RunRow, find_persona_folder, open_run, present_card


@dataclass(frozen=True)
class ExportMaterial:
    """What a persona is made of: card, rows, settings, base and template (None before the first run).

    kept: the character card that it was made of, {} for none. home: the persona's folder, None where it is not here.
    """

    card: PersonaCard
    rows: list[RunRow]
    config: RunConfig
    base_id: str
    template: ChatTemplate | None
    kept: dict[str, Any] = field(default_factory=dict)
    home: Path | None = None

    @property
    def pairs(self) -> list[Pair]:
        return [r.pair for r in self.rows]


def load_material(path: Path) -> ExportMaterial:
    """From the folder of a run, its adapter, a persona (its newest run, else its pairs alone), or another adapter.

    Raises InputError or AdapterError.
    """
    path = path.expanduser()
    try:
        folder = adapters.locate_adapter(path)
    except PersonaError:
        persona = open_persona(path)
        rows, kept = [RunRow(p, False) for p in persona.pairs()], read_kept_card(persona.path)
        return ExportMaterial(persona.card(), rows, make_config(), "", None, kept, persona.path)
    adapter = adapters.read_adapter(folder)
    run = folder.parent if (folder.parent / "pairs.jsonl").is_file() and folder.name == "adapter" else None
    settings = adapter.facts.get("config")
    known = {k: v for k, v in (settings if isinstance(settings, dict) else {}).items() if k in RunConfig.model_fields}
    rows = open_run(run).rows() if run else []
    home = find_persona_folder(folder)
    kept = read_kept_card(home) if home else {}
    card = present_card(folder, adapter.card)
    return ExportMaterial(card, rows, make_config(**known), adapter.base_id, adapter.template, kept, home)
