"""JSON body → ChatRequest: messages, model and settings. What cannot be honoured is refused.

Field by field as OpenAI's chat completions (https://platform.openai.com/docs/api-reference/chat/create); top_k, min_p
and repetition_penalty are extensions, named as vLLM names them.
"""

from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona.errors import InputError
from persona.models.sampling import MAX_CONTEXT_TOKENS, Sampling
from persona.serve.api_errors import ApiError
from persona.template.render import Renderer

MAX_CHOICES = 8  # n at most: the rows of one batch
MAX_STOPS, MAX_STOP_LENGTH = 4, 200  # stop strings at most, characters of each
DEFAULT_REPLY_TOKENS = 512  # tokens of a reply where the request names no limit, if there is room
# accepted and ignored: they do not change the text
IGNORED_FIELDS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "reasoning_effort", "verbosity",
}  # fmt: skip
# not supported; accepted where the value asks for nothing
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "logprobs": (False,),
    "top_logprobs": (0,), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """A checked request. system: its own prompt, None for the persona's; limit: max_tokens, None for the default.

    total: at most so many tokens of prompt and reply together, transformers' max_length; instead of limit.
    """

    model: str
    system: str | None
    history: tuple[tuple[str, str], ...]
    text: str
    sampling: Sampling
    choices: int = 1
    limit: int | None = None
    total: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False

    def samplings(self, prompt_tokens: int) -> list[Sampling]:
        """One for each choice, with seeds seed, seed + 1, … Raises ApiError where prompt and reply do not fit."""
        room = MAX_CONTEXT_TOKENS - prompt_tokens
        if self.total is not None and self.total <= prompt_tokens:
            raise ApiError(
                400, f"The prompt has {prompt_tokens:,} tokens and max_length is {self.total:,}, the prompt included. "
                "Raise it, or give max_new_tokens, which counts the reply alone.",
                param="max_length", code="context_length_exceeded",
            )  # fmt: skip
        limit = min(DEFAULT_REPLY_TOKENS, room) if self.limit is None else self.limit
        if self.total is not None:
            limit = min(self.total - prompt_tokens, room)
        if not 1 <= limit <= room:
            raise ApiError(
                400, f"The prompt has {prompt_tokens:,} tokens and max_tokens is {max(limit, 1):,}; together they may "
                f"be {MAX_CONTEXT_TOKENS:,}. Shorten the messages or lower max_tokens.",
                param="messages", code="context_length_exceeded",
            )  # fmt: skip
        seed = self.sampling.seed
        return [replace(self.sampling, seed=(seed + n) % 2**63, max_new_tokens=limit) for n in range(self.choices)]


class _Message(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    role: str
    content: Any = None
    tool_calls: Any = None


class _StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")
    include_usage: bool = False


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    messages: list[_Message] = Field(min_length=1, max_length=2048)
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stop: Any = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


def parse_chat_request(body: Any, default_seed: int) -> ChatRequest:
    """The body of POST /v1/chat/completions, checked. default_seed: without `seed`. Raises ApiError with the field."""
    if not isinstance(body, dict):
        raise ApiError(400, f"The body is a JSON {type(body).__name__}; it must be an object.")
    try:
        asked = _Request.model_validate(body)
    except ValidationError as e:
        first = e.errors()[0]
        param = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in first["loc"]).lstrip(".")
        raise ApiError(400, f"'{param}': {first['msg']}.", param=param, code=first["type"]) from None
    _check_other_fields(asked.model_extra or {})
    if asked.stream_options and not asked.stream:
        raise ApiError(400, "'stream_options' is only for a request with stream true.", param="stream_options")
    system, history, text = split_messages([(m.role, _text(m, n)) for n, m in enumerate(asked.messages)])
    float_fields = ("temperature", "top_p", "min_p", "repetition_penalty")
    given: dict[str, Any] = {k: v for k in float_fields if (v := getattr(asked, k)) is not None}
    given["top_k"] = 0 if asked.top_k in (None, -1) else asked.top_k  # -1: off, as vLLM spells it
    given["seed"] = (default_seed if asked.seed is None else asked.seed) % 2**63
    try:
        sampling = Sampling(**given)
    except InputError as e:
        field = next(iter(e.message.values), None)  # Sampling's messages begin with the setting
        raise ApiError(400, e.message, param=field, code="invalid_value") from None
    return ChatRequest(
        asked.model, system, history, text, sampling, asked.n or 1, asked.max_completion_tokens or asked.max_tokens,
        None, _stops(asked.stop), bool(asked.stream), bool(asked.stream_options and asked.stream_options.include_usage),
    )  # fmt: skip


def parse_generate_request(body: Any, model: str, default_seed: int) -> ChatRequest:
    """The body of POST /generate: {"prompt" or "instruction", "max_new_tokens", …}; the rest as in a chat, no stream.

    As in transformers' generate(), max_length counts the prompt too, and do_sample false is greedy.
    model: where the request names none. Raises ApiError with the field.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"The body is a JSON {type(body).__name__}; it must be an object.")
    own = ("prompt", "instruction", "system", "max_length", "do_sample")
    rest: dict[str, Any] = {k: v for k, v in body.items() if k not in own}
    if "max_new_tokens" in rest:
        rest["max_tokens"] = rest.pop("max_new_tokens")
    total = body.get("max_length")
    if total is not None and (type(total) is not int or total < 1):
        raise ApiError(400, "'max_length' is a number of tokens, at least 1.", param="max_length", code="invalid_value")
    if total is not None and rest.get("max_tokens") is not None:
        raise ApiError(400, "Give either 'max_length' or 'max_new_tokens'.", param="max_length")
    if body.get("do_sample") not in (None, True, False):
        raise ApiError(400, "'do_sample' is true or false.", param="do_sample", code="invalid_type")
    if body.get("do_sample") is False:
        rest["temperature"] = 0.0
    texts = [body[k] for k in ("prompt", "instruction") if body.get(k) is not None]
    if len(texts) != 1:
        raise ApiError(400, "Give either 'prompt' or 'instruction', with the text to answer.", param="prompt")
    if chat_only := [k for k in ("messages", "stream", "stream_options", "n") if k in rest]:
        raise ApiError(400, f"'{chat_only[0]}' is for /v1/chat/completions.", param=chat_only[0])
    system = [] if body.get("system") is None else [{"role": "system", "content": body["system"]}]
    messages = [*system, {"role": "user", "content": texts[0]}]
    chat = parse_chat_request({"model": model, **rest, "messages": messages}, default_seed)
    return replace(chat, total=total)


def unwrap_prompt(chat: ChatRequest, renderer: Renderer) -> ChatRequest:
    """The request with the question alone, where its text is a prompt in the template's own form already.

    So a client that writes the template's marks itself, as "### 指令:\\n…\\n\\n### 回答:\\n", has them once and not
    twice. What it wrote before the first mark is its system prompt; none is added. renderer: without a system prompt.
    """
    mark = "\x00"
    before, _, after = renderer.render_prompt([], mark).text.partition(mark)
    before = before.removeprefix(renderer.tokenizer.bos_token or "")
    system, found, question = chat.text.partition(before)
    if not (before and after and found) or not question.rstrip().endswith(after.rstrip()):
        return chat
    question = question.rstrip()[: -len(after.rstrip())]
    written = system.removeprefix(renderer.tokenizer.bos_token or "").strip()
    return replace(chat, system=written or chat.system or "", text=question)


def _check_other_fields(extra: dict[str, Any]) -> None:
    """Raises ApiError for an unknown field, and for one that would change the answer and is not supported."""
    for name, value in extra.items():
        if value is None or name in IGNORED_FIELDS:
            continue
        if name not in NEUTRAL_VALUES:
            raise ApiError(400, f"Unrecognized request argument supplied: {name[:100]}", param=name[:100],
                          code="unknown_parameter")  # fmt: skip
        if value not in NEUTRAL_VALUES[name]:
            raise ApiError(400, f"'{name}' is not supported here. Leave it out.", param=name,
                          code="unsupported_parameter")  # fmt: skip


def _text(message: _Message, number: int) -> str:
    """The text of a message; text blocks one after another. Raises ApiError for anything but text."""
    param = f"messages[{number}].content"
    if message.tool_calls:
        raise ApiError(400, "Tool calls are not supported here.", param=f"messages[{number}].tool_calls",
                      code="unsupported_parameter")  # fmt: skip
    blocks = message.content if isinstance(message.content, list) else [{"type": "text", "text": message.content}]
    texts = []
    for block in blocks:
        kind = block.get("type") if isinstance(block, dict) else None
        if kind != "text":
            raise ApiError(400, f"'{param}' holds a block of type {str(kind)[:40]!r}; only text is read here, no "
                          "images, audio or files.", param=param, code="unsupported_content")  # fmt: skip
        if not isinstance(block.get("text"), str):
            raise ApiError(400, f"'{param}' must be text.", param=param, code="invalid_type")
        texts.append(block["text"])
    return "".join(texts)


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    valid = isinstance(stops, list) and all(isinstance(s, str) and 0 < len(s) <= MAX_STOP_LENGTH for s in stops)
    if not valid or len(stops) > MAX_STOPS:
        raise ApiError(
            400,
            f"'stop' is a text or up to {MAX_STOPS} of them, each of 1 to {MAX_STOP_LENGTH} characters.",
            param="stop",
            code="invalid_value",
        )
    return tuple(stops)


def split_messages(messages: list[tuple[str, str]]) -> tuple[str | None, tuple[tuple[str, str], ...], str]:
    """(role, text) messages → (system prompt, finished turns, the text to answer).

    System messages stand first, and are joined by an empty line; so are neighbours of one role, since the templates
    know only turns. A greeting, which stands first, is the reply to an empty text. Raises ApiError where user and
    assistant do not alternate, or the last message is not the user's.
    """
    system: list[str] = []
    turns: list[tuple[str, str]] = []
    for number, (role, text) in enumerate(messages):
        if role in ("system", "developer") and not turns:
            system.append(text)
        elif role in ("system", "developer"):
            raise ApiError(400, "A system message stands before all others. Move it to the beginning.",
                          param=f"messages[{number}].role", code="invalid_value")  # fmt: skip
        elif role not in ("user", "assistant"):
            raise ApiError(400, f"Role {role[:40]!r} is not known here: system, developer, user or assistant.",
                          param=f"messages[{number}].role", code="invalid_value")  # fmt: skip
        elif turns and turns[-1][0] == role:
            turns[-1] = (role, f"{turns[-1][1]}\n\n{text}")
        else:
            turns.append((role, text))
    if not turns or turns[-1][0] != "user":
        raise ApiError(400, "The last message must be the user's.", param="messages", code="invalid_value")
    if turns[0][0] == "assistant":
        turns.insert(0, ("user", ""))
    texts = [text for _, text in turns]
    if not texts[-1].strip():
        raise ApiError(
            400, "The last message is empty. Write something to say.", param="messages", code="invalid_value"
        )
    history = tuple(zip(texts[:-1:2], texts[1:-1:2], strict=True))
    return ("\n\n".join(system) if system else None), history, texts[-1]
