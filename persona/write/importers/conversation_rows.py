"""A conversation of a row as pairs: one for each reply of the persona, with what was said before it as history."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from persona.errors import InputError, Message
from persona.store.pairs import Pair
from persona.store.persona_folder import MAX_NAME, MAX_SYSTEM, PersonaCard
from persona.write.importers import SourceSurvey
from persona.write.importers.json_reader import read_first_rows
from persona.write.importers.rows import RowPairs, note_unused_keys, parse_complete_pair
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import (
    CONVERSATION_KEYS,
    PERSONA,
    SYSTEM,
    USER,
    Turn,
    find_thoughts,
    find_turns,
    find_used_keys,
    has_thoughts,
    merge_turns,
    parse_turns,
    used_turn_keys,
)

# exchanges that go with a reply as history; with all of a long conversation, its pairs would grow with its square
MAX_HISTORY = 50
WEIGHTS_KEY = "weights"


def survey_conversations(source: SourceFile, turns: Callable[[Any], list[Any]] = find_turns) -> SourceSurvey:
    """A card with the system message, if the first rows all have the same one."""
    system = find_common_system(source, turns)
    if not system or len(system) > MAX_SYSTEM:
        return SourceSurvey()
    return SourceSurvey(card=PersonaCard(name=Path(source.name).stem[:MAX_NAME] or "persona", system=system))


def find_common_system(source: SourceFile, turns: Callable[[Any], list[Any]] = find_turns) -> str:
    """The system message that the first rows all have; "" where they have none, or different ones."""
    return common_system(read_first_rows(source, 20), turns)


def common_system(rows: Iterable[dict[str, Any]], turns: Callable[[Any], list[Any]] = find_turns) -> str:
    """The system message that these rows all have; "" where they have none, or different ones."""
    prompts = set[str]()
    for row in rows:
        try:
            prompts.add(find_system_prompt(row, parse_turns(turns(row))))
        except InputError:
            continue  # a row that will be skipped
    return prompts.pop() if len(prompts) == 1 else ""


def find_system_prompt(row: dict[str, Any], turns: list[Turn]) -> str:
    """The row's system message: a turn of it, or a key beside the turns."""
    beside = row.get("system")
    messages = [turn.text for turn in turns if turn.side == SYSTEM]
    return "\n".join(filter(None, [beside if isinstance(beside, str) else "", *messages]))


def conversation_to_pairs(
    row: Any, place: str, turns: list[Any], used: tuple[str, ...] = (), history: int | None = None, common: str = "",
    keep_thinking: bool = False,
) -> RowPairs:  # fmt: skip
    """The replies of one conversation as pairs, and notes on what is left out. Raises InputError when it has none.

    used: the keys that held the turns, else found. history: at most so many exchanges with each pair; None: all since
    the beginning, which after MAX_HISTORY exchanges is made anew. common: the system prompt of all rows, which is the
    persona's; a row's other one goes with its pairs. keep_thinking: as a <think> block before its reply.
    """
    if not turns:
        raise InputError("no conversation: no list of turns under {keys}", keys=", ".join(CONVERSATION_KEYS[:3]))
    parsed = parse_turns(turns, keep_thinking)
    thought = [turn for turn in turns if has_thoughts(turn) and not (keep_thinking and find_thoughts(turn))]
    notes: list[str] = [Message("thinking left out of a reply")] * len(thought)
    system = find_system_prompt(row, parsed)
    if system and system == common:
        system = ""
        notes.append(Message("system message left out: a persona's own is part of every pair"))
    merged = merge_turns([turn for turn in parsed if turn.side != SYSTEM])
    if merged and merged[0].side == PERSONA:
        notes.append(Message("greeting left out: nobody had spoken before it"))
        merged = merged[1:]
    if len(merged) > 1 and merged[-1].side == USER:
        notes.append(Message("last message left out: it has no reply"))
        merged = merged[:-1]
    if len(merged) < 2:
        raise InputError("no reply to anything said")
    exchanges = list(zip(merged[::2], merged[1::2], strict=True))
    source = row.get("source")
    fields: dict[str, Any] = {"source": source if isinstance(source, str) else place, "system": system}
    used = (*(used or find_used_keys(row)), "source" if isinstance(source, str) else "", "system")
    if isinstance(weights := row.get(WEIGHTS_KEY), list):  # one pair, as dump_weights() has it
        fields["weights"], used = weights, (*used, WEIGHTS_KEY)
        last = exchanges[-1]
        exchanges = [(asked, reply._replace(learned=reply is last[1])) for asked, reply in exchanges]
    else:
        notes += [Message("reply of weight 0 kept as context, not learned") for _, r in exchanges if not r.learned]
    if not any(reply.learned for _, reply in exchanges):
        raise InputError("no reply of it is to be learned: each has the weight 0")
    pairs = list(_pair_replies(exchanges, fields, history, notes))
    notes += note_unused_keys(row, used)
    extra = dict.fromkeys(
        note for turn in turns for note in note_unused_keys(turn, used_turn_keys(turn), Message("key of a turn"))
    )
    return pairs, [*notes, *extra]


def _pair_replies(
    exchanges: list[tuple[Turn, Turn]], fields: dict[str, Any], history: int | None, notes: list[str]
) -> Iterator[Pair | InputError]:
    earlier: list[tuple[list[str], int]] = []  # an exchange, and the weight of its reply
    for asked, reply in exchanges:
        if history is None and len(earlier) == MAX_HISTORY:
            notes.append(Message("history begun anew after {count} exchanges", count=MAX_HISTORY))
            earlier = []
        shown = earlier if history is None else earlier[len(earlier) - history :] if history else []
        weights = [*(weight for _, weight in shown), int(reply.learned)]
        turns = [exchange for exchange, _ in shown]
        row = {"instruction": asked.text, "output": reply.text, "history": turns, "weights": weights, **fields}
        problem = asked.problem or reply.problem
        if reply.learned and problem:
            yield InputError(problem)
        elif reply.learned:
            try:
                yield parse_complete_pair(row)
            except InputError as e:
                yield e
        # what no pair can hold is no history of another either
        whole = asked.text.strip() and reply.text.strip() and not problem
        earlier = [*earlier[-MAX_HISTORY:], ([asked.text, reply.text], int(reply.learned))] if whole else []


def dump_weights(pair: Pair) -> dict[str, list[int]]:
    """The key that tells conversation_to_pairs() that a row is one pair, whose earlier replies other rows may teach.

    In the messages themselves each of them has the weight 0, lest another program learns it once more.
    """
    return {WEIGHTS_KEY: list(pair.weights)} if pair.history or pair.weights else {}
