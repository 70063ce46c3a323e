"""A chat template with `{% generation %}` derived from the base's own format."""

from typing import Any

from persona.errors import TemplateError
from persona.store.thinking import CLOSE, OPEN, join_thinking
from persona.template.chat_template import ChatTemplate, apply_template, build_messages
from persona.template.compatibility import SAMPLE_CHATS, control_token_ids, try_render_prompt
from persona.template.placeholders import REPLIES, SYSTEM, USERS, split_at_contents


def thinks_in_blocks(tokenizer: Any, own: ChatTemplate) -> bool:
    """Whether a base's own format has the <think> block: it opens one, or writes an empty one where none is wanted."""
    prompts = (try_render_prompt(tokenizer, own, SAMPLE_CHATS[0], think) or "" for think in (False, True))
    return any(OPEN in prompt.rpartition(SAMPLE_CHATS[0][-1]["content"])[2] for prompt in prompts)


def gives_same_prompts(tokenizer: Any, template: ChatTemplate, wanted: list[str | None]) -> bool:
    """Whether `template` gives the wanted prompt of every sample.

    None (the format refuses) is allowed for a chat with a system prompt: some formats have no such role, and a shipped
    template then says how it is folded in.
    """
    for chat, text in zip(SAMPLE_CHATS, wanted, strict=True):
        refused = text is None and chat[0]["role"] == "system"
        if not refused and try_render_prompt(tokenizer, template, chat) != text:
            return False
    return any(text is not None for text in wanted)


_EDGE_WHITESPACE = "\n \n x \n \n"
_TRIMS = {
    _EDGE_WHITESPACE: "",
    _EDGE_WHITESPACE.strip(): " | trim",
    _EDGE_WHITESPACE.lstrip("\n"): ".lstrip('\\n')",
    _EDGE_WHITESPACE.rstrip(): ".rstrip()",
    _EDGE_WHITESPACE.lstrip(): ".lstrip()",
}


def derive_template(tokenizer: Any, own: ChatTemplate, thinking: str = "none") -> ChatTemplate | None:
    """A small template that gives the same prompts as `own` and marks replies; None where that is not certain.

    The format is read off what it renders for placeholders: what stands before the first question, between question
    and answer, after an answer, and at the end of a prompt. That makes a training row by construction the prompt of a
    chat, then reply and stop token. The result counts only if all samples agree. thinking: the mode of the template;
    with keep and train the base is asked to think.
    """
    think = thinking != "none"
    history = list(zip(USERS, REPLIES, strict=False))
    single_turn = _split_prompt(tokenizer, own, build_messages("", [], USERS[0]), think)
    turns = _split_prompt(tokenizer, own, build_messages("", history, USERS[2]), think)
    if not single_turn or not turns or [single_turn[0], single_turn[-1]] != [turns[0], turns[-1]]:
        return None
    if turns[1:3] != turns[3:5]:
        return None
    (start, to_reply, after, *_), ask = turns, turns[-1]
    chat = build_messages(SYSTEM, history, USERS[2])
    system = _split_prompt(tokenizer, own, chat, think)
    if system is None and SYSTEM in (try_render_prompt(tokenizer, own, chat, think) or ""):
        return None  # it has the role, in a place that is not known here
    if system and system[2:] != turns[1:]:
        return None
    ending = _stop_text(tokenizer, after)
    heads = _thinking_heads(to_reply, ask) if think else _reply_heads(to_reply, ask)
    roles = [*(["system"] if system else []), "user", "assistant"]
    trims = {role: _trim_filter(tokenizer, own, role, think) for role in roles}
    known = {role: trim for role, trim in trims.items() if trim is not None}
    if not ending or not heads or known != trims:
        return None
    lead, earlier, last = heads
    parts = {
        "start": start,
        "after": after[len(ending) :],
        "end": ending,
        "lead": lead,
        "earlier": earlier,
        "last": last,
    }
    block = _block_parts(tokenizer, own, ask) if thinks_in_blocks(tokenizer, own) else None
    mode = thinking if block else ""
    template = ChatTemplate("own", _write_template(parts, system[:2] if system else None, known, block, mode))
    wanted = [
        try_render_prompt(tokenizer, own, chat, think) if system or chat[0]["role"] == "user" else None
        for chat in SAMPLE_CHATS
    ]
    closed = last[len(ask) :] if last.startswith(ask) else ""
    return (
        template if gives_same_prompts(tokenizer, template, [x if x is None else x + closed for x in wanted]) else None
    )


def _split_prompt(tokenizer: Any, own: ChatTemplate, chat: list[dict], think: bool) -> list[str] | None:
    """The prompt of `chat`, cut at its contents."""
    text = try_render_prompt(tokenizer, own, chat, think)
    return None if text is None else split_at_contents(text, [m["content"] for m in chat])


def _block_parts(tokenizer: Any, own: ChatTemplate, ask: str) -> tuple[str, str]:
    """What stands before and after the thinking of a row's reply, beyond its prompt, which ends with `ask`.

    As the format writes a last reply that holds a block; a format that leaves it out there opens it in its prompts.
    """
    chat = build_messages("", [], USERS[0], join_thinking(REPLIES[0], REPLIES[1]))
    try:
        text = apply_template(tokenizer, own, chat, tokenize=False, enable_thinking=True)
    except TemplateError:
        text = ""
    if gaps := split_at_contents(text, [USERS[0], *REPLIES]):
        _, before, after, _ = gaps
        if before.startswith(ask) and OPEN in before and CLOSE not in before[len(ask) :] and CLOSE in after:
            return before[len(ask) :], after
    return "" if ask.rstrip().endswith(OPEN) else f"{OPEN}\n", f"\n{CLOSE}\n\n"


def _stop_text(tokenizer: Any, after: str) -> str:
    """What ends a reply: the control token after it, with white space before it; "" where no control token follows."""
    names = {tokenizer.convert_ids_to_tokens(i) for i in control_token_ids(tokenizer)}
    bare = after.lstrip()
    stop = max((n for n in names if n and bare.startswith(n)), key=len, default="")
    return after[: len(after) - len(bare)] + stop if stop else ""


def _reply_heads(to_reply: str, ask: str) -> tuple[str, str, str] | None:
    """(white space that the reply begins with, head of an earlier reply, head of the last one).

    `to_reply` stands before an earlier reply, `ask` ends a prompt. Some formats ask with less than they write before
    earlier replies (the model is to write the rest): then all of it is given. A thinking family asks with more; a block
    that it leaves open is closed, for the replies here hold no reasoning.
    """
    if to_reply.startswith(ask):
        more = to_reply[len(ask) :]
        return ("", to_reply, to_reply) if more.strip() else (more, ask, ask)
    if not to_reply.strip() or not ask.startswith(to_reply):
        return None
    open_block = ask.rstrip().endswith("<think>")
    return "", to_reply, ask.rstrip() + "\n\n</think>\n\n" if open_block else ask


def _thinking_heads(to_reply: str, ask: str) -> tuple[str, str, str] | None:
    """The same of a format that is asked to think: what `to_reply` has more than white space is a block, of earlier
    replies alone.
    """
    if not to_reply.strip():
        return None
    more = to_reply.removeprefix(ask)
    return (more, ask, ask) if to_reply.startswith(ask) and not more.strip() else ("", to_reply, ask)


def _trim_filter(tokenizer: Any, own: ChatTemplate, role: str, think: bool) -> str | None:
    """How the format trims a content of `role`, as a piece of Jinja; None where it does something else."""
    placeholder = {"system": SYSTEM, "user": USERS[0], "assistant": REPLIES[0]}[role]

    def rendered(content: str) -> str | None:
        contents = {"system": SYSTEM if role == "system" else "", "user": USERS[0], "assistant": REPLIES[0]}
        contents |= {role: content}
        history = [(contents["user"], contents["assistant"])]
        return try_render_prompt(tokenizer, own, build_messages(contents["system"], history, USERS[1]), think)

    # "x" between the edges, so that trimming what was folded together with other text shows too
    plain, edged = rendered(placeholder), rendered(_EDGE_WHITESPACE)
    if plain is None or edged is None:
        return None
    return next((jinja for left, jinja in _TRIMS.items() if plain.replace(placeholder, left) == edged), None)


def _write_template(
    parts: dict[str, str], system: list[str] | None, trims: dict[str, str], block: tuple[str, str] | None, mode: str
) -> str:
    """The template made of these parts. Without a system role, the system prompt opens the first question.

    block: what stands around the thinking, for a format that has it. mode: of thinking.
    """
    q = {name: _jinja_string(text) for name, text in parts.items()}
    before, after = map(_jinja_string, system or [parts["start"], "\n\n"])
    content = {role: f"(m['content']{trim})" for role, trim in trims.items()}
    line, split, masked, learned, reply = "", "", "", "", content["assistant"]
    if block:
        reply = f"(reply{trims['assistant']})"
        line = f"\n{{%- set thinking = '{mode}' -%}}"
        split = _write_thinking_split(*map(_jinja_string, (*block, block[1] if block[0] else block[1].lstrip("\n"))))
        masked = " ~ (block if thinking == 'keep' else '')"
        learned = "(block if thinking == 'train' else '') ~ "
    return f"""{{#- Origin: the base's own chat format, read off what it renders.
    Change: {{% generation %}} around reply and stop token; a date in it always is 26 July 2024. -#}}{line}
{{%- for m in messages -%}}
    {{%- if m['role'] == 'system' -%}}
        {{{{- {before} ~ {content.get("system", "(m['content'] | trim)")} ~ {after} -}}}}
    {{%- elif m['role'] == 'user' -%}}
        {{{{- {q["start"]} if loop.first else '' if loop.previtem['role'] == 'system' else {q["after"]} -}}}}
        {{{{- {content["user"]} -}}}}
    {{%- else -%}}{split}
        {{{{- ({q["last"]} if loop.last else {q["earlier"]}){masked} -}}}}
        {{% generation %}}{{{{- {learned}{q["lead"]} ~ {reply} ~ {q["end"]} -}}}}{{% endgeneration %}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {q["last"]} -}}}}{{%- endif -%}}
"""


def _write_thinking_split(begin: str, end: str, end_of_none: str) -> str:
    """The lines that set `thought`, `reply` and `block`; the block of an earlier reply is empty.

    begin, end: what stands around the thinking. end_of_none: after none, where white space would melt with a prompt's.
    """
    return f"""
        {{%- set parts = m['content'].split('{CLOSE}') -%}}
        {{%- set thought = parts[0].split('{OPEN}')[-1] | trim if parts | length > 1 else '' -%}}
        {{%- set reply = parts[-1].lstrip() if parts | length > 1 else m['content'] -%}}
        {{%- set block = {begin} ~ thought ~ ({end} if thought else {end_of_none}) if loop.last else '' -%}}"""


def _jinja_string(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
