"""Novels and stories: quotations, and who says them. A quotation has a speaker only where the text names one.

It reads 甄嬛笑道：“…”, “…”甄嬛说, Ann said, “…”, “…” said Ann. A quotation without such a phrase, or with a pronoun in
it, belongs to the only speaker named in its paragraph, else to nobody: who takes turns is not guessed.
A file is read twice, because only a known name shows that 甄嬛低声道 is 甄嬛 speaking.
"""

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from persona.errors import Message
from persona.write.importers import ImportItem, ImportOptions, SkippedRow, SourceSurvey
from persona.write.importers.quote_attribution import (
    PRONOUN,
    KnownNames,
    Quotation,
    attribute_speakers,
    find_quotations,
    is_speech,
)
from persona.write.importers.screenplay import is_scene_break
from persona.write.importers.speaker_turns import (
    GrowingSpeech,
    SpeakerNames,
    Speech,
    SpeechEvent,
    SpeechGap,
    join_lines,
    pair_speeches,
    select_speaker,
)
from persona.write.importers.text_source import SourceFile

NAME = "prose"
TITLE = "Novel or story"
OPTIONS = frozenset({"speakers", "actions", "turns"})
MAX_SILENT_PARAGRAPHS = 3  # without speech between a line and its answer; after more it answers something else
MAX_PARAGRAPH = 20_000  # characters; a longer paragraph is read in pieces
SENTENCE_ENDS = '。！？…”」』）.!?"’)：:—*'


@dataclass(frozen=True)
class Paragraph:
    """A paragraph. starts: (where a line of the file begins in `text`, the line's number) for each line."""

    text: str
    starts: tuple[tuple[int, int], ...]

    def line(self, at: int) -> int:
        return self.starts[bisect_right(self.starts, at, key=lambda start: start[0]) - 1][1]


def sniff(source: SourceFile) -> float:
    text = source.head()
    start = text.lstrip("\ufeff \n\t")
    if not start or "\0" in text or re.match(r"\{|\[\s{0,9}[\[{\"\]]|<[!?/a-z]", start, re.I):
        return 0.0
    quoted = named = 0
    for paragraph in join_paragraphs(enumerate(text.split("\n"), 1), is_hard_wrapped(source)):
        quotations = [q for q in find_quotations(paragraph.text) if is_speech(paragraph.text, q)]
        quoted += len(quotations)
        named += sum(who not in ("", PRONOUN) for who in attribute_speakers(paragraph.text, quotations))
    return 0.0 if named < 2 else 0.6 if named >= 4 and named * 5 >= quoted else 0.3


def survey(source: SourceFile) -> SourceSurvey:
    return SourceSurvey(speakers=dict(_count_speakers(source, _collect_names(source)).most_common()))


def read(source: SourceFile, options: ImportOptions) -> Iterator[ImportItem]:
    """Raises InputError listing the most frequent speakers when the persona is not among them, or is not chosen."""
    known = _collect_names(source)
    persona = select_speaker(source, options, _count_speakers(source, known))
    yield from pair_speeches(
        read_novel_events(join_paragraphs(source.lines(), is_hard_wrapped(source)), known),
        persona,
        source,
        options,
        brackets=False,
    )


def _count_speakers(source: SourceFile, known: KnownNames) -> Counter[str]:
    names = SpeakerNames()
    for event in read_novel_events(join_paragraphs(source.lines(), is_hard_wrapped(source)), known):
        if isinstance(event, Speech):
            names.add(event.who)
    return names.counts


def _collect_names(source: SourceFile) -> KnownNames:
    """Every name beside a quotation, without those that only lengthen a more frequent one (甄嬛 and 甄嬛低)."""
    names = SpeakerNames()
    for paragraph in join_paragraphs(source.lines(), is_hard_wrapped(source)):
        for who in attribute_speakers(paragraph.text, find_quotations(paragraph.text)):
            if who not in ("", PRONOUN):
                names.add(who)
    often = {n for n, times in names.counts.items() if times > 1}
    return KnownNames(n for n in names.counts if n in often or not any(n[:cut] in often for cut in range(1, len(n))))


def read_novel_events(rows: Iterable[Paragraph], known: KnownNames) -> Iterator[SpeechEvent]:
    silent = 0
    held: GrowingSpeech | None = None  # unclosed: goes on in the next paragraph if that begins with a quotation mark
    for paragraph in rows:
        text = paragraph.text
        found = [q for q in find_quotations(text) if is_speech(text, q)]
        if held:
            first = found[0] if found and not text[: found[0].start - 1].strip() else None
            if not first:
                yield _never_closed(held)
                yield SpeechGap(held.speech.line, Message("the line before it has no end"))
                held = None
            else:
                held.add(text[first.start : first.end].strip())
                found = found[1:]
                if first.closed:
                    yield held.finish()
                    held = None
        if is_scene_break(text) or not found:
            silent += 1
            if is_scene_break(text) or silent == MAX_SILENT_PARAGRAPHS + 1:
                why = (
                    Message("no line before it in this chapter")
                    if is_scene_break(text)
                    else Message("the line before it is too far away")
                )
                yield SpeechGap(paragraph.line(0), why, scene=is_scene_break(text))
            continue
        silent = 0
        for event, closed in _speeches(paragraph, found, known):
            if isinstance(event, Speech) and not closed:
                held = GrowingSpeech(event)
            else:
                yield event
    if held:
        yield _never_closed(held)


def _never_closed(held: GrowingSpeech) -> SkippedRow:
    speech = held.finish()
    return SkippedRow(speech.line, Message("its quotation mark is never closed"), speech.text)


def _speeches(paragraph: Paragraph, found: list[Quotation], known: KnownNames) -> Iterator[tuple[SpeechEvent, bool]]:
    """(speech or gap, whether its quotation is closed); neighbouring quotations of one speaker are one speech."""
    text = paragraph.text
    named = attribute_speakers(text, found, known)
    certain = {who for who in named if who not in ("", PRONOUN)}
    if len(certain) == 1 and known.within(_narration(text, found)) <= certain:
        named = [next(iter(certain))] * len(found)
    at = 0
    while at < len(found):
        who, first = named[at], at
        while at + 1 < len(found) and named[at + 1] == who and who not in ("", PRONOUN):
            at += 1
        spoken, previous = "", found[first]
        for quote in found[first : at + 1]:
            if text[previous.end : quote.start - 1].rstrip()[-1:] in tuple(".。！？!?"):
                spoken = _comma_to_full_stop(spoken)
            spoken, previous = join_lines(spoken, text[quote.start : quote.end].strip()), quote
        line = paragraph.line(found[first].start)
        if who in ("", PRONOUN):
            yield SkippedRow(line, Message("nobody is named as its speaker"), spoken), True
            yield SpeechGap(line, Message("nobody is named as the speaker of the line before it")), True
        else:
            yield Speech(line, who, _comma_to_full_stop(spoken)), found[at].closed
        at += 1


def _narration(text: str, found: list[Quotation]) -> str:
    edges = [0, *(x for q in found for x in (q.start, q.end)), len(text)]
    return "\n".join(text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True))


def _comma_to_full_stop(spoken: str) -> str:
    """“Come in,” said Ann, without the comma, which belongs to the narrator's sentence."""
    return spoken[:-1] + {",": ".", "，": "。"}.get(spoken[-1:], spoken[-1:])


def is_hard_wrapped(source: SourceFile) -> bool:
    """Whether lines are wrapped at a margin, with empty lines between paragraphs: most end in mid-sentence."""
    lines = [line.strip() for line in source.head().split("\n")]
    inner = [line for line, below in pairwise(lines) if line and below]
    return sum(line[-1] not in SENTENCE_ENDS for line in inner) * 2 > len(inner)


def join_paragraphs(lines: Iterable[tuple[int, str]], wrapped: bool) -> Iterator[Paragraph]:
    text = ""
    starts: list[tuple[int, int]] = []
    for number, raw in lines:
        line = raw.strip("\ufeff\u3000\xa0 \t\r")
        if text and not (wrapped and line and len(text) < MAX_PARAGRAPH and not is_scene_break(line)):
            yield Paragraph(text, tuple(starts))
            text, starts = "", []
        for piece in (line[at : at + MAX_PARAGRAPH] for at in range(0, len(line), MAX_PARAGRAPH)):
            if len(piece) == MAX_PARAGRAPH:
                yield Paragraph(piece, ((0, number),))
                continue
            joined = join_lines(text, piece)
            starts.append((len(joined) - len(piece), number))
            text = joined
            if is_scene_break(line):
                yield Paragraph(text, tuple(starts))
                text, starts = "", []
    if text:
        yield Paragraph(text, tuple(starts))
