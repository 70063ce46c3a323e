"""A conversation, a list of turns under whatever names, as one pair: its last reply, and what was said before it."""

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.store.pairs import Pair
from persona.store.persona_folder import MAX_NAME, MAX_SYSTEM, PersonaCard
from persona.write.importers import SourceSurvey
from persona.write.importers.json_reader import read_first_rows
from persona.write.importers.rows import note_unused_keys, parse_complete_pair
from persona.write.importers.text_source import SourceFile

CONVERSATION_KEYS = ("conversations", "conversation", "messages", "dialogue", "dialog")
USER, PERSONA, SYSTEM = "user", "persona", "system"
ROLES = {
    **dict.fromkeys(("human", "user", "prompter"), USER),
    **dict.fromkeys(("gpt", "assistant", "bot", "model", "chatgpt", "ai", "char", "character"), PERSONA),
    **dict.fromkeys(("system", "developer"), SYSTEM),
}
ROLE_KEYS, CONTENT_KEYS = ("from", "role"), ("value", "content")


def find_turns(row: Any) -> list[Any]:
    """The turns of a row; none when it holds no conversation."""
    if not isinstance(row, dict):
        return []
    return next((row[k] for k in CONVERSATION_KEYS if isinstance(row.get(k), list) and row[k]), [])


def has_turn_keys(turns: list[Any], who: str, what: str) -> bool:
    """Whether the turns are objects with these two keys."""
    return bool(turns) and all(isinstance(t, dict) and who in t and what in t for t in turns[:4])


def survey_conversations(source: SourceFile, turns: Callable[[Any], list[Any]] = find_turns) -> SourceSurvey:
    """A card with the system message, if the first rows all have the same one."""
    prompts = set[str]()
    for row in read_first_rows(source, 20):
        try:
            prompts.add(find_system_prompt(row, _parse_turns(turns(row))))
        except InputError:
            continue  # a row that will be skipped
    system = prompts.pop() if len(prompts) == 1 else ""
    if not system or len(system) > MAX_SYSTEM:
        return SourceSurvey()
    return SourceSurvey(card=PersonaCard(name=Path(source.name).stem[:MAX_NAME] or "persona", system=system))


def find_system_prompt(row: dict[str, Any], sides: list[tuple[str, str]]) -> str:
    """The row's system message: a turn of it, or a key beside the turns."""
    beside = row.get("system")
    messages = [text for side, text in sides if side == SYSTEM]
    return "\n".join(filter(None, [beside if isinstance(beside, str) else "", *messages]))


def conversation_to_pair(row: Any, place: str, turns: list[Any], used: tuple[str, ...] = ()) -> tuple[Pair, list[str]]:
    """One conversation as one pair, and notes on what is left out. Raises InputError.

    used: the keys that held the turns, else CONVERSATION_KEYS.
    """
    if not turns:
        raise InputError("no conversation: no list of turns under {keys}", keys=", ".join(CONVERSATION_KEYS[:3]))
    sides = _parse_turns(turns)
    notes: list[str] = []
    if find_system_prompt(row, sides):
        notes.append(Message("system message left out: a persona's own is part of every pair"))
    merged = _merge_turns([(side, text) for side, text in sides if side != SYSTEM])
    if merged and merged[0][0] == PERSONA:
        notes.append(Message("greeting left out: nobody had spoken before it"))
        merged = merged[1:]
    if len(merged) > 1 and merged[-1][0] == USER:
        notes.append(Message("last message left out: it has no reply"))
        merged = merged[:-1]
    if len(merged) < 2:
        raise InputError("no reply to anything said")
    exchanges = [[merged[n][1], merged[n + 1][1]] for n in range(0, len(merged), 2)]
    source = row.get("source")
    fields = {"instruction": exchanges[-1][0], "output": exchanges[-1][1], "history": exchanges[:-1]}
    pair = parse_complete_pair({**fields, "source": source if isinstance(source, str) else place})
    notes += note_unused_keys(
        row, (*(used or CONVERSATION_KEYS), "source" if isinstance(source, str) else "", "system")
    )
    extra = dict.fromkeys(
        note for t in turns for note in note_unused_keys(t, (*ROLE_KEYS, *CONTENT_KEYS), Message("key of a turn"))
    )
    return pair, [*notes, *extra]


def _parse_turns(turns: list[Any]) -> list[tuple[str, str]]:
    parsed = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise InputError("turn {number} is a {kind}, not an object", number=number, kind=type(turn).__name__)
        who, text = (
            next((turn[k] for k in keys if turn.get(k) is not None), None) for keys in (ROLE_KEYS, CONTENT_KEYS)
        )
        side = ROLES.get(who.strip().lower()) if isinstance(who, str) else None
        if side is None:
            raise InputError(
                "turn {number} is from {who}, who is neither user, persona nor system",
                number=number,
                who=f"{who!r:.40}",
            )
        parsed.append((side, _turn_text(text, number)))
    return parsed


def _turn_text(value: Any, number: int) -> str:
    """The text of a turn: a string, or OpenAI's list of text parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        for part in value:
            if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                kind = part.get("type") if isinstance(part, dict) else part
                raise InputError(
                    "turn {number} has a part that is not text: {kind}", number=number, kind=f"{kind!r:.40}"
                )
        return "\n".join(part["text"] for part in value)
    raise InputError("turn {number} has no text", number=number)


def _merge_turns(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Turns of one side that follow each other as one turn."""
    return [(side, "\n".join(text for _, text in same)) for side, same in groupby(turns, key=lambda turn: turn[0])]
