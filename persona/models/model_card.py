"""Render the model card of an adapter, its README.md: what the adapter is, its terms, results and how to load it.

The template is templates/model-card.md.jinja. share/refresh_card.py renders it again before the adapter is shared, with
the run's answers and loss.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2

from persona.models.sampling import Sampling
from persona.store.persona_folder import PersonaCard
from persona.store.workspace import TEMPLATES_DIR

LOSS_PICTURE = "loss.png"
LOCAL_FOLDER_CODE = 'folder = "."  # where this file is'
MAX_ANSWER_CHARS = 400  # of one answer on the card
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class SampleAnswers:
    """A question with the answers of base and adapter; base: "" where only the adapter was asked.

    trained_on: whether the question is in the training data; None where that is not known.
    """

    question: str
    base: str
    adapter: str
    trained_on: bool | None = None


@dataclass(frozen=True)
class CardEvidence:
    """Results of an adapter that are not in its own files. picture: whether loss.png is there."""

    samples: tuple[SampleAnswers, ...] = ()
    verdict: str = ""
    picture: bool = False


def render_model_card(card: PersonaCard, run: dict[str, Any], evidence: CardEvidence = CardEvidence()) -> str:
    """The card as Markdown with the Hub's metadata. run: run.json of the adapter."""
    base = run["base"]
    revision = str(base.get("revision") or "")
    language = card.language.split("-")[0].lower()
    return _template().render(
        card=card, run=run, found=evidence, config=run["config"], figures=run["figures"], here=LOCAL_FOLDER_CODE,
        # values that the Hub would refuse as metadata are left out
        base_id=base["id"] if _HUB_ID.fullmatch(base["id"]) else "",
        language=language if re.fullmatch(r"[a-z]{2,3}", language) else "",
        revision=revision if _COMMIT.fullmatch(revision) else "",
        converted=revision.startswith("gguf"),
        drawing=_generate_arguments(card), stop=(run.get("stop") or {}).get("id"),
        question=card.probes[0] if card.probes else "Who are you?",
    )  # fmt: skip


@cache  # each snapshot of a run has a card
def _template() -> jinja2.Template:
    env = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"json": _json, "plain": escape_markdown, "line": escape_line, "count": _count}
    return env.from_string((TEMPLATES_DIR / "model-card.md.jinja").read_text(encoding="utf-8"))


def _generate_arguments(card: PersonaCard) -> str:
    """The sampling arguments of transformers' generate(): Persona's defaults, or the author's choice.

    Not quite the same: the repetition penalty of generate() counts the prompt too, Persona's the reply only.
    """
    defaults = Sampling()
    settings = {name: getattr(defaults, name) for name in ("temperature", "top_p", "repetition_penalty")}
    settings |= card.sampling.chosen()
    if not settings["temperature"]:
        return f"do_sample=False, repetition_penalty={settings['repetition_penalty']}"
    return "do_sample=True, " + ", ".join(f"{k}={v}" for k, v in settings.items())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def escape_line(text: Any) -> str:
    """Text in one line, with < and | escaped; a URL in it stays a link."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "&#124;")


def escape_markdown(text: str, limit: int = MAX_ANSWER_CHARS) -> str:
    """Untrusted text in one line of at most `limit` characters, escaped so that none of it is Markdown or HTML."""
    short = text if len(text) <= limit else text[:limit].rstrip() + " …"
    safe = " ".join(short.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()+!|~>]|^[#-])", r"\\\1", safe)


def adapt_card_for_hub(readme: str, repo: str) -> str:
    """The card as it is on the Hub: its code downloads the adapter from there."""
    return readme.replace(LOCAL_FOLDER_CODE, f"folder = huggingface_hub.snapshot_download({_json(repo)})")
