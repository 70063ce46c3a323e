"""Pairs proposed by a chat model at an OpenAI-compatible server; the author reads them before any is saved.

The address, key and model come from the environment (PERSONA_LLM_URL, PERSONA_LLM_KEY, PERSONA_LLM_MODEL) and are never
stored. A proposal is marked as synthetic in its `source`.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace

from persona.errors import InputError, PersonaError
from persona.store.pairs import Pair, parse_pair
from persona.store.persona_folder import PersonaCard
from persona.write.llm_client import LlmEndpoint, request_json_list

MAX_EXAMPLES = 12  # pairs of the persona in the prompt


def suggest_paraphrases(endpoint: LlmEndpoint, pair: Pair, row: int, count: int = 4) -> list[Pair]:
    """The same answer under differently worded questions. Raises PersonaError when the endpoint fails."""
    prompt = (
        f"Write {count} different ways in which someone could say the following, in the same language and with the "
        f"same meaning. Answer with a JSON list of strings and nothing else.\n\n{pair.instruction}"
    )
    proposals = [
        text
        for text in request_json_list(endpoint, prompt)
        if isinstance(text, str) and text.strip() and text != pair.instruction
    ]
    source = f"synthetic: {endpoint.model}, paraphrase of pair {row}"
    return [replace(pair, instruction=text.strip(), source=source) for text in proposals[:count]]


def suggest_pairs(
    endpoint: LlmEndpoint, card: PersonaCard, pairs: Sequence[Pair], about: str, count: int = 5
) -> list[Pair]:
    """New pairs in the persona's style, with some of its own as examples. Raises PersonaError on failure."""
    shown = random.Random(0).sample(list(pairs), min(MAX_EXAMPLES, len(pairs)))
    examples = json.dumps([p.to_dict() | {"history": []} for p in shown], ensure_ascii=False)
    subject = f" The subject: {about}." if about.strip() else ""
    prompt = (
        f"You write dialogue for a character.\nCharacter: {card.name}. {card.system}\n"
        f"Examples of what is said to the character and of the answers: {examples}\n\n"
        f"Write {count} new examples in the same manner and language, none of them a repetition.{subject} Answer with "
        'a JSON list of objects {"instruction": …, "output": …} and nothing else.'
    )
    proposals = []
    for row in request_json_list(endpoint, prompt)[:count]:
        try:
            pair = parse_pair({k: row[k] for k in ("instruction", "output")} if isinstance(row, dict) else row)
        except (InputError, KeyError):
            continue
        proposals.append(replace(pair, source=f"synthetic: {endpoint.model}"))
    if not proposals:
        raise PersonaError(
            "{model} answered, but with no pair in its answer. Try again, or another model.", model=endpoint.model
        )
    return proposals
