"""An adapter folder: write it, check it, attach it to its base, set its strength.

    adapter_model.safetensors   LoRA weights
    adapter_config.json         PEFT's settings, with the base's id instead of a local path
    chat_template.jinja         the very template it was trained with
    persona.json                who she is: name, system prompt, greeting, probes
    run.json                    base id, revision and licence, settings, figures
    README.md                   the card
    loss.png                    the loss of its run, for the card

An adapter may come from anywhere, so it is checked before it is opened: safetensors only, known settings only, finite
numbers, shapes that fit the base.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import AdapterError, InputError, Message
from persona.models import model_card, trained_tokens
from persona.models.base import Base
from persona.models.model_card import LOSS_PICTURE
from persona.store.files import fsync_folder, read_json, replace_folder, require_regular_file, to_json, write_atomic
from persona.store.persona_folder import PersonaCard, parse_card
from persona.template.chat_template import ChatTemplate
from persona.template.render import MAX_LENGTH, MAX_LENGTH_RANGE

ADAPTER_FILES = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "chat_template.jinja",
    "persona.json",
    "run.json",
    "README.md",
    LOSS_PICTURE,
)
MAX_ADAPTER_BYTES = 4_000_000_000
MAX_TEMPLATE_BYTES = 1_000_000  # sandbox.py reads fewer characters still
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_DTYPES = ("torch.float32", "torch.bfloat16", "torch.float16")
_LAYER = re.compile(r"\^?[\w.\\-]{1,200}\$?")
_SETTINGS = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
             "trainable_token_indices")  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """A checked adapter folder."""

    path: Path
    card: PersonaCard
    template: ChatTemplate
    base_id: str
    settings: dict[str, Any]
    facts: dict[str, Any]

    @property
    def base_revision(self) -> str:
        """The commit of its base on the Hub; empty where it is not from there, or not known."""
        base = self.facts.get("base")
        value = str(base.get("revision") or "") if isinstance(base, dict) else ""
        return value if re.fullmatch("[0-9a-f]{40}", value) else ""

    @property
    def max_length(self) -> int:
        config = self.facts.get("config")
        value = config.get("max_length") if isinstance(config, dict) else None
        least, most = MAX_LENGTH_RANGE
        return value if type(value) is int and least <= value <= most else MAX_LENGTH


def save_adapter(
    model: Any, target: Path, *, base: Base, template: ChatTemplate, card: PersonaCard, facts: dict[str, Any]
) -> None:
    """Save the trained LoRA of a PeftModel as a folder that describes itself; it replaces an older one at once.

    facts: what run.json is to hold beside the base: config, figures, versions. No local path may be in it.
    """
    from safetensors import SafetensorError

    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    name = model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapter[0]
    settings = model.peft_config[name]
    settings.base_model_name_or_path = base.id
    if isinstance(settings.target_modules, set):
        settings.target_modules = sorted(settings.target_modules)
    try:
        model.save_pretrained(scratch, safe_serialization=True, save_embedding_layers=False)
        _sort_settings(scratch / "adapter_config.json")
        write_atomic(scratch / "chat_template.jinja", template.text)
        write_atomic(scratch / "persona.json", to_json(card.model_dump(mode="json")))
        run = {"base": base.to_dict(), "template": template.name, **facts}
        write_atomic(scratch / "run.json", to_json(run))
        write_atomic(scratch / "README.md", model_card.render_model_card(card, run))
        fsync_folder(scratch)
    except (OSError, SafetensorError) as e:
        why = getattr(e, "strerror", None) or e
        raise AdapterError(
            "{target}: could not be written ({reason}). Free some space and resume.", target=target, reason=why
        ) from e
    replace_folder(scratch, target)


def _sort_settings(file: Path) -> None:
    """PEFT writes target_modules in the order of a set; sorted, two equal runs give equal files."""
    settings = json.loads(file.read_text())
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()
    write_atomic(file, to_json(settings))


def locate_adapter(path: Path) -> Path:
    """The adapter folder that `path` means: itself, a run's, or the newest of a persona."""
    if (path / "adapter_config.json").is_file():
        return path
    if (path / "adapter").is_dir():
        return path / "adapter"
    found = sorted(path.glob("runs/*/adapter"), key=lambda p: p.parent.name)
    if not found:
        raise AdapterError("{path}: no adapter here. Train one with: persona train {path}", path=path)
    return found[-1]


def read_adapter(path: Path) -> Adapter:
    """Open an adapter folder, from whomever it comes. Raises AdapterError saying what is wrong with which file."""
    if not path.is_dir():
        raise AdapterError("{path}: no such adapter folder.", path=path)
    weights = path / "adapter_model.safetensors"
    _refuse_links(path)
    if not weights.is_file():
        if pickles := sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_SUFFIXES):
            raise AdapterError(
                "{path}: holds {pickles}. A pickle can run code when it is opened, so only "
                "adapter_model.safetensors is. Ask its author to save it as safetensors.",
                path=path.name,
                pickles=", ".join(pickles),
            )
        raise AdapterError("{path}: no adapter_model.safetensors here, so this is not an adapter.", path=path.name)
    try:
        config = read_json(path / "adapter_config.json", Message("an adapter"))
        run = read_json(path / "run.json", Message("a run")) if (path / "run.json").is_file() else {}
        card_file = path / "persona.json"
        if card_file.is_file():
            card = parse_card(read_json(card_file, Message("a persona")), "persona.json")
        else:
            card = PersonaCard(name=path.name[:80])
    except InputError as e:
        raise AdapterError(e.message) from e
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            "{path}: a {peft_type} adapter; only LoRA is supported.", path=path.name, peft_type=config.get("peft_type")
        )
    settings = {k: config[k] for k in _SETTINGS if config.get(k) is not None}
    _check_settings(path.name, settings)
    _check_weights(weights)
    template_file = path / "chat_template.jinja"
    if not template_file.is_file():
        raise AdapterError("{path}: no chat_template.jinja, so its chat format is unknown.", path=path.name)
    try:
        require_regular_file(template_file, MAX_TEMPLATE_BYTES)
        text = template_file.read_text(encoding="utf-8")
    except InputError as e:
        raise AdapterError(e.message) from e
    except (OSError, UnicodeDecodeError) as e:
        raise AdapterError(
            "{path}/chat_template.jinja: cannot be read ({reason}). Copy it again.", path=path.name, reason=e
        ) from e
    base = run.get("base") if isinstance(run.get("base"), dict) else {}
    base_id = str((base or {}).get("id") or config.get("base_model_name_or_path") or "")
    return Adapter(path, card, ChatTemplate(str(run.get("template") or "own"), text), base_id, settings, run)


def _refuse_links(path: Path) -> None:
    """A link in a folder from outside could make a private file of this machine part of what is shared on.

    The Hub's own cache is made of links: snapshots/REVISION/FILE → ../../blobs/SUM.
    """
    allowed = (path.resolve(), path.resolve().parent.parent / "blobs")
    for name in ADAPTER_FILES:
        if (path / name).is_symlink() and (path / name).resolve().parent not in allowed:
            raise AdapterError(
                "{path}: {name} is a link to another place. Copy the file itself there.", path=path.name, name=name
            )


def _check_settings(name: str, settings: dict[str, Any]) -> None:
    r, alpha = settings.get("r"), settings.get("lora_alpha")
    if not _is_rank(r):
        raise AdapterError(
            "{name}/adapter_config.json: LoRA rank r={r} is not a number from 1 to 4096.", name=name, r=f"{r!r:.40}"
        )
    if not _is_alpha(alpha):
        raise AdapterError(
            "{name}/adapter_config.json: lora_alpha={alpha} is not a number up to a million.",
            name=name,
            alpha=f"{alpha!r:.40}",
        )
    for key, good in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        pattern = settings.get(key, {})
        # PEFT matches the names as regular expressions; one made for it would run for years
        if not isinstance(pattern, dict) or not all(_LAYER.fullmatch(k) and good(v) for k, v in pattern.items()):
            raise AdapterError(
                "{name}/adapter_config.json: {key}={pattern} does not give layers a number each.",
                name=name,
                key=key,
                pattern=f"{pattern!r:.60}",
            )
    modules = settings.get("target_modules")
    if not (isinstance(modules, str) or (isinstance(modules, list) and all(isinstance(m, str) for m in modules))):
        raise AdapterError(
            "{name}/adapter_config.json: target_modules={modules} names no layers.",
            name=name,
            modules=f"{modules!r:.60}",
        )
    named = settings.get("trainable_token_indices", {})
    if not all(map(trained_tokens.are_token_ids, named.values() if isinstance(named, dict) else [named])):
        raise AdapterError(
            "{name}/adapter_config.json: trainable_token_indices={named} does not give layers up to "
            "{limit} token ids each.",
            name=name,
            named=f"{named!r:.60}",
            limit=trained_tokens.MAX_TRAINED_TOKENS,
        )
    if named and settings.get("use_dora"):
        raise AdapterError(
            "{name}/adapter_config.json: use_dora and trained rows of tokens do not go together.", name=name
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 4096


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6  # not isfinite: it fails for integers beyond a float


def _check_weights(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if file.stat().st_size > MAX_ADAPTER_BYTES:
        raise AdapterError("{file}: {size:.1f} GB is no LoRA adapter.", file=file.name, size=file.stat().st_size / 1e9)
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (not a dict)
                tensor = tensors.get_tensor(key)
                if str(tensor.dtype) not in _DTYPES:
                    raise AdapterError(
                        "{file}: {key} is stored as {dtype}; LoRA weights are float32, bfloat16 or float16.",
                        file=file.name,
                        key=key,
                        dtype=tensor.dtype,
                    )
                if not bool(tensor.isfinite().all()):
                    raise AdapterError(
                        "{file}: {key} holds numbers that are not finite. Its training diverged.",
                        file=file.name,
                        key=key,
                    )
    except SafetensorError as e:
        raise AdapterError("{file}: damaged or incomplete ({reason}). Copy it again.", file=file.name, reason=e) from e
