"""Rules for one text: leftovers of files, pages and chat logs, and personal data.

Each rule has a finder (text → what it found, as the author sees it) and, where that is safe, a cleaner (text → the
text without it), which is applied until the finder finds nothing.
"""

import html
import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date

import ftfy
from ftfy.badness import is_bad

from persona.errors import Message
from persona.store.cjk import HAN
from persona.write.importers.chat_marks import load_marks
from persona.write.lint.finding import Severity, normalize_unicode


@dataclass(frozen=True)
class TextRule:
    """needs: characters without one of which nothing can be found (empty: always look).

    reply_only: user messages are not checked. label: of the fix, by what was found.
    """

    name: str
    severity: Severity
    why: Message
    find: Callable[[str], list[str]]
    clean: Callable[[str], str] | None = None
    label: Callable[[str], Message] | None = None
    needs: frozenset[str] = frozenset()
    reply_only: bool = False

    def cleaned(self, text: str) -> str:
        """The text without what `find` finds, or as much of that as can be repaired."""
        for _ in range(20):  # removing one may join two halves of another
            if self.clean is None or not self.find(text) or (new := self.clean(text)) == text:
                break
            text = new
        return text


def _tidy(text: str) -> str:
    """The text without spaces and empty lines left by a removal."""
    text = re.sub(r"(?<![ \t])[ \t]+(?=\n|$)|^[ \t]+", "", text)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?<=\S)[ \t]{2,}", " ", text)).strip()


CONTROL_TOKEN = re.compile(
    r"<[|｜][^<>|｜\n]{1,40}[|｜]>"  # ChatML, Llama 3, Phi, DeepSeek
    r"|</?(?:s|bos|eos|pad|unk|mask|start_of_turn|end_of_turn|start_of_image|end_of_image)>"
    r"|\[/?(?:INST|AVAILABLE_TOOLS|TOOL_RESULTS|gMASK|sMASK)\]|<</?SYS>>"
    r"|\#{2,4} ?(?:Instruction|Response|Input|Output|Human|User|Assistant|System|指令|回答|回复|输入|输出)s?:"
)


def find_control_tokens(text: str) -> list[str]:
    return CONTROL_TOKEN.findall(text)


TAG = re.compile(
    r"</?(?:a|abbr|b|big|blockquote|body|br|center|code|dd|div|dl|dt|em|font|h[1-6]|head|hr|html|i|img|li|meta|ol|p|pre"
    r"|q|ruby|rt|rp|small|span|strike|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul)"
    # no < in a value, none that opens another comment in a comment: so nothing is read twice
    r"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s<>"']+))*\s*/?>|<!--(?:[^<]|<(?!!--))*?-->""",
    re.I | re.S,
)
ENTITY = re.compile(r"&(?:[a-zA-Z][a-zA-Z0-9]{1,30}|#\d{1,7}|#[xX][0-9a-fA-F]{1,6});")
MARKDOWN = (
    (re.compile(r"\*\*([^*\n]+)\*\*"), r"\1"),
    (re.compile(r"(?<!\w)__([^_\n]+)__(?!\w)"), r"\1"),
    (re.compile(r"^#{1,6}[ \t]+(?=\S)", re.M), ""),
    (re.compile(r"^[ \t]*```[^\n`]*\n?|```", re.M), ""),
    (re.compile(r"`([^`\n]+)`"), r"\1"),
    (re.compile(r"!?\[([^\[\]\n]*)\]\((?:https?://|/|#|mailto:)[^()\s]*\)"), r"\1"),
)


def find_markup(text: str) -> list[str]:
    # control tokens belong to another rule
    found = [m[0] for m in TAG.finditer(text)] + [e for e in ENTITY.findall(text) if html.unescape(e) != e]
    rest = CONTROL_TOKEN.sub("", text)
    return found + [m[0].strip() for pattern, _ in MARKDOWN for m in pattern.finditer(rest)]


def remove_markup(text: str) -> str:
    text = re.sub(r"<br\s*/?>|</(?:p|div|li|tr|h[1-6])>", "\n", text, flags=re.I)
    text = ENTITY.sub(lambda m: html.unescape(m[0]).replace("\xa0", " "), TAG.sub("", text))
    for pattern, new in MARKDOWN:
        text = pattern.sub(new, text)
    return _tidy(text)


THINKING = r"think|thinking|thought|thoughts|reasoning|reflection"
# a whole block; what stands before an end without a beginning, as some servers send it; a tag that is left alone
THINKING_BLOCK = re.compile(
    rf"<({THINKING})>(?:[^<]|<(?!/?(?:{THINKING})>))*</\1>|\A(?:[^<]|<(?!/?(?:{THINKING})>))*</(?:{THINKING})>"
    rf"|</?(?:{THINKING})>",
    re.I,
)
# placeholders that a character card's program fills in, and what its examples are divided by
MACRO = re.compile(
    r"\{\{[^{}\n]{0,80}(?:\{\{[^{}\n]{0,80}\}\}[^{}\n]{0,80}){0,8}\}\}|<(?:USER|BOT|CHAR|START)>|\bEND_OF_DIALOG\b"
)


def find_thinking(text: str) -> list[str]:
    return [m[0] for m in THINKING_BLOCK.finditer(text)]


# at the start of a line, after the end of a sentence, or at the end of the text; elsewhere brackets are a remark
_BEFORE = r"(?:^|(?<=[。！？!?….\n”\"」』~～—]))[ \t]*"
_AFTER = r"(?=[ \t]*(?:$|\n))"
_HAN_DIRECTION = r"(?:（[^（）\n]{1,60}）|【[^【】\n]{1,60}】|〔[^〔〕\n]{1,60}〕)"
_LATIN_DIRECTION = r"(?:\([^()\n]{1,80}\)|\[[^\[\]\n]{1,80}\])(?!\()"
_STAR = r"(?<![*A-Za-z0-9])\*(?![\s*])[^*\n]{1,120}(?<![\s*])\*(?![*A-Za-z0-9])"
STAGE_DIRECTION = re.compile(
    rf"{_BEFORE}({_HAN_DIRECTION}|{_LATIN_DIRECTION}|{_STAR})|({_HAN_DIRECTION}|{_LATIN_DIRECTION}|{_STAR}){_AFTER}",
    re.M,
)


def _is_direction(inside: str, bracket: str, following: str) -> bool:
    """Words, not a figure, a year, a smiley or a whole sentence in brackets."""
    if not re.fullmatch(r"[\w\s，,、。.;；'’\"“”!！?？…~～—-]+", inside) or re.search(r"\d", inside):
        return False
    if not any(c.isalpha() for c in inside):
        return False
    if bracket == "*":  # *never* say: emphasis of a word that the sentence goes on with
        return not (re.fullmatch(r"\w+", inside) and inside.isascii() and re.match(r"[ ,][a-z]| ?[,;:]", following))
    if bracket in "([" and inside[0].isascii():
        return inside[0].islower() and len(inside.split()) <= 6 and inside[-1] not in ".!?"
    return True


def _direction_matches(text: str) -> list[re.Match[str]]:
    return [
        m
        for m in STAGE_DIRECTION.finditer(text)
        if (what := m[1] or m[2]) and _is_direction(what[1:-1].strip() or " ", what[0], text[m.end() : m.end() + 2])
    ]


def find_directions(text: str) -> list[str]:
    return [m[1] or m[2] for m in _direction_matches(text)]


def remove_directions(text: str) -> str:
    kept, at = [], 0
    for m in _direction_matches(text):
        kept.append(text[at : m.start()])
        at = m.end()
    return _tidy("".join([*kept, text[at:]]))


def find_chat_marks(text: str) -> list[str]:
    """What a chat program wrote: deleted, edited, attachments, calls; by the table that imports use."""
    return list(load_marks().clean(text).removed)


def remove_chat_marks(text: str) -> str:
    return load_marks().clean(text).text


# C1 controls stand in no text: they are bytes of another encoding, the rest of which is lost
LOST_CHARACTERS = re.compile(r"\ufffd|锟斤拷|烫烫烫|屯屯屯|[\x80-\x84\x86-\x9f]")
# what an import leaves of bytes that fit no encoding, and what a program wrote instead of a character
UNDECODED = re.compile(r"(?:\\x[0-9a-f]{2}){2,}|(?<!:)\\x[89a-f][0-9a-f]|\\u[0-9a-f]{4}", re.I)


def _utf8_read_as_gbk(text: str) -> tuple[str, bool]:
    """(text, whole) if the text is UTF-8 that was read as GBK; whole: nothing was lost. Else ("", False)."""
    if len(text) < 3 or text.isascii():
        return "", False
    data = text.encode("gb18030", "replace")
    try:
        new, whole = data.decode("utf-8"), True
    except UnicodeDecodeError as e:
        if e.start * 2 < len(data):  # Chinese text fails at once; a lost byte fails late
            return "", False
        new, whole = data.decode("utf-8", "replace"), False
    han = len(re.findall(f"[{HAN}]", new))
    return (new, whole) if han >= 2 and han * 2 >= len(new.strip()) - new.count("\ufffd") else ("", False)


def find_mojibake(text: str) -> list[str]:
    if text.isascii():
        return UNDECODED.findall(text)
    if found := LOST_CHARACTERS.findall(text) + UNDECODED.findall(text):
        return found
    return [text] if _utf8_read_as_gbk(text)[0] or (is_bad(text) and ftfy.fix_encoding(text) != text) else []


def repair_mojibake(text: str) -> str:
    new, whole = _utf8_read_as_gbk(text)
    return new if whole else ftfy.fix_encoding(text)


# controls, zero-width and direction marks, byte order mark, line and paragraph separator; joiners make emoji and stay
HIDDEN_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def find_hidden(text: str) -> list[str]:
    found = [f"U+{ord(c):04X}" for c in HIDDEN_CHARACTER.findall(text)]
    return found if found or normalize_unicode("NFC", text) == text else ["letters in two parts"]


def remove_hidden(text: str) -> str:
    text = re.sub("\r\n?|[\u2028\u2029\x85\x0b\x0c]", "\n", text)
    return normalize_unicode("NFC", HIDDEN_CHARACTER.sub("", text))


def _passes_luhn(digits: str) -> bool:
    doubled = [int(d) * (1 + n % 2) for n, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def _is_chinese_id(text: str) -> bool:
    """18 places with a date of birth and a right check character (GB 11643)."""
    try:
        date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    except ValueError:
        return False
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return "10X98765432"[sum(w * int(d) for w, d in zip(weights, text, strict=False)) % 11] == text[17].upper()


def _is_global_address(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?!example\.)(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}", re.A)
CHINESE_ID = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[\dXx](?![0-9A-Za-z])", re.A)
CARD_NUMBER = re.compile(r"(?<![\d.-])[3-6]\d{3}(?:[ -]?\d{4}){2}[ -]?\d{1,7}(?![\d-])", re.A)
MOBILE = re.compile(r"(?<![\d.-])(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}(?!\d)", re.A)
PHONE = re.compile(r"(?<!\d)(?:\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]?\d{2,4}){2,3}"
                   r"|\(?[2-9]\d{2}\)?[ .-]\d{3}[.-]\d{4}|0\d{2,3}-\d{7,8})(?!\d)", re.A)  # fmt: skip
IP_ADDRESS = re.compile(r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]{1,4}(?::{1,2}[0-9a-fA-F]{1,4}){3,7})(?![\w.:])", re.A)  # fmt: skip  # noqa: E501


def find_personal_data(text: str) -> list[str]:
    """Kind and masked value of each: a finding must not repeat the data it warns of."""
    found: list[str] = []

    def take(kind: str, pattern: re.Pattern[str], holds: Callable[[str], bool]) -> None:
        nonlocal text
        values = [value for value in pattern.findall(text) if holds(value)]
        found.extend(f"{kind} {value[:2]}…{value[-2:]}" for value in values)
        if values:
            text = pattern.sub(lambda m: " " if holds(m[0]) else m[0], text)  # an ID is not a card number too

    take("e-mail", EMAIL, lambda v: True)
    take("Chinese ID", CHINESE_ID, _is_chinese_id)
    take("card number", CARD_NUMBER, lambda v: 13 <= len(d := re.sub(r"\D", "", v)) <= 19 and _passes_luhn(d))
    take("phone", MOBILE, lambda v: True)
    take("phone", PHONE, lambda v: True)
    take("IP address", IP_ADDRESS, _is_global_address)
    return found


TEXT_RULES = (
    TextRule(
        "thinking", "error",
        Message("a model thought aloud here, and the persona would learn to. Take it out"),
        find_thinking, lambda t: _tidy(THINKING_BLOCK.sub("", t)),
        lambda what: Message("Take out {what}", what=what), frozenset("<"),
    ),
    TextRule(
        "macro", "error",
        Message("a placeholder that another program fills in; here it would be learned as it stands. Write what it "
                "stands for (Find & replace)"),
        lambda t: [m[0] for m in MACRO.finditer(t)], needs=frozenset("{<_"),
    ),
    TextRule(
        "control-token", "error",
        Message("a model reads this as the end or beginning of a turn, not as text. Take it out"),
        find_control_tokens, lambda t: _tidy(CONTROL_TOKEN.sub("", t)),
        lambda what: Message("Take out {what}", what=what),
        frozenset("<[#"),
    ),
    TextRule(
        "mojibake", "error",
        Message("characters were lost or read in the wrong encoding, and would be learned like that. "
                "Repair or retype it"),
        find_mojibake, repair_mojibake, lambda _: Message("Repair the text"),
    ),
    TextRule(
        "hidden-character", "hint",
        Message("these cannot be seen, but are tokens of their own. Take them out"),
        find_hidden, remove_hidden, lambda what: Message("Clean up {what}", what=what),
    ),
    TextRule(
        "markup", "warning",
        Message("left over from a page or a chat log, and would be learned. Take it out, unless the persona is to "
                "write it"),
        find_markup, remove_markup, lambda _: Message("Take the markup out, keep its words"), frozenset("<&*_#`["),
    ),
    TextRule(
        "chat-mark", "warning",
        Message("a chat program wrote this, not a person. Take it out, or delete the pair"),
        find_chat_marks, remove_chat_marks, lambda what: Message("Take out {what}", what=what),
    ),
    TextRule(
        "stage-direction", "hint",
        Message("looks like a stage direction, and the persona would learn to say it. Take it out, or write it in "
                "every answer"),
        find_directions, remove_directions, lambda what: Message("Take out {what}", what=what), frozenset("（(【[〔*"),
        reply_only=True,
    ),
    TextRule(
        "personal-data", "warning",
        Message("a model can repeat it to anyone. Replace it by something invented"),
        find_personal_data, needs=frozenset("@:0123456789"),
    ),
)  # fmt: skip
