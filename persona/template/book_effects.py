"""SillyTavern's settings of book entries that look beyond one scan: sticky, cooldown, delay, and inclusion groups.

As in its public/scripts/world-info.js: WorldInfoTimedEffects, filterByInclusionGroups. It keeps what fired in the file
of the chat; here the earlier turns are scanned again, which gives the same. Group scoring has no effect.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from persona.store.character_book import BookEntry
from persona.template.macros import draw

DEFAULT_WEIGHT = 100.0  # of an entry in its group


def extension(entry: BookEntry, name: str) -> Any:
    """SillyTavern's setting of an entry; None where it has none."""
    extensions = (entry.model_extra or {}).get("extensions")
    return extensions.get(name) if isinstance(extensions, dict) else None


def messages_of(entry: BookEntry, name: str) -> int:
    """A setting that counts messages: sticky, cooldown, delay; 0 where it has none."""
    value = extension(entry, name)
    return int(value) if isinstance(value, int | float) and 0 < value < 1e6 else 0


@dataclass
class TimedEffects:
    """Which entries stay in, and which stay out. Each maps the number of an entry to the messages at which it ends."""

    sticky: dict[int, int] = field(default_factory=dict)
    cooldown: dict[int, int] = field(default_factory=dict)

    def advance(self, messages: int, entries: Mapping[int, BookEntry]) -> None:
        """End what ends when the conversation has so many messages. After sticky, an entry's cooldown begins anew."""
        for number in [n for n, end in self.sticky.items() if messages >= end]:
            del self.sticky[number]
            if wait := messages_of(entries[number], "cooldown"):
                self.cooldown[number] = messages + wait
        self.cooldown = {n: end for n, end in self.cooldown.items() if messages < end}

    def keeps_out(self, number: int, entry: BookEntry, messages: int) -> bool:
        if messages < messages_of(entry, "delay"):
            return True
        return number in self.cooldown and number not in self.sticky

    def add(self, fired: Mapping[int, BookEntry], messages: int) -> None:
        """Begin those of the entries that joined the prompt."""
        for number, entry in fired.items():
            for name, ends in (("sticky", self.sticky), ("cooldown", self.cooldown)):
                if lasts := messages_of(entry, name):
                    ends.setdefault(number, messages + lasts)


def group_losers(
    new: Mapping[int, BookEntry], before: Iterable[BookEntry], sticky: Container[int], seed: str
) -> set[int]:
    """Of entries that would join now, those that another one of their inclusion group keeps out.

    before: those that joined already. Of a group one joins: a sticky one, else the highest order of those with
    group_override, else one at random by group_weight.
    """
    groups: dict[str, list[int]] = {}
    for number, entry in new.items():
        for name in _groups(entry):
            groups.setdefault(name, []).append(number)
    taken = {name for entry in before for name in _groups(entry)}
    lost: set[int] = set()
    for name, numbers in groups.items():
        left = [n for n in numbers if n not in lost]
        if stuck := [n for n in left if n in sticky]:
            lost |= {*left} - {*stuck}
        elif name in taken:
            lost |= {*left}
        elif len(left) > 1:
            first = [n for n in left if extension(new[n], "group_override")]
            winner = max(first, key=lambda n: new[n].insertion_order) if first else _pick(left, new, name, seed)
            lost |= {*left} - {winner}
    return lost


def _groups(entry: BookEntry) -> list[str]:
    names = extension(entry, "group")
    return [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else []


def _pick(numbers: list[int], entries: Mapping[int, BookEntry], name: str, seed: str) -> int:
    weights = [_weight(entries[n]) for n in numbers]
    at = draw(seed, "group", name) * sum(weights)
    for number, weight in zip(numbers, weights, strict=True):
        at -= weight
        if at < 0:
            return number
    return numbers[-1]


def _weight(entry: BookEntry) -> float:
    weight = extension(entry, "group_weight")
    return float(weight) if isinstance(weight, int | float) and 0 <= weight < 1e6 else DEFAULT_WEIGHT
