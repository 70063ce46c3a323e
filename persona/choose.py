"""Which template a base is to be trained with: a shipped one, or the base's own format with its replies marked.

Never a guess: what is chosen for a base with a format gives the same prompts as that format, character for character.
"""

import re
from typing import Any

from persona.errors import TemplateError
from persona.templates import (
    SAMPLES,
    Template,
    control_ids,
    fits,
    messages,
    pinned,
    prompt_text,
    shipped_templates,
    sound,
)

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_BY_END = {"<|im_end|>": "chatml", "<|eot_id|>": "llama-3", "<end_of_turn>": "gemma", "<turn|>": "gemma-4"}


def choose_template(tokenizer: Any, language: str = "") -> Template:
    """The template for a base: its own format where it has one, else by its special tokens, else a plain form.

    A shipped template is taken for the base's own if both give every chat the same prompt, character for character,
    earlier replies included; a thinking model is asked not to think. Else the own format is rewritten with its replies
    marked (derive), and taken if that gives the same prompts. Raises TemplateError when neither works.
    """
    shipped = shipped_templates()
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several by name; a chat uses the default one
        own = own.get("default")
    if not own:
        return _by_tokens(tokenizer, shipped, language)
    own = Template("own", pinned(own))
    if found := _like(tokenizer, own, shipped):
        return found
    if _MARKED.search(own.text) and not fits(tokenizer, own) and sound(tokenizer, own):
        return own
    derived = derive(tokenizer, own)
    if derived and not fits(tokenizer, derived) and sound(tokenizer, derived):
        return _like(tokenizer, derived, shipped) or derived
    raise TemplateError(
        "This base has a chat format of its own that no shipped template reproduces. Choose a template by "
        "hand ({shipped}), or give the base's own with {{% generation %}} around the reply as a .jinja "
        "file.",
        shipped=", ".join(shipped),
    )


def _by_tokens(tokenizer: Any, shipped: dict[str, Template], language: str) -> Template:
    """For a base without a format. The turn markers alone say little: a pretrained base has them, unlearned, too."""
    name = _BY_END.get(tokenizer.eos_token or "", "")
    if name and not fits(tokenizer, shipped[name]):
        return shipped[name]  # its end of text is a chat's end of turn: tuned for chat
    if not fits(tokenizer, shipped["gemma-base"]):
        return shipped["gemma-base"]
    return shipped["alpaca-zh" if language.startswith("zh") else "alpaca-en"]


def _like(tokenizer: Any, own: Template, shipped: dict[str, Template]) -> Template | None:
    wanted = [prompt_text(tokenizer, own, chat) for chat in SAMPLES]
    for template in shipped.values():
        if not fits(tokenizer, template) and _same(tokenizer, template, wanted):
            return template
    return None


def _same(tokenizer: Any, template: Template, wanted: list[str | None]) -> bool:
    """Whether it gives each sample its wanted prompt. None, a refusal, is allowed where there is a system prompt: some
    formats have no such role, and a shipped template then says how it is folded in.
    """
    for chat, text in zip(SAMPLES, wanted, strict=True):
        refused = text is None and chat[0]["role"] == "system"
        if not refused and prompt_text(tokenizer, template, chat) != text:
            return False
    return any(text is not None for text in wanted)


# ---- a base's own format, rewritten so that its replies are marked

_WORDS = {
    "system": "Zq0sys",
    "first": "Zq1ask",
    "answer": "Zq2say",
    "second": "Zq3ask",
    "again": "Zq4say",
    "third": "Zq5ask",
}
_EDGES = "\n \n x \n \n"
_TRIMS = {
    _EDGES: "",
    _EDGES.strip(): " | trim",
    _EDGES.lstrip("\n"): ".lstrip('\\n')",
    _EDGES.rstrip(): ".rstrip()",
    _EDGES.lstrip(): ".lstrip()",
}


def derive(tokenizer: Any, own: Template) -> Template | None:
    """A small template that gives the same prompts as `own` and marks replies; None where it cannot be done surely.

    The format is read off what it renders for marked words: what stands before the first question, between question
    and answer, after an answer, and at the end of a prompt. That makes a training row by construction the prompt of a
    chat, then reply and stop token. Whether the guess was right is decided by comparing all samples.
    """
    w = _WORDS
    history = [(w["first"], w["answer"]), (w["second"], w["again"])]
    one = _cut(tokenizer, own, messages("", [], w["first"]))
    three = _cut(tokenizer, own, messages("", history, w["third"]))
    if not one or not three or [one[0], one[-1]] != [three[0], three[-1]] or three[1:3] != three[3:5]:
        return None
    (start, to_reply, after, *_), ask = three, three[-1]
    chat = messages(w["system"], history, w["third"])
    system = _cut(tokenizer, own, chat)
    if system is None and w["system"] in (prompt_text(tokenizer, own, chat) or ""):
        return None  # it has the role, in a place that is not known here
    if system and system[2:] != three[1:]:
        return None
    ending = _ending(tokenizer, after)
    heads = _heads(to_reply, ask)
    trims = {role: _trim(tokenizer, own, role) for role in (["system"] if system else []) + ["user", "assistant"]}
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
    template = Template("own", _written(parts, system[:2] if system else None, known))
    wanted = [prompt_text(tokenizer, own, chat) if system or chat[0]["role"] == "user" else None for chat in SAMPLES]
    closed = last[len(ask) :] if last.startswith(ask) else ""
    return template if _same(tokenizer, template, [x if x is None else x + closed for x in wanted]) else None


def _cut(tokenizer: Any, own: Template, chat: list[dict]) -> list[str] | None:
    """The prompt of `chat`, cut at its contents; None where they are not all there once and in this order."""
    text = prompt_text(tokenizer, own, chat)
    if text is None or any(text.count(m["content"]) != 1 for m in chat):
        return None
    parts = []
    for m in chat:
        before, found, text = text.partition(m["content"])
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _ending(tokenizer: Any, after: str) -> str:
    """What ends a reply: the first control token after it, with white space before it; "" where it is not one."""
    names = {tokenizer.convert_ids_to_tokens(i) for i in control_ids(tokenizer)}
    bare = after.lstrip()
    stop = max((n for n in names if n and bare.startswith(n)), key=len, default="")
    return after[: len(after) - len(bare)] + stop if stop else ""


def _heads(to_reply: str, ask: str) -> tuple[str, str, str] | None:
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


def _trim(tokenizer: Any, own: Template, role: str) -> str | None:
    """What the format does to white space around a content of `role`: a piece of Jinja, None if something unknown."""
    word = {"system": "system", "user": "first", "assistant": "answer"}[role]

    def rendered(words: dict[str, str]) -> str | None:
        system = words["system"] if role == "system" else ""
        history = [(words["first"], words["answer"])]
        return prompt_text(tokenizer, own, messages(system, history, words["second"]))

    # "x" between the edges, so that trimming what was folded together with other text shows too
    plain, edged = rendered(_WORDS), rendered({**_WORDS, word: _EDGES})
    if plain is None or edged is None:
        return None
    return next((jinja for left, jinja in _TRIMS.items() if plain.replace(_WORDS[word], left) == edged), None)


def _written(parts: dict[str, str], system: list[str] | None, trims: dict[str, str]) -> str:
    """The template of these parts. Without a system role, the system prompt opens the first question."""
    q = {name: _quoted(text) for name, text in parts.items()}
    before, after = map(_quoted, system or [parts["start"], "\n\n"])
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


def _quoted(text: str) -> str:
    """As a string of Jinja's."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"
