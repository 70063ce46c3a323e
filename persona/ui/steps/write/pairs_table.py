"""The table of pairs, for thousands of them: which rows a view shows, their HTML, and an edit from what was typed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from persona.errors import InputError, Message
from persona.store import edit_history, edits, pairs
from persona.store.edits import PairChange, search_pattern
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.ui.i18n import t
from persona.write import interview
from persona.write.lint.finding import Finding, pair_texts
from persona.write.question_bank import make_starter_pairs

TABLE_JS = (Path(__file__).parent / "pairs_table.js").read_text(encoding="utf-8")
FOUND_CONTEXT, MAX_FOUND = 20, 4  # characters around what was searched for; places of one pair
ROWS_PER_PAGE = 50  # on one page of the table
SORT_ORDERS = ("In order", "Longest answers first", "Shortest answers first", "Most findings first", "Questions A–Z")
PAIR_FILTERS = ("All pairs", "With findings", "Unfinished", "Conversations", "Imported", "Synthetic")
ROW_TOOLS = (
    ("add", "Add", "Add a pair below (Ctrl+Enter)", "Add pair {n}"),
    ("duplicate", "Duplicate", "Add a copy of this pair, to change it", "Duplicate pair {n}"),
    ("split", "Split", "Split a conversation into its replies, or an answer in two", "Split pair {n}"),
    ("join", "Join", "Join to the pair above, which becomes an earlier turn", "Join pair {n}"),
    ("delete", "Delete", "Delete this pair (Undo brings it back)", "Delete pair {n}"),
)


class TableView(NamedTuple):
    """Which pairs the table shows: the components that choose it, or their values."""

    query: Any = ""
    order: Any = SORT_ORDERS[0]
    row_filter: Any = PAIR_FILTERS[0]  # one of PAIR_FILTERS, or the name of a lint rule
    page: Any = 0


def translate_choices(names: Sequence[str]) -> list[tuple[str, str]]:
    """Filters or orders as choices of a dropdown."""
    return [(t(name), name) for name in names]


def select_rows(view: TableView, items: Sequence[Pair], findings: Sequence[Finding]) -> list[int]:
    """Indexes (from 0) of the pairs that the view shows, in its order, over all its pages."""
    counts: dict[int, int] = {}  # findings of each pair
    for finding in findings:
        for row in finding.pairs:
            counts[row - 1] = counts.get(row - 1, 0) + 1
    query = view.query.strip().casefold()
    candidates = _filter_rows(view.row_filter, items, findings, counts)
    rows = [n for n in candidates if not query or query in _searchable_text(items[n]).casefold()]
    if view.order == SORT_ORDERS[1]:
        rows.sort(key=lambda n: -len(items[n].output))
    elif view.order == SORT_ORDERS[2]:
        rows.sort(key=lambda n: len(items[n].output))
    elif view.order == SORT_ORDERS[3]:
        rows.sort(key=lambda n: -counts.get(n, 0))
    elif view.order == SORT_ORDERS[4]:
        rows.sort(key=lambda n: items[n].instruction.casefold())
    return rows


def _filter_rows(
    row_filter: str, items: Sequence[Pair], findings: Sequence[Finding], counts: Mapping[int, int]
) -> Sequence[int]:
    if row_filter == "With findings":
        return sorted(n for n in counts if n < len(items))
    if row_filter == "Unfinished":
        return [row - 1 for row in sorted({row for row, _ in pairs.find_unfinished(items)})]
    if row_filter == "Conversations":
        return [n for n, p in enumerate(items) if p.history]
    if row_filter == "Imported":
        return [n for n, p in enumerate(items) if p.source and not p.source.startswith(("synthetic", interview.SOURCE))]
    if row_filter == "Synthetic":
        return [n for n, p in enumerate(items) if p.source.startswith("synthetic")]
    if row_filter in ("", "All pairs"):
        return range(len(items))
    matching = [f for f in findings if row_filter in (f.rule, f.key)]
    return sorted({row - 1 for f in matching for row in f.pairs if row <= len(items)})


def normalize_line_breaks(text: str) -> str:
    """A text as a browser's text box holds it: every line break is \\n there."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _searchable_text(pair: Pair) -> str:
    return "\n".join([pair.source, pair.system, *pair_texts(pair)])


def table_html(
    items: Sequence[Pair], rows: Sequence[int], view: TableView, selected: int = 0, focus: bool = False
) -> str:
    """One page of the table. selected: the number of a pair, from 1; focus: put the cursor into it."""
    if not items:
        hint = t("<b>No pairs yet.</b> Write the first one, or import text in the tab Import.")
        return (
            f'<div class="empty"><p>{hint}</p>'
            f'<button data-do="add" class="tool wide">{t("＋ Write the first pair")}</button> '
            f'<button data-do="starter" class="tool wide">{t("＋ Ten everyday questions to answer")}</button></div>'
        )
    if not rows:
        return f'<div class="empty"><p>{t("No pair matches. Clear the search, or choose “All pairs”.")}</p></div>'
    first = view.page * ROWS_PER_PAGE
    shown = rows[first : first + ROWS_PER_PAGE]
    body = "".join(_row_html(n, items[n], n + 1 == selected, focus, view.query.strip()) for n in shown)
    heads = "".join(f"<span>{h}</span>" for h in ("#", t("Someone says"), t("The persona answers")))
    drawing = time.time_ns()  # with a new number, pairs_table.js forgets what the cells held before
    pager = _pager_html(view.page, len(rows), len(items))
    body = f"<div class='rows' role='list' data-drawing='{drawing}'>{body}</div>"
    skip_link = f"<a class='skip' href='#to-template'>{t('Skip the table')}</a>"  # else hundreds of presses of Tab
    return f"{skip_link}<div class='heads' aria-hidden='true'>{heads}</div>{body}{pager}"


def _row_html(n: int, pair: Pair, selected: bool, focus: bool, query: str) -> str:
    turns = [(f"history.{t}.0", user, f"history.{t}.1", reply) for t, (user, reply) in enumerate(pair.history)] + [
        ("instruction", pair.instruction, "output", pair.output)
    ]
    cells = "".join(
        _cell_html(a, user, t("Pair {n}: someone says", n=n + 1))
        + _cell_html(b, reply, t("Pair {n}: the persona answers", n=n + 1))
        + _tick_html(n, pair, turn)
        for turn, (a, user, b, reply) in enumerate(turns)
    )
    if pair.system:
        label = t("Pair {n}: its own system prompt", n=n + 1)
        cells = _cell_html("system", pair.system, label).replace("<textarea", '<textarea class="own-system"', 1) + cells
    tools = "".join(
        f'<button class="tool" data-do="{do}" title="{t(title)}" aria-label="{t(label, n=n + 1)}">{t(word)}</button>'
        for do, word, title, label in ROW_TOOLS
    )
    source = f"<span class='source'>{escape(pair.source)}</span>" if pair.source else ""
    classes = f"{' selected' if selected else ''}{' conversation' if pair.history else ''}"
    return (
        f'<div class="pair{classes}" role="listitem" data-row="{n + 1}"{" data-focus" if selected and focus else ""}>'
        f'<span class="no">{n + 1}</span><div class="cells">{cells}</div>{found_html(pair, query)}'
        f'<div class="foot"><div class="marks"></div><div class="tools">{source}{tools}</div></div></div>'
    )


def found_html(pair: Pair, query: str) -> str:
    """Where the pair holds what was searched for, with a few words around it; "" where nothing was searched for.

    A text box cannot mark a part of its text, so this stands below it.
    """
    if not query:
        return ""
    pattern = search_pattern(query, match_case=False)
    places = [(text, match) for text in [*pair_texts(pair), pair.source] for match in pattern.finditer(text)]
    shown = "".join(
        f"<span>{'…' if m.start() > FOUND_CONTEXT else ''}{escape(text[max(0, m.start() - FOUND_CONTEXT) : m.start()])}"
        f"<mark>{escape(m[0])}</mark>{escape(text[m.end() : m.end() + FOUND_CONTEXT])}"
        f"{'…' if len(text) > m.end() + FOUND_CONTEXT else ''}</span>"
        for text, m in places[:MAX_FOUND]
    )
    more = f"<span>{t('… and {n} more', n=len(places) - MAX_FOUND)}</span>" if len(places) > MAX_FOUND else ""
    return f"<div class='found'>{shown}{more}</div>" if places else ""


def _cell_html(field: str, text: str, label: str) -> str:
    # the parser drops one line break after <textarea>
    return (
        f'<textarea data-field="{field}" rows="1" spellcheck="false" aria-label="{label}">\n{escape(text)}</textarea>'
    )


def _tick_html(n: int, pair: Pair, turn: int) -> str:
    """Whether a reply of a conversation may be learned, as a switch; "" for a pair without earlier turns."""
    if not pair.history and not pair.weights:
        return ""
    may_learn = pair.may_learn(turn)
    earlier = t("learned (an earlier reply with its own pair, or here by the setting of step 2)")
    title = t("this reply is learned") if turn == len(pair.history) else earlier
    word, title = (f"☑ {t('learn')}", title) if may_learn else (f"☐ {t('context only')}", t("never learned"))
    label = t("Pair {n}: learn reply {turn}", n=n + 1, turn=turn + 1)
    return (
        f'<button class="tool weight" data-do="weight" data-key="{turn}" role="switch" '
        f'aria-checked="{str(may_learn).lower()}" aria-label="{label}" title="{title}">{word}</button>'
    )


def _pager_html(page: int, matching: int, total: int) -> str:
    last = (matching - 1) // ROWS_PER_PAGE
    last_row = min(matching, (page + 1) * ROWS_PER_PAGE)
    # pairs_table.js counts a pair that is added in the browser
    figures = {
        name: f"<span data-count>{n:,}</span>" for name, n in (("last", last_row), ("found", matching), ("all", total))
    }
    figures["first"] = f"{page * ROWS_PER_PAGE + 1:,}"
    words = t("Pairs {first}–{last} of {all}", **figures)  # no word that goes by a count: the browser counts on
    if matching != total:
        words = t("{first}–{last} of {found} of {all} pairs", **figures)
    if not last:
        return f"<div class='pager'><span>{words}</span></div>"
    jumps = (
        ("«", 0, t("First page")),
        ("‹", page - 1, t("Previous page")),
        ("›", page + 1, t("Next page")),
        ("»", last, t("Last page")),
    )
    back, before, after, end = (
        f'<button class="tool" data-do="page" data-page="{to}" aria-label="{title}" title="{title}"'
        f"{'' if 0 <= to <= last and to != page else ' disabled'}>{sign}</button>"
        for sign, to, title in jumps
    )
    return f"<div class='pager'>{back}{before}<span>{words}</span>{after}{end}</div>"


def apply_edit(persona: Persona, event: Mapping[str, Any]) -> int:
    """Carry out an edit of the table. Returns the number of the pair to select now.

    event: {"do": edit|add|starter|weight|duplicate|split|join|delete, "row": number from 1, for edit "field", "old",
    "text", for weight "key": the turn from 0 whose reply is ticked or unticked, for the last five "saw": the pair's
    texts as the visitor's window shows them, cell by cell; an edit may have it}.
    Raises InputError, with nothing written, when the pair is not what the visitor's window shows.
    """
    try:
        return _apply_edit(persona, str(event["do"]), int(event["row"]), event)
    except (LookupError, ValueError, TypeError) as e:
        if isinstance(e, InputError):
            raise
        raise InputError("The page sent something that is not an edit. Press Reload.") from e


def _apply_edit(persona: Persona, do: str, row: int, event: Mapping[str, Any]) -> int:
    items, _ = persona.scan()
    if do == "add":
        at = min(max(row, 0), len(items)) if row else len(items)
        edit_history.commit(persona, Message("add a pair"), [PairChange(at, None, Pair("", ""))])
        return at + 1
    if do == "starter":
        made = [PairChange(len(items), None, pair) for pair in make_starter_pairs(persona.card().language)]
        edit_history.commit(persona, Message("add of ten questions"), made)
        return len(items) + 1
    if not 1 <= row <= len(items):
        raise InputError("There is no pair {row} any more. Press Reload.", row=row)
    at, pair = row - 1, items[row - 1]
    if (do in ("weight", "duplicate", "split", "join", "delete") or "saw" in event) and [
        normalize_line_breaks(text) for text in [*filter(None, [pair.system]), *pair_texts(pair)]
    ] != event["saw"]:
        raise InputError(
            "This pair was changed elsewhere (another window, or on disk) since you saw it here, or "
            "another one has taken its place. Press Reload and look at it first."
        )
    if do == "edit":
        field, old = str(event["field"]), str(event["old"])
        new = _replace_text(pair, field, old, str(event["text"]))
        edit_history.commit(
            persona, Message("edit of pair {row}", row=row), [PairChange(at, pair, new)], merge=f"{row}/{field}"
        )
    elif do == "weight":
        weights = list(pair.weights or (1,) * len(pair.turns))
        weights[int(event["key"])] ^= 1
        change = PairChange(at, pair, pair.weigh(weights))
        edit_history.commit(persona, Message("tick of a reply of pair {row}", row=row), [change])
    elif do == "duplicate":
        edit_history.commit(persona, Message("duplicate of pair {row}", row=row), [PairChange(row, None, pair)])
        return row + 1
    elif do == "split":
        parts = [PairChange(row, None, part) for part in edits.split_pair(pair)]
        edit_history.commit(persona, Message("split of pair {row}", row=row), [PairChange(at, pair, None), *parts])
    elif do == "join":
        if not at:
            raise InputError("Pair 1 has no pair above it.")
        joined = edits.join_pairs(items[at - 1], pair)
        edit_history.commit(persona, Message("join of pairs {above} and {row}", above=at, row=row),
                       [PairChange(at - 1, items[at - 1], None), PairChange(at, pair, joined)])  # fmt: skip
        return at
    elif do == "delete":
        edit_history.commit(persona, Message("delete of pair {row}", row=row), [PairChange(at, pair, None)])
        return min(row, len(items) - 1)
    else:
        raise InputError("{do}: not something that can be done with a pair.", do=repr(do))
    return row


def _replace_text(pair: Pair, field: str, old: str, text: str) -> Pair:
    """The pair with one text changed."""
    where = field.split(".")
    if where[0] == "history":
        turn, side = int(where[1]), int(where[2])
        if turn >= len(pair.history) or side not in (0, 1):
            raise InputError("That turn is not there any more. Press Reload.")
        now = pair.history[turn][side]
        turns = [list(t) for t in pair.history]
        turns[turn][side] = text
        new = replace(pair, history=tuple((a, b) for a, b in turns))
    elif field in ("instruction", "output", "system"):
        now = getattr(pair, field)
        texts: dict[str, Any] = {field: text}
        new = replace(pair, **texts)
    else:
        raise InputError("{field}: not a text of a pair.", field=repr(field))
    if normalize_line_breaks(now) != old:
        raise InputError(
            "This pair was changed elsewhere (another window, or on disk) since you saw it here. Copy what "
            "you just typed, press Reload, and type it again."
        )
    return new
