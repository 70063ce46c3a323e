"""Screenplays and chat logs: `name（action）: line`, NAME above the speech (Fountain too), and chat programs' exports.

A file is read for its layout, then for its speakers, then for its pairs, because only a name that is known makes a
slip (no colon at all) readable; ；for ： is told. Each time line by line: memory does not grow with the file.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from persona.errors import Message
from persona.importers import Item, Options, Skipped, Survey, chatlog, cues
from persona.importers.speech import (
    CLOSE,
    OPEN,
    WIDE,
    Event,
    Gap,
    Names,
    Speech,
    choose,
    flow,
    key,
    merged,
    pair_up,
    stage,
)  # fmt: skip
from persona.importers.text import Source
from persona.pairs import MAX_CHARACTERS

TITLE = "Screenplay or chat log"
NAME = re.compile(r"[^：:︰∶；;（）()\[\]【】{}<>\"“”「」『』=|，,。！？!?…~`\\\n]{1,40}")
COLONS, SLIPS = "：:︰∶", "；;"
SCENE = re.compile(
    r"(?:第\s?[0-9０-９一二三四五六七八九十百千零〇两]{1,6}\s?[集幕场場回章节節折出部卷话話](?:$|[\s：:.。、,，（(·—-].{0,60}$)"
    r"|场景\s?[0-9一二三四五六七八九十]{0,4}[：:\s]?.{0,60}$"
    r"|(?:时间|地点|人物|布景|内景|外景|日景|夜景|出场人物|登场人物)[：:\s].{0,300}$"
    r"|(?:act|scene|episode|chapter|part)\s+(?:[0-9]{1,4}|[ivxlc]{1,7}|one|two|three|four|five|six|seven|eight|nine|ten)\b.{0,80}$"
    r"|(?:scene|setting|place|time|characters|cast)\s?:.{0,300}$)",
    re.IGNORECASE,
)
RULE = re.compile(r"(?:[*＊\-—–=_~#·•◇◆☆★※○●]\s?){3,80}$")
NEW_SCENE = Message("no line before it in this scene")
UNREADABLE = Message("the line before it cannot be read")
VOICES = re.compile(
    r"(?:v\.? ?o\.?|o\.? ?s\.?|o\.? ?c\.?|cont[’'`]?d?\.?|continued|画外音|画外|旁白|续|独白|内心独白|内心|心声)$", re.I
)
LEAD = 300  # characters of a direction between name and colon
PARTICLES = {"of", "the", "de", "da", "di", "du", "la", "le", "van", "von", "der", "and", "&", "bin", "al"}
ENDS = '。！？…”」』）)—.!?"~～'


@dataclass(frozen=True)
class Layout:
    """What the first reading finds. blank_breaks: an empty line ends the scene (else it stands between speeches)."""

    kind: str
    speakers: Counter[str]
    blank_breaks: bool
    share: float  # of the lines that this layout explains


@dataclass(frozen=True)
class Named:
    """A line as `name（lead）: text`; mark is its colon, a slip for it, or nothing."""

    who: str
    lead: str
    mark: str
    text: str


def sniff(source: Source) -> float:
    text = source.head()
    start = text.lstrip("\ufeff \n\t")
    if not start or "\0" in text or re.match(r"\{|\[\s{0,9}[\[{\"\]]|<[!?/]|<(?:html|body|div|p|table)\b", start, re.I):
        return 0.0
    found = layout(enumerate(text.split("\n"), 1))
    often = [n for n in found.speakers.values() if n > 1]
    if len(found.speakers) < 2 or found.share < 0.25:
        return 0.0
    if found.kind == "chat":
        return 0.9 if found.share > 0.5 else 0.4
    return 0.85 if found.share > 0.5 and often else 0.3


def survey(source: Source) -> Survey:
    return Survey(speakers=dict(_speakers(source, layout(source.lines())).most_common()))


def read(source: Source, options: Options) -> Iterator[Item]:
    """Raises InputError listing the most frequent speakers when the persona is not among them, or is not chosen."""
    found = layout(source.lines())
    her = choose(source, options, _speakers(source, found))
    said = _events(source, found, her.names)
    chat = found.kind == "chat"
    yield from pair_up(merged(said) if chat else said, her, source, options, brackets=not chat)


def _speakers(source: Source, found: Layout) -> Counter[str]:
    names = Names()
    for event in _events(source, found):
        if isinstance(event, Speech):
            names.add(event.who)
    return names.counts


def _events(source: Source, found: Layout, chosen: frozenset[str] = frozenset()) -> Iterator[Event]:
    if found.kind == "chat":
        return chatlog.events(source.lines())
    if found.kind == "cues":
        return cues.events(source.lines(), {key(n) for n in found.speakers} | chosen)
    return events(source.lines(), found.speakers, chosen, found.blank_breaks)


def layout(lines: Iterable[tuple[int, str]]) -> Layout:
    """The layout that explains most of the lines, and who speaks in it."""
    names = {kind: Names() for kind in ("chat", "cues", "colons")}
    unsure = {kind: Names() for kind in names}  # a name only if it comes again
    explained: Counter[str] = Counter()
    spoken = after_blank = text_lines = 0
    blank, in_cue = False, False
    for _, raw, below in chatlog.pairwise(lines):
        if not raw:
            blank, in_cue = True, False
            continue
        text_lines += not _between(raw)
        if begun := chatlog.start(raw, below):
            names["chat"].add(begun.who)
            explained["chat"] += 1 if begun.text is not None else 2
        if name := cues.cue(raw, below):
            (names if blank or text_lines == 1 else unsure)["cues"].add(name)
            in_cue = True
        explained["cues"] += in_cue
        if (found := named(raw)) and found.mark in tuple(COLONS) and not _between(raw):
            (names if _like_a_name(found.who) else unsure)["colons"].add(found.who)
            explained["colons"] += 1 if found.text else 2
            spoken += 1
            after_blank += blank
        blank = False
    kind = max(explained, key=lambda k: explained[k], default="colons")
    speakers = names[kind].counts
    for name, times in unsure[kind].repeated(2).items():
        speakers[name] += times
    return Layout(kind, speakers, after_blank < 0.7 * spoken, min(1.0, explained[kind] / max(1, text_lines)))


def named(raw: str) -> Named | None:
    """The line as a name and what follows it, whether or not there is such a name."""
    line = raw.strip()
    if line.startswith("**"):  # Markdown
        line = line.replace("**", "", 2)
    found = NAME.match(line)
    if not found or not any(c.isalpha() for c in found[0]):
        return None
    who, at, leads = found[0].strip(" \u3000_*-•"), found.end(), []
    while line[at : at + 1] in tuple(OPEN):
        end = next((i for i in range(at, min(len(line), at + LEAD)) if line[i] in CLOSE), -1)
        if end < 0:
            return None
        leads.append(line[at + 1 : end].strip())
        at = end + 1
        at += len(line[at : at + 9]) - len(line[at : at + 9].lstrip())
    mark = line[at : at + 1]
    if mark not in tuple(COLONS + SLIPS + "，"):
        mark = ""
    text = line[at + len(mark) :].strip()
    clock = mark and who[-1:].isdigit() and re.match(r"\d\d", text)
    if not who or (not mark and not leads) or text.startswith("//") or clock:
        return None
    lead = "，".join(x for x in leads if x and not VOICES.match(x) and not x.isdigit())
    return Named(who, lead, mark, text)


def _like_a_name(who: str) -> bool:
    """甄嬛, 太监甲, ann, Old Woman #2, Mr. Reed of Hull; not: he said to them."""
    if WIDE.search(who):
        return len(who) <= 12
    words = [w for w in who.split() if w not in PARTICLES]
    return len(words) == 1 or (len(words) <= 4 and not any(w[0].islower() for w in words))


def _between(line: str) -> bool:
    """A heading, a rule or a direction."""
    return bool(scene(line) or not stage(line) or line[0] in "△▲")


def scene(line: str) -> bool:
    return bool(SCENE.match(line) or RULE.match(line) or cues.HEADING.match(line) or cues.TRANSITION.match(line))


def events(
    lines: Iterable[tuple[int, str]], speakers: Counter[str], chosen: frozenset[str], blank_breaks: bool
) -> Iterator[Event]:
    """`name（lead）: text`; what stands directly below a speech goes on with it."""
    known = {key(n) for n, times in speakers.items() if times > 1} | chosen
    once = {key(n) for n in speakers}
    held: Speech | None = None
    open_direction = False
    last = ""
    for number, raw in lines:
        line = chatlog.clean(raw)
        spoken = _spoken(number, line, known, once, last) if line and not scene(line) else None
        last = line
        # a direction directly below a name that stands alone belongs to the speech that follows it
        goes_on = line and not spoken and (not _between(line) or (held and not stage(held.text) and not scene(line)))
        if held and goes_on:
            if len(held.text) <= MAX_CHARACTERS:  # what is longer is refused as a pair anyway
                held = replace(held, text=flow(held.text, line))
            continue
        if held:
            yield held
        held = spoken if isinstance(spoken, Speech) else None
        if held:
            open_direction = False
        elif isinstance(spoken, Skipped):
            open_direction = False
            yield spoken
            yield Gap(number, UNREADABLE)
        elif not line:
            open_direction = False
            if blank_breaks:
                yield Gap(number, NEW_SCENE, scene=True)
        elif scene(line):
            open_direction = False
            yield Gap(number, NEW_SCENE, scene=True)
        else:
            closes = any(c in line for c in CLOSE)
            direction = open_direction or _between(line) or spoken or (line[0] in OPEN and not closes)
            open_direction = not closes and (open_direction or line[0] in OPEN)
            if not direction:
                yield Skipped(
                    number, Message("neither speech, heading nor stage direction: nobody is named as its speaker"), line
                )
            yield Gap(
                number,
                Message("a stage direction stands between it and the line before") if direction else UNREADABLE,
            )
    if held:
        yield held


def _spoken(number: int, line: str, known: set[str], once: set[str], last: str) -> Speech | Skipped | Gap | None:
    found = named(line)
    if not found or not stage(line):
        return None
    name = key(found.who)
    if found.mark in tuple(COLONS):
        sure = name in known or name in once or _like_a_name(found.who)
    elif found.mark == "，":  # in speech that goes on, a name and a comma call somebody; so only after a full stop
        sure = name in known and (not last or last[-1] in ENDS)
    else:
        sure = name in known
    if not sure:
        return None
    if found.mark in tuple(SLIPS):  # told, not guessed: a semicolon after a name may also stand in a speech
        return Skipped(
            number,
            Message("“{mark}” stands where the colon after a name belongs; correct it to import it", mark=found.mark),
            line,
        )
    if not found.text and not found.mark:
        return Gap(number, Message("a stage direction stands between it and the line before"))
    return Speech(number, found.who, found.text, found.lead)
