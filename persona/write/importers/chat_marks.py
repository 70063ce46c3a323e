"""Take out of a message what a chat program wrote itself: deleted, edited, attachments, calls.

The phrases are data: `chat_marks.toml`, by program and language.
"""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MAX_MARK = 240  # characters of a line that can be a mark
LEFT_TO_RIGHT = "\u200e"  # WhatsApp on iOS writes one before each text of its own
WHOLE_KINDS = ("notice", "media", "sticker")
XML_CARD = re.compile(r"<(?:\?xml|msg|appmsg|sysmsg|emoji|voipmsg|voipinvitemsg)\b")
# a quotation that WeChat, or signal-export, puts before the reply to it
QUOTATION = re.compile(r"「[^「」]{0,4000}」\s{0,3}\n(?:[-—] ?){5,60}\n|>\s{0,3}\n(?:>[^\n]{0,4000}\n){1,50}(?=[^>])")
FORWARDED = re.compile(r"\[?Forwarded from ")  # at the beginning of a message: the rest is somebody else's
_FOREIGN_MARK = re.compile(r"<[^<>]{1,60}>\.?")


@dataclass(frozen=True)
class CleanedMessage:
    """A message without marks. kind: what it was where no text is left. removed: what was taken out of it."""

    text: str
    kind: str = ""  # "notice", "media" or "sticker"
    removed: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChatMarks:
    """Patterns for the marks of some programs; each fits a whole line, `end` the end of one."""

    whole: dict[str, re.Pattern[str]]
    line: re.Pattern[str]
    block: re.Pattern[str]
    end: re.Pattern[str]
    inline: re.Pattern[str]

    def clean(self, text: str) -> CleanedMessage:
        """The message without the marks; lines are otherwise kept as they are. Takes time by its length."""
        removed: list[str] = []
        text, mark = _split_ios_mark(text.strip(), self)
        removed += [mark] * bool(mark)
        if not text or XML_CARD.match(text):
            kind = "media" if text else (self._kind(mark) or "notice") if mark else ""
            return CleanedMessage("", kind, tuple(filter(None, [mark or text])))
        if kind := self._kind(text):
            return CleanedMessage("", kind, (text,))
        if quoted := QUOTATION.match(text):
            removed.append(quoted[0])
            text = text[quoted.end() :]
        kept, kinds, in_block = list[str](), set[str](), False
        for line in text.split("\n"):
            in_block = in_block and bool(line.strip())
            kind = "" if in_block else self._line_kind(line.strip())
            if in_block or kind:
                removed.append(line)
                kinds |= {kind} - {""}
                in_block = in_block or kind == "block" or (kind == "sticker" and line.startswith("{"))
            else:
                kept.append(line)
        text = "\n".join(kept).strip()
        if "[" in text:
            removed += self.inline.findall(text)
            text = self.inline.sub("", text).strip()
        if ended := self._match_end(text):
            removed.append(ended[0].strip())
            text = text[: ended.start()].rstrip()
        if text or not removed:
            return CleanedMessage(text, "", tuple(removed))
        return CleanedMessage("", "sticker" if "sticker" in kinds else "media", tuple(removed))

    def _kind(self, text: str) -> str:
        if len(text) > MAX_MARK or "\n" in text:
            return ""
        return next((kind for kind, pattern in self.whole.items() if pattern.fullmatch(text)), "")

    def _line_kind(self, line: str) -> str:
        """The kind of a line that is a mark as a whole, "" for a line of the message."""
        if not line or len(line) > MAX_MARK:
            return ""
        if self.block.fullmatch(line):
            return "block"
        bracketed = line[0] in "{[<" and line[-1] in "}]>"
        return "line" if self.line.fullmatch(line) else self._kind(line) if bracketed else ""

    def _match_end(self, text: str) -> re.Match[str] | None:
        return self.end.search(text, max(0, len(text) - MAX_MARK))


def _split_ios_mark(text: str, marks: ChatMarks) -> tuple[str, str]:
    """(text, what WhatsApp on iOS wrote after it)."""
    before, sign, mark = text.rpartition(LEFT_TO_RIGHT)
    own, mark = before.replace(LEFT_TO_RIGHT, "").strip(), mark.strip()
    if not sign or not mark or "\n" in mark or len(mark) > MAX_MARK:
        return text.replace(LEFT_TO_RIGHT, "").strip(), ""
    if not own or _FOREIGN_MARK.fullmatch(mark) or marks._kind(mark) or marks.line.fullmatch(mark):
        return own, mark
    return text.replace(LEFT_TO_RIGHT, "").strip(), ""


def _pattern(phrases: Iterable[str], prefix: str = "", suffix: str = r"\.?") -> re.Pattern[str]:
    """A pattern for any of the phrases; one that never fits when there is none."""
    wild = {"*": r"[^\n]{0,80}?", "?": r"[^\W_]"}
    written = ("".join(wild.get(c) or re.escape(c) for c in phrase.rstrip(".")) for phrase in dict.fromkeys(phrases))
    return re.compile(rf"{prefix}(?:{'|'.join(written) or '(?!)'}){suffix}", re.IGNORECASE)


@lru_cache
def read_table() -> dict[str, dict[str, dict[str, list[str]]]]:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


@lru_cache
def load_marks(*programs: str) -> ChatMarks:
    """The marks of these programs, in every language; without any: of all programs."""
    tables = [table for name, found in read_table().items() for table in found.values() if name in (programs or [name])]
    phrases = {k: [p for t in tables for p in t.get(k, [])] for k in (*WHOLE_KINDS, "line", "block", "end", "inline")}
    whole = {kind: _pattern(phrases[kind]) for kind in WHOLE_KINDS}
    return ChatMarks(
        whole,
        _pattern(phrases["line"]),
        _pattern(phrases["block"]),
        _pattern(phrases["end"], r"\s*", r"\.?\s*$"),
        _pattern(phrases["inline"], suffix=""),
    )
