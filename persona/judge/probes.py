"""Probes: questions that are kept out of the pairs, and what an answer in character must and must not mention."""

from collections.abc import Sequence

from persona.store.persona_folder import PersonaCard, ProbeRule


def list_probe_rules(card: PersonaCard) -> list[ProbeRule]:
    """Every probe of the card with its rules, the ones that only `probe_rules` names at the end."""
    known = {rule.ask: rule for rule in card.probe_rules}
    return list({ask: known.get(ask, ProbeRule(ask=ask)) for ask in (*card.probes, *known)}.values())


def find_broken_rules(rule: ProbeRule, text: str) -> list[str]:
    """The rules that an answer breaks, in words."""
    folded = text.casefold()
    missing = [e for e in rule.must_mention if not mentions(e, folded)]
    present = [e for e in rule.must_not_mention if mentions(e, folded)]
    return [f"does not mention {_join_alternatives(e)}" for e in missing] + [
        f"mentions {_join_alternatives(e)}" for e in present
    ]


def mentions(entry: str, folded: str) -> bool:
    """Whether a casefolded text has one of the alternatives of `entry` (a|b)."""
    return any(x.casefold() in folded for x in _alternatives(entry))


def _join_alternatives(entry: str) -> str:
    return " or ".join(_alternatives(entry))


def _alternatives(entry: str) -> Sequence[str]:
    return [x.strip() for x in entry.split("|") if x.strip()]
