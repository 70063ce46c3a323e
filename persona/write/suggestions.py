"""More pairs proposed by a chat model at an OpenAI-compatible endpoint: optional, and never saved before they are read.

The address, key and model come from the environment (PERSONA_LLM_URL, PERSONA_LLM_KEY, PERSONA_LLM_MODEL) and are never
stored. What is proposed is marked as synthetic in its `source`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from persona.errors import InputError, PersonaError
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import PersonaCard
from persona.write.llm_client import LlmEndpoint, request_json_list

MAX_EXAMPLES = 12  # of her pairs, as examples of her manner


def suggest_paraphrases(at: LlmEndpoint, pair: Pair, row: int, count: int = 4) -> list[Pair]:
    """The same answer under questions put differently. Raises PersonaError when the endpoint fails."""
    wanted = (
        f"Write {count} different ways in which someone could say the following, in the same language and with the "
        f"same meaning. Answer with a JSON list of strings and nothing else.\n\n{pair.instruction}"
    )
    made = [
        text
        for text in request_json_list(at, wanted)
        if isinstance(text, str) and text.strip() and text != pair.instruction
    ]
    source = f"synthetic: {at.model}, paraphrase of pair {row}"
    return [replace(pair, instruction=text.strip(), source=source) for text in made[:count]]


def suggest_pairs(at: LlmEndpoint, card: PersonaCard, pairs: Sequence[Pair], about: str, count: int = 5) -> list[Pair]:
    """New pairs in her manner, after some of her own as examples. Raises PersonaError when the endpoint fails."""
    shown = random.Random(0).sample(list(pairs), min(MAX_EXAMPLES, len(pairs)))
    examples = json.dumps([p.to_dict() | {"history": []} for p in shown], ensure_ascii=False)
    subject = f" The subject: {about}." if about.strip() else ""
    wanted = (
        f"You write dialogue for a character.\nCharacter: {card.name}. {card.system}\n"
        f"Examples of what is said to the character and of the answers: {examples}\n\n"
        f"Write {count} new examples in the same manner and language, none of them a repetition.{subject} Answer with "
        'a JSON list of objects {"instruction": …, "output": …} and nothing else.'
    )
    made = []
    for row in request_json_list(at, wanted)[:count]:
        try:
            pair = parse_pair({k: row[k] for k in ("instruction", "output")} if isinstance(row, dict) else row)
        except (InputError, KeyError):
            continue
        made.append(replace(pair, source=f"synthetic: {at.model}"))
    if not made:
        raise PersonaError(
            "{model} answered, but with no pair in its answer. Try again, or another model.", model=at.model
        )
    return made
