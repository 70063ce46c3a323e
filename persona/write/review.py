"""The review: pairs to be looked at one by one, and kept, edited or dropped; `review.jsonl` of a persona.

A pair under review is one of the set (an imported one, say) or a draft that becomes one when it is kept. A dropped pair
leaves the set, but not the review: it can be kept after all, until the list is emptied.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persona.errors import InputError, Message, with_templates
from persona.store import edit_history, quotas
from persona.store.edits import PairChange
from persona.store.files import write_atomic
from persona.store.jsonl import encode_row
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import Persona

DECISIONS = ("keep", "drop")


@dataclass(frozen=True)
class ReviewItem:
    """id: of this item, from 1. in_set: whether the pair was one of the set before it was decided.

    why: a Message, why it is to be looked at, "" for no reason of its own. decision: one of DECISIONS, "" for none yet.
    decided: 1 for the first decision, and so on. row: index that it had in the set. before: the pair as it was before
    it was edited.
    """

    id: int
    pair: Pair
    in_set: bool = False
    why: str = ""
    decision: str = ""
    decided: int = 0
    row: int = 0
    before: Pair | None = None

    @property
    def is_present(self) -> bool:
        """Whether it is one of the set now."""
        return self.decision == "keep" or (self.in_set and not self.decision)


def read_review(persona: Persona) -> list[ReviewItem]:
    """All items in their order, without those that were edited or deleted elsewhere before they were decided."""
    file, items = persona.path / "review.jsonl", []
    try:
        lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
        items = [_parse_item(json.loads(line)) for line in lines if line]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("{file}: not a list of pairs to review. Delete the file to begin anew.", file=file) from None
    present = set(persona.scan()[0])
    return [item for item in items if item.decision or not item.in_set or item.pair in present]


def add_to_review(persona: Persona, pairs: Iterable[tuple[Pair, str]], in_set: bool) -> int:
    """Put pairs, each with the reason why, at the end of the list. Returns how many were not in it.

    Drafts that were dropped do not come again. What was kept leaves the list.
    """
    items = [item for item in read_review(persona) if item.decision != "keep"]
    known = {item.pair for item in items if not (in_set and item.decision)}
    first = max((item.id for item in items), default=0) + 1
    new = [(pair, why) for pair, why in pairs if pair not in known]
    _write(persona, [*items, *(ReviewItem(first + n, pair, in_set, why) for n, (pair, why) in enumerate(new))])
    return len(new)


def decide(persona: Persona, number: int, decision: str, pair: Pair | None = None) -> ReviewItem:
    """Keep or drop the item with this id. pair: as edited; None: as it is.

    Raises InputError where the item is gone or its pair was changed elsewhere; nothing is changed then.
    """
    items = read_review(persona)
    item = _find(items, number)
    new = replace(
        item, decision=decision, decided=max(i.decided for i in items) + 1, pair=pair or item.pair,
        before=item.before or (item.pair if pair and pair != item.pair else None),
    )  # fmt: skip
    label = Message("keep in the review") if decision == "keep" else Message("drop in the review")
    return _change(persona, items, item, new, label)


def undo_decision(persona: Persona) -> ReviewItem:
    """Take the newest decision back, with what was edited. Raises InputError if there is none."""
    items = read_review(persona)
    item = max((i for i in items if i.decision), key=lambda i: i.decided, default=None)
    if item is None:
        raise InputError("There is nothing to undo.")
    new = replace(item, decision="", decided=0, pair=item.before or item.pair, before=None)
    return _change(persona, items, item, new, Message("undo in the review"))


def empty_review(persona: Persona) -> None:
    """Forget the list; the set stays as it is."""
    (persona.path / "review.jsonl").unlink(missing_ok=True)


def _find(items: Sequence[ReviewItem], number: int) -> ReviewItem:
    for item in items:
        if item.id == number:
            return item
    raise InputError("That pair is not under review any more. Press Reload.")


def _change(
    persona: Persona, items: Sequence[ReviewItem], old: ReviewItem, new: ReviewItem, label: Message
) -> ReviewItem:
    """Bring the set to what the new state says, then write the list."""
    pairs, _ = persona.scan()
    changes: list[PairChange] = []
    if old.is_present:
        if old.pair not in pairs:
            raise InputError("This pair was changed elsewhere since it was reviewed. Look at it in the table.")
        row = len(pairs) - 1 - pairs[::-1].index(old.pair) if old.decision else pairs.index(old.pair)
        if new.pair != old.pair or not new.is_present:
            changes = [PairChange(row, old.pair, new.pair if new.is_present else None)]
        new = replace(new, row=row)
    elif new.is_present:
        changes = [PairChange(min(old.row, len(pairs)) if old.in_set else len(pairs), None, new.pair)]
    if changes:
        edit_history.commit(persona, label, changes)
    _write(persona, [new if item.id == new.id else item for item in items])
    return new


def _write(persona: Persona, items: Iterable[ReviewItem]) -> None:
    quotas.require_disk_quota()
    write_atomic(persona.path / "review.jsonl", (encode_row(_item_row(item)).decode() for item in items))


def _item_row(item: ReviewItem) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item.id, "pair": item.pair.to_dict()}
    rest = {"in_set": item.in_set, "why": item.why, "decision": item.decision, "decided": item.decided, "row": item.row}
    row |= {name: value for name, value in rest.items() if value}
    if item.before is not None:
        row["before"] = item.before.to_dict()
    return with_templates(row)


def _parse_item(row: dict[str, Any]) -> ReviewItem:
    before = parse_pair(row["before"]) if row.get("before") else None
    why = Message.from_json(str(row.get("why", "")), row.get("why_template"))
    decision = row["decision"] if row.get("decision") in DECISIONS else ""
    return ReviewItem(
        int(row["id"]), parse_pair(row["pair"]), bool(row.get("in_set")), why, decision, int(row.get("decided", 0)),
        int(row.get("row", 0)), before,
    )  # fmt: skip
