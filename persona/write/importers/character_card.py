"""Character cards, V1 to V3, as JSON, PNG or .charx: a persona's card, and its example dialogue as pairs."""

import base64
import binascii
import itertools
import json
import re
import struct
from collections.abc import Iterator
from typing import Any

from persona.errors import InputError, Message
from persona.store.character_book import read_book
from persona.store.cjk import HAN, KANA
from persona.store.pairs import Pair
from persona.store.persona_folder import MAX_GREETING, MAX_GREETINGS, MAX_NAME, MAX_SYSTEM, PersonaCard
from persona.write.importers import ImportItem, ImportNote, ImportOptions, SkippedRow, SourceSurvey, charx
from persona.write.importers.json_reader import read_first_rows
from persona.write.importers.rows import MAX_SHOWN, parse_complete_pair
from persona.write.importers.speaker_turns import is_like_name
from persona.write.importers.text_source import ZIP, SourceFile

NAME = "character"
TITLE = "Character card: V1, V2, V3 (JSON, PNG, CHARX)"
OPTIONS = frozenset({"turns"})

SPECS = ("chara_card_v2", "chara_card_v3")
MAX_BYTES = 50_000_000
MAX_CALLED = 200  # characters of a name or nickname, which stands for each {{char}}
MAX_TEXT = 10_000_000  # characters of a card's JSON; small lists in it take thirty times their text
MAX_PIXELS = 25_000_000  # 5,000 × 5,000; Pillow decodes them all before it reads the text behind them
FIELD_LIMITS = {"name": MAX_NAME, "system": MAX_SYSTEM, "greeting": MAX_GREETING}
PNG = b"\x89PNG\r\n\x1a\n"
PNG_TEXT_KEYS = ("ccv3", "chara")  # PNG text chunks, the newer one first
UNUSED_FIELDS = ("group_only_greetings", "creator_notes", "assets")
HEADINGS = {  # the fields that make up a system prompt, in this order
    "zh": {"system_prompt": "", "description": "", "personality": "性格：", "scenario": "场景："},
    "": {"system_prompt": "", "description": "", "personality": "Personality: ", "scenario": "Scenario: "},
}
_START = re.compile(r"<START>|^[ \t]*(?:<END>|END_OF_DIALOG(?:UE)?)[ \t]*$", re.I | re.M)
_CHAR = re.compile(r"\{\{char\}\}|<(?:char|bot)>", re.I)
_USER = re.compile(r"\{\{user\}\}|<user>", re.I)
_SOMEONE = re.compile(r"\{\{random_user_\d{1,3}\}\}|<random_user_\d{1,3}>", re.I)
_NAMED_LINE = re.compile(r"\s*(?P<name>[^\s:：{}<>*\"“(\[][^:：{}<>\n]{0,39}?)\s*[:：]\s*(?P<text>.*)")


def sniff(source: SourceFile) -> float:
    try:
        if source.bytes(8) == PNG:
            return 0.95 if _png_texts(source) else 0.0
        if (members := source.zip_members()) is not None:
            return 0.95 if charx.CARD in members else 0.0
    except InputError:
        return 0.0
    found = read_first_rows(source, 1)
    return 0.95 if found and is_character_card(found[0]) else 0.0


def is_character_card(value: dict[str, Any]) -> bool:
    if value.get("spec") in SPECS and isinstance(value.get("data"), dict):
        return True
    return {"name", "description", "first_mes"} <= value.keys() and bool({"personality", "mes_example"} & value.keys())


def survey(source: SourceFile) -> SourceSurvey:
    whole = _load(source)
    container = source.path if source.bytes(8) == PNG or source.bytes(4) == ZIP else None
    return SourceSurvey(card=_card(card_fields(whole), source.name)[0], original=whole, container=container)


def card_fields(whole: dict[str, Any]) -> dict[str, Any]:
    """The fields of a card, wherever its version of the format has them."""
    return whole["data"] if whole.get("spec") in SPECS and isinstance(whole.get("data"), dict) else whole


def read_card(whole: dict[str, Any]) -> PersonaCard:
    """The persona that a card's JSON value describes. Raises InputError where it has no name."""
    return _card(card_fields(whole), "character_card.json")[0]


def read_example(whole: dict[str, Any]) -> list[tuple[str, str]]:
    """(message, reply) of each exchange in the example dialogue."""
    data, card = card_fields(whole), read_card(whole)
    turns = [_dialogue_turns(line, block, data, card) for line, block in _blocks(_field(data, "mes_example"))]
    return [
        (asked, reply)
        for said in turns
        for (side, _, asked), (next_side, _, reply) in itertools.pairwise(said)
        if (side, next_side) == ("user", "char")
    ]


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    """The pairs of the example dialogue; lines count within it. Raises InputError when there is no card."""
    data = card_fields(_load(source))
    card, notes = _card(data, source.name)
    yield from (ImportNote(1, what) for what in notes)
    for line, block in _blocks(_field(data, "mes_example")):
        yield from _pairs(_dialogue_turns(line, block, data, card), source, options.turns or 0)


# --- the card ----------------------------------------------------------------------------------------------------


def _load(source: SourceFile) -> dict[str, Any]:
    """The card's JSON value. Raises InputError."""
    try:
        if source.path.stat().st_size > MAX_BYTES:
            raise _too_large(source)
        if source.bytes(8) == PNG:
            chunks = _png_texts(source)
            if not chunks:
                raise InputError(
                    "{source}: a picture without a character in it. Export the card again.", source=source.name
                )
            text = base64.b64decode(chunks[min(chunks, key=PNG_TEXT_KEYS.index)]).decode("utf-8")
        elif source.bytes(4) == ZIP:
            text = charx.read_card_json(source.path, source.name)
        else:
            text = source.path.read_text(encoding=source.encoding, errors="backslashreplace")
        if len(text) > MAX_TEXT:
            raise InputError(
                "{source}: a card of {count:,} characters, where {limit:,} is the limit. Shorten it.",
                source=source.name,
                count=len(text),
                limit=MAX_TEXT,
            )
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except InputError:
        raise
    except OSError as e:
        raise InputError("{source}: cannot be read ({reason}).", source=source.name, reason=e.strerror or e) from e
    except (binascii.Error, ValueError, RecursionError) as e:  # not base64, not UTF-8, not JSON, half a character
        raise InputError(
            "{source}: its character cannot be read ({reason}). Export the card again.",
            source=source.name,
            reason=f"{e!s:.200}",
        ) from e
    if not isinstance(value, dict) or not is_character_card(value):
        raise InputError(
            "{source}: no character card: it names neither spec nor name, description and first_mes.",
            source=source.name,
        )
    return value


def _too_large(source: SourceFile) -> InputError:
    return InputError(
        "{source}: more than {limit:,.0f} MB, which is no character card.", source=source.name, limit=MAX_BYTES / 1e6
    )


def _png_texts(source: SourceFile) -> dict[str, str]:
    """The PNG's text chunks that hold a character. Raises InputError when it is damaged."""
    from PIL import Image

    if source.path.stat().st_size > MAX_BYTES:
        raise _too_large(source)
    width, height = struct.unpack(">II", source.bytes(24)[16:].ljust(8, b"\0"))
    if width * height > MAX_PIXELS:
        raise InputError(
            "{source}: a picture of {width:,} × {height:,} pixels is no card. Make it smaller.",
            source=source.name,
            width=width,
            height=height,
        )
    try:
        with source.path.open("rb") as file, Image.open(file, formats=["PNG"]) as picture:
            picture.load()  # chunks may stand after the picture
            return {name: str(picture.info[name]) for name in PNG_TEXT_KEYS if name in picture.info}
    except Exception as e:  # damaged in any of a hundred ways, each with an exception of its own
        raise InputError(
            "{source}: no PNG that can be read ({reason}). Export the card again.",
            source=source.name,
            reason=f"{e!r:.200}",
        ) from e


def _field(data: dict[str, Any], name: str) -> str:
    value = data.get(name)
    return value.replace("\r\n", "\n").replace("\r", "\n").strip() if isinstance(value, str) else ""


def _card(data: dict[str, Any], source: str) -> tuple[PersonaCard, list[str]]:
    """The persona's card, and notes on what was left out. source: the file's name. Raises InputError."""
    notes: list[str] = []
    full = _field(data, "name")
    if not full:
        raise InputError("{source}: the card has no name. Write one into it.", source=source)
    name = _truncate(full, FIELD_LIMITS["name"], "name", notes)
    language = (
        "zh" if _is_chinese("".join(_field(data, k) for k in ("description", "personality", "first_mes"))) else ""
    )
    called = _called(data, full)
    parts: list[str] = []
    for field, heading in HEADINGS[language].items():
        if text := _replace_placeholders(_field(data, field).replace("{{original}}", "").strip(), called, language):
            room = FIELD_LIMITS["system"] - sum(len(p) + 2 for p in parts) - len(heading)
            if text := _truncate(text, room, field, notes):
                parts.append(heading + text)
    greeting = _replace_placeholders(_field(data, "first_mes"), called, language)
    notes += [
        Message("{field} is kept for an export, and not used here", field=field)
        for field in UNUSED_FIELDS
        if data.get(field)
    ]
    others = [_replace_placeholders(text, called, language) for text in _texts(data, "alternate_greetings")]
    if len(others) > MAX_GREETINGS:
        notes.append(Message("{count:,} greeting(s) left out: there is no room", count=len(others) - MAX_GREETINGS))
    instructions = _field(data, "post_history_instructions").replace("{{original}}", "").strip()
    card = PersonaCard(
        name=name,
        system="\n\n".join(parts),
        greeting=_truncate(greeting, FIELD_LIMITS["greeting"], "first_mes", notes),
        language=language,
        author=_field(data, "creator"),
        source=f"character card {source}",
        nickname=_field(data, "nickname")[:MAX_NAME],
        alternate_greetings=tuple(
            _truncate(text, FIELD_LIMITS["greeting"], "alternate_greetings", notes) for text in others[:MAX_GREETINGS]
        ),
        post_history_instructions=_truncate(instructions, FIELD_LIMITS["system"], "post_history_instructions", notes),
        character_book=read_book(data.get("character_book"), notes.append),
    )
    return card, notes


def _texts(data: dict[str, Any], name: str) -> list[str]:
    """The texts of a list that are not empty."""
    value = data.get(name)
    texts = [_field({name: text}, name) for text in value] if isinstance(value, list) else []
    return [text for text in texts if text]


def _called(data: dict[str, Any], name: str) -> str:
    """What stands for {{char}}."""
    return (_field(data, "nickname") or name)[:MAX_CALLED]


def _truncate(text: str, room: int, field: str, notes: list[str]) -> str:
    """The text cut to `room` characters, at a line break if possible; adds a note when something is left out."""
    if len(text) <= room:
        return text
    kept = text[: max(room, 0)]
    kept = kept.rpartition("\n")[0].rstrip() or kept
    notes.append(
        Message(
            "{field}: the last {count:,} of {total:,} characters left out: there is no room",
            field=field,
            count=len(text) - len(kept),
            total=len(text),
        )
    )
    return kept


def _is_chinese(text: str) -> bool:
    han, kana = len(re.findall(f"[{HAN}]", text)), len(re.findall(f"[{KANA}]", text))
    return han > 10 * kana and 5 * han > len(re.sub(r"\s", "", text))


def _replace_placeholders(text: str, name: str, language: str) -> str:
    text = _CHAR.sub(lambda _: name, text)
    text = _SOMEONE.sub("某人" if language == "zh" else "someone", text)
    return _USER.sub("你" if language == "zh" else "you", text)


# --- the example dialogue ----------------------------------------------------------------------------------------


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    """(line, text) of each example between two <START>."""
    at, line = 0, 1
    for end in [*_START.finditer(text), None]:
        block = text[at : end.start() if end else len(text)]
        if block.strip():
            yield line, block
        line += block.count("\n")
        at = end.end() if end else at


def _dialogue_turns(line: int, block: str, data: dict[str, Any], card: PersonaCard) -> list[tuple[str, int, str]]:
    """(side, line, text) of each turn; a line without a speaker continues the turn before it.

    Somebody else speaks as a user does: {{random_user_1}}, and a name whose line the persona answers.
    """
    names = {re.escape(n[:MAX_CALLED]) for n in (_field(data, "name"), _field(data, "nickname")) if n}
    user = rf"{_USER.pattern}|{_SOMEONE.pattern}|you|user|用户|你"
    char = rf"{_CHAR.pattern}|{'|'.join(names)}"
    begins = re.compile(rf"\s*(?:(?P<user>{user})|(?P<char>{char}))\s*[:：]\s*(?P<text>.*)", re.I)
    lines = block.split("\n")
    others = _find_others(lines, begins)
    called = _called(data, card.name)
    said: list[tuple[str, int, list[str]]] = []
    last = ""  # who spoke
    for number, text in enumerate(lines, line):
        match = begins.match(text)
        named = None if match else _other_speaker(text)
        if match or (named and named[0] in others):
            side = "char" if match and match["char"] else "user"
            who, spoken = ((match["user"] or "", match["text"]) if match else named) or ("", "")
            if said and said[-1][0] == side and (side == "char" or who == last):
                said[-1][2].append(spoken)
            else:
                said.append((side, number, [spoken]))
            last = who
        elif said:
            said[-1][2].append(text)
        elif text.strip():
            said.append(("", number, [text]))
    return [
        (side, at, _replace_placeholders("\n".join(texts).strip(), called, card.language)) for side, at, texts in said
    ]


def _find_others(lines: list[str], begins: re.Pattern[str]) -> set[str]:
    """Names before a colon that are speakers, since the persona speaks next; others are a list within a reply."""
    others, waiting = set[str](), ""
    for text in lines:
        if match := begins.match(text):
            others |= {waiting} - {""} if match["char"] else set()
            waiting = ""
        elif named := _other_speaker(text):
            waiting = named[0]
    return others


def _other_speaker(text: str) -> tuple[str, str] | None:
    """(name, text) of a line that may be somebody else's."""
    found = _NAMED_LINE.match(text)
    return (found["name"], found["text"]) if found and is_like_name(found["name"]) else None


UNANSWERED = Message("mes_example: nobody replies to this")


def _pairs(said: list[tuple[str, int, str]], source: SourceFile, turns: int) -> Iterator[Pair | SkippedRow]:
    reasons = {"": Message("mes_example: nobody says this"), "char": Message("mes_example: a reply to nothing")}
    history: list[list[str]] = []
    asked: tuple[int, str] | None = None
    for side, line, text in said:
        if side == "user":
            if asked:
                yield SkippedRow(asked[0], UNANSWERED, asked[1])
            asked = (line, text)
        elif side == "" or asked is None:
            yield SkippedRow(line, reasons[side], text)
        else:
            earlier = history[len(history) - turns :] if turns > 0 else []
            row = {"instruction": asked[1], "output": text, "history": earlier, "source": source.location(asked[0])}
            try:
                yield parse_complete_pair(row)
                history.append([asked[1], text])
            except InputError as e:
                yield SkippedRow(
                    asked[0], Message("mes_example: {problem}", problem=e), f"{asked[1]}\n{text}"[:MAX_SHOWN]
                )
            asked = None
    if asked:
        yield SkippedRow(asked[0], UNANSWERED, asked[1])
