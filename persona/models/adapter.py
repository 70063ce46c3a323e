"""An adapter folder on disk: write it, find it, validate it. attach.py puts it on a model.

An adapter is seven files (`ADAPTER_FILES`), and nothing else is shared or exported of its folder:

    adapter_model.safetensors   the LoRA's weights: float32, bfloat16 or float16
    adapter_config.json         PEFT's settings, with the base's id in place of a local path
    chat_template.jinja         the chat template that it was trained with
    persona.json                the persona's card: name, language, system prompt, greeting, probes, sampling, source
    run.json                    base (id, revision, licence), template's name, settings and figures of the run
    README.md                   the model card (model_card.py)
    loss.png                    the loss of the run, shown on the card; written before sharing (share/refresh_card.py)

Without the first three a folder is not an adapter; the others may be missing, as in one trained by another program.

An adapter may come from anyone, so `read_adapter` validates it before anything is loaded: no pickles, no links, known
settings only, finite numbers. Whether its shapes fit a base is checked when it is attached.
"""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from persona.errors import AdapterError, InputError, Message
from persona.models import model_card, trained_modules, trained_tokens
from persona.models.base import Base
from persona.models.memory import QUANTIZED_WEIGHT_BYTES
from persona.models.model_card import LOSS_PICTURE
from persona.models.safetensors_header import check_safetensors_header
from persona.store.files import fsync_folder, read_json, replace_folder, require_regular_file, to_json, write_atomic
from persona.store.persona_folder import PersonaCard, parse_card
from persona.template.chat_template import ChatTemplate, shipped_templates
from persona.template.render import MAX_LENGTH, MAX_LENGTH_RANGE

WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_FILES = (
    WEIGHTS_FILE,
    "adapter_config.json",
    "chat_template.jinja",
    "persona.json",
    "run.json",
    "README.md",
    LOSS_PICTURE,
)
MAX_ADAPTER_BYTES = 4_000_000_000
MAX_PATTERNS = 500  # layers with a rank or alpha of their own; PEFT compares each with each layer, as an expression
MAX_TEMPLATE_BYTES = 1_000_000  # the sandbox renders fewer characters still
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_DTYPES = ("torch.float32", "torch.bfloat16", "torch.float16")
_LAYER = re.compile(r"\^?[\w.\\-]{1,200}\$?")
_SETTINGS = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern",
             "trainable_token_indices", "bias", "lora_bias", "modules_to_save")  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """A validated adapter folder.

    base_id: as the adapter names it, not resolved. settings: the known ones of adapter_config.json. facts: run.json.
    """

    path: Path
    card: PersonaCard
    template: ChatTemplate
    base_id: str
    settings: dict[str, Any]
    facts: dict[str, Any]

    @property
    def base_revision(self) -> str:
        """The commit of its base on the Hub; "" where the base is not from the Hub or the commit is not known."""
        base = self.facts.get("base")
        value = str(base.get("revision") or "") if isinstance(base, dict) else ""
        return value if re.fullmatch("[0-9a-f]{40}", value) else ""

    @property
    def quantization(self) -> str:
        """How its base was quantized in training: nf4, int8 or none; none where run.json does not say."""
        config = self.facts.get("config")
        value = config.get("quantization") if isinstance(config, dict) else None
        return value if isinstance(value, str) and value in QUANTIZED_WEIGHT_BYTES else "none"

    @property
    def max_length(self) -> int:
        """Tokens of the longest row that it was trained on; the default where run.json has no sensible number."""
        config = self.facts.get("config")
        value = config.get("max_length") if isinstance(config, dict) else None
        lowest, highest = MAX_LENGTH_RANGE
        return value if type(value) is int and lowest <= value <= highest else MAX_LENGTH


def lora_scale(settings: dict[str, Any], layer: str, rank: int) -> float:
    """By which PEFT multiplies B·A of a layer: alpha / rank, with rsLoRA alpha / √rank. layer: without PEFT_PREFIX."""
    from peft.utils.other import get_pattern_key

    alphas = settings.get("alpha_pattern", {})
    alpha = alphas.get(get_pattern_key(alphas.keys(), layer), settings["lora_alpha"])
    return float(alpha / (rank**0.5 if settings.get("use_rslora") else rank))


def save_adapter(
    model: Any, target: Path, *, base: Base, template: ChatTemplate, card: PersonaCard, facts: dict[str, Any]
) -> None:
    """Write the trained LoRA of a PeftModel as an adapter folder, which replaces an older one atomically.

    facts: the content of run.json besides base and template: config, figures, versions, without local paths.
    Raises AdapterError where it cannot be written.
    """
    name = model.active_adapter if isinstance(model.active_adapter, str) else model.active_adapter[0]
    model.peft_config[name].base_model_name_or_path = base.id

    def write_weights(folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        _sort_settings(folder / "adapter_config.json")

    write_adapter_folder(write_weights, target, base=base.to_dict(), template=template, card=card, facts=facts)


def write_adapter_folder(
    write_weights: Callable[[Path], None], target: Path, *, base: dict[str, Any], template: ChatTemplate,
    card: PersonaCard, facts: dict[str, Any],
) -> None:  # fmt: skip
    """Write an adapter folder, which replaces an older one atomically.

    write_weights: writes weights and adapter_config.json into a new folder. base: as Base.to_dict(). Raises
    AdapterError where it cannot be written.
    """
    from safetensors import SafetensorError

    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        write_weights(scratch)
        write_atomic(scratch / "chat_template.jinja", template.text)
        write_atomic(scratch / "persona.json", to_json(card.model_dump(mode="json")))
        run = {"base": base, "template": template.name, **facts}
        write_atomic(scratch / "run.json", to_json(run))
        write_atomic(scratch / "README.md", model_card.render_model_card(card, run))
        fsync_folder(scratch)
    except (OSError, SafetensorError) as e:
        reason = getattr(e, "strerror", None) or e
        raise AdapterError(
            "{target}: could not be written ({reason}). Free some space and resume.", target=target, reason=reason
        ) from e
    replace_folder(scratch, target)


def _sort_settings(file: Path) -> None:
    """Sort target_modules, which PEFT writes in the order of a set: equal runs give equal files."""
    settings = json.loads(file.read_text())
    if isinstance(settings.get("target_modules"), list):
        settings["target_modules"].sort()
    write_atomic(file, to_json(settings))


def locate_adapter(path: Path) -> Path:
    """The adapter folder that a path stands for: the folder itself, a run's, or the newest of a persona's."""
    if (path / "adapter_config.json").is_file():
        return path
    if (path / "adapter").is_dir():
        return path / "adapter"
    adapters = sorted(path.glob("runs/*/adapter"), key=lambda p: p.parent.name)
    if not adapters:
        raise AdapterError("{path}: no adapter here. Train one with: persona train {path}", path=path)
    return adapters[-1]


def read_adapter(path: Path, template: ChatTemplate | None = None) -> Adapter:
    """Read and validate an adapter folder from anyone. Raises AdapterError: which file is wrong, and why.

    template: instead of the folder's own.
    """
    if not path.is_dir():
        raise AdapterError("{path}: no such adapter folder.", path=path)
    _refuse_links(path)
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise _explain_missing_weights(path)
    try:
        config = read_json(path / "adapter_config.json", Message("an adapter"))
        run = read_json(path / "run.json", Message("a run")) if (path / "run.json").is_file() else {}
        card = _read_card(path)
    except InputError as e:
        raise AdapterError(e.message) from e
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            "{path}: a {peft_type} adapter; only LoRA is supported.", path=path.name, peft_type=config.get("peft_type")
        )
    settings = {k: config[k] for k in _SETTINGS if config.get(k) is not None}
    _check_settings(path.name, settings)
    _check_weights(weights)
    template = template or ChatTemplate(str(run.get("template") or "own"), _read_template_text(path))
    base = run.get("base") if isinstance(run.get("base"), dict) else {}
    base_id = str((base or {}).get("id") or config.get("base_model_name_or_path") or "")
    return Adapter(path, card, template, base_id, settings, run)


def _explain_missing_weights(path: Path) -> AdapterError:
    if pickles := sorted(f.name for f in path.iterdir() if f.suffix in PICKLE_SUFFIXES):
        return AdapterError(
            "{path}: holds {pickles}. A pickle can run code when it is opened, so only "
            "adapter_model.safetensors is. Ask its author to save it as safetensors.",
            path=path.name,
            pickles=", ".join(pickles),
        )
    return AdapterError("{path}: no adapter_model.safetensors here, so this is not an adapter.", path=path.name)


def _read_card(path: Path) -> PersonaCard:
    """Its persona.json; an adapter of another program has none, and is named after its folder."""
    file = path / "persona.json"
    if not file.is_file():
        return PersonaCard(name=path.name[:80])
    return parse_card(read_json(file, Message("a persona")), "persona.json")


def _read_template_text(path: Path) -> str:
    file = path / "chat_template.jinja"
    if not file.is_file():
        raise AdapterError(
            "{path}: no chat_template.jinja, so its chat format is unknown. Say with which template it was trained: "
            "--template NAME, or Chat template below the button that opens it. There are {known}; a .jinja file of "
            "your own will do too.",
            path=path.name,
            known=", ".join(shipped_templates()),
        )
    try:
        require_regular_file(file, MAX_TEMPLATE_BYTES)
        return file.read_text(encoding="utf-8")
    except InputError as e:
        raise AdapterError(e.message) from e
    except (OSError, UnicodeDecodeError) as e:
        raise AdapterError(
            "{path}/chat_template.jinja: cannot be read ({reason}). Copy it again.", path=path.name, reason=e
        ) from e


def _refuse_links(path: Path) -> None:
    """Raise AdapterError for a link out of the folder: it could make a private file of this machine be shared.

    Links of the Hub's cache are allowed (_is_own_file).
    """
    for name in ADAPTER_FILES:
        try:
            leads_out = (path / name).is_symlink() and not _is_own_file((path / name).resolve(), path)
        except OSError:  # it is changed at this moment
            leads_out = True
        if leads_out:
            raise _link_error(path / name)


def _is_own_file(real: Path, folder: Path) -> bool:
    """Whether a file is in the folder or, for one of the Hub's cache, among the cache's blobs.

    There, snapshots/REVISION/FILE → ../../blobs/HASH, and where it came through Xet → ../../blobs/XE/XETHASH.
    """
    revision = folder.resolve()
    repo = revision.parent.parent
    shared = repo.parent / "blobs" if revision.parent.name == "snapshots" else None
    return real.parent in (revision, repo / "blobs") or real.parent.parent == shared


def _link_error(file: Path) -> AdapterError:
    return AdapterError(
        "{path}: {name} is a link to another place. Copy the file itself there.", path=file.parent.name, name=file.name
    )


def open_adapter_file(file: Path) -> BinaryIO:
    """A file of an adapter, open for reading. Raises AdapterError where it has become a link out of its folder.

    What has been opened is examined, and not the name again: that can be changed between a check and its use.
    """
    opened = file.open("rb")
    try:
        real = file.resolve()
        if _is_own_file(real, file.parent) and os.path.samestat(os.fstat(opened.fileno()), real.lstat()):
            return opened
    except OSError:
        pass
    opened.close()
    raise _link_error(file)


def _check_settings(name: str, settings: dict[str, Any]) -> None:
    """Raise AdapterError for settings that PEFT could not use, or that would harm: all come from outside."""
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
    for key, is_valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        pattern = settings.get(key, {})
        # PEFT matches the names as regular expressions, and a hostile one would run for years
        if (
            not isinstance(pattern, dict)
            or len(pattern) > MAX_PATTERNS
            or not all(_LAYER.fullmatch(k) and is_valid(v) for k, v in pattern.items())
        ):
            raise AdapterError(
                "{name}/adapter_config.json: {key}={pattern} is not a number for each of up to {limit} layers.",
                limit=MAX_PATTERNS,
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
    _check_trained_modules(name, settings)
    _check_token_indices(name, settings.get("trainable_token_indices", {}), bool(settings.get("use_dora")))


def _check_trained_modules(name: str, settings: dict[str, Any]) -> None:
    """PEFT's bias and modules_to_save: what is trained beside the LoRA."""
    bias, saved = settings.get("bias", "none"), settings.get("modules_to_save", [])
    if bias not in trained_modules.BIAS_MODES:
        raise AdapterError(
            "{name}/adapter_config.json: bias={bias} is not one of {known}.",
            name=name,
            bias=f"{bias!r:.40}",
            known=", ".join(trained_modules.BIAS_MODES),
        )
    if not isinstance(saved, list) or len(saved) > trained_modules.MAX_NAMES or not all(map(_is_name, saved)):
        raise AdapterError(
            "{name}/adapter_config.json: modules_to_save={modules} names no layers.",
            name=name,
            modules=f"{saved!r:.60}",
        )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(_LAYER.fullmatch(value))


def _check_token_indices(name: str, indices: Any, use_dora: bool) -> None:
    """indices: PEFT's trainable_token_indices, token ids or {layer: token ids}."""
    if not all(map(trained_tokens.are_token_ids, indices.values() if isinstance(indices, dict) else [indices])):
        raise AdapterError(
            "{name}/adapter_config.json: trainable_token_indices={named} does not give layers up to "
            "{limit} token ids each.",
            name=name,
            named=f"{indices!r:.60}",
            limit=trained_tokens.MAX_TRAINED_TOKENS,
        )
    if indices and use_dora:
        raise AdapterError(
            "{name}/adapter_config.json: use_dora and trained rows of tokens do not go together.", name=name
        )


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 4096


def _is_alpha(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e6  # isfinite fails for integers beyond a float


def _check_weights(file: Path) -> None:
    """Raise AdapterError unless it is a safetensors file of finite floating-point numbers, of a LoRA's size."""
    from safetensors import SafetensorError, safe_open

    if file.stat().st_size > MAX_ADAPTER_BYTES:
        raise AdapterError("{file}: {size:.1f} GB is no LoRA adapter.", file=file.name, size=file.stat().st_size / 1e9)
    check_safetensors_header(file)
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
