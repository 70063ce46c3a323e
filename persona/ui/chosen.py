"""Who is chosen: a persona and an adapter, one value for all steps, and its place in the page's address."""

import time
from typing import Any, NamedTuple, Self

import gradio as gr

from persona.errors import PersonaError
from persona.store import persona_folder
from persona.store.persona_folder import Persona
from persona.ui import voice_picker
from persona.ui.i18n import t
from persona.ui.notices import show_warning


class Chosen(NamedTuple):
    """The persona that is open and the adapter that Compare and Share work on."""

    persona: str = ""  # folder name, "" for none
    adapter: str = ""  # an id of voice_picker.py, "" for none
    by_hand: bool = False  # the visitor chose the adapter; else it is the persona's newest
    link: str = ""  # the share link that the adapter came by: USER/NAME@REVISION

    @classmethod
    def newest_of(cls, slug: str) -> Self:
        """A persona with its newest adapter, if it has one; never the adapter of another."""
        own = voice_picker.list_run_adapters(slug)
        return cls(slug, own[0][1] if own else "")

    def renewed(self) -> Self:
        """The same with the adapters there are now: the newest one, unless another one was chosen by hand."""
        if self.by_hand and self.adapter in {value for _, value in voice_picker.list_choices(self.persona)}:
            return self
        return self.newest_of(self.persona)


class ChosenView(NamedTuple):
    """The components that show who is chosen, or the values for them: they change together, in one answer."""

    chosen: Any
    slug: Any
    adapter: Any
    persona_list: Any
    adapter_list: Any

    @classmethod
    def showing(cls, chosen: Chosen) -> Self:
        adapters = gr.Dropdown(voice_picker.list_choices(chosen.persona), value=chosen.adapter or None)
        return cls(chosen, chosen.persona, chosen.adapter, persona_dropdown(chosen.persona), adapters)

    @classmethod
    def unchanged(cls) -> Self:
        return cls(*[gr.skip() for _ in cls._fields])


def choose_persona(slug: str | None, chosen: Chosen) -> ChosenView:
    """Open a persona with its newest adapter; nothing changes when it is open already."""
    if (slug or "") == chosen.persona:
        return ChosenView.unchanged()
    return ChosenView.showing(Chosen.newest_of(slug or ""))


def choose_adapter(adapter_id: str | None, chosen: Chosen) -> ChosenView:
    """Another adapter beside the same persona."""
    if (adapter_id or "") == chosen.adapter:
        return ChosenView.unchanged()
    return ChosenView.showing(Chosen(chosen.persona, adapter_id or "", by_hand=bool(adapter_id)))


def persona_dropdown(slug: str) -> gr.Dropdown:
    """The user's personas by name, `slug` selected. Those of the same name are told apart."""
    named = []
    for persona in persona_folder.list_personas():
        try:
            named.append((persona.card().name, persona))
        except PersonaError:  # a damaged card: opening the persona shows where
            named.append((persona.slug, persona))
    names = [name for name, _ in named]
    choices = [(_label_apart(name, p) if names.count(name) > 1 else name, p.slug) for name, p in named]
    return gr.Dropdown([(t("New or example …"), ""), *choices], value=slug)


def _label_apart(name: str, persona: Persona) -> str:
    """The name with the number of pairs and the day of the last change, and the folder's name, which is unique."""
    changed = persona.pairs_file if persona.pairs_file.is_file() else persona.path
    day = time.strftime(t("%d %b %H:%M"), time.localtime(changed.stat().st_mtime)).lstrip("0")
    return t("{name} · {n} pair(s) · {day} ({folder})", name=name, n=f"{len(persona.scan()[0]):,}", day=day,
             folder=persona.slug)  # fmt: skip


# ---- the address: ?persona=SLUG&adapter=ID&step=NAME, or ?persona=USER/NAME@REVISION for a share link


def page_address(chosen: Chosen, step: str) -> dict[str, str]:
    """The parameters of the address; "" for those that are left out."""
    if chosen.link:
        return {"persona": chosen.link, "adapter": "", "step": "" if step == "compare" else step}
    adapter = chosen.adapter if chosen.by_hand else ""
    return {"persona": chosen.persona, "adapter": adapter, "step": "" if step == "write" else step}


def read_address(query: dict[str, str]) -> Chosen:
    """Who an address names; a persona that is not there is said.

    Not for share links, which have to be downloaded first.
    """
    slug, adapter = query.get("persona", ""), query.get("adapter", "")
    if slug and slug not in {p.slug for p in persona_folder.list_personas()}:
        show_warning(t("There is no persona called “{name}” here.", name=slug[:80]))
        return Chosen()
    if adapter and adapter in {value for _, value in voice_picker.list_choices(slug)}:
        return Chosen(slug, adapter, by_hand=True)
    return Chosen.newest_of(slug)


def is_share_link(query: dict[str, str]) -> bool:
    """Whether the address names an adapter on the Hub; a persona's folder has no slash in its name."""
    return "/" in query.get("persona", "")
