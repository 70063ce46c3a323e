"""Choices among regenerated answers: of two answers of one voice to the same message, the one that stays.

    votes/<visitor>.jsonl   a line for each choice: {"regenerated": id, "voice", "said", "history", "kept", "rejected",
                            "ended"}; and one for each that is taken back: {"undone": id}

The author sees which answer is the newer one, so these are preferences to learn from and no blind votes: no tally
counts them.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from persona.compare import blind_votes, conversation_store
from persona.compare.blind_votes import VoteLog
from persona.compare.conversation import Conversation, ConversationAnswer, VoiceRecord, column_history, voice_from_row
from persona.compare.conversation_store import ConversationStore
from persona.errors import InputError
from persona.store import files, jsonl, quotas


@dataclass(frozen=True)
class KeptAnswer:
    """A choice. history: of the voice's column before the message. ended: whether the kept answer ended by itself."""

    id: str
    voice: VoiceRecord
    said: str
    history: tuple[tuple[str, str], ...]
    kept: str
    rejected: str
    ended: bool


def find_answers(
    store: ConversationStore, talk: Conversation, column: str, earlier: int
) -> tuple[ConversationAnswer, ConversationAnswer] | None:
    """The column's answer to the last turn that was shown before, numbered `earlier`, and the one that is shown now.

    None unless both are there and differ.
    """
    turn = talk.turns[-1] if talk.turns else None
    if turn is None or not earlier or earlier == turn.answered:
        return None
    answers = dict(conversation_store.list_regenerations(store, talk, turn.id))
    found = [
        next((a for a in answers.get(number, ()) if a.voice.column == column), None)
        for number in (earlier, turn.answered)
    ]
    before, after = found
    if before is None or after is None or before.text.strip() == after.text.strip():
        return None
    return before, after


def record_choice(
    log: VoteLog, talk: Conversation, kept: ConversationAnswer, rejected: ConversationAnswer
) -> KeptAnswer:
    """Record which of two answers to the last turn stays.

    Raises InputError where that one is empty, or no more is kept.
    """
    if not kept.text.strip():
        raise InputError("The answer is empty: there is nothing to prefer in it.")
    quotas.require_disk_quota()
    turn = talk.turns[-1]
    history = column_history(talk, turn.id, kept.voice.column)
    choice = KeptAnswer(secrets.token_hex(8), kept.voice, turn.said, history, kept.text, rejected.text, kept.ended)
    row = asdict(choice)
    with files.lock_folder(log.path.parent):
        blind_votes.append_row(log, {"regenerated": row.pop("id"), **row, "time": time.time()})
    return choice


def undo_choice(log: VoteLog, choice_id: str) -> None:
    """Take a choice back. Raises InputError where it is not there, or was taken back before."""
    with files.lock_folder(log.path.parent):
        if choice_id not in {choice.id for choice in read_choices(log)}:
            raise InputError("There is no such choice of yours: it was taken back already.")
        blind_votes.append_row(log, {"undone": choice_id, "time": time.time()})


def read_choices(log: VoteLog) -> list[KeptAnswer]:
    """All choices of this visitor but those that were taken back, oldest first."""
    choices: dict[str, KeptAnswer] = {}
    for row in jsonl.read_rows(log.path)[0]:
        try:
            if "undone" in row:
                choices.pop(row["undone"], None)
            elif "regenerated" in row:
                history = tuple((str(u), str(r)) for u, r in row["history"])
                choices[str(row["regenerated"])] = KeptAnswer(
                    str(row["regenerated"]), voice_from_row(row["voice"]), str(row["said"]), history,
                    str(row["kept"]), str(row["rejected"]), bool(row["ended"]),
                )  # fmt: skip
        except (KeyError, TypeError, ValueError, OverflowError, InputError):
            continue  # changed by hand
    return list(choices.values())


def read_all_visitors(folder: Path) -> Sequence[KeptAnswer]:
    """Those of all visitors, for the persona's owner."""
    return [c for file in sorted((folder / "votes").glob("*.jsonl")) for c in read_choices(VoteLog(file))]
