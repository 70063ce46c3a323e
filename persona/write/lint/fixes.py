"""Fixes of findings. A finding whose texts have changed since is left alone, so a second click does nothing."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.lint.dataset_rules import stripped_texts
from persona.write.lint.finding import Finding, finding_key, pair_texts
from persona.write.lint.pair_rules import is_blank, remove_own_name
from persona.write.lint.text_rules import TEXT_RULES, TextRule

_RULES = {rule.name: rule for rule in TEXT_RULES}


def fix_finding(pairs: Sequence[Pair], finding: Finding, card: PersonaCard) -> list[Pair]:
    """The pairs with the finding fixed; unchanged if it has no fix."""
    return fix_findings(pairs, [finding], card)


def fix_findings(pairs: Sequence[Pair], findings: Iterable[Finding], card: PersonaCard) -> list[Pair]:
    """Fix several findings of one check; their row numbers refer to the pairs as they were checked."""
    new = list(pairs)
    gone: set[int] = set()
    first: dict[tuple[str, ...], int] = {}
    for row, pair in enumerate(pairs, 1):
        first.setdefault(stripped_texts(pair), row)
    for finding in findings:
        for row in finding.pairs if finding.fix else ():
            if row > len(pairs):
                continue
            pair = pairs[row - 1]
            if finding.rule == "duplicate":
                if finding_key("duplicate", stripped_texts(pair)) == finding.key and first[stripped_texts(pair)] < row:
                    gone.add(row)
            elif finding.rule == "unfinished":
                if is_blank(pair):
                    gone.add(row)
            elif finding_key(finding.rule, pair_texts(pair)) != finding.key:
                continue
            elif finding.rule == "other-speaker":
                new[row - 1] = replace(new[row - 1], output=remove_own_name(new[row - 1].output, card))
            else:
                new[row - 1] = _clean_pair(new[row - 1], _RULES[finding.rule])
    return [pair for row, pair in enumerate(new, 1) if row not in gone]


def _clean_pair(pair: Pair, rule: TextRule) -> Pair:
    def asked(text: str) -> str:
        return text if rule.reply_only else rule.cleaned(text)

    return replace(
        pair,
        instruction=asked(pair.instruction),
        output=rule.cleaned(pair.output),
        history=tuple((asked(user), rule.cleaned(reply)) for user, reply in pair.history),
    )
