"""What one click repairs. A finding whose texts have changed since is left alone, so a second click does nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from persona.folder import Card
from persona.lint.finding import Finding, key_of, texts_of
from persona.lint.rows import is_blank, without_own_name
from persona.lint.sets import exact
from persona.lint.texts import TEXT_RULES, TextRule
from persona.pairs import Pair

_RULES = {rule.name: rule for rule in TEXT_RULES}


def fix(pairs: Sequence[Pair], finding: Finding, card: Card) -> list[Pair]:
    """New pairs without what the finding is about; the same ones if it has no fix."""
    return fix_all(pairs, [finding], card)


def fix_all(pairs: Sequence[Pair], findings: Iterable[Finding], card: Card) -> list[Pair]:
    """Several findings of one check at once: their row numbers all mean the pairs as they were checked."""
    new = list(pairs)
    gone: set[int] = set()
    first: dict[tuple[str, ...], int] = {}
    for row, pair in enumerate(pairs, 1):
        first.setdefault(exact(pair), row)
    for finding in findings:
        for row in finding.pairs if finding.fix else ():
            if row > len(pairs):
                continue
            pair = pairs[row - 1]
            if finding.rule == "duplicate":
                if key_of("duplicate", exact(pair)) == finding.key and first[exact(pair)] < row:
                    gone.add(row)
            elif finding.rule == "unfinished":
                if is_blank(pair):
                    gone.add(row)
            elif key_of(finding.rule, texts_of(pair)) != finding.key:
                continue
            elif finding.rule == "other-speaker":
                new[row - 1] = replace(new[row - 1], output=without_own_name(new[row - 1].output, card))
            else:
                new[row - 1] = _cleaned(new[row - 1], _RULES[finding.rule])
    return [pair for row, pair in enumerate(new, 1) if row not in gone]


def _cleaned(pair: Pair, rule: TextRule) -> Pair:
    def asked(text: str) -> str:
        return text if rule.said else rule.cleaned(text)

    return replace(
        pair,
        instruction=asked(pair.instruction),
        output=rule.cleaned(pair.output),
        history=tuple((asked(user), rule.cleaned(reply)) for user, reply in pair.history),
    )
