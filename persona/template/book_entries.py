"""Which entries of a character book join a prompt, and where: the one place for chat, API and training rows.

By the card specifications V2 and V3 (decorators included), and by SillyTavern's rules and defaults where these leave
it open; its settings of an entry stand in `extensions`. Not supported, and without effect: sticky, cooldown, delay and
groups; entries at a depth within the conversation stand after it.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import regex

from persona.store.character_book import BookEntry, CharacterBook
from persona.template.macros import chance

DEFAULT_DEPTH = 2  # messages that are searched, as in SillyTavern
DEFAULT_BUDGET = 1_024  # tokens of all entries: a quarter of a chat's context, as in SillyTavern
MAX_PASSES = 20  # of recursive scanning
SEARCH_SECONDS = 2.0  # for all keys of a book: a card may come from anyone. What takes longer does not match
REGEX_SECONDS = 0.1  # for one expression
_SLASHED = re.compile(r"/(.+)/([a-z]*)", re.S)
_DECORATOR = re.compile(r"@@@?(\w+)[ \t]*(.*)")
_KNOWN = frozenset(
    {"activate", "dont_activate", "activate_only_after", "activate_only_every", "scan_depth", "additional_keys",
     "exclude_keys", "position", "depth", "reverse_depth", "role"}
)  # fmt: skip


@dataclass(frozen=True)
class FoundEntry:
    """An entry that joins the prompt. text: its content without decorators; place: before, after (the system prompt)
    or late (after the conversation). why: the key that was said, "" for one that is always there."""

    entry: BookEntry
    text: str
    place: str
    why: str = ""


@dataclass
class _Scan:
    """What is searched. messages: oldest first; spoken: replies of the persona among them."""

    book: CharacterBook
    messages: Sequence[str]
    spoken: int
    seed: str
    found_texts: list[str] = field(default_factory=list)
    deadline: float = 0.0
    folded: dict[str, str] = field(default_factory=dict)  # text → without upper case

    def text(self, depth: float, recursive: bool) -> str:
        recent = self.messages[max(0, len(self.messages) - int(depth)) :] if depth > 0 else ()
        return "\n".join([*recent, *(self.found_texts if recursive else ())])


def find_entries(
    book: CharacterBook, messages: Sequence[str], spoken: int, count_tokens: Callable[[str], int], seed: str = ""
) -> list[FoundEntry]:
    """The entries that join the prompt, in its order, within the book's budget.

    messages: of the conversation, oldest first, the one to answer included. spoken: how many the persona has said.
    seed: of entries that fire with a probability.
    """
    scan = _Scan(book, messages, spoken, seed, deadline=time.monotonic() + SEARCH_SECONDS)
    read = [(n, entry, *_split_decorators(entry.content)) for n, entry in enumerate(book.entries) if entry.enabled]
    found: dict[int, FoundEntry] = {}
    for _ in range(MAX_PASSES):
        new: dict[int, FoundEntry] = {}
        for n, entry, marks, text in read:
            if n not in found and text and (why := _match(scan, entry, marks)) is not None:
                new[n] = FoundEntry(entry, text, _place(entry, marks, len(messages)), why)
        found |= new
        scan.found_texts += [f.text for f in new.values() if not _extension(f.entry, "prevent_recursion")]
        if not new or not book.recursive_scanning:
            break
    kept = _within_budget(found.values(), book, count_tokens)
    return sorted(kept, key=lambda f: f.entry.insertion_order)


def _within_budget(found: Any, book: CharacterBook, count_tokens: Callable[[str], int]) -> Iterator[FoundEntry]:
    """Those of the highest priority (else insertion order) that fit."""
    left = DEFAULT_BUDGET if book.token_budget is None else book.token_budget
    for one in sorted(found, key=lambda f: -_priority(f.entry)):
        left -= 0 if _extension(one.entry, "ignore_budget") else count_tokens(one.text)
        if left < 0:
            return
        yield one


def _priority(entry: BookEntry) -> float:
    return entry.insertion_order if entry.priority is None else entry.priority


def _match(scan: _Scan, entry: BookEntry, marks: dict[str, list[str]]) -> str | None:
    """The key that was said, "" where none is needed; None where the entry does not join."""
    if time.monotonic() > scan.deadline:
        return None
    if "activate" in marks:
        return ""
    if "dont_activate" in marks:
        return None
    if scan.spoken < _number(marks, "activate_only_after", 0) or scan.spoken % max(
        int(_number(marks, "activate_only_every", 1)), 1
    ):
        return None
    probability = _extension(entry, "probability")
    limited = _extension(entry, "useProbability") and isinstance(probability, int | float)
    if limited and not chance(probability, scan.seed, entry.title, entry.content):
        return None
    delayed = bool(_extension(entry, "delay_until_recursion"))
    if delayed and not scan.found_texts:
        return None
    own_depth = _extension(entry, "scan_depth")
    depth = own_depth if isinstance(own_depth, int | float) else scan.book.scan_depth
    depth = _number(marks, "scan_depth", DEFAULT_DEPTH if depth is None else depth)
    text = scan.text(depth, not _extension(entry, "exclude_recursion"))

    def first(keys: Sequence[str]) -> str | None:
        return next((key for key in keys if key.strip() and _says(scan, entry, key.strip(), text)), None)

    for keys in marks.get("additional_keys", []):
        if first(keys.split(",")) is None:
            return None
    if any(first(keys.split(",")) is not None for keys in marks.get("exclude_keys", [])):
        return None
    if entry.constant:
        return ""
    said = first(entry.keys)
    if said is None or not entry.selective or not entry.secondary_keys:
        return said
    hits = [_says(scan, entry, key.strip(), text) for key in entry.secondary_keys if key.strip()]
    logic = _extension(entry, "selectiveLogic")
    holds = {1: not all(hits), 2: not any(hits), 3: all(hits)}.get(logic if isinstance(logic, int) else 0, any(hits))
    return said if holds else None


def _says(scan: _Scan, entry: BookEntry, key: str, text: str) -> bool:
    """Whether the text says the key: text, or an expression where it is written /…/flags or the entry says so."""
    own = entry.case_sensitive if entry.case_sensitive is not None else _extension(entry, "case_sensitive")
    flags = 0 if own else regex.IGNORECASE
    if slashed := _SLASHED.fullmatch(key):
        given = sum({"i": regex.I, "m": regex.M, "s": regex.S}.get(flag, 0) for flag in set(slashed[2]))
        return _search(scan, slashed[1], given, text)
    if entry.use_regex and _search(scan, key, flags, text):
        return True
    if _extension(entry, "match_whole_words") and key.isascii() and " " not in key:
        return re.search(rf"(?<!\w){re.escape(key)}(?!\w)", text, re.I if flags else 0) is not None
    if own:
        return key in text
    if text not in scan.folded:
        scan.folded[text] = text.casefold()
    return key.casefold() in scan.folded[text]


def _search(scan: _Scan, pattern: str, flags: int, text: str) -> bool:
    """False for an expression that is invalid, or takes too long."""
    left = scan.deadline - time.monotonic()
    if left <= 0:
        return False
    try:
        return regex.search(pattern, text, flags, timeout=min(left, REGEX_SECONDS)) is not None
    except (regex.error, TimeoutError, RecursionError, OverflowError, ValueError):
        return False


def _place(entry: BookEntry, marks: dict[str, list[str]], messages: int) -> str:
    match marks.get("position", [""])[0].strip():
        case "before_desc":
            return "before"
        case "after_desc" | "personality" | "scenario":
            return "after"
    position = _extension(entry, "position")
    depth = _number(marks, "depth", -1)
    if depth < 0 and "reverse_depth" in marks:
        depth = max(0, messages - _number(marks, "reverse_depth", 0))
    if depth < 0 and position == 4:
        own = _extension(entry, "depth")
        depth = own if isinstance(own, int | float) else 4
    if depth >= 0:  # within the conversation: near to its end what stands low, before all of it what stands high
        return "late" if depth <= messages else "before"
    before = position == 0 if isinstance(position, int) else entry.position == "before_char"
    return "before" if before else "after"


def _extension(entry: BookEntry, name: str) -> Any:
    """SillyTavern's setting of an entry; None where it has none."""
    extensions = (entry.model_extra or {}).get("extensions")
    return extensions.get(name) if isinstance(extensions, dict) else None


def _number(marks: dict[str, list[str]], name: str, default: float) -> float:
    """The number of a decorator; the default where there is none, or no number."""
    try:
        value = float(marks[name][0])
    except (KeyError, ValueError):
        return default
    return value if abs(value) < 1e6 else default


def _split_decorators(content: str) -> tuple[dict[str, list[str]], str]:
    """(name → values, the text without them) of the decorators at the beginning.

    @@@name counts where the one above it is not known here.
    """
    marks: dict[str, list[str]] = {}
    lines, known = content.strip().split("\n"), True
    while lines and (match := _DECORATOR.fullmatch(lines[0].strip())):
        if not lines.pop(0).strip().startswith("@@@") or not known:
            known = match[1] in _KNOWN
            if known:
                marks.setdefault(match[1], []).append(match[2].strip())
    return marks, "\n".join(lines).strip()
