"""How chat programs and transcribers write the beginning of a message, as a table of layouts. Used by `chat_log`.

    inline     [12/3/24, 10:15:02] Ann: hi      12/03/2024, 10:15 - Ann: hi      10:15 <Ann> hi      <Ann> hi
               [Ann] [10:15 AM] hi      10:15⇥Ann⇥hi      [00:12.000 - 00:14.000] SPEAKER_00: hi
    above      2024-03-12 10:15:02 Ann(12345)      Ann — Today at 10:15 AM      Ann, [12.03.24 10:15]

A file has one layout: a line of a message that looks like another layout's beginning stays in its message.
"""

import re
from dataclasses import dataclass

MAX_PREFIX = 200  # characters of a line in which name and time stand

_MONTH = r"[A-Za-zÀ-ÿ]{3,10}\.?"
_DATE = (
    r"(?:\d{1,4}[./-]\d{1,2}[./-]\d{1,4}\.?|\d{4} ?[年년] ?\d{1,2} ?[月월] ?\d{1,2} ?[日일]"
    r"|\d{4}\. ?\d{1,2}\. ?\d{1,2}\.?"
    rf"|\d{{1,2}}[ -]{_MONTH},?[ -]\d{{2,4}}|{_MONTH} \d{{1,2}},? \d{{4}})"
)
_DAY = r"(?:[Tt]oday|[Yy]esterday|今天|昨天|前天|(?:星期|周)[一二三四五六日天])"
_HALF = r"(?:[上下中]午|凌晨|晚上|早上|오전|오후|午前|午後)"
_AFTER = r"(?: ?(?:[AaPp]\.? ?[Mm]\.?|Uhr|[صم]|[πμ]\.?μ\.?|SA|CH|Ö[ÖS]|d[eu]\.))?Z?"
_TIME = r"\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,6})?"
_CLOCK = rf"(?:{_HALF} ?)?{_TIME}{_AFTER}"
_FULL = rf"(?:{_DATE}|{_DAY})(?:[,،]|T|,? ?(?:at|à|um|kl\.?))? ?(?:{_CLOCK}|\d{{1,2}}\.\d{{2}}(?:\.\d{{2}})?)"
_RANGE = rf"{_TIME} ?(?:-->|[-–—~]) ?{_TIME}"
_NAME = r"(?P<name>[^\s:：<>\[\]][^:：<>\[\]\n\t]{0,59}?)"
_ID = r"(?:#\d{4})?(?: ?[(（<][^\s()（）<>]{1,60}[)）>])?"
_SHORT_DATE = rf"\d{{1,2}}/\d{{1,2}},? {_CLOCK}"


@dataclass(frozen=True, eq=False)
class ChatLayout:
    """pattern: the beginning of a message, its name as the group `name`. notice: of a line that names nobody.

    inline: the text begins on the same line. weak: a clock time without a date, or no time at all, is all that tells
    the line from text; so the line below must hold the message. programs: that write this layout.
    """

    pattern: re.Pattern[str]
    inline: bool = True
    weak: bool = False
    notice: re.Pattern[str] | None = None
    programs: tuple[str, ...] = ()

    def parse_start(self, line: str, following: str) -> tuple[str, str | None] | None:
        """(sender, text) of the message that begins in `line`; text None: it stands on the lines below."""
        if not (found := self.pattern.match(line[:MAX_PREFIX])):
            return None
        who = found["name"].replace("\u200e", "").strip(" ,")
        if not _is_sender(who):
            return None
        if self.inline:
            return who, line[found.end() :].strip(" \t")
        if len(line) > MAX_PREFIX or (self.weak and (not following or self.pattern.match(following[:MAX_PREFIX]))):
            return None
        return who, None


def _is_sender(name: str) -> bool:
    if any(name.count(left) != name.count(right) for left, right in ("“”", "„“", "«»", "「」")) or name.count('"') % 2:
        return False  # of a notice: Ann changed the subject to “…:
    return any(c.isalnum() for c in name) and not re.fullmatch(rf"{_DATE}|{_DAY}|[AaPp][Mm]", name)


def _inline(pattern: str, notice: str = "", *programs: str) -> ChatLayout:
    return ChatLayout(re.compile(pattern), notice=re.compile(notice) if notice else None, programs=programs)


def _above(pattern: str, *programs: str, weak: bool = False) -> ChatLayout:
    return ChatLayout(re.compile(pattern), inline=False, weak=weak, programs=programs)


LAYOUTS = (
    # Zoom, which has no tab any more
    _inline(rf"(?:{_FULL}|{_CLOCK}) {{1,4}}From {{1,2}}{_NAME} to [^:\n]{{1,60}}? ?:[ \t]?", "", "zoom"),
    # nicks in angle brackets: IRC
    _inline(rf"\[?{_FULL}\]? {{0,3}}(?:- )?<[@+%~& ]?{_NAME}> ?", "", "irc"),
    _inline(rf"\[?{_CLOCK}\]? {{0,3}}(?:- )?<[@+%~& ]?{_NAME}> ?", "", "irc"),
    _inline(rf"<[@+%~& ]?{_NAME}> ?", "", "irc"),
    # a stamp in brackets, a name, a colon: WhatsApp on iOS, Skype, transcripts
    _inline(
        rf"\[(?:{_FULL}|{_SHORT_DATE})\] {{0,3}}{_NAME}{_ID} ?[:：] ?", rf"\[{_FULL}\] {{0,3}}", "whatsapp", "signal"
    ),
    _inline(rf"\[{_RANGE}\] {{0,3}}{_NAME} ?[:：] ?"),
    _inline(rf"[\[(]{_CLOCK}[\])] {{0,3}}{_NAME}{_ID} ?[:：] ?", rf"\[{_CLOCK}\] {{0,3}}"),
    # a stamp, a name, a colon: WhatsApp on Android, KakaoTalk on a phone
    _inline(
        rf"{_FULL} {{0,4}}(?:[-–—|,] ?)?{_NAME}{_ID} ?[:：] ?", rf"{_FULL} {{1,4}}[-–—] ", "whatsapp", "kakaotalk"
    ),
    _inline(rf"{_RANGE} {{1,4}}(?:[-–—|] )?{_NAME} ?[:：] ?"),
    _inline(rf"{_CLOCK} {{1,4}}(?:[-–—|] )?{_NAME}{_ID} ?[:：] ?", rf"{_CLOCK} {{1,4}}[-–—] "),
    _inline(rf"\[{_NAME}\] \[{_CLOCK}\] ?", "", "kakaotalk"),
    _inline(rf"{_CLOCK}\t{_NAME}\t", rf"{_CLOCK}\t", "line"),
    _inline(rf"{_FULL}\t[@+%~&]?{_NAME}\t", rf"{_FULL}\t", "irc"),
    _inline(rf"{_CLOCK}\t ?(?:From )?{_NAME}(?: to [^:\n]{{1,40}})? ?:[ \t]?", "", "zoom"),
    # name and time above the message: Telegram, Discord, Slack, WeChat, QQ, Teams, transcripts
    _above(rf"{_NAME}, \[{_FULL}\]$", "telegram"),
    _above(rf"\[(?:{_FULL}|{_SHORT_DATE})\] {{0,4}}{_NAME}{_ID}(?:#\d{{4}})?$", "discord"),
    _above(rf"{_FULL} {{1,4}}{_NAME}{_ID}(?:#\d{{4}})?$", "wechat", "qq"),
    _above(
        rf"{_NAME}(?:#\d{{4}})?{_ID}(?: {{1,4}}|,)(?:[-–—] )?[\[(]?{_FULL}[\])]?$",
        *("wechat", "qq", "discord", "slack", "messenger"),
    ),
    _above(rf"[\[(]?(?:{_CLOCK}|{_RANGE})[\])]? {{1,4}}{_NAME}{_ID}$", weak=True),
    _above(
        rf"{_NAME}(?:#\d{{4}})?{_ID}(?: {{1,4}}|,)(?:[-–—] )?[\[(]?(?:{_CLOCK}|{_RANGE})[\])]?$",
        *("slack", "discord"),
        weak=True,
    ),
)  # fmt: skip
MAY_BEGIN = re.compile(r"[\[(<]|.{0,120}?\d[:.]\d\d")  # else a line begins a message in no layout

DAY_SEPARATOR = re.compile(
    rf"[-—–=─ ]{{0,20}}(?:Day changed.{{0,60}}|(?:{_DATE}|{_DAY})[^:：]{{0,20}}?)[-—–=─ ]{{0,20}}$"
)
ACTION = re.compile(rf"(?:\[?(?:{_FULL}|{_CLOCK})\]? {{1,3}})?\*{{1,3}} [^\s*]")
BARE_TIME = re.compile(rf"(?:{_FULL}|{_RANGE}|{_CLOCK})$")  # in brackets it is no stage direction
