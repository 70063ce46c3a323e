"""Votes as preference rows, in the conversational format that TRL's DPOTrainer reads.

    {"prompt": [{"role": …, "content": …}, …], "chosen": [{"role": "assistant", "content": …}], "rejected": [ … ]}

The prompt ends with what was asked; it opens with the persona's system prompt, for it is she who is to be trained, even
where the other voice was not given it.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from persona.compare.blind_votes import BlindQuestion, rank_answers
from persona.errors import Message


@dataclass(frozen=True)
class Preferences:
    """Rows for DPO, and how many votes gave none, by reason."""

    rows: tuple[dict[str, Any], ...]
    left_out: dict[str, int]


def collect_preferences(asked: Sequence[BlindQuestion]) -> Preferences:
    """A row for every vote from which a preference can be learned; equal rows come once."""
    found: dict[str, dict[str, Any]] = {}
    left_out: Counter[str] = Counter()
    for q in asked:
        if q.choice and (why := _why_left_out(q)):
            left_out[why] += 1
        elif q.choice:
            row = _row(q)
            left_out[Message("the same vote again")] += _key(row) in found
            found[_key(row)] = row
    both_ways = [key for key, row in found.items() if _key(_swapped(row)) in found]
    for key in both_ways:
        del found[key]
    left_out[Message("the same two answers preferred both ways")] += len(both_ways)
    return Preferences(tuple(found.values()), {why: count for why, count in left_out.items() if count})


def dump_rows(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """JSON lines, as `datasets.load_dataset("json", …)` reads them."""
    return (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _why_left_out(q: BlindQuestion) -> str:
    """Why a vote gives no row; "" when it gives one."""
    if q.choice == "tie":
        return "tie"
    if q.choice == "bad":
        return Message("both bad")
    if q.left.history != q.right.history:
        return Message("the two had different conversations before")  # DPO compares two answers to one prompt
    better, worse = rank_answers(q)
    if not better.text.strip():
        return Message("the preferred answer is empty")
    if not better.ended:
        return Message("the preferred answer was cut off")  # it would teach to stop in mid-sentence
    return Message("the two answers are equal") if better.text == worse.text else ""


def _row(q: BlindQuestion) -> dict[str, Any]:
    better, worse = rank_answers(q)
    prompt = [_message("system", q.system)] if q.system else []
    for user, reply in q.left.history:
        prompt += [_message("user", user), _message("assistant", reply)]
    return {
        "prompt": [*prompt, _message("user", q.said)],
        "chosen": [_message("assistant", better.text)],
        "rejected": [_message("assistant", worse.text)],
    }


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _swapped(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "chosen": row["rejected"], "rejected": row["chosen"]}


def _key(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False)
