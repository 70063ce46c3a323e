"""Lint of a persona's pairs: findings as messages, and fixes that one click applies."""

from collections.abc import Callable, Collection, Sequence

from persona.errors import InputError, Message
from persona.store.files import read_json, to_json, write_atomic
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona, PersonaCard
from persona.write.lint.context_rules import find_lacking_context
from persona.write.lint.dataset_rules import (
    distinct_rows,
    find_duplicates,
    find_near_duplicates,
    find_probes_in_pairs,
    find_rival_answers,
    find_same_answers,
)
from persona.write.lint.finding import SEVERITIES, Finding, normalize_text, pair_texts
from persona.write.lint.pair_rules import (
    apply_text_rules,
    find_ai_leaks,
    find_cut_off_replies,
    find_language_drift,
    find_other_speakers,
    find_short_replies,
    find_too_long,
    find_unfinished_pairs,
)
from persona.write.lint.thinking_rules import find_without_thinking, judge_thinking

__all__ = [
    "ignore_finding",
    "lint_pairs",
    "read_ignored",
    "unignore_findings",
]  # fmt: skip


def lint_pairs(
    pairs: Sequence[Pair],
    card: PersonaCard,
    length: Callable[[Pair], int] | None = None,
    max_length: int = 512,
    ignored: Collection[str] = (),
    thinking: str = "none",
) -> list[Finding]:
    """Every finding that is not ignored, errors first, then by row.

    length: tokens of a pair as it is rendered for the chosen base; without it no pair is too long. max_length: tokens
    of a row in training, thinking: what becomes of <think> blocks, both as in RunConfig.
    """
    distinct = distinct_rows(pairs)
    normalized = {row: [normalize_text(text) for text in pair_texts(pairs[row - 1])] for row in distinct}
    findings = [
        *find_unfinished_pairs(pairs),
        *(find_too_long(pairs, length, max_length) if length else ()),
        *judge_thinking(apply_text_rules(pairs), pairs, thinking),
        *find_without_thinking(pairs, thinking),
        *find_ai_leaks(pairs, card),
        *find_other_speakers(pairs, card),
        *find_short_replies(pairs),
        *find_lacking_context(pairs),
        *find_cut_off_replies(pairs),
        *find_language_drift(pairs, card),
        *find_duplicates(pairs),
        *find_near_duplicates(pairs, distinct, normalized),
        *find_rival_answers(pairs, distinct, normalized),
        *find_same_answers(pairs, distinct, normalized),
        *find_probes_in_pairs(pairs, card),
    ]
    hidden = set(ignored)
    shown = [f for f in findings if f.key not in hidden]
    return sorted(shown, key=lambda f: (SEVERITIES.index(f.severity), f.pairs, f.rule))


def read_ignored(persona: Persona) -> frozenset[str]:
    """Keys of the findings that the author ignores."""
    file = persona.path / "ignored.json"
    if not file.exists():
        return frozenset()
    keys = read_json(file, Message("a list of ignored findings")).get("ignored")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(
            "{file}: 'ignored' is not a list of texts. Correct it, or delete the file to see every finding.", file=file
        )
    return frozenset(keys)


def ignore_finding(persona: Persona, key: str) -> None:
    """Ignore a finding until its texts change."""
    _write_ignored(persona, read_ignored(persona) | {key})


def unignore_findings(persona: Persona, *keys: str) -> None:
    _write_ignored(persona, read_ignored(persona) - {*keys})


def _write_ignored(persona: Persona, keys: Collection[str]) -> None:
    write_atomic(persona.path / "ignored.json", to_json({"ignored": sorted(keys)}))
