"""A character card, V2 or V3, as JSON or inside a PNG, for role-play programs."""

import base64
import colorsys
import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps, PngImagePlugin, UnidentifiedImageError

from persona.errors import InputError
from persona.share.exports import new_output
from persona.store.files import to_json, write_atomic
from persona.store.kept_card import PICTURE, find_container, find_picture
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.importers import charx
from persona.write.importers.character_card import MAX_PIXELS, card_fields, read_card, read_example

MAX_EXAMPLES = 20  # pairs in the card: programs put them before every chat
PICTURE_SIZE = (512, 768)  # width, height in pixels: the shape of most cards
CARD_VERSIONS = {2: ("chara_card_v2", "2.0"), 3: ("chara_card_v3", "3.0")}
PNG_CHUNKS = {"chara": 2, "ccv3": 3}  # of a PNG: older programs read the first


def export_card(
    card: PersonaCard, pairs: Sequence[Pair], out: Path, version: int = 3, picture: Path | None = None, link: str = "",
    kept: Mapping[str, Any] = MappingProxyType({}), home: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write the card as the new file `out`: .json in that version, .png with both and a picture, .charx with assets.

    picture: any image file; default: the persona's, else a monogram. link: address of
    the adapter, e.g. on the Hub. kept: the card that the persona was made of, home: the persona's folder, with the file
    that it came in (store/kept_card.py). Returns file, bytes and examples. Raises InputError.
    """
    if version not in CARD_VERSIONS:
        raise InputError("version {version}: a character card is of version 2 or 3.", version=version)
    kind = out.suffix.lower()
    if kind not in (".json", ".png", ".charx"):
        raise InputError(
            "{out}: a character card is a .json, a .png or a .charx file. Give it one of these endings.", out=out
        )
    if picture and kind == ".json":
        raise InputError("{out}: a .json file holds no picture. Name a .png file, or leave the picture out.", out=out)
    with new_output.create_output(out) as file:
        if kind == ".json":
            write_atomic(file, to_json(build_card(card, pairs, version, link, kept)))
        elif kind == ".charx":
            _write_charx(file, build_card(card, pairs, 3, link, kept), card, picture, home)
        else:
            texts = PngImagePlugin.PngInfo()
            for chunk, number in PNG_CHUNKS.items():
                value = json.dumps(build_card(card, pairs, number, link, kept), ensure_ascii=False)
                texts.add_text(chunk, base64.b64encode(value.encode()).decode())
            kept_png = find_container(home, ".png") if home else None
            for name, asset in _png_assets(kept_png).items():
                texts.add_text(name, asset)
            _choose_picture(card, picture, home).save(file, "PNG", pnginfo=texts)
        size = file.stat().st_size
    return {"file": str(out), "bytes": size, "examples": len(_choose_examples(card, pairs))}


ICON = "assets/icon/images/main.png"  # in a .charx


def _write_charx(file: Path, value: dict[str, Any], card: PersonaCard, picture: Path | None, home: Path | None) -> None:
    """A zip with card.json, and the assets of the .charx that the persona was made of; without one, a picture."""
    kept = find_container(home, ".charx") if home else None
    if home and (home / PICTURE).is_file():
        picture = picture or home / PICTURE
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        written = {charx.CARD}
        if picture or not kept:
            assets = value["data"].get("assets")
            others = (
                [a for a in assets if isinstance(a, dict) and a.get("type") != "icon"]
                if (isinstance(assets, list))
                else []
            )
            icon = {"type": "icon", "uri": f"embeded://{ICON}", "name": "main", "ext": "png"}
            value["data"]["assets"] = [icon, *others]
            with out.open(ICON, "w") as target:
                _choose_picture(card, picture, home).save(target, "PNG")
            written.add(ICON)
        out.writestr(charx.CARD, to_json(value))
        if kept:
            with charx.open_charx(kept, kept.name) as (archive, members):
                for info in members:
                    if info.filename not in written:
                        out.writestr(info.filename, archive.read(info))


def _choose_picture(card: PersonaCard, picture: Path | None, home: Path | None) -> Image.Image:
    chosen = picture or (find_picture(home) if home else None)
    return open_picture(chosen) if chosen else draw_monogram(card.name)


def _png_assets(picture: Path | None) -> dict[str, str]:
    """The assets in a kept PNG, as its text chunks hold them: chara-ext-asset_:PATH → base64."""
    if not picture:
        return {}
    try:
        with Image.open(picture, formats=["PNG"]) as image:
            image.load()
            texts = {str(name): text for name, text in image.info.items() if isinstance(text, str)}
            return {name: text for name, text in texts.items() if name.startswith("chara-ext-asset_")}
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError):
        return {}  # open_picture says what is wrong


def build_card(
    card: PersonaCard,
    pairs: Sequence[Pair],
    version: int,
    link: str = "",
    kept: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The card as a JSON value in that version of the format.

    The system prompt becomes the description, which programs put into every prompt; `system_prompt` replaces a
    program's own instructions, and only some programs read it. Of a card that was kept, everything stays that the
    persona has not changed.
    """
    spec, number = CARD_VERSIONS[version]
    data: dict[str, Any] = {
        "name": card.name,
        "description": card.system,
        "personality": "",
        "scenario": "",
        "first_mes": card.greeting,
        "mes_example": "\n".join(_example(p) for p in _choose_examples(card, pairs)),
        "creator_notes": "\n".join(x for x in (card.source, card.rights) if x),
        "system_prompt": "",
        "post_history_instructions": card.post_history_instructions,
        "alternate_greetings": list(card.alternate_greetings),
        "tags": ["persona", *([card.language] if card.language else [])],
        "creator": card.author,
        "character_version": "",
        "extensions": {"persona": {"adapter": link, "source": card.source, "rights": card.rights}},
    }
    if card.character_book:
        book = card.character_book.model_dump(mode="json")
        data["character_book"] = {**book, "extensions": book.get("extensions", {})}
    if card.nickname:
        data["nickname"] = card.nickname
    if version == 3:
        data["group_only_greetings"] = []
    return {"spec": spec, "spec_version": number, "data": _keep_unchanged(data, card, pairs, dict(kept))}


# field of the persona → the fields of a card that it was read from
_READ_FROM = {
    "name": ("name",), "system": ("description", "personality", "scenario", "system_prompt"),
    "greeting": ("first_mes",), "alternate_greetings": ("alternate_greetings",), "nickname": ("nickname",),
    "post_history_instructions": ("post_history_instructions",), "author": ("creator",),
    "character_book": ("character_book",),
}  # fmt: skip


def _keep_unchanged(
    data: dict[str, Any], card: PersonaCard, pairs: Sequence[Pair], kept: dict[str, Any]
) -> dict[str, Any]:
    """`data` with all of the kept card in it but what the persona has changed since it was read from it."""
    if not kept:
        return data
    original, was = card_fields(kept), read_card(kept)
    changed = {field for name, fields in _READ_FROM.items() if getattr(card, name) != getattr(was, name)
               for field in fields}  # fmt: skip
    if not set(read_example(kept)) <= {(p.instruction, p.output) for p in pairs}:
        changed.add("mes_example")
    missing = {"character_book", "nickname"} - data.keys()
    merged = {**data, **{name: value for name, value in original.items() if name not in changed}}
    for name in missing & changed:
        merged.pop(name, None)
    extensions = original.get("extensions")
    merged["extensions"] = {**(extensions if isinstance(extensions, dict) else {}), **data["extensions"]}
    return merged


def _choose_examples(card: PersonaCard, pairs: Sequence[Pair]) -> list[Pair]:
    """The first pairs, those without history before others, in which no line looks like the beginning of a turn."""
    speakers = rf"^\s*(?:user|用户|{re.escape(card.name)})\s*[:：]"
    confusing = re.compile(rf"{speakers}|\{{\{{|<(?:START|user|bot|char)>", re.I | re.M)
    ordered = sorted(pairs, key=lambda p: bool(p.history))
    clear = (p for p in ordered if not confusing.search("\n".join(x for t in _turns(p) for x in t)))
    return list(itertools.islice(clear, MAX_EXAMPLES))


def _turns(pair: Pair) -> list[tuple[str, str]]:
    return [*pair.history, (pair.instruction, pair.output)]


def _example(pair: Pair) -> str:
    said = ((who, text.strip()) for turn in _turns(pair) for who, text in zip(("user", "char"), turn, strict=True))
    lines = (f"{{{{{who}}}}}: {text}" for who, text in said if text)  # before a greeting nobody says anything
    return "\n".join(["<START>", *lines])


def open_picture(picture: Path) -> Image.Image:
    """The user's picture without metadata of the camera (place, name). Raises InputError."""
    try:
        with Image.open(picture) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(
                    "{picture}: {width:,} × {height:,} pixels are too many. Make it smaller.",
                    picture=picture,
                    width=image.width,
                    height=image.height,
                )
            plain = ImageOps.exif_transpose(image).convert("RGBA" if "A" in image.getbands() else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError(
            "{picture}: cannot be opened as a picture ({reason}). Use a PNG or JPEG file.", picture=picture, reason=e
        ) from e
    return plain


def draw_monogram(name: str) -> Image.Image:
    """The initials on a colour derived from the name; a moon where the font lacks these characters."""
    seed = hashlib.sha256(name.encode()).digest()
    red, green, blue = (round(255 * x) for x in colorsys.hls_to_rgb(seed[0] / 255, 0.32, 0.35))
    image = Image.new("RGB", PICTURE_SIZE, (red, green, blue))
    draw, light = ImageDraw.Draw(image), (244, 238, 224)
    x, y = PICTURE_SIZE[0] / 2, PICTURE_SIZE[1] * 0.44
    draw.circle((x, y), 180, outline=light, width=6)
    letters = "".join(word[0] for word in name.split()[:2]).upper()
    font = ImageFont.load_default(150)
    missing = bytes(font.getmask("\uffff"))
    if letters and all(bytes(font.getmask(c)) != missing for c in letters):
        draw.text((x, y), letters, fill=light, font=font, anchor="mm")
    else:
        draw.circle((x, y), 120, fill=light)
        draw.circle((x + 30 + seed[1] / 4, y - 20), 104, fill=(red, green, blue))
    return image
