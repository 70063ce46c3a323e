"""A chat template with `{% generation %}` derived from the base's own format."""

from typing import Any

from persona.template.chat_template import ChatTemplate, build_messages
from persona.template.compatibility import SAMPLE_CHATS, control_token_ids, try_render_prompt
from persona.template.placeholders import REPLIES, SYSTEM, USERS, split_at_contents


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


def derive_template(tokenizer: Any, own: ChatTemplate) -> ChatTemplate | None:
    """A small template that gives the same prompts as `own` and marks replies; None where that is not certain.

    The format is read off what it renders for placeholders: what stands before the first question, between question
    and answer, after an answer, and at the end of a prompt. That makes a training row by construction the prompt of a
    chat, then reply and stop token. The result counts only if all samples agree.
    """
    history = list(zip(USERS, REPLIES, strict=False))
    single_turn = _split_prompt(tokenizer, own, build_messages("", [], USERS[0]))
    turns = _split_prompt(tokenizer, own, build_messages("", history, USERS[2]))
    if not single_turn or not turns or [single_turn[0], single_turn[-1]] != [turns[0], turns[-1]]:
        return None
    if turns[1:3] != turns[3:5]:
        return None
    (start, to_reply, after, *_), ask = turns, turns[-1]
    chat = build_messages(SYSTEM, history, USERS[2])
    system = _split_prompt(tokenizer, own, chat)
    if system is None and SYSTEM in (try_render_prompt(tokenizer, own, chat) or ""):
        return None  # it has the role, in a place that is not known here
    if system and system[2:] != turns[1:]:
        return None
    ending = _stop_text(tokenizer, after)
    heads = _reply_heads(to_reply, ask)
    trims = {
        role: _trim_filter(tokenizer, own, role) for role in (["system"] if system else []) + ["user", "assistant"]
    }
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
    template = ChatTemplate("own", _write_template(parts, system[:2] if system else None, known))
    wanted = [
        try_render_prompt(tokenizer, own, chat) if system or chat[0]["role"] == "user" else None
        for chat in SAMPLE_CHATS
    ]
    closed = last[len(ask) :] if last.startswith(ask) else ""
    return (
        template if gives_same_prompts(tokenizer, template, [x if x is None else x + closed for x in wanted]) else None
    )


def _split_prompt(tokenizer: Any, own: ChatTemplate, chat: list[dict]) -> list[str] | None:
    """The prompt of `chat`, cut at its contents."""
    text = try_render_prompt(tokenizer, own, chat)
    return None if text is None else split_at_contents(text, [m["content"] for m in chat])


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


def _trim_filter(tokenizer: Any, own: ChatTemplate, role: str) -> str | None:
    """How the format trims a content of `role`, as a piece of Jinja; None where it does something else."""
    placeholder = {"system": SYSTEM, "user": USERS[0], "assistant": REPLIES[0]}[role]

    def rendered(content: str) -> str | None:
        contents = {"system": SYSTEM if role == "system" else "", "user": USERS[0], "assistant": REPLIES[0]}
        contents |= {role: content}
        history = [(contents["user"], contents["assistant"])]
        return try_render_prompt(tokenizer, own, build_messages(contents["system"], history, USERS[1]))

    # "x" between the edges, so that trimming what was folded together with other text shows too
    plain, edged = rendered(placeholder), rendered(_EDGE_WHITESPACE)
    if plain is None or edged is None:
        return None
    return next((jinja for left, jinja in _TRIMS.items() if plain.replace(placeholder, left) == edged), None)


def _write_template(parts: dict[str, str], system: list[str] | None, trims: dict[str, str]) -> str:
    """The template made of these parts. Without a system role, the system prompt opens the first question."""
    q = {name: _jinja_string(text) for name, text in parts.items()}
    before, after = map(_jinja_string, system or [parts["start"], "\n\n"])
    content = {role: f"(m['content']{trim})" for role, trim in trims.items()}
    return f"""{{#- Origin: the base's own chat format, read off what it renders.
    Change: {{% generation %}} around reply and stop token; a date in it always is 26 July 2024. -#}}
{{%- for m in messages -%}}
    {{%- if m['role'] == 'system' -%}}
        {{{{- {before} ~ {content.get("system", "(m['content'] | trim)")} ~ {after} -}}}}
    {{%- elif m['role'] == 'user' -%}}
        {{{{- {q["start"]} if loop.first else '' if loop.previtem['role'] == 'system' else {q["after"]} -}}}}
        {{{{- {content["user"]} -}}}}
    {{%- else -%}}
        {{{{- {q["last"]} if loop.last else {q["earlier"]} -}}}}
        {{% generation %}}{{{{- {q["lead"]} ~ {content["assistant"]} ~ {q["end"]} -}}}}{{% endgeneration %}}
    {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- {q["last"]} -}}}}{{%- endif -%}}
"""


def _jinja_string(text: str) -> str:
    """`text` as a Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
