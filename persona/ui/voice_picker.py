"""Who answers in the Compare step: the adapters to choose from, and the columns that a choice makes.

Choices are ids of AdapterRef. An id says which voice a column is; its label is text for people, made anew from the id
in the visitor's language.
"""

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.compare import remote, session
from persona.compare.conversation import VoiceRecord
from persona.compare.repetition import is_repeating
from persona.compare.session import MAX_COLUMNS, NO_ADAPTER, LoadedModel, Voice
from persona.errors import InputError, Message, PersonaError
from persona.models.adapter import Adapter
from persona.models.generate import Generation
from persona.models.sampling import Sampling
from persona.share import archive, hub
from persona.share.adapter_ref import AdapterRef, RefKind
from persona.share.archive import NO_SUPPLEMENT, Supplement
from persona.share.open_adapter import attach, open_adapter, opened_dir
from persona.store import deployment, files, persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.template.character_prompt import CharacterPrompt, PromptParts, estimate_tokens
from persona.template.chat_template import build_messages
from persona.template.render import ChatPrompt
from persona.train import run_folder, snapshots
from persona.ui.i18n import localized, t
from persona.ui.notices import show_info, show_warning
from persona.write.lint.finding import normalize_text

BASE_ALONE, BASE_WITH_PROMPT = str(RefKind.BASE), str(RefKind.BASE_WITH_PROMPT)
MONTHS = (
    Message("Jan"), Message("Feb"), Message("Mar"), Message("Apr"), Message("May"), Message("Jun"),
    Message("Jul"), Message("Aug"), Message("Sep"), Message("Oct"), Message("Nov"), Message("Dec"),
)  # fmt: skip
MAX_STEM = 30  # characters of the persona's name in a file's name
SNAPSHOT_RUNS = 3  # runs, newest first, whose snapshots can be chosen too


@dataclass(frozen=True)
class Comparison:
    """The columns of a comparison. model: None where another server answers; `voices` are its models' names then."""

    card: PersonaCard
    model: LoadedModel | None
    voices: tuple[Any, ...]
    records: tuple[VoiceRecord, ...]

    def answer(
        self, histories: Sequence[Sequence[tuple[str, str]]], question: str, sampling: Sampling,
        columns: Sequence[session.Column] = (),
    ) -> Iterator[list[Generation]]:  # fmt: skip
        """Stream the replies of all columns to the question, each after its own history.

        columns: of render(), if they are rendered already. A base that goes round in circles (repetition.py) is
        stopped: a pretrained one would only reach the limit.
        """
        if self.model is None:
            url, key = remote.configured_server() or ("", "")
            prompts = zip(self._remote_parts(histories, question), histories, strict=True)
            chats = [build_messages(parts.system, h, question, late_system=parts.late) for parts, h in prompts]
            yield from remote.stream_remote(url, key, self.voices, chats, sampling)
            return
        columns = columns or self.render(histories, question, sampling)
        halted: set[int] = set()
        for replies in session.stream_replies(self.model, columns, sampling, halted=halted):
            halted.update(
                n for n, (record, reply) in enumerate(zip(self.records, replies, strict=True))
                if is_base_circling(record, reply.text, reply.ended)
            )  # fmt: skip
            yield replies

    def render(
        self, histories: Sequence[Sequence[tuple[str, str]]], question: str, sampling: Sampling
    ) -> list[session.Column]:
        """What each column is asked; of another server's only the book entries, since it renders by itself."""
        if self.model is None:
            found = self._remote_parts(histories, question)
            titles = [tuple(one.entry.title for one in parts.entries) for parts in found]
            return [session.Column("", ChatPrompt("", [], entries)) for entries in titles]
        room = self.model.context_tokens - sampling.max_new_tokens
        return [v.render_column(h, question, room) for v, h in zip(self.voices, histories, strict=True)]

    def _remote_parts(self, histories: Sequence[Sequence[tuple[str, str]]], question: str) -> list[PromptParts]:
        character = CharacterPrompt.of(self.card)
        return [character.compose(r.system, h, question, estimate_tokens)
                for r, h in zip(self.records, histories, strict=True)]  # fmt: skip


def is_base_circling(record: VoiceRecord, text: str, ended: bool) -> bool:
    """Whether this is the text of a base that went round in circles; an adapter's circles are its author's to see."""
    return record.kind != "adapter" and not ended and is_repeating(text)


# ---- choices


def list_run_adapters(slug: str) -> list[tuple[str, str]]:
    """(label, id) of the adapters that the persona's runs made, newest first."""
    if not slug:
        return []
    persona = persona_folder.find_persona(slug)
    name, choices = persona.card().name, []
    for run in run_folder.list_runs(persona):
        if run.adapter.is_dir():
            label = t("{name}, {when}", name=name, when=localized(format_run_time(run.name)))
            choices.append((label, str(AdapterRef(RefKind.RUN, slug, run.name))))
    return choices


def list_adapters(slug: str) -> list[tuple[str, str]]:
    """(label, id) of the adapters on this machine: the persona's runs, newest first, then opened ones."""
    choices = list_run_adapters(slug)
    for path in sorted(opened_dir().glob("*/adapter_config.json")):
        name = path.parent.name
        choices.append((t("{name} (opened)", name=name), str(AdapterRef(RefKind.OPENED, name))))
    return choices


def list_choices(slug: str) -> list[tuple[str, str]]:
    """(label, id) of all that can be compared with others: adapters, and another server's models."""
    return [*list_adapters(slug), *list_remote_models()]


def list_remote_models() -> list[tuple[str, str]]:
    """(label, id) of the models of another server, where PERSONA_CHAT_URL names one."""
    try:
        names = remote.fetch_model_names()
    except InputError as e:
        show_warning(localized(e.message))
        return []
    return [(t("{name} (another server)", name=n), str(AdapterRef(RefKind.SERVER, n))) for n in names]


def list_bases() -> list[tuple[str, str]]:
    """(label, id) of the base, which can answer with the persona's prompt or without."""
    return [(t("Base, with persona prompt"), BASE_WITH_PROMPT), (t("Base alone, without a prompt"), BASE_ALONE)]


def list_other_voices(slug: str, chosen: str = "") -> list[tuple[str, str]]:
    """(label, id) of the voices that can answer beside the chosen one: of the same server, or else of this machine."""
    if is_remote(chosen):
        return list_remote_models()
    choices = [*list_bases(), *list_adapters(slug)]
    for run in run_folder.list_runs(persona_folder.find_persona(slug))[:SNAPSHOT_RUNS] if slug else []:
        for step in reversed(snapshots.list_snapshot_steps(run)):
            label = t("{when}, step {step}", when=localized(format_run_time(run.name)), step=step)
            choices.append((label, str(AdapterRef(RefKind.RUN, slug, run.name, step))))
    return choices


def format_run_time(run: str) -> str:
    """When a run was started, by its name: 20261122-031500-a1b2 → 22 Nov 03:15."""
    try:
        started = time.strptime(run[:15], "%Y%m%d-%H%M%S")
    except ValueError:
        return run
    day, month = f"{started.tm_mday:02}", MONTHS[started.tm_mon - 1]
    return Message("{day} {month} {time}", day=day, month=month, time=time.strftime("%H:%M", started))


# ---- what an id names


def is_remote(chosen: str | None) -> bool:
    """Whether the chosen voice is a model of another server."""
    return bool(chosen) and AdapterRef.parse_id(chosen or "").kind is RefKind.SERVER


def find_adapter(chosen: str) -> Adapter:
    """The checked adapter behind an id from the browser. Raises PersonaError, also when nothing is chosen."""
    return open_adapter(AdapterRef.parse_id(chosen))


def find_card(chosen: str) -> PersonaCard:
    """The card of the chosen adapter; of a run of the user's, the persona's as it is now, which may say more."""
    ref = AdapterRef.parse_id(chosen)
    return persona_folder.find_persona(ref.name).card() if ref.kind is RefKind.RUN else open_adapter(ref).card


def unseen_questions(chosen: str) -> list[str]:
    """Questions that the adapter was not trained on, one line each: its probes, then held-out ones of its run.

    The probes of a run are the persona's as they are now. Of an adapter from elsewhere, whose pairs are not known: its
    own. None where the run's own pairs cannot be read. Raises PersonaError when nothing is chosen.
    """
    ref, questions = AdapterRef.parse_id(chosen), list(find_card(chosen).probes)
    if ref.kind is RefKind.RUN:
        run = run_folder.Run(persona_folder.find_persona(ref.name).path / "runs" / ref.run)
        try:
            rows = run.rows()
        except (OSError, PersonaError):  # its pairs are gone or damaged
            return []
        trained = run_folder.trained_questions(rows)
        held_out = [r.pair.instruction for r in rows if r.held_out and not r.pair.history]
        questions = [q for q in [*questions, *held_out] if normalize_text(q) not in trained]
    return list(dict.fromkeys(" ".join(question.split()) for question in questions))


def file_stem(chosen: str) -> str:
    """How the names of files about the chosen adapter begin: its persona and its run, or what else it is called."""
    ref = AdapterRef.parse_id(chosen)
    if ref.kind is not RefKind.RUN:
        return files.slugify(ref.name)
    step = "" if ref.step is None else f"-step-{ref.step}"
    return f"{files.slugify(find_adapter(chosen).card.name)[:MAX_STEM]}-{ref.run}{step}"


def conversation_dir(slug: str, chosen: str) -> Path:
    """The folder that conversations and votes are kept in: the persona's, or the opened adapter's.

    Raises PersonaError when nothing is chosen.
    """
    ref = AdapterRef.parse_id(chosen)
    if slug:
        return persona_folder.find_persona(slug).path
    if ref.kind is RefKind.SERVER:
        return workspace.current_workspace() / "elsewhere"
    return files.safe_join(opened_dir(), ref.name) if ref.kind is RefKind.OPENED else open_adapter(ref).path


# ---- adapters from elsewhere


def add_zip(file: str, supplement: Supplement = NO_SUPPLEMENT) -> str:
    """The id of the adapter in a zip. supplement: what it does not say itself."""
    return _opened_id(archive.unpack_adapter(Path(file), opened_dir(), supplement))


def add_link(text: str, supplement: Supplement = NO_SUPPLEMENT) -> str:
    """The id of an adapter on the Hub (USER/NAME, USER/NAME@REVISION, a share link), checked and kept here.

    Where the page is on the user's own machine, also of anything that `AdapterRef.parse` takes: a folder, a zip.
    """
    if deployment.is_shared_server() or deployment.is_hf_space():
        return _add(AdapterRef.parse_link(text), supplement)
    return _add(AdapterRef.parse(text), supplement)


def add_hub_adapter(text: str) -> str:
    """The id of an adapter on the Hub, and nowhere else: an address of the page may be written by anyone."""
    return _add(AdapterRef.parse_link(text))


def _add(ref: AdapterRef, supplement: Supplement = NO_SUPPLEMENT) -> str:
    adapter = open_adapter(ref, supplement)
    if adapter.path.parent != opened_dir():
        return _opened_id(archive.copy_adapter(adapter.path, opened_dir()))
    if ref.kind is RefKind.HUB and (note := hub.describe_download(adapter)):
        show_info(localized(note), duration=None)
    return _opened_id(adapter.path)


def _opened_id(folder: Path) -> str:
    return str(AdapterRef(RefKind.OPENED, folder.name))


# ---- labels


def voice_label(voice: str, chosen: str) -> Message:
    """The label of a voice's column beside the chosen adapter; `localized` says it in the visitor's language."""
    return _label(AdapterRef.parse_id(voice), AdapterRef.parse_id(chosen))


def _label(ref: AdapterRef, chosen: AdapterRef) -> Message:
    match ref.kind:
        case RefKind.BASE_WITH_PROMPT:
            return Message("Base, with persona prompt")
        case RefKind.BASE:
            return Message("Base alone")
        case RefKind.SERVER:
            return Message.of(ref.name)
        case RefKind.BLEND:
            share, other = ref.parts[0].strength, ref.parts[1]
            first, second = _label(chosen, chosen), _label(other, chosen)
            return Message(
                "{share} {first} + {rest} {second}",
                first=first,
                second=second,
                share=f"{share:.0%}",
                rest=f"{1 - share:.0%}",
            )
    name = open_adapter(ref).card.name
    if ref.kind is RefKind.OPENED:
        return Message("{name} ({folder})", name=name, folder=ref.name)
    when = format_run_time(ref.run)
    if ref.step is None:
        return Message("{name}, {when}", name=name, when=when)
    return Message("{name}, step {step} of {when}", name=name, step=ref.step, when=when)


def voice_record(voice: str, chosen: str) -> VoiceRecord:
    """Kind, label and adapter of a voice, without opening a model; its prompt and strength are left out."""
    kind = {BASE_WITH_PROMPT: "prompt", BASE_ALONE: "base"}.get(voice, "adapter")
    return VoiceRecord(kind, voice_label(voice, chosen), voice if kind == "adapter" else "")


def adapter_label(adapter_id: str) -> str:
    """The label of an adapter that may be gone: then its id."""
    return record_label(VoiceRecord("adapter", adapter_id, adapter_id))


def record_label(record: VoiceRecord) -> str:
    """The label of a voice in a conversation or vote on disk, in the visitor's language.

    Of a blend, or an adapter that is gone, it is the English one on disk.
    """
    try:
        ref = AdapterRef.parse_id({"base": BASE_ALONE, "prompt": BASE_WITH_PROMPT}.get(record.kind, record.adapter))
        return record.label if ref.kind is RefKind.BLEND else localized(_label(ref, ref))
    except PersonaError:
        return record.label


# ---- columns


def column_order(chosen: str, others: Sequence[str] | None) -> list[str]:
    """The ids of a comparison's columns: the first of `others`, the chosen one, then the rest of them."""
    voices = list(others or [])[: MAX_COLUMNS - 1]
    voices.insert(1 if voices else 0, chosen)
    return voices


def open_comparison(
    slug: str, chosen: str, others: Sequence[str], strength: float, quantization: str = "auto"
) -> Comparison:
    """The columns in `column_order`. Opens the model if need be; quantization: of its base, a ChatQuantization.

    Raises AdapterError for an adapter of another base: one batch is one model.
    """
    main_ref = AdapterRef.parse_id(chosen)
    refs = [AdapterRef.parse_id(voice) for voice in column_order(chosen, others)]
    if main_ref.kind is RefKind.SERVER:
        return _open_remote_comparison(slug, refs)
    main = open_adapter(main_ref)
    model = session.open_model(session.base_of(main), quantization, main.quantization)
    columns = [_open_column(model, main, ref, main_ref, strength) for ref in refs]
    return Comparison(main.card, model, tuple(v for v, _ in columns), tuple(r for _, r in columns))


def batch_key(chosen: str, quantization: str = "auto") -> Hashable:
    """What the comparisons of one model have in common: what open_comparison() opens."""
    main = open_adapter(AdapterRef.parse_id(chosen))
    return session.base_of(main), quantization, main.quantization


def _open_remote_comparison(slug: str, refs: Sequence[AdapterRef]) -> Comparison:
    """Every column is a model of the other server, given the persona's prompt."""
    if any(ref.kind is not RefKind.SERVER for ref in refs):
        raise PersonaError(
            "Models on another server can only be compared with each other. Choose them all from that server."
        )
    card = persona_folder.find_persona(slug).card() if slug else PersonaCard(name="Persona")
    records = [VoiceRecord("adapter", ref.name, str(ref), 1.0, card.system) for ref in refs]
    return Comparison(card, None, tuple(ref.name for ref in refs), tuple(records))


def _open_column(
    model: LoadedModel, main: Adapter, ref: AdapterRef, main_ref: AdapterRef, strength: float
) -> tuple[Voice, VoiceRecord]:
    label = _label(ref, main_ref)
    if ref.kind in (RefKind.BASE, RefKind.BASE_WITH_PROMPT):
        kind, system = ("base", "") if ref.kind is RefKind.BASE else ("prompt", main.card.system)
        given = None if kind == "prompt" else system
        voice = Voice(label, NO_ADAPTER, session.renderer_of(main, model.tokenizer, given))
        return voice, VoiceRecord(kind, label, system=system)
    if ref.kind is RefKind.BLEND:  # both at once, asked with the main one's template and prompt
        share, other = ref.parts[0].strength, ref.parts[1]
        asked = main
        name = model.blend({model.attach(main): share, attach(model, other)[1]: other.strength})
    else:
        asked, name = attach(model, ref)
    voice = Voice(label, name, session.renderer_of(asked, model.tokenizer), strength)
    return voice, VoiceRecord("adapter", label, str(ref), strength, asked.card.system)
