"""Which entries of a character book join a prompt, and where: the one place for chat, API and training rows.

By the card specifications V2 and V3 (decorators included), and by SillyTavern's rules and defaults where these leave
it open; its settings of an entry stand in `extensions`. Entries at a depth within the conversation stand after it.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import regex

from persona.store.character_book import BookEntry, CharacterBook
from persona.template.book_effects import TimedEffects, extension, group_losers, messages_of
from persona.template.macros import chance

DEFAULT_DEPTH = 2  # messages that are searched, as in SillyTavern
DEFAULT_BUDGET = 1_024  # tokens of all entries: a quarter of a chat's context, as in SillyTavern
MAX_PASSES = 20  # of recursive scanning
MAX_REPLAYED = 100  # replies before, for which a book with sticky or cooldown is searched again
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
    effects: TimedEffects = field(default_factory=TimedEffects)

    def text(self, depth: float, recursive: bool) -> str:
        recent = self.messages[max(0, len(self.messages) - int(depth)) :] if depth > 0 else ()
        return "\n".join([*recent, *(self.found_texts if recursive else ())])


def find_entries(
    book: CharacterBook, messages: Sequence[str], spoken: int, count_tokens: Callable[[str], int], seed: str = ""
) -> list[FoundEntry]:
    """The entries that join the prompt, in its order, within the book's budget.

    messages: of the conversation, oldest first, the one to answer included. spoken: how many the persona has said.
    seed: of entries that fire with a probability, and of groups.
    """
    now = time.monotonic()
    read = [(n, entry, *_split_decorators(entry.content)) for n, entry in enumerate(book.entries) if entry.enabled]
    entries, effects, lengths = {n: entry for n, entry, *_ in read}, TimedEffects(), dict[str, int]()

    def count(text: str) -> int:
        return lengths[text] if text in lengths else lengths.setdefault(text, count_tokens(text))

    if any(messages_of(entry, name) for entry in entries.values() for name in ("sticky", "cooldown")):
        ends = range(len(messages) - 2, 0, -2)[:MAX_REPLAYED]
        for end in reversed(ends):  # what joined for the replies before
            earlier = messages[:end]
            scan = _Scan(book, earlier, end // 2, "\0".join(earlier), deadline=now + SEARCH_SECONDS / 2)
            effects.advance(end, entries)
            scan.effects = effects
            effects.add({n: entries[n] for n in _within_budget(_scan(scan, read), book, count)}, end)
    effects.advance(len(messages), entries)
    scan = _Scan(book, messages, spoken, seed, deadline=now + SEARCH_SECONDS, effects=effects)
    found = _scan(scan, read)
    kept = [found[n] for n in _within_budget(found, book, count)]
    return sorted(kept, key=lambda f: f.entry.insertion_order)


def _scan(scan: _Scan, read: Sequence[tuple[int, BookEntry, dict[str, list[str]], str]]) -> dict[int, FoundEntry]:
    """The entries that join, by their numbers, whatever the budget."""
    found: dict[int, FoundEntry] = {}
    failed: set[int] = set()
    for _ in range(MAX_PASSES):
        new: dict[int, FoundEntry] = {}
        for n, entry, marks, text in read:
            if n not in found and n not in failed and text and (why := _match(scan, n, entry, marks)) is not None:
                new[n] = FoundEntry(entry, text, _place(entry, marks, len(scan.messages)), why)
        before = [f.entry for f in found.values()]
        lost = group_losers({n: f.entry for n, f in new.items()}, before, scan.effects.sticky, scan.seed)
        new = {n: f for n, f in new.items() if n not in lost}
        failed |= {n for n, f in new.items() if n not in scan.effects.sticky and not _by_chance(scan, f.entry)}
        new = {n: f for n, f in new.items() if n not in failed}
        found |= new
        scan.found_texts += [f.text for f in new.values() if not extension(f.entry, "prevent_recursion")]
        if not new or not scan.book.recursive_scanning:
            break
    return found


def _by_chance(scan: _Scan, entry: BookEntry) -> bool:
    probability = extension(entry, "probability")
    if not isinstance(probability, int | float) or extension(entry, "useProbability") is False:
        return True
    return chance(probability, scan.seed, entry.title, entry.content)


def _within_budget(
    found: dict[int, FoundEntry], book: CharacterBook, count_tokens: Callable[[str], int]
) -> Iterator[int]:
    """The numbers of those of the highest priority (else insertion order) that fit."""
    left = DEFAULT_BUDGET if book.token_budget is None else book.token_budget
    for number, one in sorted(found.items(), key=lambda item: -_priority(item[1].entry)):
        left -= 0 if extension(one.entry, "ignore_budget") else count_tokens(one.text)
        if left < 0:
            return
        yield number


def _priority(entry: BookEntry) -> float:
    return entry.insertion_order if entry.priority is None else entry.priority


def _match(scan: _Scan, number: int, entry: BookEntry, marks: dict[str, list[str]]) -> str | None:
    """The key that was said, "" where none is needed; None where the entry does not join."""
    if time.monotonic() > scan.deadline or scan.effects.keeps_out(number, entry, len(scan.messages)):
        return None
    if "activate" in marks:
        return ""
    if "dont_activate" in marks:
        return None
    if scan.spoken < _number(marks, "activate_only_after", 0) or scan.spoken % max(
        int(_number(marks, "activate_only_every", 1)), 1
    ):
        return None
    if number in scan.effects.sticky:
        return ""
    delayed = bool(extension(entry, "delay_until_recursion"))
    if delayed and not scan.found_texts:
        return None
    own_depth = extension(entry, "scan_depth")
    depth = own_depth if isinstance(own_depth, int | float) else scan.book.scan_depth
    depth = _number(marks, "scan_depth", DEFAULT_DEPTH if depth is None else depth)
    text = scan.text(depth, not extension(entry, "exclude_recursion"))

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
    logic = extension(entry, "selectiveLogic")
    holds = {1: not all(hits), 2: not any(hits), 3: all(hits)}.get(logic if isinstance(logic, int) else 0, any(hits))
    return said if holds else None


def _says(scan: _Scan, entry: BookEntry, key: str, text: str) -> bool:
    """Whether the text says the key: text, or an expression where it is written /…/flags or the entry says so."""
    own = entry.case_sensitive if entry.case_sensitive is not None else extension(entry, "case_sensitive")
    flags = 0 if own else regex.IGNORECASE
    if slashed := _SLASHED.fullmatch(key):
        given = sum({"i": regex.I, "m": regex.M, "s": regex.S}.get(flag, 0) for flag in set(slashed[2]))
        return _search(scan, slashed[1], given, text)
    if entry.use_regex and _search(scan, key, flags, text):
        return True
    if extension(entry, "match_whole_words") and key.isascii() and " " not in key:
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
    position = extension(entry, "position")
    depth = _number(marks, "depth", -1)
    if depth < 0 and "reverse_depth" in marks:
        depth = max(0, messages - _number(marks, "reverse_depth", 0))
    if depth < 0 and position == 4:
        own = extension(entry, "depth")
        depth = own if isinstance(own, int | float) else 4
    if depth >= 0:  # within the conversation: near to its end what stands low, before all of it what stands high
        return "late" if depth <= messages else "before"
    before = position == 0 if isinstance(position, int) else entry.position == "before_char"
    return "before" if before else "after"


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
