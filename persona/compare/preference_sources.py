"""A persona's own blind votes, choices and corrections, and what was imported, as preferences to learn from."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from persona.compare import dpo_export, kept_answers
from persona.compare.blind_votes import BlindQuestion
from persona.compare.conversation import Conversation, VoiceRecord, prompt_history
from persona.compare.conversation_store import ConversationStore, list_conversations
from persona.compare.corrections import find_corrections
from persona.compare.kept_answers import KeptAnswer
from persona.errors import InputError, Message
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.store.preferences import Preference, PreferenceSet, find_both_ways, load_preferences, parse_preference


def collect_preferences(
    persona: Persona, asked: Sequence[BlindQuestion], talks: Iterable[Conversation], kept: Sequence[KeptAnswer] = ()
) -> PreferenceSet:
    """Votes for one of two answers, answers kept over others, corrections over what was said, and what was imported.

    Equal ones come once. left_out: the question of each that gave none, with the reason.
    """
    own = [q for q in asked if _is_own(persona, q.left.voice) and _is_own(persona, q.right.voice)]
    votes = dpo_export.collect_preferences(own)
    omitted = list(votes.omitted)
    foreign = Message("an answer was made by another persona")
    omitted += [(q.said, foreign) for q in asked if q.choice and q not in own]
    found: dict[Preference, None] = {}
    for row in votes.rows:
        try:
            preference = parse_preference(row)
        except InputError as e:
            omitted.append((row["prompt"][-1]["content"], e.message))
            continue
        # the persona's prompt at the time of the vote: as everywhere, it is trained with the one that it has now
        found[replace(preference, pair=replace(preference.pair, system="", source="vote"))] = None
    for preference in _corrected(persona, own, talks):
        if preference.pair.output.strip() == preference.rejected.strip() or not preference.rejected.strip():
            omitted.append((preference.pair.instruction, Message("a correction says what was said")))
        else:
            found[preference] = None
    for choice in kept:
        if not _is_own(persona, choice.voice):
            omitted.append((choice.said, foreign))
        elif not choice.ended:
            omitted.append((choice.said, dpo_export.LeftOut.CUT_OFF))
        elif choice.rejected.strip():
            found[Preference(Pair(choice.said, choice.kept, choice.history, "regenerated"), choice.rejected)] = None
    answered = {p: ((p.pair.instruction, p.pair.history), p.pair.output, p.rejected) for p in found}
    both_ways = find_both_ways(answered.values())
    omitted += [(p.pair.instruction, dpo_export.LeftOut.BOTH_WAYS) for p in found if answered[p] in both_ways]
    found = {p: None for p in found if answered[p] not in both_ways}
    left_out = [Message("“{question}”: {reason}.", question=said, reason=why) for said, why in omitted]
    imported = load_preferences(persona)
    found |= dict.fromkeys(imported.preferences)
    return PreferenceSet(tuple(found), (*left_out, *imported.left_out))


def collect_all(persona: Persona) -> PreferenceSet:
    """Those of all visitors: for the persona's owner."""
    from persona.compare.blind_votes import read_all_visitors

    stores = [ConversationStore(folder) for folder in sorted((persona.path / "talks").glob("*")) if folder.is_dir()]
    talks = [talk for store in stores for talk in list_conversations(store)]
    kept = kept_answers.read_all_visitors(persona.path)
    return collect_preferences(persona, read_all_visitors(persona.path), talks, kept)


def _is_own(persona: Persona, voice: VoiceRecord) -> bool:
    """Whether a voice is the persona's, or a base; a run's name is unique, so a renamed persona keeps its runs."""
    kind, _, rest = voice.adapter.partition("/")
    slug, _, run = rest.partition("/")
    is_run = kind == "run" and (slug == persona.path.name or (persona.runs_dir / run.partition("@")[0]).is_dir())
    return voice.kind != "adapter" or is_run


def _corrected(persona: Persona, asked: Sequence[BlindQuestion], talks: Iterable[Conversation]) -> Iterable[Preference]:
    """What was said where a pair corrects it, by any own voice."""
    corrections = find_corrections(persona)
    said = [
        (q.said, side.history, answer)
        for q in asked
        for side, answer in zip((q.left, q.right), q.answers, strict=False)
    ] + [
        (turn.said, prompt_history(talk, turn.id, answer.voice.column), answer)
        for talk in talks
        for turn in talk.turns
        for answer in turn.answers
    ]
    for question, history, answer in said:
        if answer.voice.kind == "adapter" and _is_own(persona, answer.voice) and (question, history) in corrections:
            output = corrections[question, history][1]
            yield Preference(Pair(question, output, history, "correction"), answer.text)
