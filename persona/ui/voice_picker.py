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

from persona.compare import conversation, remote, session
from persona.compare.session import MAX_COLUMNS, NO_ADAPTER, LoadedModel, Voice
from persona.errors import InputError, PersonaError
from persona.models import adapter
from persona.models.adapter import Adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.share import adapter_ref, archive, hub
from persona.store import deployment, files, persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.template.chat_template import build_messages
from persona.train import run_folder, snapshots
from persona.ui.i18n import language, localized, t

BASE_ALONE, BASE_WITH_PROMPT = "base", "base+prompt"  # the base without and with the persona's system prompt
DATE_FORMAT = "%d %b %H:%M"  # a date and time, as strftime wants it
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SNAPSHOT_RUNS = 3  # runs, newest first, whose moments are offered too


@dataclass(frozen=True)
class Comparison:
    """The columns of a comparison: what each is called, and who speaks in it.

    model: None where another server speaks (endpoint.py); `speakers` are the names of its models then.
    """

    card: PersonaCard
    model: LoadedModel | None
    speakers: tuple[Any, ...]
    voices: tuple[conversation.VoiceRecord, ...]

    def answer(
        self, histories: Sequence[Sequence[tuple[str, str]]], said: str, sampling: Sampling
    ) -> Iterator[list[Generation]]:
        """The replies of all columns to what was said, each after its own history, as they grow."""
        if self.model is None:
            url, key = remote.configured_server() or ("", "")
            asked = [build_messages(v.system, h, said) for v, h in zip(self.voices, histories, strict=True)]
            return remote.stream_remote(url, key, self.speakers, asked, sampling)
        columns = [s.render_column(h, said) for s, h in zip(self.speakers, histories, strict=True)]
        return session.stream_replies(self.model, columns, sampling)


def list_adapters(slug: str) -> list[tuple[str, str]]:
    """(label, id) of the adapters to choose from: this persona's runs, newest first, then opened ones."""
    found = []
    if slug:
        persona = persona_folder.find_persona(slug)
        name = persona.card().name
        for run in run_folder.list_runs(persona):
            if run.adapter.is_dir():
                found.append(
                    (
                        t("{name}, {when}", name=name, when=format_run_time(run.name, t(DATE_FORMAT))),
                        f"run/{slug}/{run.name}",
                    )
                )
    for path in sorted(opened_dir().glob("*/adapter_config.json")):
        found.append((t("{name} (opened)", name=path.parent.name), f"opened/{path.parent.name}"))
    return found


def list_choices(slug: str) -> list[tuple[str, str]]:
    """All that can be the persona of a comparison."""
    return [*list_adapters(slug), *list_remote_models()]


def list_remote_models() -> list[tuple[str, str]]:
    """(label, id) of the models of another server, where PERSONA_CHAT_URL names one."""
    try:
        return [(t("{name} (another server)", name=name), f"server/{name}") for name in remote.fetch_model_names()]
    except InputError as e:
        gr.Warning(escape(localized(e.message)))
        return []


def list_other_voices(slug: str, chosen: str = "") -> list[tuple[str, str]]:
    """(label, id) of the voices that can answer beside the chosen one: of the same server, or else of this page."""
    if (chosen or "").startswith("server/"):
        return list_remote_models()
    found = [
        (t("Base, with her prompt"), BASE_WITH_PROMPT),
        (t("Base alone, without a prompt"), BASE_ALONE),
        *(a for a in list_adapters(slug) if not a[1].startswith("server/")),
    ]
    for run in run_folder.list_runs(persona_folder.find_persona(slug))[:SNAPSHOT_RUNS] if slug else []:
        for step in reversed(snapshots.list_snapshot_steps(run)):
            moment = t("{when}, step {step}", when=format_run_time(run.name, t(DATE_FORMAT)), step=step)
            found.append((moment, f"run/{slug}/{run.name}@{step}"))
    return found


def format_run_time(run: str, day: str = DATE_FORMAT) -> str:
    """20261122-031500-a1b2 → 22 Nov 03:15; day: as strftime wants it."""
    try:
        return time.strftime(day, time.strptime(run[:15], "%Y%m%d-%H%M%S"))
    except ValueError:
        return run


def opened_dir() -> Path:
    return workspace.current_workspace() / "adapters"


def conversation_dir(slug: str, chosen: str) -> Path:
    """The folder that conversations and votes are kept in: the persona's, or the opened adapter's.

    Raises PersonaError when nobody is chosen to talk to.
    """
    if not chosen:
        find_adapter(chosen)
    if slug:
        return persona_folder.find_persona(slug).path
    if chosen.startswith("server/"):
        return workspace.current_workspace() / "elsewhere"
    return (
        files.safe_join(opened_dir(), chosen.partition("/")[2])
        if chosen.startswith("opened/")
        else find_adapter(chosen).path
    )


def find_adapter(chosen: str) -> Adapter:
    """The adapter behind an id. The id comes from a browser, so each part of it is checked as a plain name."""
    kind, _, rest = (chosen or "").partition("/")
    if kind == "run":
        slug, _, name = rest.partition("/")
        name, _, step = name.partition("@")
        run = run_folder.open_run(files.safe_join(persona_folder.find_persona(slug).runs_dir, name))
        return adapter.read_adapter(
            snapshots.snapshot_dir(run, int(step)) if re.fullmatch(r"[0-9]{1,9}", step) else run.adapter
        )
    if kind == "opened":
        return adapter.read_adapter(files.safe_join(opened_dir(), rest))
    raise PersonaError("There is no adapter yet. Train one in the step before, or open one here.")


def find_card(chosen: str) -> PersonaCard:
    """The card of who was chosen: of an own run, the persona's as it is now, which may say more than its adapter's."""
    kind, _, rest = chosen.partition("/")
    return persona_folder.find_persona(rest.partition("/")[0]).card() if kind == "run" else find_adapter(chosen).card


def add_zip(file: str) -> str:
    """The id of the adapter in a zip."""
    return f"opened/{archive.unpack_adapter(Path(file), opened_dir()).name}"


def add_link(text: str) -> str:
    """The id of an adapter on the Hub (USER/NAME, USER/NAME@REVISION, a share link), checked and kept here.

    A folder too, where the page is on the user's own machine.
    """
    if not (deployment.is_shared_server() or deployment.is_hf_space()):
        with contextlib.suppress(OSError, RuntimeError):  # far too long for a path; no such user for ~name
            if (path := Path(text).expanduser()).is_dir():
                return f"opened/{archive.copy_adapter(adapter.locate_adapter(path), opened_dir()).name}"
    return add_hub_adapter(text)


def add_hub_adapter(text: str) -> str:
    """The id of an adapter on the Hub, and nowhere else: what an address may open that someone else has written."""
    path = archive.copy_adapter(hub.pull_adapter(hub.HubRef.parse(text)), opened_dir())
    if what := hub.describe_download(adapter.read_adapter(path)):
        gr.Info(escape(localized(what)), duration=None)
    return f"opened/{path.name}"


def voice_label(voice: str, chosen: str) -> str:
    """What the column of a voice is called; no two are called alike, so that a conversation knows who said what.

    It is kept on disk, so it is the same in every language; `spoken` says it in the visitor's.
    """
    fixed = {BASE_WITH_PROMPT: "Base, with her prompt", BASE_ALONE: "Base alone"}
    if voice in fixed:
        return fixed[voice]
    if voice.startswith("server/"):
        return voice.removeprefix("server/")
    if voice.startswith("blend/"):
        part, other = _parse_blend(voice)
        return f"{part:.0%} {voice_label(chosen, chosen)} + {1 - part:.0%} {voice_label(other, chosen)}"
    name, (kind, _, rest) = find_adapter(voice).card.name, voice.partition("/")
    if kind == "opened":
        return f"{name} ({rest})"
    run, _, step = rest.partition("/")[2].partition("@")
    return f"{name}, step {step} of {format_run_time(run)}" if step else f"{name}, {format_run_time(run)}"


def voice_record(voice: str, chosen: str) -> conversation.VoiceRecord:
    """Kind, label and adapter of a voice, without opening a model; its prompt and strength are left out."""
    kind = {BASE_WITH_PROMPT: "prompt", BASE_ALONE: "base"}.get(voice, "adapter")
    return conversation.VoiceRecord(kind, voice_label(voice, chosen), voice if kind == "adapter" else "")


def translate_label(label: str) -> str:
    """A label as the visitor reads it: what `label` puts around names is translated, names are not."""
    if language() != "zh":
        return label
    fixed = {"Base, with her prompt": t("Base, with her prompt"), "Base alone": t("Base alone")}

    def moment(found: re.Match) -> str:
        when = f"{MONTH_NAMES.index(found['month']) + 1:02}-{found['day']} {found['time']}"
        return (
            t(", step {step} of {when}", step=found["step"], when=when) if found["step"] else t(", {when}", when=when)
        )

    dated = rf", (?:step (?P<step>\d+) of )?(?P<day>\d\d) (?P<month>{'|'.join(MONTH_NAMES)}) (?P<time>\d\d:\d\d)"
    return fixed.get(label) or re.sub(dated, moment, label)


def _parse_blend(voice: str) -> tuple[float, str]:
    """(share of the main adapter, id of the other one) of blend/SHARE/ID, which comes from a browser."""
    found = re.fullmatch(r"blend/([01](?:\.[0-9]{1,4})?)/((?:run|opened)/.+)", voice, re.DOTALL)
    if not found:
        raise PersonaError("{voice}: not a blend. Choose two adapters and press Add the blend.", voice=f"{voice!r:.80}")
    return float(found[1]), found[2]


def open_comparison(slug: str, chosen: str, others: Sequence[str], strength: float) -> Comparison:
    """The columns: the first of `others`, the persona, then the rest of them. Opens the model if need be.

    Raises AdapterError for an adapter of another base: one batch is one model.
    """
    if not chosen:
        find_adapter(chosen)
    wanted = list(others)[: MAX_COLUMNS - 1]
    wanted.insert(1 if wanted else 0, chosen)
    if chosen.startswith("server/"):
        return _open_remote_comparison(slug, wanted)
    main = find_adapter(chosen)
    model = session.open_model(session.base_of(main))
    columns = [_open_column(model, main, voice, chosen, strength) for voice in wanted]
    return Comparison(main.card, model, tuple(s for s, _ in columns), tuple(v for _, v in columns))


def _open_remote_comparison(slug: str, wanted: Sequence[str]) -> Comparison:
    """Every column a model of the other server, each given the persona's prompt."""
    if any(not v.startswith("server/") for v in wanted):
        raise PersonaError("Voices of another server answer beside each other only. Choose them all from that server.")
    card = persona_folder.find_persona(slug).card() if slug else PersonaCard(name="Persona")
    spoken = [conversation.VoiceRecord("adapter", voice_label(v, v), v, 1.0, card.system) for v in wanted]
    return Comparison(card, None, tuple(v.removeprefix("server/") for v in wanted), tuple(spoken))


def _open_column(
    model: LoadedModel, main: Adapter, voice: str, chosen: str, strength: float
) -> tuple[Voice, conversation.VoiceRecord]:
    name = voice_label(voice, chosen)
    if voice in (BASE_ALONE, BASE_WITH_PROMPT):
        kind, system = ("prompt", main.card.system) if voice == BASE_WITH_PROMPT else ("base", "")
        speaker = Voice(name, NO_ADAPTER, session.renderer_of(main, model.tokenizer, system))
        return speaker, conversation.VoiceRecord(kind, name, system=system)
    if voice.startswith("blend/"):  # both at once, asked with the main one's template and prompt
        part, named = _parse_blend(voice)
        other = _open_adapter(model, named)
        speaks = model.blend({model.attach(main): part, model.attach(other): round(1 - part, 4)})
        asked = main
    else:
        asked = _open_adapter(model, voice)
        speaks = model.attach(asked)
    speaker = Voice(name, speaks, session.renderer_of(asked, model.tokenizer), strength)
    return speaker, conversation.VoiceRecord("adapter", name, voice, strength, asked.card.system)


def _open_adapter(model: LoadedModel, voice: str) -> Adapter:
    found = find_adapter(voice)
    adapter_ref.require_same_base(found, model)
    return found
