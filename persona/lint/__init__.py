"""What an author should know about the pairs before training: findings in plain words, and what one click repairs."""

from collections.abc import Callable, Collection, Sequence

from persona.errors import InputError, Message
from persona.files import read_json, to_json, write_atomic
from persona.folder import Card, Persona
from persona.lint.finding import SEVERITIES, Finding, Severity, counts, plain, texts_of
from persona.lint.fixes import fix, fix_all
from persona.lint.rows import (
    ai_leaks,
    cut_off,
    language_rows,
    other_speakers,
    short_replies,
    text_rows,
    too_long,
    unfinished_rows,
)
from persona.lint.sets import distinct, duplicates, near_duplicates, probes_in_pairs, rival_answers, same_answers
from persona.lint.summary import Summary, summarise
from persona.pairs import Pair

__all__ = [
    "Finding", "Severity", "Summary",
    "counts", "fix", "fix_all", "ignore", "lint", "read_ignored", "summarise", "unignore",
]  # fmt: skip


def lint(
    pairs: Sequence[Pair],
    card: Card,
    length: Callable[[Pair], int] | None = None,
    max_length: int = 512,
    ignored: Collection[str] = (),
) -> list[Finding]:
    """Every finding that is not ignored, errors first, then by row.

    length: tokens of a pair as it is rendered for the chosen base; without it no pair is too long. max_length: tokens
    of a row in training, as in RunConfig.
    """
    different = distinct(pairs)
    plains = {row: [plain(text) for text in texts_of(pairs[row - 1])] for row in different}
    found = [
        *unfinished_rows(pairs),
        *(too_long(pairs, length, max_length) if length else ()),
        *text_rows(pairs),
        *ai_leaks(pairs, card),
        *other_speakers(pairs, card),
        *short_replies(pairs),
        *cut_off(pairs),
        *language_rows(pairs, card),
        *duplicates(pairs),
        *near_duplicates(pairs, different, plains),
        *rival_answers(pairs, different, plains),
        *same_answers(pairs, different, plains),
        *probes_in_pairs(pairs, card),
    ]
    hidden = set(ignored)
    kept = [f for f in found if f.key not in hidden]
    return sorted(kept, key=lambda f: (SEVERITIES.index(f.severity), f.pairs, f.rule))


def read_ignored(persona: Persona) -> frozenset[str]:
    """Keys of the findings that the author has put aside."""
    file = persona.path / "ignored.json"
    if not file.exists():
        return frozenset()
    keys = read_json(file, Message("a list of ignored findings")).get("ignored")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(
            "{file}: 'ignored' is not a list of texts. Correct it, or delete the file to see every finding.", file=file
        )
    return frozenset(keys)


def ignore(persona: Persona, key: str) -> None:
    """Put a finding aside, until its texts change."""
    _write(persona, read_ignored(persona) | {key})


def unignore(persona: Persona, *keys: str) -> None:
    _write(persona, read_ignored(persona) - {*keys})


def _write(persona: Persona, keys: Collection[str]) -> None:
    write_atomic(persona.path / "ignored.json", to_json({"ignored": sorted(keys)}))
