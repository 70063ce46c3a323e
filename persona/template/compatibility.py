"""Whether a template fits a tokenizer: control tokens, stop token, an exact label mask."""

import re
from typing import Any

from persona.errors import Message, TemplateError, join
from persona.store import thinking
from persona.template.chat_template import ChatTemplate, apply_template, build_messages, pin_date, render_chats
from persona.template.placeholders import REPLIES, SYSTEM, USERS, split_at_contents

# text that looks like a control token in a rendering: <|user|>, <turn|>, <｜User｜>, <end_of_turn>, [INST], [gMASK]
MARKER_PATTERN = re.compile(
    r"<[|｜][^\s<>|｜]+[|｜]?>|<[^\s<>|｜]+[|｜]>|</?(?:start_of_turn|end_of_turn|bos|eos|s|sop|think)>"
    r"|\[(?:/?(?:INST|SYSTEM_PROMPT)|gMASK)\]"
)


# conversations on which formats are compared: every role, white space at every edge, words of the formats themselves
SAMPLE_CHATS = (
    build_messages("", [], "Hi."),
    build_messages("Be brief.", [], "你好"),
    build_messages("", [("model", "user")], "assistant"),
    build_messages("Be brief.\n你是灯塔。", [("a", "b"), ("{{ 1 }}", "<b>\n\n1. c</b>")], "c\n d"),
    build_messages(" Be\n", [("  a ", "\n b  \n"), ("\n\na\n", " b")], "\n c  "),
    build_messages("", [(" \n a", "b \n")] * 3, "c\n\n"),
)


def _depends_on_date(tokenizer: Any, template: ChatTemplate) -> bool:
    """Whether what it renders depends on the day."""
    if pin_date(template.text) == template.text:
        return False
    days = (ChatTemplate(template.name, pin_date(template.text, day)) for day in ("26", "27"))
    first_day, next_day = (
        apply_template(tokenizer, t, SAMPLE_CHATS[0], tokenize=False, add_generation_prompt=True) for t in days
    )
    return first_day != next_day


# ---- does a template fit a tokenizer


def control_token_ids(tokenizer: Any) -> frozenset[int]:
    return frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)


def marker_token_ids(tokenizer: Any, template: ChatTemplate) -> frozenset[int]:
    """The markers that the template writes, where this vocabulary has one token for them."""
    try:
        text = apply_template(tokenizer, template, SAMPLE_CHATS[3], tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return frozenset()
    markers = dict.fromkeys([*MARKER_PATTERN.findall(text), *_thinking_markers(template)])
    encoded = (tokenizer(m, add_special_tokens=False)["input_ids"] for m in markers)
    return frozenset(ids[0] for ids in encoded if len(ids) == 1)


def _thinking_markers(template: ChatTemplate) -> list[str]:
    """Those that the model or a row writes where no prompt does."""
    return [thinking.OPEN, thinking.CLOSE] if template.thinking else []


def find_stop_token(tokenizer: Any, template: ChatTemplate) -> int | None:
    """The last learned token of a reply, None where none is. Raises TemplateError when it cannot be rendered."""
    encoded = apply_template(
        tokenizer, template, build_messages("", [], "Hi", "Yes"), return_dict=True, return_assistant_tokens_mask=True
    )
    learned = [i for i, m in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if m]
    return next((i for i in reversed(learned) if tokenizer.decode([i]).strip()), learned[-1] if learned else None)


def find_incompatibilities(tokenizer: Any, template: ChatTemplate) -> list[str]:
    """Why a model with this tokenizer must not be trained with `template`, as messages; empty when it may."""
    name = f"Template {template.name}"
    try:
        stop = find_stop_token(tokenizer, template)
        dated = _depends_on_date(tokenizer, template)
        ids = list(apply_template(tokenizer, template, SAMPLE_CHATS[0], return_dict=False))
        texts = [
            apply_template(tokenizer, template, x, tokenize=False, add_generation_prompt=True) for x in SAMPLE_CHATS[:4]
        ]
    except TemplateError as e:
        return [e.message]
    if stop is None:
        return [
            Message(
                "{name}: no token would be learned. Put the assistant's content and its stop token inside "
                "{{% generation %}} … {{% endgeneration %}}.",
                name=name,
            )
        ]
    wrong: list[str] = []
    if stop not in control_token_ids(tokenizer):
        wrong.append(
            Message(
                "{name}: a reply ends with {stop!r}, which is not a stop token of this model, so it would "
                "never learn to stop. Choose a template made for this base.",
                name=name,
                stop=tokenizer.decode([stop]),
            )
        )
    wrong += _find_split_markers(tokenizer, template, texts)
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        wrong.append(
            Message(
                "{name}: the text begins with two {bos}. Take one out of the template.",
                name=name,
                bos=tokenizer.bos_token,
            )
        )
    if dated:
        wrong.append(
            Message(
                "{name}: it writes today's date (strftime_now), so a chat tomorrow would not read what was "
                "trained today. Write a fixed date in its place.",
                name=name,
            )
        )
    return wrong


def _find_split_markers(tokenizer: Any, template: ChatTemplate, texts: list[str]) -> list[str]:
    """A message if this model has no token for a marker of the template, unless its header declares it plain text."""
    split = {}
    found = [m for text in texts for m in MARKER_PATTERN.findall(text)]
    for marker in dict.fromkeys([*found, *_thinking_markers(template)]):
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        if marker not in template.plain_text_markers and (
            len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != marker
        ):
            split[marker] = len(ids)
    if not split:
        return []
    markers = [Message("{marker} ({n} token(s))", marker=marker, n=n) for marker, n in list(split.items())[:4]]
    return [
        Message(
            "Template {template}: this model does not know its markers: {markers}. Choose a template made for this "
            "base, or write 'Plain text: {first}' in its header comment if they are meant as letters.",
            template=template.name,
            markers=join(", ", markers),
            first=next(iter(split)),
        )
    ]


def try_render_prompt(tokenizer: Any, template: ChatTemplate, chat: list[dict], think: bool = False) -> str | None:
    """The prompt of a chat that ends with a question, None where the template refuses it. think: ask to think."""
    try:
        # read by the templates of thinking models only
        return apply_template(
            tokenizer, template, chat, tokenize=False, add_generation_prompt=True, enable_thinking=think
        )
    except TemplateError:
        return None


def is_mask_exact(tokenizer: Any, template: ChatTemplate) -> bool:
    """Whether, in every sample, exactly reply and stop token are learned, right after the prompt of a chat.

    Where thinking is kept, a masked block of it stands between; where it is trained, the reply begins with one.
    """
    try:
        stop = find_stop_token(tokenizer, template)
    except TemplateError:
        return False
    keeps = template.thinking == "keep"
    for chat in SAMPLE_CHATS:
        whole = [*chat, {"role": "assistant", "content": "Yes, 好。"}]
        try:
            encoded = apply_template(tokenizer, template, whole, return_dict=True, return_assistant_tokens_mask=True)
            prompt = list(apply_template(tokenizer, template, chat, return_dict=False, add_generation_prompt=True))
        except TemplateError:
            return False
        ids, mask = list(encoded["input_ids"]), list(encoded["assistant_masks"])
        if ids[: len(prompt)] != prompt or mask[len(prompt) - 1] or 1 not in mask[len(prompt) :]:
            return False
        start = mask.index(1, len(prompt))
        learned, gap = ids[start:][: sum(mask[start:])], tokenizer.decode(ids[len(prompt) : start])
        if any(mask[start + len(learned) :]) or not (thinking.is_block_of(gap, "") if keeps else not gap):
            return False
        reply = tokenizer.decode(learned[:-1])
        if template.thinking == "train" and not thinking.has_block(reply):
            return False
        if stop is None or learned[-1:] != [stop] or thinking.split_thinking(reply)[1].strip() != "Yes, 好。":
            return False
    return True


def takes_late_system(tokenizer: Any, template: ChatTemplate) -> bool:
    """Whether a system message may stand between the last question and its answer: it is written there, as it is."""
    plain = build_messages(SYSTEM, [(USERS[0], REPLIES[0])], USERS[1])
    late = build_messages(SYSTEM, [(USERS[0], REPLIES[0])], USERS[1], late_system=USERS[2])
    before, after = try_render_prompt(tokenizer, template, plain), try_render_prompt(tokenizer, template, late)
    try:
        whole = next(render_chats(tokenizer, template, [[*late, {"role": "assistant", "content": REPLIES[1]}]]))
    except TemplateError:
        return False
    if before is None or after is None or any(USERS[2] in whole.text[a:b] for a, b in whole.learned):
        return False
    gaps = split_at_contents(after, [SYSTEM, USERS[0], REPLIES[0], USERS[1], USERS[2]])
    tail = before.rpartition(USERS[1])[2]
    # what ends a message and begins the reply is the same after both
    return gaps is not None and bool(tail.strip()) and gaps[-1] == tail
