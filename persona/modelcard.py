"""README.md of an adapter: the card by which a stranger knows what it is, may do with it, and how to load it.

`render` makes it from templates/model-card.md.jinja. `restate` makes it anew before the adapter is shared: with the
answers and the loss that its run has noted by then, and with what its persona says of source and rights by then.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from persona.errors import InputError, Message
from persona.files import TEMPLATES, read_json, to_json, write_atomic
from persona.folder import Card, parse_card
from persona.picture import draw
from persona.runs import Run
from persona.sampling import Sampling

PICTURE = "loss.png"
HERE = 'folder = "."  # where this file is'
MAX_SAMPLES = 6
MAX_ANSWER = 400  # characters of one answer
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Sample:
    """One question, and both answers to it; `base` is "" where only the adapter was asked."""

    question: str
    base: str
    adapter: str


@dataclass(frozen=True)
class Found:
    """What was seen of an adapter besides its own files."""

    samples: tuple[Sample, ...] = ()
    verdict: str = ""
    picture: bool = False


def render(card: Card, run: dict[str, Any], found: Found = Found()) -> str:
    """The card as text. run: run.json of the adapter."""
    env = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True
    )
    env.filters |= {"json": _json, "plain": plain, "line": line}
    base = run["base"]
    revision = str(base.get("revision") or "")
    language = card.language.split("-")[0].lower()
    return env.from_string((TEMPLATES / "model-card.md.jinja").read_text(encoding="utf-8")).render(
        card=card, run=run, found=found, config=run["config"], figures=run["figures"], here=HERE,
        # what the Hub would refuse as metadata is left out of it
        base_id=base["id"] if _HUB_ID.fullmatch(base["id"]) else "",
        language=language if re.fullmatch(r"[a-z]{2,3}", language) else "",
        revision=revision if _COMMIT.fullmatch(revision) else "",
        converted=revision.startswith("gguf"),
        drawing=_drawing(card), stop=(run.get("stop") or {}).get("id"),
        question=card.probes[0] if card.probes else "Who are you?",
    )  # fmt: skip


def _drawing(card: Card) -> str:
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


def line(text: Any) -> str:
    """In one line, without HTML and columns; an address in it stays one."""
    return " ".join(str(text).split()).replace("<", "&lt;").replace("|", "&#124;")


def plain(text: str, limit: int = MAX_ANSWER) -> str:
    """Text from anyone, in one line of at most `limit` characters, so that none of it is Markdown or HTML."""
    short = text if len(text) <= limit else text[:limit].rstrip() + " …"
    safe = " ".join(short.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]()+!|~>]|^[#-])", r"\\\1", safe)


def persona_of(adapter: Path) -> Card | None:
    """The card of the persona in whose folder the adapter's run lies (PERSONA/runs/RUN/adapter), if it lies in one."""
    above = adapter.resolve().parents
    if len(above) < 3 or above[1].name != "runs" or not (above[2] / "persona.json").is_file():
        return None
    return parse_card(read_json(above[2] / "persona.json", Message("a persona")), str(above[2] / "persona.json"))


def restate(adapter: Path, persona: Card | None = None) -> None:
    """Bring what an adapter says of itself up to date, where it still lies in the folder of its run.

    Source, rights, author and sampling are those of `persona` now; what it was trained with (name, system prompt,
    probes) stays. An adapter from elsewhere is left as it is.
    """
    run = Run(adapter.parent)
    if not (run.path / "run.json").is_file() or not (adapter / "run.json").is_file():
        return
    card = parse_card(read_json(adapter / "persona.json", Message("a persona")), "persona.json")
    if persona:
        said = {name: getattr(persona, name) for name in ("author", "source", "rights", "sampling")}
        card = card.model_copy(update=said)
    facts = read_json(adapter / "run.json", Message("a run"))
    found = look(run, facts, adapter / PICTURE)
    _write(adapter / "persona.json", to_json(card.model_dump(mode="json")))
    _write(adapter / "README.md", render(card, facts, found))


def _write(file: Path, text: str) -> None:
    if not file.is_file() or file.read_text(encoding="utf-8", errors="replace") != text:
        write_atomic(file, text)


def look(run: Run, facts: dict[str, Any], picture: Path) -> Found:
    """What the run's events, and its report if it was judged, say of the adapter with these facts."""
    seen = run.progress()
    step = facts.get("figures", {}).get("steps")
    report = _report(run.path / "report.json", step)
    pages = dict(seen.diary)
    learned = pages.get(seen.chosen if seen.chosen is not None else step, [])
    before = {a["probe"]: a["text"] for a in pages.get(0, [])}
    diary = [Sample(a["probe"], before.get(a["probe"], ""), a["text"]) for a in learned]
    return Found(
        tuple(s for s in _judged(report) or diary if s.adapter.strip())[:MAX_SAMPLES],
        str((report.get("verdict") or {}).get("said") or ""),
        draw(seen.train, seen.held_out, picture),
    )


def _report(file: Path, step: Any) -> dict[str, Any]:
    """report.json, unless there is none or it is about another moment of the run."""
    try:
        report = read_json(file, Message("a report"))
    except InputError:
        return {}
    return report if report.get("steps") in (None, step) else {}


def _judged(report: dict[str, Any]) -> list[Sample]:
    """Its probes. Its held-out pairs are not for strangers: they are text of the author's that never leaves."""
    probes = report.get("probes") or []
    return [Sample(p["ask"], p["base"]["text"], p["replies"][0]["text"]) for p in probes if p.get("replies")]


def for_hub(readme: str, repo: str) -> str:
    """The card as it stands on the Hub: its lines of code fetch the adapter from there."""
    return readme.replace(HERE, f"folder = huggingface_hub.snapshot_download({_json(repo)})")
