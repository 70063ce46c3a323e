"""A corrected or preferred answer becomes a pair to train on."""

from dataclasses import dataclass

from persona.compare import conversation
from persona.compare.blind_votes import BlindQuestion, rank_answers
from persona.compare.conversation import Conversation
from persona.errors import InputError, Message, join
from persona.store import edit_history
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import Persona


@dataclass(frozen=True)
class AddedPair:
    """The pair's row, from 1, and the rows with other answers to the same question. message: both in words."""

    row: int
    rivals: tuple[int, ...]
    message: str


def pair_from_turn(talk: Conversation, turn: int, column: str, output: str) -> Pair:
    """The pair of a turn's message and `output`, which replaces the answer of `column` (VoiceRecord.column).

    Its history is that column's own conversation so far. A greeting is context that is not learned.
    """
    said = talk.turns[conversation.turn_index(talk, turn)].said
    pair = Pair(said, output, conversation.prompt_history(talk, turn, column), "correction")
    return pair.weigh(int(bool(user)) for user, _ in pair.turns) if talk.greeting else pair


def pair_from_vote(question: BlindQuestion, output: str = "") -> Pair:
    """The pair of a blind vote: the preferred answer, or `output` where it was written by hand.

    An answer by hand has the history of the adapter's side (the left one, if both or neither are adapters). Raises
    InputError when there is neither a preferred answer nor one by hand.
    """
    if output:
        sides = (question.left, question.right)
        side = next((s for s in sides if s.voice.kind == "adapter"), question.left)
        return Pair(question.said, output, side.history, "correction")
    better = rank_answers(question)[0]
    if not better.ended:
        raise InputError("The preferred answer was cut off at its limit. Write its end, then send it to the pairs.")
    side = question.left if question.choice == "left" else question.right
    return Pair(question.said, better.text, side.history, "vote")


def find_corrections(persona: Persona) -> dict[tuple[str, tuple[tuple[str, str], ...]], tuple[int, str]]:
    """(message, history) → (row from 1, output) of the pairs that correct an answer; the last one of several."""
    return {
        (p.instruction, p.history): (n, p.output) for n, p in enumerate(persona.pairs(), 1) if p.source == "correction"
    }


def append_correction(persona: Persona, pair: Pair) -> AddedPair:
    """Append the pair to the persona's, as one edit that can be undone.

    Other answers to the same question stay and are named: which of them is right is for the author to decide. Raises
    InputError for an empty or oversized text, and when the pairs have this answer to this question already, after
    whatever history.
    """
    if not pair.instruction.strip() or not pair.output.strip():
        raise InputError("There is no answer to learn from. Write what the persona should have said.")
    try:
        parse_pair(pair.to_dict())
    except InputError as e:
        raise InputError("The corrected answer: {reason}. It is not added.", reason=e) from e
    pairs = persona.scan()[0]
    same_question = [(n, p) for n, p in enumerate(pairs, 1) if p.instruction.strip() == pair.instruction.strip()]
    for n, p in same_question:
        if p.output.strip() == pair.output.strip():
            raise InputError("Pair {row} has this answer to this question already. Nothing was added.", row=n)
    if not edit_history.append(persona, [pair], _edit(pair.source)).added:
        raise InputError("Another window has just added this answer to this question. Nothing was added.")
    row, rivals = len(pairs) + 1, tuple(n for n, _ in same_question)
    return AddedPair(row, rivals, _message(persona.card().name, row, rivals))


def _edit(source: str) -> str:
    labels = {"vote": Message("add a vote"), "correction": Message("add a correction")}
    return labels.get(source) or Message("add a pair")


def _message(name: str, row: int, rivals: tuple[int, ...]) -> str:
    added = Message("Added as pair {row} of {name}.", row=row, name=name)
    if not rivals:
        return added
    if len(rivals) == 1:
        return join(" ", [added, Message(
            "Pair {row} answers the same question differently: keep both if either answer is right for the persona, "
            "else delete the wrong one.", row=rivals[0])])  # fmt: skip
    shown: str = ", ".join(map(str, rivals[:5]))
    if len(rivals) > 5:
        shown = Message("{shown} and {count} more", shown=shown, count=len(rivals) - 5)
    return join(" ", [added, Message(
        "Pairs {rows} answer the same question differently: keep them all if each answer is right for the persona, "
        "else delete what is wrong.", rows=shown)])  # fmt: skip
