"""Screenplays and chat logs: `name（action）: line`, NAME above the speech (Fountain too), and chat programs' exports.

A file is read for its layout, then for its speakers, then for its pairs, because only a known name makes a line
without a colon readable; a ； for ： is reported. Each pass goes line by line: memory does not grow with the file.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from persona.errors import Message
from persona.write.importers import (
    ImportItem,
    ImportNote,
    ImportOptions,
    SkippedRow,
    SourceSurvey,
    chat_log,
    fountain,
    subtitles,
)
from persona.write.importers.chat_layouts import BARE_TIME, LAYOUTS, MAY_BEGIN, ChatLayout
from persona.write.importers.play_names import rewrite_names
from persona.write.importers.speaker_turns import (  # fmt: skip
    CLOSE_BRACKETS,
    NO_LINE_IN_SCENE,
    OPEN_BRACKETS,
    GrowingSpeech,
    SpeakerNames,
    Speech,
    SpeechEvent,
    SpeechGap,
    is_like_name,
    merge_consecutive,
    normalize_name,
    pair_speeches,
    rewrite_directions,
    select_speaker,
)
from persona.write.importers.text_source import SourceFile

ScreenplayKind = ChatLayout | Literal["cues", "colons"]

NAME = "screenplay"
TITLE = "Screenplay or chat log"
OPTIONS = frozenset({"speakers", "actions", "turns"})
SPEAKER_NAME = re.compile(r"[^：:︰∶；;（）()\[\]【】{}<>\"“”「」『』=|，,。！？!?…~`\\\n]{1,40}")
COLONS, COLON_TYPOS = "：:︰∶", "；;"
NUMBERED = re.compile(r"^(Q|A|Question|Answer|问题|回答|问|答)\s?\d{1,4}(?=\s?[:：])")  # Q1: and A1: are Q: and A:
SCENE_LINE = re.compile(
    r"(?:第\s?[0-9０-９一二三四五六七八九十百千零〇两]{1,6}\s?[集幕场場回章节節折出部卷话話](?:$|[\s：:.。、,，（(·—-].{0,60}$)"
    r"|场景\s?[0-9一二三四五六七八九十]{0,4}[：:\s]?.{0,60}$"
    r"|(?:时间|地点|人物|布景|内景|外景|日景|夜景|出场人物|登场人物)[：:\s].{0,300}$"
    r"|(?:act|scene|episode|chapter|part)\s+(?:[0-9]{1,4}|[ivxlc]{1,7}|one|two|three|four|five|six|seven|eight|nine|ten)\b.{0,80}$"
    r"|(?:scene|setting|place|time|characters|cast)\s?:.{0,300}$)",
    re.IGNORECASE,
)
SEPARATOR_LINE = re.compile(r"(?:[*＊\-—–=_~#·•◇◆☆★※○●]\s?){3,80}$")
DIRECTION_BETWEEN = Message("a stage direction stands between it and the line before")
PARAGRAPH = Message("paragraph without a name taken as part of the speech before it")
UNREADABLE_LINE = Message("the line before it cannot be read")
VOICE_REMARK = re.compile(
    r"(?:v\.? ?o\.?|o\.? ?s\.?|o\.? ?c\.?|cont[’'`]?d?\.?|continued|画外音|画外|旁白|续|独白|内心独白|内心|心声)$", re.I
)
MAX_DIRECTION = 300  # characters of a direction between name and colon
SENTENCE_ENDS = '。！？…”」』）)—.!?"~～'


@dataclass(frozen=True)
class ScreenplayLayout:
    """The result of the first pass. blank_breaks: an empty line ends the scene, else it only separates speeches.

    paragraphs: of a speech stand after empty lines: nothing in the file marks scenes or directions.
    talk: a transcript or a chat, not a play: without a heading or a direction, so lines in a row are one turn.
    """

    kind: str
    speakers: Counter[str]
    blank_breaks: bool
    share: float  # of the lines that this layout explains
    chat: ChatLayout | None = None  # of the kind "chat"
    paragraphs: bool = False
    talk: bool = False


@dataclass(frozen=True)
class NamedLine:
    """A line as `name（lead）: text`. mark: its colon, a typo for it, or ""."""

    who: str
    lead: str
    mark: str
    text: str


def sniff(source: SourceFile) -> float:
    text = source.head()
    start = text.lstrip("\ufeff \n\t")
    if not start or "\0" in text or re.match(r"\{|\[\s{0,9}[\[{\"\]]|<[!?/]|<(?:html|body|div|p|table)\b", start, re.I):
        return 0.0
    layout = detect_layout(rewrite_names(enumerate(text.split("\n"), 1), text), text)
    often = [n for n in layout.speakers.values() if n > 1]
    stamped = layout.chat and not layout.chat.weak and often  # then messages may be long
    if len(layout.speakers) < 2 or layout.share < (0.05 if stamped else 0.25):
        return 0.0
    if layout.kind == "chat":
        return 0.9 if layout.share > 0.5 else 0.4
    return 0.85 if layout.share > 0.5 and often else 0.3


def survey(source: SourceFile) -> SourceSurvey:
    layout = detect_layout(_lines(source), source.head())
    return SourceSurvey(speakers=dict(_count_speakers(source, layout).most_common()))


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    """Raises InputError listing the most frequent speakers when the persona is not among them, or is not chosen."""
    layout = detect_layout(_lines(source), source.head())
    persona = select_speaker(source, options, _count_speakers(source, layout))
    events = _events(source, layout, persona.names)
    chat = layout.kind == "chat"
    events = merge_consecutive(events) if chat or layout.talk else events
    yield from pair_speeches(events, persona, source, options, brackets=not chat)


def _lines(source: SourceFile) -> Iterable[tuple[int, str]]:
    return rewrite_names(source.lines(), source.head())


def _count_speakers(source: SourceFile, layout: ScreenplayLayout) -> Counter[str]:
    names = SpeakerNames()
    for event in _events(source, layout):
        if isinstance(event, Speech):
            names.add(event.who)
    return names.counts


def _events(
    source: SourceFile, layout: ScreenplayLayout, chosen: frozenset[str] = frozenset()
) -> Iterator[SpeechEvent]:
    if layout.chat:
        return chat_log.read_chat_events(_lines(source), layout.chat)
    if layout.kind == "cues":
        return fountain.read_fountain_events(_lines(source), {normalize_name(n) for n in layout.speakers} | chosen)
    if layout.kind == "subtitles":
        return subtitles.read_subtitle_events(_lines(source), split_name)
    return read_screenplay_events(_lines(source), layout, chosen)


def detect_layout(lines: Iterable[tuple[int, str]], head: str = "") -> ScreenplayLayout:
    """The layout that explains most of the lines, and its speakers. head: the beginning of the file."""
    if subtitles.is_subtitles(head):
        return _subtitle_layout(lines)
    kinds: tuple[ScreenplayKind, ...] = (*LAYOUTS, "cues", "colons")
    sure_names = {kind: SpeakerNames() for kind in kinds}
    possible_names = {kind: SpeakerNames() for kind in ("cues", "colons")}  # a name only if it comes again
    lines_explained: Counter[ScreenplayKind] = Counter()
    spoken = after_blank = text_lines = signs = directed = 0
    blank, in_cue = False, False
    for _, raw, below in chat_log.with_next_line(lines):
        if not raw:
            blank, in_cue = True, False
            continue
        text_lines += not _is_no_speech(raw)
        signs += _is_no_speech(raw)
        stamped = False
        for layout in LAYOUTS if MAY_BEGIN.match(raw) else ():
            if message := layout.parse_start(raw, below):
                stamped = True
                sure_names[layout].add(message[0])
                lines_explained[layout] += 1 if message[1] is not None else 2
        if name := fountain.parse_cue(raw, below):
            (sure_names if blank or text_lines == 1 else possible_names)["cues"].add(name)
            in_cue = True
        lines_explained["cues"] += in_cue
        named = None if stamped else parse_named_line(raw)
        if named and named.mark in tuple(COLONS) and not _is_no_speech(raw):
            (sure_names if is_like_name(named.who) else possible_names)["colons"].add(named.who)
            lines_explained["colons"] += 1 if named.text else 2
            spoken += 1
            directed += bool(named.lead)
            after_blank += blank
        blank = False
    kind = max(kinds, key=lambda k: lines_explained[k]) if lines_explained else "colons"
    speakers = sure_names[kind].counts
    for name, times in possible_names[kind].repeated(2).items() if isinstance(kind, str) else ():
        speakers[name] += times
    share = min(1.0, lines_explained[kind] / max(1, text_lines))
    chat = kind if isinstance(kind, ChatLayout) else None
    breaks = after_blank < 0.7 * spoken
    paragraphs, talk = not (breaks or signs), not (signs or directed)
    return ScreenplayLayout("chat" if chat else str(kind), speakers, breaks, share, chat, paragraphs, talk)


def _subtitle_layout(lines: Iterable[tuple[int, str]]) -> ScreenplayLayout:
    names, speeches, cues = SpeakerNames(), 0, 0
    for event in subtitles.read_subtitle_events(lines, split_name):
        cues += isinstance(event, Speech | SkippedRow)
        if isinstance(event, Speech):
            names.add(event.who)
            speeches += 1
    return ScreenplayLayout("subtitles", names.counts, False, speeches / max(1, cues))


def split_name(line: str) -> tuple[str, str] | None:
    """(name, text) of a line that begins with a name and a colon."""
    named = parse_named_line(line)
    if not named or named.mark not in tuple(COLONS) or not is_like_name(named.who) or not named.text:
        return None
    return named.who, f"({named.lead}) {named.text}" if named.lead else named.text


def parse_named_line(raw: str) -> NamedLine | None:
    """The line as a name and what follows it; whether the name is known is not checked."""
    line = NUMBERED.sub(r"\1", raw.strip())
    if line.startswith("**"):  # Markdown
        line = line.replace("**", "", 2)
    found = SPEAKER_NAME.match(line)
    if not found or not any(c.isalpha() for c in found[0]):
        return None
    who, at, leads = found[0].strip(" \u3000_*-•#"), found.end(), []
    while line[at : at + 1] in tuple(OPEN_BRACKETS):
        end = next((i for i in range(at, min(len(line), at + MAX_DIRECTION)) if line[i] in CLOSE_BRACKETS), -1)
        if end < 0:
            return None
        leads.append(line[at + 1 : end].strip())
        at = end + 1
        at += len(line[at : at + 9]) - len(line[at : at + 9].lstrip())
    mark = line[at : at + 1]
    if mark not in tuple(COLONS + COLON_TYPOS + "，"):
        mark = ""
    text = line[at + len(mark) :].strip()
    clock = mark and who[-1:].isdigit() and re.match(r"\d\d", text)
    if not who or (not mark and not leads) or text.startswith("//") or clock:
        return None
    lead = "，".join(x for x in leads if x and not VOICE_REMARK.match(x) and not x.isdigit() and not BARE_TIME.match(x))
    return NamedLine(who, lead, mark, text)


def _is_no_speech(line: str) -> bool:
    """Whether it is a heading, a separator or a stage direction."""
    return bool(is_scene_break(line) or not rewrite_directions(line) or line[0] in "△▲")


def is_scene_break(line: str) -> bool:
    return bool(
        SCENE_LINE.match(line)
        or SEPARATOR_LINE.match(line)
        or fountain.SCENE_HEADING.match(line)
        or fountain.TRANSITION.match(line)
    )


def read_screenplay_events(
    lines: Iterable[tuple[int, str]], layout: ScreenplayLayout, chosen: frozenset[str]
) -> Iterator[SpeechEvent]:
    """`name（lead）: text`; what stands directly below a speech goes on with it, and so may further paragraphs."""
    known = {normalize_name(n) for n, times in layout.speakers.items() if times > 1} | chosen
    once = {normalize_name(n) for n in layout.speakers}
    held: GrowingSpeech | None = None
    open_direction = False
    last = ""
    for number, raw in lines:
        line = chat_log.clean_line(raw)
        spoken = _parse_speech(number, line, known, once, last) if line and not is_scene_break(line) else None
        blank, last = not last, line
        # a direction directly below a name that stands alone belongs to the speech that follows it
        goes_on = (
            line
            and not spoken
            and (not _is_no_speech(line) or (held and held.is_only_directions() and not is_scene_break(line)))
        )
        if held and not line and layout.paragraphs:
            continue
        if held and goes_on:
            if blank and layout.paragraphs:
                yield ImportNote(number, PARAGRAPH)
            held.add(line, "\n\n" if blank and layout.paragraphs else None)
            continue
        if held:
            yield held.finish()
        held = GrowingSpeech(spoken) if isinstance(spoken, Speech) else None
        if held:
            open_direction = False
        elif isinstance(spoken, SkippedRow):
            open_direction = False
            yield spoken
            yield SpeechGap(number, UNREADABLE_LINE)
        elif not line:
            open_direction = False
            if layout.blank_breaks:
                yield SpeechGap(number, NO_LINE_IN_SCENE, scene=True)
        elif is_scene_break(line):
            open_direction = False
            yield SpeechGap(number, NO_LINE_IN_SCENE, scene=True)
        else:
            closes = any(c in line for c in CLOSE_BRACKETS)
            direction = open_direction or _is_no_speech(line) or spoken or (line[0] in OPEN_BRACKETS and not closes)
            open_direction = not closes and (open_direction or line[0] in OPEN_BRACKETS)
            if not direction:
                yield SkippedRow(
                    number, Message("neither speech, heading nor stage direction: nobody is named as its speaker"), line
                )
            yield SpeechGap(
                number,
                DIRECTION_BETWEEN if direction else UNREADABLE_LINE,
            )
    if held:
        yield held.finish()


def _parse_speech(
    number: int, line: str, known: set[str], once: set[str], last: str
) -> Speech | SkippedRow | SpeechGap | None:
    found = parse_named_line(line)
    if not found or not rewrite_directions(line):
        return None
    name = normalize_name(found.who)
    if found.mark in tuple(COLONS):
        sure = name in known or name in once or is_like_name(found.who)
    elif found.mark == "，":  # in speech that goes on, a name and a comma call somebody; so only after a full stop
        sure = name in known and (not last or last[-1] in SENTENCE_ENDS)
    else:
        sure = name in known
    if not sure:
        return None
    if found.mark in tuple(COLON_TYPOS):  # reported, not guessed: a semicolon may also follow a name within a speech
        return SkippedRow(
            number,
            Message("“{mark}” stands where the colon after a name belongs; correct it to import it", mark=found.mark),
            line,
        )
    if not found.text and not found.mark:
        return SpeechGap(number, DIRECTION_BETWEEN)
    return Speech(number, found.who, found.text, found.lead)
