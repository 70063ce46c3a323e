"""README.md of an adapter: the card by which a stranger knows what it is, may do with it, and how to load it.

`render` makes it from templates/model-card.md.jinja. `restate` makes it anew before the adapter is shared: with the
answers and the loss that its run has noted by then, and with what its persona says of source and rights by then.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import jinja2

from persona.models.sampling import Sampling
from persona.store.persona_folder import PersonaCard
from persona.store.workspace import TEMPLATES_DIR

LOSS_PICTURE = "loss.png"
LOCAL_FOLDER_CODE = 'folder = "."  # where this file is'
MAX_ANSWER_CHARS = 400  # characters of one answer
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class SampleAnswers:
    """One question, and both answers to it; `base` is "" where only the adapter was asked."""

    question: str
    base: str
    adapter: str


@dataclass(frozen=True)
class CardEvidence:
    """What was seen of an adapter besides its own files."""

    samples: tuple[SampleAnswers, ...] = ()
    verdict: str = ""
    picture: bool = False


def render_model_card(card: PersonaCard, run: dict[str, Any], found: CardEvidence = CardEvidence()) -> str:
    """The card as text. run: run.json of the adapter."""
    env = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"json": _json, "plain": escape_markdown, "line": escape_line}
    base = run["base"]
    revision = str(base.get("revision") or "")
    language = card.language.split("-")[0].lower()
    return env.from_string((TEMPLATES_DIR / "model-card.md.jinja").read_text(encoding="utf-8")).render(
        card=card, run=run, found=found, config=run["config"], figures=run["figures"], here=LOCAL_FOLDER_CODE,
        # what the Hub would refuse as metadata is left out of it
        base_id=base["id"] if _HUB_ID.fullmatch(base["id"]) else "",
        language=language if re.fullmatch(r"[a-z]{2,3}", language) else "",
        revision=revision if _COMMIT.fullmatch(revision) else "",
        converted=revision.startswith("gguf"),
        drawing=_generate_arguments(card), stop=(run.get("stop") or {}).get("id"),
        question=card.probes[0] if card.probes else "Who are you?",
    )  # fmt: skip


def _generate_arguments(card: PersonaCard) -> str:
    """The arguments of generate(): as Persona draws, or as the author chose.

    Not quite the same: generate() counts the prompt too when it penalizes repetition, Persona the reply alone.
    """
    usual = Sampling()
    chosen = {name: getattr(usual, name) for name in ("temperature", "top_p", "repetition_penalty")}
    chosen |= card.sampling.chosen()
    if not chosen["temperature"]:
        return f"do_sample=False, repetition_penalty={chosen['repetition_penalty']}"
    return "do_sample=True, " + ", ".join(f"{k}={v}" for k, v in chosen.items())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def escape_line(text: Any) -> str:
    """In one line, without HTML and columns; an address in it stays one."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "&#124;")


def escape_markdown(text: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """Text from anyone, in one line of at most `limit` characters, so that none of it is Markdown or HTML."""
    short = text if len(text) <= limit else text[:limit].rstrip() + " …"
    safe = " ".join(short.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()+!|~>]|^[#-])", r"\\\1", safe)


def adapt_card_for_hub(readme: str, repo: str) -> str:
    """The card as it stands on the Hub: its lines of code fetch the adapter from there."""
    return readme.replace(LOCAL_FOLDER_CODE, f"folder = huggingface_hub.snapshot_download({_json(repo)})")
