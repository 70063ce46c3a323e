"""An Ollama Modelfile: the chat template in Go's language, the system prompt, the settings of a chat.

Ollama has templates of its own, in Go's text/template. One is derived here from what our template renders: the texts of
a conversation are replaced by marks, and what is between the marks is the template. It is checked at once: for a few
conversations it must give what our template gives, else there is none.
"""

import re
from dataclasses import dataclass, fields
from typing import Any

from persona.errors import Message, TemplateError
from persona.models.sampling import Sampling
from persona.share.exports import new_output
from persona.store.persona_folder import PersonaCard
from persona.template.character_prompt import resolve_system
from persona.template.chat_template import apply_template, build_messages
from persona.template.compatibility import SAMPLE_CHATS
from persona.template.placeholders import REPLIES, SYSTEM, USERS, split_at_contents
from persona.template.render import Renderer


@dataclass(frozen=True)
class TemplateFrame:
    """What a chat template writes around the texts of a conversation that ends with a question.

    with_system, after_system: around the system prompt; without: in its place; reply: between a question and its reply;
    turn: between a reply and the next question; open: after the last question, whose reply is generated.
    """

    with_system: str
    after_system: str
    without: str
    reply: str
    turn: str
    open: str


def derive_frame(renderer: Renderer) -> TemplateFrame:
    """The frame of the renderer's template. Raises TemplateError where it does more than put texts into a frame."""
    history = list(zip(USERS, REPLIES, strict=False))
    with_system = _gaps(renderer, SYSTEM, history, (SYSTEM, *_between()))
    without = _gaps(renderer, "", history, _between())
    one = _gaps(renderer, SYSTEM, [], (SYSTEM, USERS[2]))
    frame = TemplateFrame(with_system[0], with_system[1], without[0], with_system[2], with_system[3], with_system[-1])
    expected = [frame.with_system, frame.after_system, *[frame.reply, frame.turn] * 2, frame.open]
    if with_system != expected or without[1:] != expected[2:] or one != [*expected[:2], frame.open]:
        raise _no_frame(renderer, Message("it writes the turns of one conversation in different ways"))
    if found := next((x for x in ("{{", "}}", '"""') if any(x in getattr(frame, f.name) for f in fields(frame))), ""):
        raise _no_frame(renderer, Message("it writes {found}, which ends a text there", found=found))
    return frame


def _between() -> tuple[str, ...]:
    return (USERS[0], REPLIES[0], USERS[1], REPLIES[1], USERS[2])


def _gaps(renderer: Renderer, system: str, history: list[tuple[str, str]], marks: tuple[str, ...]) -> list[str]:
    """The text before, between and after the marks, each of which must occur once and in this order."""
    text = _render_prompt(renderer, build_messages(system, history, USERS[2]))
    gaps = split_at_contents(text, marks)
    if gaps is None:
        raise _no_frame(renderer, Message("it moves, repeats or leaves out what is said"))
    return gaps


def _render_prompt(renderer: Renderer, chat: list[dict[str, str]]) -> str:
    """Our prompt without the token that begins a text, which llama.cpp and Ollama add themselves."""
    tokenizer = renderer.tokenizer
    text = apply_template(tokenizer, renderer.template, chat, tokenize=False, add_generation_prompt=True)
    begins = tokenizer.bos_token if tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id else None
    return text.removeprefix(begins) if begins else text


def _no_frame(renderer: Renderer, why: str) -> TemplateError:
    return TemplateError(
        "Template {template}: has no form in Ollama's template language: {reason}. Use the file in "
        "llama.cpp or LM Studio, which read the template inside a merged GGUF (--merge); or train with "
        "another one.",
        template=renderer.template.name,
        reason=why,
    )


def go_template(renderer: Renderer) -> str:
    """The chat template in Ollama's language, checked against ours. Raises TemplateError."""
    f = derive_frame(renderer)
    text = (
        f"{{{{ if .System }}}}{f.with_system}{{{{ .System }}}}{f.after_system}{{{{ else }}}}{f.without}{{{{ end }}}}"
        "{{ range $i, $_ := .Messages }}"
        '{{ if eq .Role "user" }}{{ .Content }}'
        f"{{{{ if eq (len (slice $.Messages $i)) 1 }}}}{f.open}{{{{ else }}}}{f.reply}{{{{ end }}}}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{f.turn}{{{{ end }}}}'
        "{{ end }}"
    )
    for chat in SAMPLE_CHATS:
        # Go's language cannot strip white space as many templates do, so these are compared without
        stripped = [{**m, "content": m["content"].strip()} for m in chat]
        if render_go_template(text, stripped) != _render_prompt(renderer, stripped):
            raise _no_frame(renderer, Message("what it would give differs from what was trained"))
    return text


def render_go_template(template: str, chat: list[dict[str, str]]) -> str:
    """Fill in a template of `go_template` as Go does: if, else if, else, range, end, and five values."""
    pieces = re.split(r"\{\{ (.*?) \}\}", template)  # texts at even places, actions at odd ones
    system = next((m["content"] for m in chat if m["role"] == "system"), "")
    out, _ = _run(pieces, 0, {"system": system, "messages": chat, "at": None})
    return out


def _run(pieces: list[str], at: int, scope: dict[str, Any]) -> tuple[str, int]:
    """(text from piece `at` to the else or end that closes this block, index of that piece)."""
    out = ""
    while at < len(pieces):
        if at % 2 == 0:
            out += pieces[at]
        elif pieces[at] == "end" or pieces[at].startswith("else"):
            break
        elif pieces[at].startswith("range"):
            start = at + 1
            for n in range(len(scope["messages"])):
                text, at = _run(pieces, start, {**scope, "at": n})
                out += text
        elif pieces[at].startswith("if"):
            text, at = _branch(pieces, at, scope)
            out += text
        else:
            out += str(_value(pieces[at], scope))
        at += 1
    return out, at


def _branch(pieces: list[str], at: int, scope: dict[str, Any]) -> tuple[str, int]:
    """(text of the first branch whose condition holds, index of its end)."""
    chosen, done = "", False
    while pieces[at] != "end":
        action = pieces[at].removeprefix("else").strip()
        holds = not done and (not action or bool(_value(action.removeprefix("if "), scope)))
        text, at = _run(pieces, at + 1, scope)
        if holds:
            chosen, done = text, True
    return chosen, at


def _value(action: str, scope: dict[str, Any]) -> Any:
    if action == ".System":
        return scope["system"]
    message = scope["messages"][scope["at"]]
    if action == "eq (len (slice $.Messages $i)) 1":
        return scope["at"] == len(scope["messages"]) - 1
    return {
        ".Content": message["content"],
        'eq .Role "user"': message["role"] == "user",
        'eq .Role "assistant"': message["role"] == "assistant",
    }[action]


def render_modelfile(card: PersonaCard, renderer: Renderer, model: str, adapter: str, licence: str) -> tuple[str, str]:
    """(the Modelfile, why it has no TEMPLATE or "").

    model, adapter: names of files beside it; adapter: "" for a merged model.
    """
    try:
        template, why = go_template(renderer), ""
    except TemplateError as e:
        template, why = "", e.message
    usual = Sampling()
    stop = renderer.tokenizer.convert_ids_to_tokens(renderer.stop_id)
    return new_output.render_template_file(
        "Modelfile.jinja", card=card, model=model, adapter=adapter, licence=licence, template=template, why=why,
        stop=stop, usual=usual, system=resolve_system(card).strip().replace('"""', "'''"),
    ), why  # fmt: skip
