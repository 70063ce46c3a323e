"""The import formats by name: detect one, preview, import into a persona, write pairs out again."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType

from persona.errors import InputError, Message
from persona.store import edit_history
from persona.store.files import write_atomic
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.write.importers import (
    MAX_LISTED,
    ImportCount,
    ImportItem,
    ImportNote,
    ImportOptions,
    ImportPreview,
    ImportReport,
    SkippedRow,
    alpaca,
    character_card,
    chat_data,
    messages,
    novel,
    screenplay,
    sharegpt,
    spreadsheet,
)
from persona.write.importers.budget import Budget, OverBudgetError, over_budget
from persona.write.importers.file_kinds import explain_unfit_text, refuse_unreadable
from persona.write.importers.json_reader import find_first_problem, read_first_rows
from persona.write.importers.relaxed_json import skip_comments
from persona.write.importers.rows import select_rows
from persona.write.importers.text_source import SourceFile
from persona.write.importers.turns import explain_unmarked_text

# in the alphabetical order of their names; of equally likely ones the first is chosen
FORMATS: tuple[ModuleType, ...] = (
    alpaca,
    character_card,
    chat_data,
    messages,
    novel,
    screenplay,
    sharegpt,
    spreadsheet,
)

MAX_COUNTED = 20_000  # items of a file that are counted before an import, which takes about a second
OPTION_NAMES = {"columns": "--column", "speakers": "--speaker", "actions": "--actions", "turns": "--history",
                "join_input": "--join-input", "thinking": "--thinking"}  # fmt: skip
HISTORY_LOOKED_AT = 8  # the last turns of a pair's history, among which the pair before it is looked for
MORE_NOTES = Message("more of other kinds")


def import_formats() -> dict[str, ModuleType]:
    """Every importer by the name that a user gives."""
    return {module.NAME: module for module in FORMATS}


def get_importer(name: str) -> ModuleType:
    """Raises InputError naming the formats there are."""
    known = import_formats()
    if name not in known:
        raise InputError("{name!r}: no such format. Choose one of {known}.", name=name, known=", ".join(known))
    return known[name]


def detect_format(source: SourceFile) -> str:
    """The most likely format of the file. Raises InputError when none fits."""
    refuse_unreadable(source)
    scores = {name: module.sniff(source) for name, module in import_formats().items()}
    best = max(scores, key=lambda name: scores[name])
    if (
        scores[best] <= 0
        and skip_comments(source.head()).lstrip()[:1] in tuple("[{")
        and (broken := find_first_problem(source))
    ):
        raise InputError("{source} line {line}: {problem}.", source=source.name, line=broken.line, problem=broken.why)
    if scores[best] <= 0 and (unmarked := explain_unmarked_text(source.name, read_first_rows(source))):
        raise unmarked
    if scores[best] <= 0 and (unfit := explain_unfit_text(source)):
        raise unfit
    if scores[best] <= 0:
        raise InputError(
            "{source}: none of the formats fits ({formats}). Choose one (tab Import, or --format), or look into "
            "the file: it needs questions and answers, a conversation, or named speakers.",
            source=source.name,
            formats=", ".join(scores),
        )
    return best


def preview_import(source: SourceFile, format: str, options: ImportOptions, limit: int = 20) -> ImportPreview:
    """The first `limit` pairs, and the rows skipped before the last of them."""
    items = read_source(source, format, options)
    pairs: list[Pair] = []
    skipped: list[SkippedRow] = []
    for item in islice(items, 100 * limit):
        if isinstance(item, ImportNote):
            continue
        if len(pairs) == limit:
            return ImportPreview(pairs, skipped, True)
        if isinstance(item, Pair):
            pairs.append(item)
        else:
            skipped.append(item)
    return ImportPreview(pairs, skipped, _has_more(items))


def count_pairs(source: SourceFile, format: str, options: ImportOptions, limit: int = MAX_COUNTED) -> ImportCount:
    """How many pairs the file gives; counting ends after `limit` items."""
    items = read_source(source, format, options)
    counter = ConversationCounter()
    for item in islice(items, limit):
        if isinstance(item, Pair):
            counter.add(item)
    return ImportCount(counter.pairs, counter.conversations, _has_more(items))


def _has_more(items: Iterator[ImportItem]) -> bool:
    return any(not isinstance(item, ImportNote) for item in items)


class ConversationCounter:
    """Counts pairs, and their conversations by the pairs' order: a pair goes on with the one in its history."""

    def __init__(self) -> None:
        self.pairs = self.conversations = 0
        self._last = ("", "")

    def add(self, pair: Pair) -> None:
        self.pairs += 1
        self.conversations += self._last not in pair.history[-HISTORY_LOOKED_AT:]
        self._last = pair.instruction, pair.output


def count_conversations(pairs: Iterable[Pair]) -> int:
    """Of a persona's pairs, each of which is one reply; as many as there are pairs where none follows another."""
    counter = ConversationCounter()
    for pair in pairs:
        counter.add(pair)
    return counter.conversations


def describe_replies(replies: int, conversations: int) -> str:
    """How many replies there are in how many conversations; "" where none has several."""
    if conversations >= replies:
        return ""
    return Message("{n:,} replies in {conversations:,} conversation(s)", n=replies, conversations=conversations)


def read_source(source: SourceFile, format: str, options: ImportOptions) -> Iterator[ImportItem]:
    """Every item of the file, streamed. Raises InputError when it cannot be read, or too much comes out of it."""
    refuse_unreadable(source)
    yield from _note_unused_options(format, options)
    budget = Budget.for_file(source.path)
    importer = get_importer(format)
    items = importer.read(source, options)
    if "selection" not in importer.OPTIONS:
        items = select_rows(lambda: importer.read(source, options), options.selection, source.name)
    try:
        for item in items:
            if isinstance(item, Pair):  # a placeholder, or earlier turns, may multiply the text of a file
                budget.spend(item.characters - len(item.source))
            yield item
    except OverBudgetError:
        raise over_budget(source.name, budget.limit) from None
    if count := source.count_undecoded():  # at the end: it reads the whole file, and a preview stops long before
        what = Message(
            "{count:,} bytes are no {encoding} text, and show as \\xNN", count=count, encoding=source.encoding
        )
        yield ImportNote(1, what)


def _note_unused_options(format: str, options: ImportOptions) -> Iterator[ImportNote]:
    given = {
        "columns": bool(options.columns),
        "speakers": bool(options.speakers),
        "actions": options.actions != "drop",
        "turns": options.turns is not None,
        "join_input": options.join_input != ImportOptions.join_input,
        "thinking": options.thinking != "drop",
    }
    for option in (name for name, chosen in given.items() if chosen and name not in get_importer(format).OPTIONS):
        yield ImportNote(
            1, Message("{option} has no effect on the format {format}", option=OPTION_NAMES[option], format=format)
        )


def explain_empty_import(source: SourceFile, format: str, report: ImportReport) -> str:
    """Why an import gave no pair: what the file was read as, the most frequent reason, and the next step."""
    reasons = Counter(skipped.why for skipped in report.skipped).most_common(1)
    why = (
        Message("{count:,} time(s): {why}", count=reasons[0][1], why=reasons[0][0])
        if reasons
        else Message("it is empty")
    )
    return Message(
        "{source}: no pair in it. It was read as {format} ({why}). Choose another --format, --speaker or --column.",
        source=source.name,
        format=format,
        why=why,
    )


def import_into(persona: Persona, source: SourceFile, format: str, options: ImportOptions) -> ImportReport:
    """Add the file's pairs to the persona, streamed; undo takes them back in one step.

    Raises InputError, with nothing changed, when the file as a whole cannot be read.
    """
    skipped: list[SkippedRow] = []
    notes: Counter[str] = Counter()
    left_out = 0
    counter = ConversationCounter()

    def pairs() -> Iterator[Pair]:
        nonlocal left_out
        for item in read_source(source, format, options):
            if isinstance(item, Pair):
                counter.add(item)
                yield item
            elif isinstance(item, ImportNote):
                notes[item.what if item.what in notes or len(notes) < MAX_LISTED else MORE_NOTES] += 1
            else:
                left_out += 1
                if len(skipped) < MAX_LISTED:
                    skipped.append(item)

    appended = edit_history.append(persona, pairs(), Message("import of {file}", file=source.name))
    return ImportReport(
        appended.added + appended.duplicates + left_out,
        appended.added,
        appended.duplicates,
        left_out,
        skipped,
        dict(notes),
        counter.conversations,
    )


def write_pairs_as(pairs: Iterable[Pair], format: str, out: Path) -> Path:
    """The pairs as a file of that format; `read` gives them back. Raises InputError when it can only be read."""
    if not hasattr(get_importer(format), "dump"):
        known = ", ".join(name for name, module in import_formats().items() if hasattr(module, "dump"))
        raise InputError(
            "{format!r}: pairs cannot be written in this format. Choose one of {known}.", format=format, known=known
        )
    write_atomic(out, get_importer(format).dump(pairs))
    return out
