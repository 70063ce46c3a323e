"""References to adapters and voices: every way to name one, parsed and printed in one place.

    NAME, NAME@STEP                 the newest run of one of the user's personas, or a snapshot of it
    FOLDER, FOLDER@STEP, FILE.zip   an adapter's, run's or persona's folder, a snapshot of the run; an exported adapter
    USER/NAME, USER/NAME@REVISION   on the Hub; a share link and the address of a Hub page name one too
    base, base+prompt               no adapter, without and with the persona's system prompt
    REF*0.7, REF*0.6 + REF*0.4      an adapter at a strength, a blend of adapters by weight
    run/SLUG/RUN, run/SLUG/RUN@STEP, opened/NAME, server/MODEL, blend/SHARE/ID
                                    ids of the page, which conversations and votes on disk keep

`parse` and `parse_voice` read what the user of this machine types, and look at the disk: a folder that exists wins.
`parse_id` and `parse_link` read what a browser sends and never yield a path. `str(ref)` is the reference as text again.
"""

import re
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

from persona.errors import AdapterError, InputError, PersonaError, ShareError
from persona.models.adapter import PICKLE_SUFFIXES
from persona.share.hub import HubRef
from persona.store import persona_folder
from persona.store.files import expand_home, is_folder, is_plain_name, path_exists
from persona.store.workspace import EXAMPLES_DIR

_STEP = re.compile(r"(.+)@([0-9]{1,9})", re.DOTALL)
_STRENGTH = re.compile(r"(.+)\*([0-9]*\.?[0-9]+)", re.DOTALL)
_BLEND_ID = re.compile(r"([01](?:\.[0-9]{1,4})?)/((?:run|opened)/.+)", re.DOTALL)


class RefKind(StrEnum):
    """What a reference names. CHOSEN: the adapter of a comparison, within a blend of the page."""

    BASE = "base"
    BASE_WITH_PROMPT = "base+prompt"
    PERSONA = "persona"
    FOLDER = "folder"
    ZIP = "zip"
    HUB = "hub"
    RUN = "run"
    OPENED = "opened"
    SERVER = "server"
    BLEND = "blend"
    CHOSEN = "chosen"


@dataclass(frozen=True)
class AdapterRef:
    """A reference to an adapter or a voice.

    name: of the persona's folder, the opened adapter's folder, the server's model, or the repository; else a path as
    it was typed. run: name of the run's folder. step: of a snapshot. parts: of a blend, each at its weight.
    """

    kind: RefKind
    name: str = ""
    run: str = ""
    step: int | None = None
    strength: float = 1.0
    parts: tuple["AdapterRef", ...] = ()

    def __str__(self) -> str:
        if self.kind is RefKind.BLEND:
            if self.parts[0].kind is RefKind.CHOSEN:
                return f"blend/{_format_share(self.parts[0].strength)}/{replace(self.parts[1], strength=1.0)}"
            return " + ".join(map(str, self.parts))
        match self.kind:
            case RefKind.BASE | RefKind.BASE_WITH_PROMPT:
                text = str(self.kind)
            case RefKind.RUN:
                text = f"run/{self.name}/{self.run}"
            case RefKind.OPENED | RefKind.SERVER:
                text = f"{self.kind}/{self.name}"
            case _:
                text = self.name
        text += "" if self.step is None else f"@{self.step}"
        return text if self.strength == 1 else f"{text}*{Decimal(repr(self.strength)):f}"

    @classmethod
    def parse(cls, text: str | Path) -> "AdapterRef":
        """One adapter as the user of this machine names it. Raises AdapterError or ShareError."""
        text = str(text).strip()
        if is_folder(expand_home(text)):
            return cls(RefKind.FOLDER, text)
        path = Path(text)
        if path.suffix == ".zip":
            return cls(RefKind.ZIP, text)
        if path.suffix in PICKLE_SUFFIXES:
            raise AdapterError(
                "{path}: a pickle can run code when it is opened, so it is not. Ask its author to save the "
                "adapter as safetensors.",
                path=path.name,
            )
        if path.suffix == ".safetensors":
            raise AdapterError(
                "{path}: weights alone are no adapter. Name the folder that they lie in.", path=path.name
            )
        found = _STEP.fullmatch(text)
        name, step = (found[1], int(found[2])) if found else (text, None)
        if step is not None and is_folder(expand_home(name)):
            return cls(RefKind.FOLDER, name, step=step)
        if is_plain_name(name) and find_persona_folder(name):
            return cls(RefKind.PERSONA, name, step=step)
        try:
            return cls.parse_link(text)
        except ShareError as e:
            if "://" in text:
                raise
            raise AdapterError(
                "{text}: no adapter here, none of your personas, nor USER/NAME on the Hub. Name a folder or zip.",
                text=text[:200],
            ) from e

    @classmethod
    def parse_voice(cls, text: str) -> "AdapterRef":
        """A column as the user of this machine names it: also base, base+prompt, a strength, a blend.

        Raises AdapterError or ShareError.
        """
        text = text.strip()
        if text in (RefKind.BASE, RefKind.BASE_WITH_PROMPT):
            return cls(RefKind(text))
        parts = tuple(map(cls._parse_weighted, [text] if path_exists(expand_home(text)) else text.split(" + ")))
        return parts[0] if len(parts) == 1 else cls(RefKind.BLEND, parts=parts)

    @classmethod
    def _parse_weighted(cls, text: str) -> "AdapterRef":
        text = text.strip()
        weighted = None if path_exists(expand_home(text)) else _STRENGTH.fullmatch(text)
        return replace(cls.parse(weighted[1]), strength=float(weighted[2])) if weighted else cls.parse(text)

    @classmethod
    def parse_link(cls, text: str) -> "AdapterRef":
        """An adapter on the Hub and nowhere else: USER/NAME, USER/NAME@REVISION, a share link. Raises ShareError."""
        return cls(RefKind.HUB, str(HubRef.parse(text)))

    @classmethod
    def parse_id(cls, text: str) -> "AdapterRef":
        """An id of the page, which comes from a browser: each part of it must be a plain name.

        Raises PersonaError.
        """
        if text in (RefKind.BASE, RefKind.BASE_WITH_PROMPT):
            return cls(RefKind(text))
        kind, _, rest = (text or "").partition("/")
        if kind == RefKind.BLEND:
            return cls._parse_blend_id(text, rest)
        if kind == RefKind.SERVER and rest:
            return cls(RefKind.SERVER, rest)
        if kind not in (RefKind.RUN, RefKind.OPENED):
            raise PersonaError("There is no adapter yet. Train one in the step before, or open one here.")
        if kind == RefKind.OPENED:
            ref = cls(RefKind.OPENED, rest)
        else:
            slug, _, rest = rest.partition("/")
            found = _STEP.fullmatch(rest)
            ref = cls(RefKind.RUN, slug, found[1], int(found[2])) if found else cls(RefKind.RUN, slug, rest)
        if not (is_plain_name(ref.name) and (kind == RefKind.OPENED or is_plain_name(ref.run)) and "@" not in ref.run):
            raise InputError("{text}: not the id of an adapter. Choose one from the list.", text=f"{text!r:.80}")
        return ref

    @classmethod
    def _parse_blend_id(cls, text: str, rest: str) -> "AdapterRef":
        found = _BLEND_ID.fullmatch(rest)
        if not found or float(found[1]) > 1:
            raise PersonaError(
                "{voice}: not a blend. Choose two adapters and press Add the blend.", voice=f"{text!r:.80}"
            )
        return cls.blend_with(float(found[1]), cls.parse_id(found[2]))

    @classmethod
    def blend_with(cls, share: float, other: "AdapterRef") -> "AdapterRef":
        """The page's blend: the chosen adapter at `share` (0 to 1), the other one at the rest."""
        share = round(share, 4)
        parts = cls(RefKind.CHOSEN, strength=share), replace(other, strength=round(1 - share, 4))
        return cls(RefKind.BLEND, parts=parts)

    @classmethod
    def from_folder(cls, path: Path) -> "AdapterRef":
        """What an adapter's folder is called after: the persona it was trained for, or else the folder itself."""
        path = path.resolve()
        if path.name == "adapter" and path.parent.parent.name == "runs":
            return cls(RefKind.RUN, path.parents[2].name, path.parent.name)
        if path.parent.name == "moments" and path.parents[2].name == "runs":
            step = int(path.name.removeprefix("step-"))
            return cls(RefKind.RUN, path.parents[3].name, path.parents[1].name, step)
        return cls(RefKind.OPENED, path.name)

    @property
    def path(self) -> Path:
        """Where a folder or zip lies."""
        return expand_home(self.name)

    @property
    def model_name(self) -> str:
        """How the API calls it: NAME, or NAME@STEP for a snapshot."""
        return self.name if self.step is None else f"{self.name}@{self.step}"


def find_persona_folder(name: str) -> Path | None:
    """The folder of the user's persona with that name, or else of the example."""
    folders = (persona_folder.personas_dir() / name, EXAMPLES_DIR / name)
    return next((f for f in folders if (f / "persona.json").is_file()), None)


def _format_share(share: float) -> str:
    return f"{share:.2f}" if round(share, 2) == share else f"{share:.4f}"
