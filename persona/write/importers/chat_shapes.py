"""A message in data of a chat program: who, text, time, what it replies to, under the names that programs give them."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# in order of preference; compared without regard to case
WHO_KEYS = (
    "sender_name", "sendername", "name", "from", "author", "talker", "sender", "nickname", "speaker", "character",
    "user_profile", "user", "username", "creator", "src", "role", "who", "is_sender", "issender",
    "发送者", "发送人", "发言人", "说话人", "角色", "人物", "昵称", "보낸사람", "送信者",
)  # fmt: skip
TEXT_KEYS = (
    "mes", "strcontent", "content", "text", "message", "msg", "line", "sentence", "utterance", "dialogue", "body",
    "value", "speech", "内容", "消息", "台词", "对白", "메시지", "メッセージ",
)  # fmt: skip
TIME_KEYS = (
    "timestamp_ms",
    "timestamp",
    "date_unixtime",
    "ts",
    "date",
    "send_date",
    "createtime",
    "created_date",
    "originalarrivaltime",
)
ID_KEYS = ("id", "message_id", "messageid", "msgsvrid", "ts")
REPLY_KEYS = ("reply_to_message_id", "reference", "reply_to", "replyto", "thread_ts", "parent_id", "parent_message_id")
THREAD_KEYS = (  # of the conversation that a message is of, in a file of several
    "conversation_id", "conversationid", "conv_id", "dialogue_id", "dialog_id", "session_id", "thread_id", "chat_id",
    "room_id", "scene_id", "episode_id", "message_tree_id", "对话id", "会话id",
)  # fmt: skip
NAME_KEYS = ("nickname", "display_name", "displayname", "global_name", "real_name", "name", "username", "id")

# a key, another one beside it ("" for any), and the values with which it is a message
MESSAGE_RULES = (
    ("type", "author", {"default", "reply", "0", "19"}),
    ("type", "from_id", {"message"}),
    ("type", "actor", {"message"}),
    ("type", "strcontent", {"1"}),
    ("type", "sender_name", {"generic", "share"}),
    ("type", "sendername", {"text", "generic"}),
    ("type_name", "", {"文本", "文字", "text"}),
    ("is_system", "", {"false", "0", ""}),
    ("isthought", "", {"false", ""}),
    ("is_unsent", "", {"false", ""}),
    ("isunsent", "", {"false", ""}),
    ("subtype", "ts", {"", "thread_broadcast", "me_message"}),
)
PROGRAMS = {  # a key of a message → the programs that write it
    "sender_name": ("messenger",), "sendername": ("messenger",), "from_id": ("telegram",), "authorid": ("discord",),
    "timestampedited": ("discord",), "is_sender": ("wechat", "qq"), "issender": ("wechat", "qq"),
    "msgsvrid": ("wechat", "qq"), "user_profile": ("slack",),
}  # fmt: skip
_NAMED_LINES = re.compile(r"^([^\s:：][^:：\n]{0,39})[:：][ \t]*(\S[^\n]*)$", re.M)
MAX_NAME = 80  # characters of a sender's name
MAX_DEPTH = 6  # of lists and objects around messages


@dataclass(frozen=True)
class ChatKeys:
    """The keys, or columns, of a chat's messages. time, id, reply, thread: "" where there are none."""

    who: str
    text: str
    time: str = ""
    id: str = ""
    reply: str = ""
    programs: tuple[str, ...] = ()
    thread: str = ""


@dataclass(frozen=True)
class ChatMessage:
    """reply: the id of the message that it says it replies to. thread: of the conversation that it is of."""

    who: str
    text: str
    time: str = ""
    id: str = ""
    reply: str = ""
    thread: str = ""


def find_keys(row: Mapping[str, Any]) -> ChatKeys | None:
    """The keys of a message; None where the row is none."""
    folded: dict[str, str] = {}
    for key in row:
        folded.setdefault(str(key).strip().casefold(), key)

    def find(names: tuple[str, ...]) -> str:
        return next((folded[name] for name in names if name in folded), "")

    who, text = find(WHO_KEYS), find(TEXT_KEYS)
    if not who or not text:
        return None
    programs = next((found for key, found in PROGRAMS.items() if key in folded), ())
    if {"author", "timestamp"} <= folded.keys():
        programs = ("discord",)
    elif [*folded] == ["date", "user", "message"]:
        programs = ("kakaotalk",)
    return ChatKeys(who, text, find(TIME_KEYS), find(ID_KEYS), find(REPLY_KEYS), programs, find(THREAD_KEYS))


def read_message(row: Mapping[str, Any], keys: ChatKeys) -> ChatMessage | None:
    """The row as a message; None where it is none: nobody's, or an event of the chat."""
    if not _is_message(row):
        return None
    who, text = _name(row.get(keys.who), keys.who), _text(row.get(keys.text))
    if not who or text is None:
        return None
    if "timestamp_ms" in row:  # Meta writes UTF-8 as if its bytes were Latin-1
        who, text = _undo_latin1(who), _undo_latin1(text)
    reply = row.get(keys.reply) if keys.reply else None
    if isinstance(reply, dict):
        reply = reply.get("messageId") or reply.get("message_id") or reply.get("id")
    time, own_id, thread = (str(row.get(key) or "") if key else "" for key in (keys.time, keys.id, keys.thread))
    if text and row.get("forwarded_from"):  # Telegram; as its log says it
        text = f"[Forwarded from {str(row['forwarded_from'])[:MAX_NAME]}]\n{text}"
    return ChatMessage(who, text, time, own_id, str(reply or ""), thread)


def _is_message(row: Mapping[str, Any]) -> bool:
    folded = {str(key).casefold(): value for key, value in row.items()}
    for key, beside, values in MESSAGE_RULES:
        if key in folded and (not beside or beside in folded):
            value = folded[key]
            if ("" if value is None else str(value).strip().casefold()) not in values:
                return False
    return True


def _name(value: Any, key: str) -> str:
    if isinstance(value, dict):
        value = next((value[k] for k in NAME_KEYS if value.get(k)), "")
    if key.casefold() in ("is_sender", "issender"):
        return "me" if str(value) in ("1", "True", "true") else "other"
    name = str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return name if len(name) <= MAX_NAME and "\n" not in name else ""


def _text(value: Any) -> str | None:
    """A text, or Telegram's list of texts and objects with a text, or Matrix's object with a body."""
    if isinstance(value, dict):
        value = value.get("text", value.get("body"))
    if isinstance(value, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return value if isinstance(value, str) else "" if value is None else None


def _undo_latin1(text: str) -> str:
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def find_message_lists(value: Any, depth: int = 0) -> Iterator[list[dict[str, Any]]]:
    """The lists of messages in a value, however deep: conversations."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str) and len(named := _NAMED_LINES.findall(value)) > 1 and len(named) == value.count("\n") + 1:
        yield [{"name": name, "text": text} for name, text in named]
    if not isinstance(value, dict | list):
        return
    if isinstance(value, dict) and isinstance(names := value.get("speakers"), list):  # SODA: names beside the texts
        said = next(
            (x for k, x in value.items() if k != "speakers" and isinstance(x, list) and len(x) == len(names)), []
        )
        yield [{"name": name, "text": text} for name, text in zip(names, said, strict=False)]
        return
    if isinstance(value, list):
        objects = [x for x in value if isinstance(x, dict)]
        if objects and 2 * sum(find_keys(x) is not None for x in objects[:10]) >= len(objects[:10]):
            yield objects
            return
    for inside in value.values() if isinstance(value, dict) else value:
        yield from find_message_lists(inside, depth + 1)
