"""What a pair is, and `pairs.jsonl`: one pair a line, every problem named by its line number."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona.errors import InputError
from persona.files import require_plain, write_atomic

MAX_CHARACTERS = 100_000  # of one text; longer is a file pasted by mistake and would stall every view of it


KEYS = ("instruction", "output", "history", "source")


@dataclass(frozen=True)
class Pair:
    """One thing said to the persona and what she answers, with the turns before it, oldest first."""

    instruction: str
    output: str
    history: tuple[tuple[str, str], ...] = ()
    source: str = ""

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {"instruction": self.instruction, "output": self.output}
        if self.history:
            row["history"] = [list(turn) for turn in self.history]
        if self.source:
            row["source"] = self.source
        return row


@dataclass(frozen=True)
class BadLine:
    """A line that is not a pair: its number (from 1), why, and its text, so that nothing is lost."""

    line: int
    why: str
    text: str


def check(row: Any) -> Pair:
    """The pair in a JSON value. Raises InputError (without a place: the caller knows it)."""
    if not isinstance(row, dict):
        raise InputError(f'a {type(row).__name__}, not an object like {{"instruction": …, "output": …}}')
    texts = {}
    for name in ("instruction", "output", "source"):
        value = row.get(name, "" if name == "source" else None)
        if not isinstance(value, str):
            raise InputError(f"'{name}' is missing" if value is None else f"'{name}' is not text: {value!r:.40}")
        texts[name] = value
    if unknown := sorted(k for k, v in row.items() if k not in KEYS and v not in ("", None, [], {})):
        raise InputError(f"unknown key {unknown[0]!r}; a pair has {', '.join(KEYS)}. Move its text there, or delete it")
    history = row.get("history") or []
    if not isinstance(history, list) or not all(
        isinstance(t, list) and len(t) == 2 and all(isinstance(x, str) for x in t) for t in history
    ):
        raise InputError("'history' is not a list of [user, reply] texts")
    turns = tuple((user, reply) for user, reply in history)
    for name, text in [*texts.items(), *(("history", x) for t in turns for x in t)]:
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"'{name}' has {len(text):,} characters, more than {MAX_CHARACTERS:,}. Split it")
        if _has_lone_surrogate(text):
            raise InputError(f"'{name}' holds half a character (a lone surrogate). Retype it")
    return Pair(texts["instruction"], texts["output"], turns, texts["source"])


def _has_lone_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # nothing else cannot be encoded
        return True
    return False


def stream(path: Path) -> Iterator[Pair | BadLine]:
    """The lines of the file one by one. An absent file is an empty persona."""
    require_plain(path)
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if raw.strip():
                    yield _parse(number, raw.removesuffix(b"\n"))
    except FileNotFoundError:
        return
    except OSError as e:
        raise InputError(f"{path}: cannot be read ({e.strerror}). Check its rights.") from e


def _parse(number: int, raw: bytes) -> Pair | BadLine:
    try:
        return check(json.loads(raw.decode("utf-8")))
    except UnicodeDecodeError as e:
        # \xNN for each such byte: a line in GBK, say, can still be recovered from that
        return BadLine(number, f"byte {e.start + 1} is not UTF-8", raw.decode("utf-8", "backslashreplace"))
    except json.JSONDecodeError as e:
        return BadLine(number, f"column {e.colno}: not JSON ({e.msg})", raw.decode("utf-8"))
    except (InputError, RecursionError) as e:
        return BadLine(number, str(e), raw.decode("utf-8"))
    except ValueError as e:  # an integer of thousands of digits, which json leaves to int()
        return BadLine(number, f"not JSON that can be read ({e})", raw.decode("utf-8"))


def scan(path: Path) -> tuple[list[Pair], list[BadLine]]:
    """Every pair in the file and every line that is none."""
    pairs: list[Pair] = []
    bad: list[BadLine] = []
    for item in stream(path):
        if isinstance(item, Pair):
            pairs.append(item)
        else:
            bad.append(item)
    return pairs, bad


def read_pairs(path: Path) -> list[Pair]:
    """The pairs in `path`, strictly. Raises InputError listing every bad line."""
    pairs, bad = scan(path)
    if bad:
        shown = "\n".join(f"{path} line {b.line}: {b.why}" for b in bad[:20])
        more = f"\n… and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise InputError(f"{shown}{more}\nCorrect or delete the line{'s' if len(bad) > 1 else ''}, then try again.")
    return pairs


def unfinished(pairs: Iterable[Pair]) -> list[tuple[int, str]]:
    """(row from 1, what is missing) for pairs that cannot be trained on yet."""
    found = []
    for row, pair in enumerate(pairs, 1):
        if not pair.instruction.strip():
            found.append((row, "'instruction' is empty"))
        if not pair.output.strip():
            found.append((row, "'output' is empty"))
        if any(not user.strip() or not reply.strip() for user, reply in pair.history):
            found.append((row, "'history' has an empty turn"))
    return found


def dump(pair: Pair) -> str:
    return json.dumps(pair.to_dict(), ensure_ascii=False) + "\n"


def dumps(pairs: Iterable[Pair]) -> str:
    return "".join(map(dump, pairs))


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    write_atomic(path, map(dump, pairs))


def sha256(pairs: Iterable[Pair]) -> str:
    return hashlib.sha256(dumps(pairs).encode()).hexdigest()
