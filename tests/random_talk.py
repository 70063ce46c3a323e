"""A random talk of two people, and writers of it in the forms that programs export it."""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from itertools import pairwise

from tests.test_chat_layouts import FORMATS

Message = tuple[str, str]  # who, text

NAMES = {
    "en": ("Bob", "Ann Lee", "O'Neil-Smith", "Dr. Bob Jr.", "x_X_ann_X_x", "Ann2000"),
    "zh": ("小王", "阿绫", "王 小明", "A绫"),
    "tw": ("小王", "阿綾", "陳 小明"),
    "ja": ("太郎", "花子", "田中 花子"),
    "ko": ("민수", "김 지우"),
    "de": ("Jörg", "Änne Müller"),
    "ru": ("Иван", "Анна Петрова"),
}
TEXTS = {
    "en": ("What is under the bridge?", "Water, mostly.", "I said: no. Twice", "well; maybe", "ok"),
    "zh": ("桥下有什么？", "多半是水。", "我说：不。", "他说“好”，就走了", "嗯"),
    "tw": ("橋下有什麼？", "多半是水。", "我說：不。", "他說「好」，就走了", "嗯"),
    "ja": ("橋の下に何がある？", "ほとんど水。", "言った：だめ", "うん"),
    "ko": ("다리 밑에 뭐가 있어?", "거의 물이야.", "그래"),
    "de": ("Was ist unter der Brücke?", "Größtenteils Wasser.", "Ich sagte: nein"),
    "ru": ("Что под мостом?", "В основном вода.", "Я сказал: нет"),
}
ANY = (
    "https://example.com/a?b=c:d#e",
    "42",
    "10:30 sharp",
    "3.5, 7 and 12/03/2024 were the days",
    "\"quoted\" and 'quoted'",
    "a, b; c | d\te",
    "*waves*",
    "(laughs) no (really?)",
    "[aside] (see there)",
    "<grins> Bold.",
    "ratio 1:2",
    "{curly} \\n back\\slash",
    "100% & <b>more</b>",
    "- one",
    "# not a heading",
    "word " * 300 + "end",
)
EMOJI = ("😀👍🏽", "❤️", "🇩🇪 👨‍👩‍👧")
# lines inside a message, which no layout with stamps may take for a new one
INNER = (
    "Note: bring a rope",
    "TODO: x",
    "12:15",
    "<center> NINE </center>",
    "* one",
    "> quoted",
    "Ann: no",
    "1. first",
    "2024 was it",
)


def random_talk(
    rng: random.Random, language: str, inner: bool = True, emoji: bool = True, length: int = 14
) -> list[Message]:
    """Messages of two people, some in a row; each text comes once."""
    names = rng.sample(NAMES[language], 2)
    pool = [*TEXTS[language], *ANY, *(EMOJI if emoji else ())]
    talk: list[Message] = []
    for number in range(length):
        lines = [rng.choice(pool)]
        if inner and rng.random() < 0.4:
            lines += [rng.choice([*INNER, "", *pool]) for _ in range(rng.randint(1, 3))] + [rng.choice(pool)]
        talk.append((names[rng.random() < 0.5], "\n".join([f"{lines[0]} ({number})".strip(), *lines[1:]]).strip()))
    return [(names[0], "so 1?"), (names[1], "so 2!"), *talk, (names[0], "so 3?"), (names[1], "so 4!")]


def merge(talk: Iterable[Message]) -> list[Message]:
    turns: list[Message] = []
    for who, text in talk:
        if turns and turns[-1][0] == who:
            turns[-1] = who, f"{turns[-1][1]}\n{text}"
        else:
            turns.append((who, text))
    return turns


def wanted_pairs(talk: Iterable[Message], persona: str) -> list[Message]:
    """(what was said before, reply) of each turn of the persona that answers one."""
    turns = merge(talk)
    return [(a[1], b[1]) for a, b in pairwise(turns) if b[0] == persona]


def write_log(format: str, talk: Iterable[Message]) -> str:
    return "\n".join(FORMATS[format].format(10 + n % 50, n=who, m=text) for n, (who, text) in enumerate(talk)) + "\n"


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _csv(header: tuple[str, ...], rows: Iterable[tuple], delimiter: str = ",") -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows([header, *rows])
    return out.getvalue()


def _sides(talk, persona, user, own):
    return [(own if who == persona else user, text) for who, text in merge(talk)]


def _from_user(talk, persona):
    turns = merge(talk)
    return turns[turns[0][0] == persona :]


# file name → writer of (talk, persona): chats as data, in which messages need a choice of who
CHATS: dict[str, Callable[[list[Message], str], str]] = {
    "sillytavern.jsonl": lambda talk, persona: _lines([{"user_name": "Bob", "character_name": "Ann", "create_date": "2024-3-1", "chat_metadata": {}}, *({"name": who, "is_user": who != persona, "is_system": False, "send_date": "March 1, 2024 1:00pm", "mes": text, "extra": {}} for who, text in talk)]),
    "result.json": lambda talk, persona: json.dumps({"name": "x", "type": "personal_chat", "id": 1, "messages": [{"id": n, "type": "message", "date": "2024-03-12T10:15:02", "date_unixtime": str(1710000000 + n), "from": who, "from_id": f"user{who}", "text": text, "text_entities": []} for n, (who, text) in enumerate(talk)]}, ensure_ascii=False, indent=1),
    "discord.json": lambda talk, persona: json.dumps({"guild": {"id": "0"}, "channel": {"id": "1"}, "messages": [{"id": str(n), "type": "Default", "timestamp": f"2024-03-12T10:15:{n:02}+00:00", "timestampEdited": None, "isPinned": False, "content": text, "author": {"id": who, "name": who.lower(), "nickname": who, "isBot": False}, "attachments": [], "reactions": []} for n, (who, text) in enumerate(talk)]}, ensure_ascii=False, indent=2),
    "discord.csv": lambda talk, persona: _csv(("AuthorID", "Author", "Date", "Content", "Attachments", "Reactions"), [(1, who, "2024-03-12T10:15:02", text, "", "") for who, text in talk]),
    "messenger.json": lambda talk, persona: json.dumps({"participants": [], "messages": [{"sender_name": who.encode().decode("latin-1"), "timestamp_ms": 1710000000000 + n, "content": text.encode().decode("latin-1")} for n, (who, text) in [*enumerate(talk)][::-1]]}, indent=1),
    "slack.json": lambda talk, persona: json.dumps([{"type": "message", "user": f"U{who}", "text": text, "ts": f"17100000{n:02}.000100", "user_profile": {"real_name": who, "display_name": who}} for n, (who, text) in enumerate(talk)], ensure_ascii=False),
    "weclone.csv": lambda talk, persona: _csv(("id", "MsgSvrID", "type_name", "is_sender", "talker", "room_name", "msg", "src", "CreateTime"), [(n, 100 + n, "文本", int(who == persona), who, who, text, "", f"2024-03-12 10:15:{n:02}") for n, (who, text) in enumerate(talk)]),
    "kakao.csv": lambda talk, persona: "\ufeff" + _csv(("Date", "User", "Message"), [(f"2024-03-12 10:15:{n:02}", who, text) for n, (who, text) in enumerate(talk)]),
    "who.csv": lambda talk, persona: _csv(("speaker", "text"), talk, ";"),
    "who.jsonl": lambda talk, persona: _lines({"speaker": who, "text": text} for who, text in talk),
}  # fmt: skip
# and those that say themselves who is the persona
ROLES: dict[str, Callable[[list[Message], str], str]] = {
    "sharegpt.json": lambda talk, persona: json.dumps([{"id": "1", "conversations": [{"from": who, "value": text} for who, text in _sides(_from_user(talk, persona), persona, "human", "gpt")]}], ensure_ascii=False, indent=2),
    "openai.jsonl": lambda talk, persona: _lines([{"messages": [{"role": who, "content": text} for who, text in _sides(_from_user(talk, persona), persona, "user", "assistant")]}]),
    "alpaca.json": lambda talk, persona: json.dumps([{"instruction": a, "input": "", "output": b} for a, b in wanted_pairs(talk, persona)], ensure_ascii=False, indent=2),
    "qa.csv": lambda talk, persona: _csv(("question", "answer"), wanted_pairs(talk, persona)),
    "qa.tsv": lambda talk, persona: _csv(("question", "answer"), wanted_pairs(talk, persona), "\t"),
    "xtuner.json": lambda talk, persona: json.dumps([{"conversation": [{"system": "", "input": a, "output": b} for a, b in wanted_pairs(talk, persona)]}], ensure_ascii=False),
    "pippa.jsonl": lambda talk, persona: _lines([{"conversation": [{"message": text, "is_human": who == "u"} for who, text in _sides(_from_user(talk, persona), persona, "u", "p")]}]),
    "chatml.jsonl": lambda talk, persona: _lines([{"text": "".join(f"<|im_start|>{who}\n{text}<|im_end|>\n" for who, text in _sides(_from_user(talk, persona), persona, "user", "assistant"))}]),
}  # fmt: skip
