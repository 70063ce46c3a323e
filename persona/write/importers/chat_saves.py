"""Chats as their programs save them, where no row says who speaks: as rows of who, text and time, one a line.

RisuAI          {"type": "risuChat", "data": {"message": [{"role": "user" | "char", "data": text, "saying": id}]}}
                kwaroran/RisuAI src/ts/characters.ts, exportChat
Agnai           {"messages": [{"userId": of the user's own, "msg": text}]}
KoboldAI, Lite  {"gamestarted": true, "prompt": text, "actions": [text]}; Lite puts {{[INPUT]}} before what is asked
                KoboldAI-Client aiserver.py, UI_2_download; both are read as in SillyTavern src/endpoints/chats.js
iMessage        imessage-exporter's text: a time, the sender below it, then the message
                ReagentX/imessage-exporter src/exporters/txt.rs, format_message
"""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from persona.write.importers.row_shapes import write_rows
from persona.write.importers.text_source import SourceFile

MAX_BYTES = 50_000_000  # of a save, which is read as a whole
ROLE = {True: "user", False: "assistant"}
_SAVE = re.compile(r'"(?:gamestarted|risuChat|risuAllChats|userId)"')
_KOBOLD_MARK = re.compile(r"\{\{\[(INPUT|OUTPUT)\]\}\}")
_TIME = re.compile(r"[A-Z][a-z]{2} \d{2}, \d{4} {1,2}\d{1,2}:\d{2}:\d{2} [AP]M")
_SENT = re.compile(rf"{_TIME.pattern}(?: \([^()\n]{{1,200}}\))?$")
_REPLY = "This message responded to an earlier message."
_REACTIONS = ("Reactions:", "Tapbacks:")
_PATH = re.compile(r"(?:~|/|attachments/)[^\n]{0,400}\.\w{2,5}$|Attachment missing!$")


def open_saved(source: SourceFile) -> SourceFile | None:
    """The rows, or the story, of a save, in a temporary file that lasts as long as that; None for any other file."""
    if source.path.stat().st_size > MAX_BYTES:
        return None
    head = source.head(4_000).lstrip("\ufeff \n")
    if _SENT.match(head.split("\n", 1)[0].rstrip()):
        rows = list(_read_imessage(source))
        return write_rows(source, rows) if len({row["name"] for row in rows}) > 1 else None
    if not head.startswith("{") or not _SAVE.search(source.head()):
        return None
    try:
        with source.open_text() as file:
            saved = json.load(file)
    except (ValueError, RecursionError):
        return None
    if isinstance(saved, dict) and "gamestarted" in saved:
        return _open_kobold(source, saved)
    talks = [*_find_talks(saved)] if isinstance(saved, dict) else []
    return write_rows(source, talks) if talks else None


def _find_talks(saved: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The conversations of RisuAI and Agnai."""
    if saved.get("type") in ("risuChat", "risuAllChats"):
        chats = saved.get("data")
        for chat in chats if isinstance(chats, list) else [chats]:
            if isinstance(chat, dict):
                yield from _risu_rows(_objects(chat.get("message"), "data"))
        return
    rows = _objects(saved.get("messages"), "msg")
    if any("userId" in row for row in rows):
        yield {"messages": [{"role": ROLE[bool(row.get("userId"))], "content": row["msg"]} for row in rows]}


def _risu_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if not rows:
        return
    names = {str(row.get("saying") or "") for row in rows if row.get("role") != "user"}
    if len(names) < 2:
        yield {"messages": [{"role": ROLE[row.get("role") == "user"], "content": row["data"]} for row in rows]}
        return
    for row in rows:  # a group, in which somebody is chosen
        who = "user" if row.get("role") == "user" else row.get("name") or row.get("saying")
        yield {"name": str(who or "char"), "text": row["data"]}


def _objects(value: Any, text: str) -> list[dict[str, Any]]:
    rows = value if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get(text), str) and row[text].strip()]


def _open_kobold(source: SourceFile, saved: dict[str, Any]) -> SourceFile | None:
    """The turns that Lite marks, else the story as a text, in which a chat has lines of a name and a colon."""
    actions = saved.get("actions")
    pieces = [saved.get("prompt"), *(actions if isinstance(actions, list) else [])]
    story = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
    if not story:
        return None
    first, *parts = _KOBOLD_MARK.split(story)
    if parts:
        said = [("OUTPUT", first), *zip(parts[::2], parts[1::2], strict=True)]
        turns = [{"role": ROLE[side == "INPUT"], "content": text.strip()} for side, text in said if text.strip()]
        return write_rows(source, [{"messages": turns}])
    folder = tempfile.TemporaryDirectory(prefix="persona-")
    path = Path(folder.name) / "story.txt"
    path.write_text(story + "\n", encoding="utf-8", errors="backslashreplace")
    return SourceFile(path, source.name, "utf-8", folder)


def _read_imessage(source: SourceFile) -> Iterator[dict[str, Any]]:
    """Messages in their order; a reply stands a second time, indented, below what it answers."""
    who, said = "", list[str]()
    state = "text"  # "name" after a time; "skip" in reactions, which end with an empty line, and in an announcement
    for _, raw in source.lines():
        line = raw.rstrip()
        if _TIME.match(line):
            if who:
                yield {"name": who, "text": "\n".join(said).strip()}
            who, said, state = "", [], "name" if _SENT.match(line) else "skip"
        elif state == "name":
            who, state = line.strip(), "text"
        elif state == "skip":
            state = "text" if who and not line else "skip"
        elif line.strip() in _REACTIONS:
            state = "skip"
        elif not line.startswith("    ") and line != _REPLY and not _PATH.match(line):
            said.append(line)
    if who:
        yield {"name": who, "text": "\n".join(said).strip()}
