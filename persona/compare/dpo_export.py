"""Votes as preference rows, in the conversational format that TRL's DPOTrainer reads.

    {"prompt": [{"role": …, "content": …}, …], "chosen": [{"role": "assistant", "content": …}], "rejected": [ … ]}

The prompt opens with the persona's system prompt, since the persona is trained, even where the other voice was not
given it; it ends with the question.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from persona.compare.blind_votes import BlindQuestion, rank_answers
from persona.errors import Message
from persona.store.preferences import find_both_ways
from persona.template.chat_template import build_messages


class LeftOut:
    """Why a vote gives no row."""

    TIE = Message("tie")
    BOTH_BAD = Message("both bad")
    HISTORIES_DIFFER = Message("the two had different conversations before")  # DPO compares two answers to one prompt
    EMPTY = Message("the preferred answer is empty")
    CUT_OFF = Message("the preferred answer was cut off")  # it would teach to stop in mid-sentence
    EQUAL = Message("the two answers are equal")
    SAME_VOTE = Message("the same vote again")
    BOTH_WAYS = Message("the same two answers preferred both ways")


@dataclass(frozen=True)
class Preferences:
    """Rows for DPO, and the question of each vote that gave none, with the reason."""

    rows: tuple[dict[str, Any], ...]
    omitted: tuple[tuple[str, Message], ...]

    @property
    def left_out(self) -> dict[Message, int]:
        """How many votes gave no row, by reason."""
        return dict(Counter(reason for _, reason in self.omitted))


def collect_preferences(asked: Sequence[BlindQuestion]) -> Preferences:
    """A row for every vote from which a preference can be learned; equal rows come once."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    omitted: list[tuple[str, Message]] = []
    for q in asked:
        if q.choice and (reason := _why_left_out(q)):
            omitted.append((q.said, reason))
        elif q.choice:
            row = _row(q)
            if _key(row) in rows:
                omitted.append((q.said, LeftOut.SAME_VOTE))
            rows[_key(row)] = row
    both_ways = find_both_ways(rows)
    omitted += [(row["prompt"][-1]["content"], LeftOut.BOTH_WAYS) for key, row in rows.items() if key in both_ways]
    return Preferences(tuple(row for key, row in rows.items() if key not in both_ways), tuple(omitted))


def _why_left_out(q: BlindQuestion) -> Message | None:
    """None for a vote that gives a row."""
    if q.choice in ("tie", "bad"):
        return LeftOut.TIE if q.choice == "tie" else LeftOut.BOTH_BAD
    if q.left.history != q.right.history:
        return LeftOut.HISTORIES_DIFFER
    better, worse = rank_answers(q)
    if not better.text.strip():
        return LeftOut.EMPTY
    if not better.ended:
        return LeftOut.CUT_OFF
    return LeftOut.EQUAL if better.text == worse.text else None


def _row(q: BlindQuestion) -> dict[str, Any]:
    better, worse = rank_answers(q)
    return {
        "prompt": build_messages(q.system, q.left.history, q.said),
        "chosen": [{"role": "assistant", "content": better.text}],
        "rejected": [{"role": "assistant", "content": worse.text}],
    }


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    """Its prompt, the better answer and the worse one."""
    prompt = json.dumps(row["prompt"], ensure_ascii=False)
    return prompt, row["chosen"][0]["content"], row["rejected"][0]["content"]
