"""Speeches → pairs: each speech of the persona with the speech just before it. Used by screenplays and novels.

Only neighbours make a pair. After a scene break, a stand-alone stage direction or a line that cannot be read, the
second speech may answer something else; then it is skipped with that reason.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from unicodedata import normalize

from persona.errors import InputError, Message
from persona.store.pairs import MAX_CHARACTERS, Pair
from persona.write.importers import ImportItem, ImportNote, ImportOptions, SkippedRow
from persona.write.importers.chat_layouts import BARE_TIME
from persona.write.importers.text_source import SourceFile

OPEN_BRACKETS, CLOSE_BRACKETS = "（([【", "）)]】"
BRACKET = re.compile(r"[（(\[【]")
MAX_NAMES = 20_000  # different names counted at a time; in a file of another kind every line would add one
NAME_SEPARATOR = re.compile(r"\s*[、，,&＆+＋/／]\s*")
NAME_CONJUNCTION = re.compile(r"\s+(?:and|und|et|y|AND|And)\s+|[和与與及跟]")
NO_LINE_IN_SCENE = Message("no line before it in this scene")
PARTICLES = {"of", "the", "de", "da", "di", "du", "la", "le", "van", "von", "der", "and", "&", "bin", "al"}
UNSPACED_SCRIPT = re.compile(r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uff60]")  # scripts that put no space between words


@dataclass(frozen=True)
class Speech:
    """One speech. lead: the stage direction between name and colon. dual: spoken while another speaks.

    stands_for: in place of a text, what somebody replies to; it is never learned.
    answers: the speech that it says it replies to, where that is not the one before it.
    """

    line: int
    who: str
    text: str
    lead: str = ""
    dual: bool = False
    stands_for: str = ""
    answers: "Speech | None" = None


@dataclass(frozen=True)
class SpeechGap:
    """What separates two speeches. scene: it ends the history of earlier exchanges too."""

    line: int
    why: str
    scene: bool = False


SpeechEvent = Speech | SpeechGap | SkippedRow | ImportNote


def normalize_name(name: str) -> str:
    """The form in which names are compared: ANN, Ann and Ａｎｎ are one."""
    return " ".join(normalize("NFKC", name).casefold().split())


def is_like_name(who: str) -> bool:
    """甄嬛, 太监甲, ann, Old Woman #2, Mr. Reed of Hull; not: he said to them."""
    if UNSPACED_SCRIPT.search(who):
        return len(who) <= 12
    words = [w for w in who.split() if w not in PARTICLES]
    return len(words) == 1 or (len(words) <= 4 and not any(w[0].islower() for w in words))


class SpeakerNames:
    """Counts speeches per name. Spellings of one name are counted together, under the first of them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._spelling: dict[str, str] = {}

    def add(self, name: str) -> None:
        self.counts[self._spelling.setdefault(normalize_name(name), name)] += 1
        if len(self._spelling) > MAX_NAMES:  # to half of them, so that it is long until the next time
            self.counts = Counter({n: c for n, c in self.counts.most_common(MAX_NAMES // 2) if c > 1})
            self._spelling = {normalize_name(n): n for n in self.counts}

    def repeated(self, times: int) -> Counter[str]:
        return Counter({n: c for n, c in self.counts.items() if c >= times})


@dataclass(frozen=True)
class PersonaSpeaker:
    """The persona in a file. names: those chosen for it; known: all names of the file, both normalized."""

    names: frozenset[str]
    known: frozenset[str]

    def speaks(self, who: str) -> bool:
        return normalize_name(who) in self.names

    def speaks_with_others(self, who: str) -> bool:
        """Whether the persona speaks with others: 甄嬛、眉庄, ANN & BOB; 甄嬛眉庄 only if 眉庄 is a known name."""
        name = normalize_name(who)
        if name in self.names:
            return False
        if self.names & set(NAME_SEPARATOR.split(name)):
            return True
        parts = [p.strip() for p in NAME_CONJUNCTION.split(name)]
        if len(parts) > 1 and self.names & set(parts) and set(parts) <= self.known | self.names:
            return True
        rests = [name.removeprefix(n).removesuffix(n) for n in self.names if name.startswith(n) or name.endswith(n)]
        return any(rest in self.known for rest in rests)


def select_speaker(source: SourceFile, options: ImportOptions, speakers: Counter[str]) -> PersonaSpeaker:
    """Raises InputError listing the most frequent speakers when none is chosen, or when the chosen one never speaks."""
    if not speakers:
        raise InputError(
            "{source}: nobody is named as a speaker. Choose another format, or look into the file.", source=source.name
        )
    most = ", ".join(f"{name} ({n})" for name, n in speakers.most_common(10))
    chosen = frozenset(normalize_name(name) for name in options.speakers if name.strip())
    if not chosen:
        raise InputError(
            "{source}: who of them is the persona? Choose with --speaker NAME: {most}", source=source.name, most=most
        )
    known = frozenset(map(normalize_name, speakers))
    persona = PersonaSpeaker(chosen, known)
    if not any(persona.speaks(name) or persona.speaks_with_others(name) for name in speakers):
        names = ", ".join(options.speakers)
        raise InputError(
            "{source}: {names} never speaks in it. Choose with --speaker NAME: {most}",
            source=source.name,
            names=names,
            most=most,
        )
    return persona


def pair_speeches(
    events: Iterable[SpeechEvent],
    persona: PersonaSpeaker,
    source: SourceFile,
    options: ImportOptions,
    brackets: bool = True,
) -> Iterator[ImportItem]:
    """Each speech of the persona as a Pair or a SkippedRow. brackets: they hold stage directions."""
    history: deque[tuple[str, str]] = deque(maxlen=max(0, options.turns or 0))
    previous: Speech | None = None
    gap_reason: str = NO_LINE_IN_SCENE
    for event in events:
        if isinstance(event, SkippedRow | ImportNote):
            yield event
        elif isinstance(event, SpeechGap):
            if event.scene:
                history.clear()
            if event.scene or previous:  # else the first reason stays
                previous, gap_reason = None, event.why
        else:
            if persona.speaks(event.who) or persona.speaks_with_others(event.who):
                asked = event.answers or previous
                if event.answers:  # what was said before the other message is not known here
                    history.clear()
                for item in _pair_reply(event, asked, gap_reason, persona, source, options, brackets, tuple(history)):
                    if isinstance(item, Pair):
                        history.append((item.instruction, item.output))
                    yield item
            previous = event


def _pair_reply(
    reply: Speech,
    previous: Speech | None,
    gap_reason: str,
    persona: PersonaSpeaker,
    source: SourceFile,
    options: ImportOptions,
    brackets: bool,
    history: tuple[tuple[str, str], ...],
) -> Iterator[ImportItem]:
    keep = options.actions == "keep"
    text = rewrite_directions(reply.text, keep) if brackets else reply.text.strip()
    asked = (rewrite_directions(previous.text) if brackets else previous.text.strip()) if previous else ""
    asked = asked or (previous.stands_for if previous else "")
    if not brackets and not text:
        return  # a message without text is listed already
    problem = ""
    if not (rewrite_directions(reply.text) if brackets else text):
        problem = (
            Message("nothing is said: only a stage direction")
            if brackets and reply.text
            else Message("nothing is said")
        )
    elif not persona.speaks(reply.who):
        problem = Message(
            "said together with others; it counts as the persona's when {who} is chosen as a speaker, too",
            who=reply.who,
        )
    elif reply.dual:
        problem = Message("said at the same time as the line before it")
    elif previous is None:
        problem = gap_reason
    elif persona.speaks(previous.who) or persona.speaks_with_others(previous.who):
        problem = Message("the line before it is the persona's own")
    elif not asked:
        problem = Message("the line before it is only a stage direction") if brackets else Message("it answers no text")
    elif reply.lead and not keep:
        # how a line is spoken is part of the answer, as in the pairs that this rule was measured against
        problem = Message("said with a stage direction before it; keep stage directions to import it")
    elif max(len(text) + len(reply.lead) + 3, len(asked)) > MAX_CHARACTERS:
        problem = Message("longer than {limit:,} characters", limit=MAX_CHARACTERS)
    if problem:
        yield SkippedRow(reply.line, problem, reply.text)
        return
    if keep and reply.lead:
        text = f"*{reply.lead}* {text}"
    yield Pair(asked, text, history, source.location(reply.line))
    if brackets and previous and (asked != previous.text.strip() or (not keep and text != reply.text.strip())):
        yield ImportNote(reply.line, Message("stage direction"))


class GrowingSpeech:
    """A speech that goes on over several lines. Beyond MAX_CHARACTERS it does not: no pair can hold it."""

    def __init__(self, speech: Speech) -> None:
        self.speech = speech
        self._pieces = [speech.text]
        self._size, self._last = len(speech.text), speech.text[-1:]
        self._depth, self._outside = 0, False
        self._scan(speech.text)

    def add(self, line: str, separator: str | None = None) -> None:
        """Add a line after `separator`; None: as in join_lines()."""
        if self._size > MAX_CHARACTERS:
            return
        if separator is None:
            separator = _separator(self._last, line[:1])
        self._pieces += separator, line
        self._size += len(separator) + len(line)
        self._last = line[-1:] or self._last
        self._scan(line)

    def goes_on_with(self, message: Speech) -> bool:
        """Whether a message is of the same sender, and replies to nothing else."""
        return normalize_name(self.speech.who) == normalize_name(message.who) and not message.answers

    def ending(self) -> str:
        """The last line, or the last part of it."""
        return self._pieces[-1]

    def is_only_directions(self) -> bool:
        """Whether rewrite_directions() leaves nothing of it."""
        return not self._outside and self._depth == 0

    def finish(self) -> Speech:
        return replace(self.speech, text="".join(self._pieces))

    def _scan(self, text: str) -> None:
        for c in text:
            if self._outside:
                return
            if c in OPEN_BRACKETS:
                self._depth += 1
            elif c in CLOSE_BRACKETS and self._depth:
                self._depth -= 1
            elif self._depth == 0 and not c.isspace():
                self._outside = True


def merge_consecutive(events: Iterable[SpeechEvent]) -> Iterator[SpeechEvent]:
    """Consecutive messages of one sender as one turn, for chat logs."""
    held: GrowingSpeech | None = None
    for event in events:
        if isinstance(event, SkippedRow | ImportNote):
            yield event
        elif isinstance(event, Speech) and held and held.goes_on_with(event):
            if event.text:
                held.add(event.text, "\n")
        else:
            if held:
                yield held.finish()
            held = GrowingSpeech(event) if isinstance(event, Speech) else None
            if not held:
                yield event
    if held:
        yield held.finish()


def rewrite_directions(text: str, keep: bool = False) -> str:
    """The text without what stands in brackets, or with it as *action*. An unpaired bracket is text."""
    if not BRACKET.search(text):
        return text.strip()
    pieces: list[str] = []
    start = opened = depth = 0
    for at, c in enumerate(text):
        if c in OPEN_BRACKETS:
            if depth == 0:
                opened = at
            depth += 1
        elif c in CLOSE_BRACKETS and depth:
            depth -= 1
            if depth == 0:
                pieces.append(text[start:opened])
                inside = text[opened + 1 : at].strip()
                pieces.append(f" *{inside}* " if keep and inside and not BARE_TIME.match(inside) else "")
                start = at + 1
    pieces.append(text[start:])
    return _join_pieces(pieces)


def _join_pieces(pieces: list[str]) -> str:
    out: list[str] = []
    for piece in filter(None, pieces):
        if out and out[-1][-1].isspace() and piece[0].isspace():
            piece = piece.lstrip(" ")
        if piece:
            out.append(piece)
    return "".join(out).strip()


def join_lines(left: str, right: str) -> str:
    """Two lines of one speech joined by a space, or without one where the script has none."""
    return f"{left}{_separator(left[-1:], right[:1])}{right}"


def _separator(before: str, after: str) -> str:
    """What stands between two lines that end and begin with these characters."""
    if not before or not after or UNSPACED_SCRIPT.match(before) or UNSPACED_SCRIPT.match(after):
        return ""
    return " "
