"""A pair, and `pairs.jsonl`: one pair a line, every problem reported with its line number."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message, join
from persona.store.files import require_regular_file, write_atomic

MAX_CHARACTERS = 100_000  # of one text; a longer one is a file pasted by mistake and would stall the page
MAX_KEPT_BYTES = 20_000_000  # of a file whose pairs are kept in memory

PAIR_KEYS = ("instruction", "output", "history", "source", "system", "weights")


@dataclass(frozen=True)
class Pair:
    """A user message and the persona's reply.

    history: earlier (user, reply) turns, oldest first; a greeting is a reply to "" of weight 0. system: a system prompt
    of its own; "" for the persona's. weights: of each reply, oldest first, its own last, as OpenAI's `weight` of a
    message: 0 is context, never learned. Empty where all are 1.
    """

    instruction: str
    output: str
    history: tuple[tuple[str, str], ...] = ()
    source: str = ""
    system: str = ""
    weights: tuple[int, ...] = ()

    @property
    def turns(self) -> tuple[tuple[str, str], ...]:
        """(user, reply) of the whole conversation, oldest first; the last one is the pair itself."""
        return *self.history, (self.instruction, self.output)

    def weigh(self, weights: Iterable[int]) -> "Pair":
        """The pair with these weights of its replies."""
        listed = tuple(weights)
        return replace(self, weights=() if all(listed) else listed)

    def may_learn(self, turn: int) -> bool:
        """Whether the reply of this turn, from 0, may be learned; Renderer says whether it is."""
        return not self.weights or self.weights[turn] == 1

    @property
    def characters(self) -> int:
        """Of all its texts, earlier turns and source included."""
        earlier = sum(len(user) + len(reply) for user, reply in self.history)
        return len(self.instruction) + len(self.output) + len(self.source) + len(self.system) + earlier

    @property
    def identity(self) -> tuple[tuple[tuple[str, str], ...], str]:
        """By which two runs know a pair again: its turns and its own system prompt.

        Not where it came from, and not which of its replies are learned: a held-out pair stays one.
        """
        return self.turns, self.system

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"instruction": self.instruction, "output": self.output}
        if self.history:
            row["history"] = [list(turn) for turn in self.history]
        if self.source:
            row["source"] = self.source
        if self.system:
            row["system"] = self.system
        if self.weights:
            row["weights"] = list(self.weights)
        return row


def own_exchanges(pairs: Iterable[Pair]) -> frozenset[tuple[str, str]]:
    """(user message, reply) of each pair, without its history: what is learned from it, but where its weight is 0."""
    return frozenset(pair.turns[-1] for pair in pairs if pair.may_learn(len(pair.history)))


def count_characters(pairs: Iterable[Pair]) -> int:
    return sum(pair.characters for pair in pairs)


@dataclass(frozen=True)
class BadLine:
    """A line that is not a pair: its number (from 1), why, and its text, so that nothing is lost."""

    line: int
    why: str
    text: str


def parse_pair(row: Any) -> Pair:
    """The pair in a JSON value. Raises InputError without a line number, which the caller adds."""
    if not isinstance(row, dict):
        raise InputError('a {kind}, not an object like {{"instruction": …, "output": …}}', kind=type(row).__name__)
    texts = {}
    for name in ("instruction", "output", "source", "system"):
        value = row.get(name, "" if name in ("source", "system") else None)
        if not isinstance(value, str):
            raise InputError(
                "'{name}' is missing" if value is None else "'{name}' is not text: {value}",
                name=name,
                value=f"{value!r:.40}",
            )
        texts[name] = value
    if unknown := sorted(k for k, v in row.items() if k not in PAIR_KEYS and v not in ("", None, [], {})):
        raise InputError(
            "unknown key {unknown!r}; a pair has {keys}. Move its text there, or delete it",
            unknown=unknown[0],
            keys=", ".join(PAIR_KEYS),
        )
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(t, list) and len(t) == 2 and all(isinstance(x, str) for x in t) for t in history
    ):
        raise InputError("'history' is not a list of [user, reply] texts")
    turns = tuple((user, reply) for user, reply in history)
    for name, text in [*texts.items(), *(("history", x) for t in turns for x in t)]:
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                "'{name}' has {count:,} characters, more than {limit:,}. Split it",
                name=name,
                count=len(text),
                limit=MAX_CHARACTERS,
            )
        if _has_lone_surrogate(text):
            raise InputError("'{name}' holds half a character (a lone surrogate). Retype it", name=name)
    weights = _parse_weights(row.get("weights", []), len(turns) + 1)
    return Pair(texts["instruction"], texts["output"], turns, texts["source"], texts["system"]).weigh(weights)


def _parse_weights(weights: Any, replies: int) -> list[int]:
    """Raises InputError when they are not one number, 0 or 1, a reply."""
    if weights in ([], None):
        return []
    if (
        not isinstance(weights, list)
        or len(weights) != replies
        or not all(type(w) is int and w in (0, 1) for w in weights)
    ):
        raise InputError(
            "'weights' is not {count} numbers, 0 or 1, one for each reply, the last for 'output'", count=replies
        )
    return weights


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # UTF-8 can encode everything else
        return True
    return False


def iter_pairs(path: Path) -> Iterator[Pair | BadLine]:
    """The lines of the file one by one. A file that does not exist has no pairs."""
    require_regular_file(path)
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if raw.strip():
                    yield _parse_line(number, raw.removesuffix(b"\n"))
    except FileNotFoundError:
        return
    except OSError as e:
        raise InputError("{path}: cannot be read ({reason}). Check its rights.", path=path, reason=e.strerror) from e


def _parse_line(number: int, raw: bytes) -> Pair | BadLine:
    try:
        return parse_pair(json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as e:
        # \xNN for each such byte: a line in GBK, say, can still be recovered from that
        return BadLine(
            number, Message("byte {start} is not UTF-8", start=e.start + 1), raw.decode("utf-8", "backslashreplace")
        )
    except json.JSONDecodeError as e:
        return BadLine(
            number, Message("column {column}: not JSON ({reason})", column=e.colno, reason=e.msg), raw.decode("utf-8")
        )
    except (InputError, RecursionError) as e:
        return BadLine(number, e.message if isinstance(e, InputError) else str(e), raw.decode("utf-8"))
    except ValueError as e:  # an integer of thousands of digits, which json leaves to int()
        return BadLine(number, Message("not JSON that can be read ({reason})", reason=e), raw.decode("utf-8"))


def scan_pairs(path: Path) -> tuple[list[Pair], list[BadLine]]:
    """All pairs in the file, and all lines that are none.

    An edit on the page makes several handlers read the same file, so the last few are kept in memory.
    """
    try:
        stat = path.stat()
    except OSError:
        return _read_lines(path)
    if stat.st_size > MAX_KEPT_BYTES:
        return _read_lines(path)
    pairs, bad = _read_unchanged(path, stat.st_ino, stat.st_mtime_ns, stat.st_size)
    return list(pairs), list(bad)


def _read_lines(path: Path) -> tuple[list[Pair], list[BadLine]]:
    pairs: list[Pair] = []
    bad: list[BadLine] = []
    for item in iter_pairs(path):
        if isinstance(item, Pair):
            pairs.append(item)
        else:
            bad.append(item)
    return pairs, bad


@lru_cache(maxsize=8)
def _read_unchanged(path: Path, inode: int, mtime_ns: int, size: int) -> tuple[list[Pair], list[BadLine]]:
    return _read_lines(path)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in `path`, strictly. Raises InputError listing every bad line."""
    pairs, bad = scan_pairs(path)
    if bad:
        wrong = [Message("{path} line {line}: {problem}", path=path, line=b.line, problem=b.why) for b in bad[:20]]
        more = [Message("… and {count} more", count=len(bad) - 20)] if len(bad) > 20 else []
        raise InputError(
            "{problems}\nCorrect or delete the lines, then try again." if len(bad) > 1 else
            "{problems}\nCorrect or delete the line, then try again.",
            problems=join("\n", wrong + more),
        )  # fmt: skip
    return pairs


def find_unfinished(pairs: Iterable[Pair]) -> list[tuple[int, str]]:
    """(row from 1, what is missing) for pairs that cannot be trained on yet."""
    missing: list[tuple[int, str]] = []
    for row, pair in enumerate(pairs, 1):
        if not pair.instruction.strip():
            missing.append((row, Message("'instruction' is empty")))
        if not pair.output.strip():
            missing.append((row, Message("'output' is empty")))
        if any(
            not reply.strip() or (not user.strip() and pair.may_learn(n))
            for n, (user, reply) in enumerate(pair.history)
        ):
            missing.append((row, Message("'history' has an empty turn")))
        if pair.weights and not any(pair.weights):
            missing.append((row, Message("no reply of it is to be learned: each has the weight 0")))
    return missing


def dump_pair(pair: Pair) -> str:
    return json.dumps(pair.to_dict(), ensure_ascii=False) + "\n"


def dump_pairs(pairs: Iterable[Pair]) -> str:
    return "".join(map(dump_pair, pairs))


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    write_atomic(path, map(dump_pair, pairs))


def hash_pairs(pairs: Iterable[Pair]) -> str:
    return hashlib.sha256(dump_pairs(pairs).encode()).hexdigest()
