"""Texts made so that a reader which looks back, or looks ahead, takes steps by the square of their length."""

import json
from collections.abc import Callable

CARD = {
    "spec": "chara_card_v2",
    "data": {"name": "Mags", "description": "Keeper", "first_mes": "Hi", "mes_example": ""},
}


def fill(pattern: str) -> Callable[[int], str]:
    """A text of about `size` characters: the pattern again and again. {n} in it counts."""

    def make(size: int) -> str:
        if "{n}" not in pattern:
            return pattern * (size // len(pattern) + 1)
        return "".join(pattern.replace("{n}", str(n)) for n in range(size // (len(pattern) + 2) + 1))

    return make


def after(start: str, pattern: str, end: str = "") -> Callable[[int], str]:
    return lambda size: start + fill(pattern)(size) + end


def card(**fields: Callable[[int], str]) -> Callable[[int], str]:
    def make(size: int) -> str:
        return json.dumps({**CARD, "data": {**CARD["data"], **{k: v(size) for k, v in fields.items()}}})

    return make


PROSE = "Ann said, “Hello.”\n\nBob said, “Hello.”\n\n"
FILES: dict[str, Callable[[int], str]] = {
    "nested quotes.txt": after(PROSE, "“"),
    "nested quotes closed once.txt": after(PROSE, "“", "”"),
    "nested single quotes.txt": after(PROSE, "‘"),
    "nested single quotes with sentences.txt": after(PROSE, "‘Hm. "),
    "quotes of both kinds.txt": after(PROSE, "“‘「『\""),
    "empty quotes.txt": after(PROSE, "“”"),
    "quotes in wrapped lines.txt": after(PROSE + "a line that goes on\nand on\n\n", "“a”\n"),
    "quotation that never ends.txt": after(PROSE, "“a\n"),
    "quotation over spaces.txt": after(PROSE, " " * 1_000 + "“Hm.”"),
    "long names.txt": after(
        PROSE + "".join(f"{'A' + 'a' * n} said, “Hm.”\n\n" for n in range(30)), "Aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"
    ),
    "many speakers in prose.txt": fill("Ann{n} said, “Hello.”\n\n"),
    "many speakers.txt": fill("S{n}: hello\n"),
    "many speakers twice.txt": fill("S{n}: hello\nS{n}: hello\n"),
    "only colons.txt": fill(":"),
    "only names and colons.txt": fill("A:"),
    "colons on lines.txt": fill("A:\n"),
    "one line.txt": fill("x"),
    "one line of words.txt": after("ANN\nHello.\n\n", "word "),
    "one line of spaces.txt": after("ANN\nHello.\n\nA", " ", "b\nhello"),
    "many lines.txt": fill("x\n"),
    "empty lines.txt": fill("\n"),
    "separators.txt": fill("---\n"),
    "separator.txt": fill("-"),
    "tabs.tsv": fill("\t"),
    "commas.csv": fill(","),
    "directions below a name.txt": after("ANN: （a）\nBob: b\nANN: （a）\n", "（a）\n"),
    "directions in a line.txt": after("ANN: a\nBob: b\nANN: ", "(a) "),
    "open brackets.txt": after("ANN: a\nBob: b\nANN: ", "（"),
    "open brackets on lines.txt": after("ANN: a\nBob: b\nANN: a\n", "（\n"),
    "closed brackets.txt": after("ANN: a\nBob: b\nANN: ", "）"),
    "short lines of a speech.txt": after("ANN: a\nBob: b\nANN: a\n", "b\n"),
    "short lines of a cue.txt": after("ANN\na\n\nBOB\n", "b\n"),
    "cues.txt": fill("ANN\nb\n\n"),
    "notes.txt": after("ANN\na\n\nBOB\n", "[[a"),
    "comments.txt": after("ANN\na\n\nBOB\n", "/* a */"),
    "short messages.txt": after("12/03/2024, 10:15 - Ann: a\n", "10:15 Bob: b\n"),
    "one message of lines.txt": after("12/03/2024, 10:15 - Ann: a\n", "b\n"),
    "stamps.txt": fill("10:15 "),
    "stamps on lines.txt": after("12/03/2024, 10:15 - Ann: a\n", "12/03/2024, 10:15 - \n"),
    "many layouts.txt": fill("[12/03/24, 10:15:02] Ann: a\nAnn 2024/3/12 10:15\n<Ann> b\n10:15 Ann\n"),
    "long names above.txt": after("Ann 10:15\nhi\n", "a " * 99 + "10:15\n"),
    "long senders.txt": after("[10:15] Ann: a\n", "[10:15] " + "a " * 90 + "\n"),
    "reactions.txt": after("[1/2/2024 10:15 AM] Ann\n", "{Reactions}\nx\n\n"),
    "marks.txt": after("12/03/2024, 10:15 - Ann: ", "a (a.jpg (\n"),
    "marks on ios.txt": after("[12/3/24, 10:15:02] Ann: ", "\u200e<"),
    "one long mark.txt": after("12/03/2024, 10:15 - Ann: a\n", "12/03/2024, 10:15 - Ann: " + "- " * 100 + "\n"),
    "quotations.txt": after("2024-03-12 10:15:02 Ann\n", "「" * 50 + "」\n- - - - -\n"),
    "cues.srt": fill("1\n00:00:01,000 --> 00:00:02,000\nANN: a\n\n2\n00:00:01,000 --> 00:00:02,000\nb\n\n"),
    "one cue.srt": after("1\n00:00:01,000 --> 00:00:02,000\n", "a\n"),
    "tags.vtt": after("WEBVTT\n\n00:01.000 --> 00:02.000\n", "<v a"),
    "tags.ass": after("[Script Info]\nDialogue: 0,", "{\\p"),
    "commas.ass": after("[Script Info]\nFormat: Name, Text\nDialogue: ", ","),
    "paragraphs.txt": after("Ann: a\n\nBob: b\n\n", "c\n\n"),
    "messages.jsonl": fill('{"name":"Ann","is_user":false,"mes":"a"}\n{"name":"Bob","is_user":true,"mes":"b"}\n'),
    "messages.json": after('{"messages":[{"from":"Bob","text":"a"}', ',{"id":{n},"from":"Ann{n}","text":"b","reply_to":{n}}', "]}"),
    "newest first.json": lambda size: '{"messages":[' + ",".join(f'{{"sender_name":"Ann","timestamp_ms":{n},"content":"a"}}' for n in range(size // 50, 0, -1)) + "]}",
    "messages in lists.json": after('{"a":', "[" * 40 + '{"from":"Ann","text":"a"}' + "]" * 40 + ',"b{n}":', "1}"),
    "parts of a message.json": after('[{"from":"Ann","text":[', '{"text":"a"},', '"b"]}]'),
    "heads.jsonl": after('{"text":"', "### Human: a### Assistant: b", '"}\n'),
    "half heads.jsonl": after('{"text":"', "### Human <|im_start|> [INST USER", '"}\n'),
    "a conversation as text.jsonl": after('{"messages":"[', "{},", '"}\n'),
    "open tags.html": after("<html><body>", "<div>a"),
    "half tags.html": after("<html><body>", '<a b="'),
    "quoted lines.txt": after('10:15\tAnn\t"a\n', '""\n'),
    "named lines in a text.json": after('[{"context":"', "Ann: a\\nBob: b\\n", '"}]'),
    "nodes.json": after('[{"current_node":"1","mapping":{', '"{n}":{"parent":"{n}"},', '"x":{}}}]'),
    "senders.csv": after("name,text\n", "Ann,hi\nBob,a\n"),
    "names without a header.csv": fill("Ann,hi{n}.\n"),
    "combining marks.txt": after("ANN: a\nBob: b\nANN: a", "\u0301\u0327"),
    "nested lists.json": fill("["),
    "nested objects.jsonl": after("", '{"a":'),
    "many lists.json": after("[", "[],", "[]]"),
    "many keys.json": after('[{"instruction": "a", "output": "b", ', '"k{n}":1,', '"k0":1}]'),
    "a key twice at the end.json": after('[{"instruction": "a", "output": "b", ', '"k{n}":1,', '"z":1, "z":1}]'),
    "many turns of one side.json": after(
        '[{"conversations": [', '{"from":"human","value":"a"},', '{"from":"gpt","value":"b"}]}]'
    ),
    "escapes.json": after('[{"instruction": "', "\\\\", '", "output": "b"}]'),
    "before the list.json": after("{", '"a{n}": "b", ', '"data": [{"instruction": "a", "output": "b"}]}'),
    "quotes.csv": fill('"'),
    "open quotes.csv": after("instruction,output\n", 'x","""\n'),
    "single quotes.csv": fill("\n'"),
    "many columns.csv": fill("a{n},"),
    "one column again and again.csv": after("instruction,output", ",a", "\n1,2\n"),
    "starts.json": card(mes_example=fill("<START>\n{{user}}: a\n{{char}}: b\n")),
    "placeholders.json": card(nickname=fill("N"), mes_example=fill("{{char}}"), description=fill("{{char}}")),
    "names before colons.json": card(mes_example=fill("Guard{n}: a\n{{char}}: b\n")),
    "names that nobody answers.json": card(mes_example=fill("Guard{n}: a\n")),
    "ends of dialogs.json": card(mes_example=fill("END_OF_DIALOG\n")),
    "a long name.json": card(name=fill("N"), mes_example=fill("N: a\n{{user}}: b\n")),
}  # fmt: skip

TEXTS: dict[str, Callable[[int], str]] = {
    "letters": fill("x"),
    "words": fill("word "),
    "spaces": after("**a**", " ", "b"),
    "lines of spaces": fill("a  \n"),
    "open tags": fill("<a "),
    "tag of spaces": after("<a", " ", "b"),
    "values": fill("<a x=\" y='"),
    "unquoted values": after("<a ", "b=c "),
    "open comments": fill("<!--"),
    "closed comments": fill("<!-- a -->"),
    "entities": fill("&amp;"),
    "ampersands": fill("&"),
    "stars": fill("*"),
    "stars and letters": fill("*a"),
    "bold": fill("**a**"),
    "underlines": fill("__"),
    "ticks": fill("`"),
    "links": fill("[a](/"),
    "headings": fill("#### \n"),
    "brackets": fill("("),
    "directions": fill("（点头）\n"),
    "directions in a line": fill("。（点头）"),
    "control tokens": fill("<|"),
    "whole control tokens": fill("<|im_end|>"),
    "closing marks": fill("”"),
    "smileys": fill(":)"),
    "labels": fill("Mags: "),
    "labels on lines": fill("Mags: a\nTom: b\n"),
    "capitals": fill("A"),
    "addresses": fill("a@b.co "),
    "dots": after("a@", "a."),
    "at signs": fill("a@"),
    "numbers": fill("1"),
    "phones": fill("+49 170 1234 5678 "),
    "ips": fill("8.8.8.8 "),
    "cards": fill("4111 1111 1111 1111 "),
    "brands": fill("ChatGPT "),
    "medicine": fill("药"),
    "alive": fill("活着"),
    "how": fill("怎么样。"),
    "combining marks": after("a", "\u0301\u0327"),
    "marks in two parts": after("a", "\u0f73\u0f71"),
    "hidden": fill("\u200b"),
    "mojibake": fill("Ã©"),
    "mojibake of quotes": fill("â€œ"),
    "replacement characters": fill("\ufffd"),
    "undecoded": fill("\\x80\\x80 "),
    "chinese": fill("天地玄黄宇宙洪荒"),
    "distinct characters": lambda size: "".join(chr(0x4E00 + n % 20_000) for n in range(size)),
    "emoji": fill("😀\u200d"),
}  # fmt: skip
