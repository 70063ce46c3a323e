"""Step 4, who answers: the adapters there are, the voices beside the persona, and the columns they make."""

import contextlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from persona import adapter, chat, endpoint, files, folder, hub, moments, runs, share, sources, space, talks
from persona.adapter import Adapter
from persona.chat import BASE, MAX_COLUMNS, Speaker, Voices
from persona.decode import Reply
from persona.errors import InputError, PersonaError
from persona.folder import Card
from persona.sampling import Sampling
from persona.templates import messages
from persona.ui.words import language, localized, t

ALONE, PROMPTED = "base", "base+prompt"  # the base without and with the persona's system prompt
DAY = "%d %b %H:%M"  # a date and time, as strftime wants it
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
MOMENTS_OF = 3  # runs, newest first, whose moments are offered too


@dataclass(frozen=True)
class Cast:
    """The columns of a comparison: what each is called, and who speaks in it.

    model: None where another server speaks (endpoint.py); `speakers` are the names of its models then.
    """

    card: Card
    model: Voices | None
    speakers: tuple[Any, ...]
    voices: tuple[talks.Voice, ...]

    def answer(
        self, histories: Sequence[Sequence[tuple[str, str]]], said: str, sampling: Sampling
    ) -> Iterator[list[Reply]]:
        """The replies of all columns to what was said, each after its own history, as they grow."""
        if self.model is None:
            url, key = endpoint.configured() or ("", "")
            asked = [messages(v.system, h, said) for v, h in zip(self.voices, histories, strict=True)]
            return endpoint.stream_endpoint(url, key, self.speakers, asked, sampling)
        columns = [s.ask(h, said) for s, h in zip(self.speakers, histories, strict=True)]
        return chat.stream(self.model, columns, sampling)


def adapters(slug: str) -> list[tuple[str, str]]:
    """(label, id) of the adapters to choose from: this persona's runs, newest first, then opened ones."""
    found = []
    if slug:
        persona = folder.by_slug(slug)
        name = persona.card().name
        for run in runs.list_runs(persona):
            if run.adapter.is_dir():
                found.append((t("{name}, {when}", name=name, when=when(run.name, t(DAY))), f"run/{slug}/{run.name}"))
    for path in sorted(opened_dir().glob("*/adapter_config.json")):
        found.append((t("{name} (opened)", name=path.parent.name), f"opened/{path.parent.name}"))
    return found


def choices(slug: str) -> list[tuple[str, str]]:
    """All that can be the persona of a comparison."""
    return [*adapters(slug), *elsewhere()]


def elsewhere() -> list[tuple[str, str]]:
    """(label, id) of the models of another server, where PERSONA_CHAT_URL names one."""
    try:
        return [(t("{name} (another server)", name=name), f"server/{name}") for name in endpoint.models()]
    except InputError as e:
        gr.Warning(escape(localized(e.message)))
        return []


def beside(slug: str, chosen: str = "") -> list[tuple[str, str]]:
    """(label, id) of the voices that can answer beside the chosen one: of the same server, or else of this page."""
    if (chosen or "").startswith("server/"):
        return elsewhere()
    found = [
        (t("Base, with her prompt"), PROMPTED),
        (t("Base alone, without a prompt"), ALONE),
        *(a for a in adapters(slug) if not a[1].startswith("server/")),
    ]
    for run in runs.list_runs(folder.by_slug(slug))[:MOMENTS_OF] if slug else []:
        for step in reversed(moments.steps(run)):
            moment = t("{when}, step {step}", when=when(run.name, t(DAY)), step=step)
            found.append((moment, f"run/{slug}/{run.name}@{step}"))
    return found


def when(run: str, day: str = DAY) -> str:
    """20261122-031500-a1b2 → 22 Nov 03:15; day: as strftime wants it."""
    try:
        return time.strftime(day, time.strptime(run[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return run


def opened_dir() -> Path:
    return files.home() / "adapters"


def place(slug: str, chosen: str) -> Path:
    """The folder that conversations and votes are kept in: the persona's, or the opened adapter's.

    Raises PersonaError when nobody is chosen to talk to.
    """
    if not chosen:
        find(chosen)
    if slug:
        return folder.by_slug(slug).path
    if chosen.startswith("server/"):
        return files.home() / "elsewhere"
    return files.inside(opened_dir(), chosen.partition("/")[2]) if chosen.startswith("opened/") else find(chosen).path


def find(chosen: str) -> Adapter:
    """The adapter behind an id. The id comes from a browser, so each part of it is checked as a plain name."""
    kind, _, rest = (chosen or "").partition("/")
    if kind == "run":
        slug, _, name = rest.partition("/")
        name, _, step = name.partition("@")
        run = runs.open_run(files.inside(folder.by_slug(slug).runs_dir, name))
        return adapter.check(moments.folder(run, int(step)) if re.fullmatch(r"[0-9]{1,9}", step) else run.adapter)
    if kind == "opened":
        return adapter.check(files.inside(opened_dir(), rest))
    raise PersonaError("There is no adapter yet. Train one in the step before, or open one here.")


def card_of(chosen: str) -> Card:
    """The card of who was chosen: of an own run, the persona's as it is now, which may say more than its adapter's."""
    kind, _, rest = chosen.partition("/")
    return folder.by_slug(rest.partition("/")[0]).card() if kind == "run" else find(chosen).card


def open_zip(file: str) -> str:
    """The id of the adapter in a zip."""
    return f"opened/{share.unpack(Path(file), opened_dir()).name}"


def open_link(text: str) -> str:
    """The id of an adapter on the Hub (USER/NAME, USER/NAME@REVISION, a share link), checked and kept here.

    A folder too, where the page is on the user's own machine.
    """
    if not (files.shared() or space.here()):
        with contextlib.suppress(OSError, RuntimeError):  # far too long for a path; no such user for ~name
            if (path := Path(text).expanduser()).is_dir():
                return f"opened/{share.keep(adapter.locate(path), opened_dir()).name}"
    return open_shared(text)


def open_shared(text: str) -> str:
    """The id of an adapter on the Hub, and nowhere else: what an address may open that someone else has written."""
    path = share.keep(hub.pull(hub.Link.parse(text)), opened_dir())
    if what := hub.outlook(adapter.check(path)):
        gr.Info(escape(localized(what)), duration=None)
    return f"opened/{path.name}"


def label(voice: str, chosen: str) -> str:
    """What the column of a voice is called; no two are called alike, so that a conversation knows who said what.

    It is kept on disk, so it is the same in every language; `spoken` says it in the visitor's.
    """
    fixed = {PROMPTED: "Base, with her prompt", ALONE: "Base alone"}
    if voice in fixed:
        return fixed[voice]
    if voice.startswith("server/"):
        return voice.removeprefix("server/")
    if voice.startswith("blend/"):
        part, other = _blend(voice)
        return f"{part:.0%} {label(chosen, chosen)} + {1 - part:.0%} {label(other, chosen)}"
    name, (kind, _, rest) = find(voice).card.name, voice.partition("/")
    if kind == "opened":
        return f"{name} ({rest})"
    run, _, step = rest.partition("/")[2].partition("@")
    return f"{name}, step {step} of {when(run)}" if step else f"{name}, {when(run)}"


def spoken(label: str) -> str:
    """A label as the visitor reads it: what `label` puts around names is translated, names are not."""
    if language() != "zh":
        return label
    fixed = {"Base, with her prompt": t("Base, with her prompt"), "Base alone": t("Base alone")}

    def moment(found: re.Match) -> str:
        when = f"{MONTHS.index(found['month']) + 1:02}-{found['day']} {found['time']}"
        return (
            t(", step {step} of {when}", step=found["step"], when=when) if found["step"] else t(", {when}", when=when)
        )

    dated = rf", (?:step (?P<step>\d+) of )?(?P<day>\d\d) (?P<month>{'|'.join(MONTHS)}) (?P<time>\d\d:\d\d)"
    return fixed.get(label) or re.sub(dated, moment, label)


def _blend(voice: str) -> tuple[float, str]:
    """(share of the main adapter, id of the other one) of blend/SHARE/ID, which comes from a browser."""
    found = re.fullmatch(r"blend/([01](?:\.[0-9]{1,4})?)/((?:run|opened)/.+)", voice, re.DOTALL)
    if not found:
        raise PersonaError("{voice}: not a blend. Choose two adapters and press Add the blend.", voice=f"{voice!r:.80}")
    return float(found[1]), found[2]


def cast(slug: str, chosen: str, others: Sequence[str], strength: float) -> Cast:
    """The columns: the first of `others`, the persona, then the rest of them. Opens the model if need be.

    Raises AdapterError for an adapter of another base: one batch is one model.
    """
    if not chosen:
        find(chosen)
    wanted = list(others)[: MAX_COLUMNS - 1]
    wanted.insert(1 if wanted else 0, chosen)
    if chosen.startswith("server/"):
        return _elsewhere(slug, wanted)
    main = find(chosen)
    model = chat.open_voices(chat.base_of(main))
    columns = [_column(model, main, voice, chosen, strength) for voice in wanted]
    return Cast(main.card, model, tuple(s for s, _ in columns), tuple(v for _, v in columns))


def _elsewhere(slug: str, wanted: Sequence[str]) -> Cast:
    """Every column a model of the other server, each given the persona's prompt."""
    if any(not v.startswith("server/") for v in wanted):
        raise PersonaError("Voices of another server answer beside each other only. Choose them all from that server.")
    card = folder.by_slug(slug).card() if slug else Card(name="Persona")
    spoken = [talks.Voice("adapter", label(v, v), v, 1.0, card.system) for v in wanted]
    return Cast(card, None, tuple(v.removeprefix("server/") for v in wanted), tuple(spoken))


def _column(model: Voices, main: Adapter, voice: str, chosen: str, strength: float) -> tuple[Speaker, talks.Voice]:
    name = label(voice, chosen)
    if voice in (ALONE, PROMPTED):
        kind, system = ("prompt", main.card.system) if voice == PROMPTED else ("base", "")
        speaker = Speaker(name, BASE, chat.renderer_of(main, model.tokenizer, system))
        return speaker, talks.Voice(kind, name, system=system)
    if voice.startswith("blend/"):  # both at once, asked with the main one's template and prompt
        part, named = _blend(voice)
        other = _open(model, named)
        speaks = model.blend({model.attach(main): part, model.attach(other): round(1 - part, 4)})
        asked = main
    else:
        asked = _open(model, voice)
        speaks = model.attach(asked)
    speaker = Speaker(name, speaks, chat.renderer_of(asked, model.tokenizer), strength)
    return speaker, talks.Voice("adapter", name, voice, strength, asked.card.system)


def _open(model: Voices, voice: str) -> Adapter:
    found = find(voice)
    sources.require_same_base(found, model)
    return found
