"""The turns of a conversation in a row of data, under whatever names: who, text, and whether the reply is learned."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import groupby
from typing import Any, NamedTuple

from persona.errors import InputError, Message
from persona.store.thinking import join_thinking

CONVERSATION_KEYS = (
    *("conversations", "conversation", "messages", "dialogue", "dialog", "dialogues", "turns", "chosen"),
    *("chat_messages", "contents", "internal"),
)
RENDERED_KEYS = ("text", "conversation", "conversations", "chat", "chosen", "content", "prompt")
ROLE_KEYS = ("from", "role", "speaker", "author", "sender", "name", "character", "user")
CONTENT_KEYS = ("value", "content", "text", "message", "utterance", "line", "parts")
USER_FLAGS = ("is_human", "is_user")  # PIPPA's and others' way to name the sides
NOT_LEARNED = {"weight": 0, "train": False, "loss": False}  # OpenAI's, Axolotl's and ms-swift's: kept as context only
USER, PERSONA, SYSTEM = "user", "persona", "system"
TOOL_ROLES = ("tool", "function", "observation", "function_call", "function_response", "tool_call", "tool_response")
ROLES = {
    **dict.fromkeys(("human", "user", "prompter", "instruction", "{{user}}", "指令", "问题", "用户"), USER),
    **dict.fromkeys(
        ("gpt", "assistant", "bot", "model", "chatgpt", "ai", "char", "character", "response", "{{char}}",
         "回答", "回复", "助手"), PERSONA
    ),
    **dict.fromkeys(("system", "developer", "系统"), SYSTEM),
    **dict.fromkeys(TOOL_ROLES, PERSONA),  # what comes of it is part of the reply, which then cannot be learned
}  # fmt: skip
MAX_JSON_TEXT = 2_000_000  # characters of a conversation that stands in a row as a text
MAX_PYTHON_TEXT = 200_000  # as Python writes a list, which pandas puts into a CSV file
TEXT_PARTS = ("text", "input_text", "output_text")  # OpenAI's and Anthropic's types of a part that is text
THOUGHTS = ("thinking", "redacted_thinking", "reasoning")  # parts that are no part of the reply
THOUGHT_KEYS = ("reasoning_content", "reasoning")  # of a turn, as vLLM, DeepSeek and others name it
NOTHING_ASKED = "<|BEGIN-VISIBLE-CHAT|>"  # text-generation-webui writes it before a greeting
USES_TOOL = Message("the reply uses a tool, whose answer no pair can hold")

# a conversation as one text: the marks of Guanaco, Vicuna, ChatML, Llama, Gemma, Zephyr and Alpaca, in Chinese too;
# Alpaca's "### Input:" is no turn: it stays with what is asked
_HEADS = re.compile(
    r"### ?(?P<hash>Human|User|Instruction|Assistant|Response|System|指令|问题|用户|回答|回复|助手|系统) ?[:：][ \n]?"
    r"|<\|im_start\|>(?P<chatml>\w{1,20})\n?"
    r"|<\|start_header_id\|>(?P<llama>\w{1,20})<\|end_header_id\|>\n{0,2}"
    r"|<start_of_turn>(?P<gemma>\w{1,20})\n?"
    r"|<\|(?P<zephyr>user|assistant|system)\|>\n?"
    r"|(?P<inst>\[/?INST\]) ?"
    r"|(?:^|(?<=[\n >]))(?P<vicuna>USER|ASSISTANT|SYSTEM): ?"
    r"|^(?P<hh>Human|Assistant): ?",
    re.M,
)
_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<end_of_turn>|<\|endoftext\|>|<\|begin_of_text\|>|</?s>|<[be]os>|<</?SYS>>"
)


class Turn(NamedTuple):
    """learned: False where the row says that this reply is context only. problem: why it can be in no pair."""

    side: str
    text: str
    learned: bool = True
    problem: str = ""


def find_turns(row: Any) -> list[Any]:
    """The turns of a row as objects with a side and a text; none when it holds no conversation."""
    return _locate_turns(row)[1] if isinstance(row, dict) else []


def find_used_keys(row: dict[str, Any]) -> tuple[str, ...]:
    """The keys of the row that find_turns() reads."""
    return _locate_turns(row)[0]


def _locate_turns(row: dict[str, Any]) -> tuple[tuple[str, ...], list[Any]]:
    """The keys that hold the conversation, and its turns; both empty when there is none."""
    if isinstance(row.get("mapping"), dict):
        return ("mapping", "current_node"), list(_walk_mapping(row))
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        return ("prompt",), list(_walk_replies(row["prompt"]))
    if winner := {"model_a": "conversation_a", "model_b": "conversation_b"}.get(str(row.get("winner"))):
        return (winner, "winner"), _as_list(row.get(winner))
    for key in CONVERSATION_KEYS:
        if listed := _as_list(row.get(key)):
            return (key,), _expand_exchanges(listed)
    for key in RENDERED_KEYS:
        if isinstance(value := row.get(key), str) and (rendered := split_rendered(value)):
            return (key,), rendered
    return (), []


def _walk_mapping(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The texts of ChatGPT's export: its nodes from the current one back to the first, the other way round."""
    nodes, at, path = row["mapping"], row.get("current_node"), list[Any]()
    while isinstance(at, str) and isinstance(nodes.get(at), dict) and len(path) <= len(nodes):
        path.append(nodes[at])
        at = nodes[at].get("parent")
    for node in reversed(path) if path else nodes.values():
        message = node.get("message") if isinstance(node, dict) else None
        author, content = (message.get(k) for k in ("author", "content")) if isinstance(message, dict) else (None, None)
        if isinstance(author, dict) and isinstance(content, dict) and isinstance(content.get("parts"), list):
            text = "\n".join(part for part in content["parts"] if isinstance(part, str))
            if text.strip() and author.get("role") in ROLES:
                yield {"role": author["role"], "content": text}


def _walk_replies(node: Any) -> Iterator[dict[str, Any]]:
    """OpenAssistant's tree from its root, at each message on to the reply of the best rank."""
    while isinstance(node, dict):
        yield node
        replies = [reply for reply in node.get("replies") or () if isinstance(reply, dict)]
        node = min(replies, key=lambda reply: (reply.get("rank") is None, reply.get("rank") or 0), default=None)


def _as_list(value: Any) -> list[Any]:
    """A list that is not empty, also where it stands in the row as the text of JSON, or of Python."""
    if isinstance(value, str) and value.lstrip()[:1] == "[" and len(value) <= MAX_JSON_TEXT:
        try:
            is_python = value.lstrip()[1:].lstrip()[:2] == "{'" and len(value) <= MAX_PYTHON_TEXT
            value = ast.literal_eval(value.strip()) if is_python else json.loads(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return []
    return value if isinstance(value, list) and value else []


def _expand_exchanges(turns: list[Any]) -> list[Any]:
    """XTuner's objects of system, input and output, and lists of a message and its reply, as turns."""
    if all(isinstance(t, list) and len(t) == 2 and all(isinstance(x, str) for x in t) for t in turns):
        said = [{"role": role, "content": x} for t in turns for role, x in zip(("user", "assistant"), t, strict=True)]
        return [turn for turn in said if turn["content"] != NOTHING_ASKED]
    if not all(isinstance(t, dict) and isinstance(t.get("output"), str) and "input" in t for t in turns):
        return turns
    expanded: list[Any] = []
    for exchange in turns:
        sides = (("system", "system"), ("input", "user"), ("output", "assistant"))
        said = [{"role": role, "content": exchange[key]} for key, role in sides if exchange.get(key)]
        if exchange.get("output_with_loss") is False and said:
            said[-1]["weight"] = 0
        expanded += said
    return expanded


def split_rendered(text: str) -> list[Any]:
    """The turns of a conversation that stands there as one text; none where its marks are not known."""
    if not (heads := list(_HEADS.finditer(text))):
        return []
    turns: list[Any] = []
    if before := _ENDS.sub("", text[: heads[0].start()]).strip():
        turns.append({"role": "system", "content": before})
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        said = _ENDS.sub("", text[head.end() : following.start() if following else len(text)]).strip()
        who = next(filter(None, head.groupdict().values()))
        who = {"[INST]": "user", "[/INST]": "assistant"}.get(who, who.lower())
        if said:
            turns.append({"role": who, "content": said})
    sides = {ROLES.get(turn["role"]) for turn in turns}
    return turns if {USER, PERSONA} <= sides and None not in sides else []


def explain_unmarked_text(place: str, rows: list[dict[str, Any]]) -> InputError | None:
    """Why rows with one column of whole texts give no pairs; None where they have other columns of text, or marks."""
    columns = {name for row in rows for name, value in row.items() if isinstance(value, str) and value.strip()}
    if len(columns) != 1 or not columns <= {*RENDERED_KEYS} or any(map(find_turns, rows)):
        return None
    return InputError(
        "{place}: its only column of text, {column!r}, holds whole texts without marks that say what is asked and what "
        "is answered. Known are {marks}. Write one of them into the texts, or make two columns of them.",
        place=place,
        column=columns.pop(),
        marks="### Instruction: … ### Response:, ### 指令: … ### 回答:, <|im_start|>user, <start_of_turn>user, [INST]",
    )


def has_turn_keys(turns: list[Any], who: str, what: str) -> bool:
    """Whether the turns are objects with these two keys."""
    return bool(turns) and all(isinstance(t, dict) and who in t and what in t for t in turns[:4])


def has_roles(turns: list[Any]) -> bool:
    """Whether the first turns say themselves which of them are the persona's; some may be a tool's."""
    first = turns[:4]
    if not first or not all(isinstance(t, dict) and any(key in t for key in CONTENT_KEYS) for t in first):
        return False
    sides = {find_side(turn) for turn in first}
    return "" not in sides or {USER, PERSONA} <= sides


def find_side(turn: dict[str, Any]) -> str:
    """USER, PERSONA or SYSTEM, "" where the turn does not say."""
    for flag in USER_FLAGS:
        if isinstance(turn.get(flag), bool):
            return USER if turn[flag] else PERSONA
    who = turn.get(_find(turn, ROLE_KEYS))
    return ROLES.get(who.strip().lower(), "") if isinstance(who, str) else ""


def _find(turn: dict[str, Any], keys: tuple[str, ...]) -> str:
    return next((key for key in keys if turn.get(key) is not None), "")


def used_turn_keys(turn: dict[str, Any]) -> tuple[str, ...]:
    """The keys of a turn that parse_turns() reads."""
    return (_find(turn, ROLE_KEYS), _find(turn, CONTENT_KEYS), *USER_FLAGS, *NOT_LEARNED, *THOUGHT_KEYS)


def parse_turns(turns: list[Any], keep_thinking: bool = False) -> list[Turn]:
    """Raises InputError naming the turn that is none. keep_thinking: before a reply, as a <think> block."""
    parsed = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise InputError("turn {number} is a {kind}, not an object", number=number, kind=type(turn).__name__)
        if not (side := find_side(turn)):
            raise InputError(
                "turn {number} is from {who}, who is neither user, persona nor system",
                number=number,
                who=f"{turn.get(_find(turn, ROLE_KEYS))!r:.40}",
            )
        learned = all(turn.get(key) is None or turn[key] != off for key, off in NOT_LEARNED.items())
        text, problem = turn_text(turn, number)
        if keep_thinking and side == PERSONA and not problem:
            text = join_thinking(find_thoughts(turn), text)
        parsed.append(Turn(side, text, learned, problem))
    return parsed


def turn_text(turn: dict[str, Any], number: int) -> tuple[str, str]:
    """(text, why it can be in no pair) of a turn: a string, or a list of parts. Raises InputError where it has none."""
    who, value = turn.get(_find(turn, ROLE_KEYS)), turn.get(_find(turn, CONTENT_KEYS))
    if turn.get("tool_calls") or turn.get("function_call") or (isinstance(who, str) and who.lower() in TOOL_ROLES):
        return "", USES_TOOL
    if isinstance(value, str):
        return value, ""
    if not isinstance(value, list) or not value:
        raise InputError("turn {number} has no text", number=number)
    texts = list[str]()
    for part in value:
        kind = part.get("type", "text" if "text" in part else "") if isinstance(part, dict) else "text"
        text = part.get("text") if isinstance(part, dict) else part
        if kind in TEXT_PARTS and isinstance(text, str):
            texts += [text] * (not isinstance(part, dict) or not part.get("thought"))
        elif kind not in THOUGHTS:
            shown = kind or (next(iter(part), "") if isinstance(part, dict) else part)
            why = Message("turn {number} has a part that is not text: {kind}", number=number, kind=f"{shown!r:.40}")
            return "", why
    return "\n".join(texts), ""


def has_thoughts(turn: dict[str, Any]) -> bool:
    return bool(_thought_parts(turn) or find_thoughts(turn))


def find_thoughts(turn: dict[str, Any]) -> str:
    """The thinking of a turn: under a key of its own, or among its parts. "" for none that can be read."""
    thoughts = [turn.get(key) for key in THOUGHT_KEYS]
    thoughts += [
        next(filter(None, map(part.get, ("thinking", "text", *THOUGHT_KEYS))), "") for part in _thought_parts(turn)
    ]
    return "\n".join(text.strip() for text in thoughts if isinstance(text, str) and text.strip())


def _thought_parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    parts = turn.get(_find(turn, CONTENT_KEYS))
    dicts = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return [part for part in dicts if part.get("type") in THOUGHTS or part.get("thought")]


def merge_turns(turns: list[Turn]) -> list[Turn]:
    """Turns of one side that follow each other as one turn, learned where all of them are."""
    groups = (list(same) for _, same in groupby(turns, key=lambda turn: turn.side))
    return [
        Turn(
            t[0].side,
            "\n".join(x.text for x in t),
            all(x.learned for x in t),
            next((x.problem for x in t if x.problem), ""),
        )
        for t in groups
    ]
