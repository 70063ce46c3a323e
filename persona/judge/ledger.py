"""The runs of a persona as a table: when, from what, with which settings and pairs, and how well each did.

What a run's own files say is worked out once and kept in its folder, `ledger.json`; it counts as long as these files
have the size and time that it names, and it has the figures of this version. So a ledger reads one small file for each
run.
"""

import hashlib
import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from persona.errors import Message, PersonaError
from persona.judge import probes, training_gain
from persona.judge.report_model import FrozenModel, Interval
from persona.store.files import read_json, to_json, write_atomic
from persona.store.pairs import Pair
from persona.store.persona_folder import Persona
from persona.train import run_notes
from persona.train.config import RunConfig, make_config
from persona.train.progress import ACTIVE_STATUSES, RunProgress
from persona.train.run_folder import Run, list_runs
from persona.train.run_notes import RunNote

LEDGER_FILE = "ledger.json"
WATCHED_FILES = ("run.json", "events.jsonl", "pairs.jsonl", "report.json")  # what the figures are made from
MAX_FINGERPRINTS = 5_000  # pairs of a run; with more, what changed since is counted when it is opened
HASH_DIGITS = 10


class Share(FrozenModel):
    """`kept` of `of`."""

    kept: int
    of: int


class RunFigures(FrozenModel):
    """What a run's files say. NLL in nats per learned token, on its held-out pairs.

    settings: those that are not the default, base and template aside. minutes: from start to end, with loading and
    evaluations. probes: answers that keep the card's rules; stops: answers that ended by themselves; both of the last
    evaluation by the judge, else of the samples of the chosen step. fingerprints: of its pairs, where they are not too
    many: "QUESTION ANSWER".
    """

    name: str
    created: str = ""
    status: str = "failed"
    base: str = ""
    template: str = ""
    parent: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    pairs: int = 0
    held_out: int = 0
    new_pairs: int = 0
    steps: int = 0
    chosen: int | None = None
    base_nll: float | None = None
    start_nll: float | None = None
    nll: Interval | None = None
    probes: Share | None = None
    stops: Share | None = None
    minutes: float = 0.0
    learns_preferences: bool = False  # its pairs are those
    fingerprints: list[str] | None = None


class PairChanges(FrozenModel):
    """How many pairs were added, removed and given another answer since a run."""

    added: int = 0
    removed: int = 0
    changed: int = 0


class LedgerRow(FrozenModel):
    """A run in the table. since: to the persona's pairs of today, where it learned pairs; None: counted on opening."""

    figures: RunFigures
    note: RunNote
    since: PairChanges | None


def read_ledger(persona: Persona) -> list[LedgerRow]:
    """All runs of a persona, newest first. A damaged one is there too, with what could be read."""
    today = fingerprint_pairs(persona.scan()[0])
    rows = []
    for run in list_runs(persona):
        figures = read_figures(run)
        since = None if figures.fingerprints is None else count_changes(figures.fingerprints, today)
        since = PairChanges() if figures.learns_preferences else since
        rows.append(LedgerRow(figures=figures, note=run_notes.read_note(run), since=since))
    return rows


def read_figures(run: Run) -> RunFigures:
    """The figures of a run: those that were kept, if its files are the same, else worked out and kept."""
    watched = _describe_files(run.path)
    try:
        kept = json.loads((run.path / LEDGER_FILE).read_bytes())
        if kept["files"] == watched and kept["figures"].keys() == RunFigures.model_fields.keys():
            return RunFigures.model_validate(kept["figures"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    try:
        figures = compute_figures(run)
    except PersonaError:  # damaged: it can still be opened, which says what is wrong
        return RunFigures(name=run.name)
    if figures.status not in (*ACTIVE_STATUSES, "interrupted"):  # these change without a file of theirs
        write_atomic(run.path / LEDGER_FILE, to_json({"files": watched, "figures": figures.model_dump(mode="json")}))
    return figures


def _describe_files(path: Path) -> dict[str, list[int]]:
    found = {}
    for name in WATCHED_FILES:
        try:
            stat = (path / name).stat()
        except OSError:
            continue
        found[name] = [stat.st_size, stat.st_mtime_ns]
    return found


def compute_figures(run: Run) -> RunFigures:
    """The figures from the run's files. Raises PersonaError where these are damaged."""
    manifest, config, rows, p = run.manifest(), run.config(), run.rows(), run.progress()
    base, template, parent = (manifest.get(name) for name in ("base", "template", "parent"))
    kept, stops = _read_report(run) or _judge_samples(run, p)
    return RunFigures(
        name=run.name,
        created=str(manifest.get("created", "")),
        status=p.status,
        base=str(base.get("id")) if isinstance(base, dict) else config.base,
        template=str(template.get("name")) if isinstance(template, dict) else config.template,
        parent=parent.get("adapter") if isinstance(parent, dict) else None,
        settings=list_changed_settings(config),
        pairs=sum(not r.held_out for r in rows),
        held_out=sum(r.held_out for r in rows),
        new_pairs=sum(r.is_new for r in rows),
        steps=p.step,
        chosen=p.chosen,
        base_nll=p.base_nll,
        start_nll=p.start_nll,
        nll=_estimate_nll(p),
        probes=kept,
        stops=stops,
        minutes=round(p.elapsed / 60, 3),
        learns_preferences=any(r.rejected for r in rows),
        fingerprints=fingerprint_pairs([r.pair for r in rows]) if len(rows) <= MAX_FINGERPRINTS else None,
    )


def list_changed_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that are not the default; base and template have columns of their own."""
    own, default = config.model_dump(), make_config().model_dump()
    return {n: v for n, v in own.items() if v != default[n] and n not in ("base", "template")}


def _estimate_nll(p: RunProgress) -> Interval | None:
    rows, learned = p.held_out_rows.get(p.chosen or 0, []) if p.chosen else [], training_gain.count_learned_tokens(p)
    if rows and (found := training_gain.compare_rows(rows, rows, learned)):
        return found.after
    nll = p.adapter_nll
    return None if nll is None else Interval(value=nll, low=nll, high=nll)


def _read_report(run: Run) -> tuple[Share | None, Share | None] | None:
    """(probes kept, answers that stopped) of report.json; None where the run was not judged."""
    if not (run.path / "report.json").is_file():
        return None
    try:
        results = read_json(run.path / "report.json", Message("a report")).get("probes", [])
        ruled = [reply for r in results if r["ruled"] for reply in r["replies"]]
        replies = [reply for r in results for reply in r["replies"]]
    except (PersonaError, KeyError, TypeError, AttributeError):
        return None
    kept = Share(kept=sum(not r.get("wrong") for r in ruled), of=len(ruled)) if ruled else None
    return kept, Share(kept=sum(bool(r.get("ended")) for r in replies), of=len(replies)) if replies else None


def _judge_samples(run: Run, p: RunProgress) -> tuple[Share | None, Share | None]:
    answers = dict(p.samples).get(p.chosen or -1, [])
    if not answers:
        return None, None
    rules = {rule.ask: rule for rule in run.card().probe_rules}
    ruled = [a for a in answers if a.get("probe") in rules]
    kept = sum(not probes.find_broken_rules(rules[a["probe"]], a.get("text", "")) for a in ruled)
    stops = Share(kept=sum(bool(a.get("ended")) for a in answers), of=len(answers))
    return (Share(kept=kept, of=len(ruled)) if ruled else None), stops


# ---- what changed in the pairs


def fingerprint_pairs(pairs: Iterable[Pair]) -> list[str]:
    """A short hash of each pair's question, history and own system prompt included, and one of its answer."""
    return [f"{_hash([p.instruction, p.history, *filter(None, [p.system])])} {_hash(p.output)}" for p in pairs]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:HASH_DIGITS]


def count_changes(before: Sequence[str], after: Sequence[str]) -> PairChanges:
    """Between two sets of fingerprints; a question with another answer is one that changed."""
    gone, come = Counter(before) - Counter(after), Counter(after) - Counter(before)
    questions_gone, questions_come = (Counter(x.split()[0] for x in c.elements()) for c in (gone, come))
    changed = (questions_gone & questions_come).total()
    return PairChanges(added=come.total() - changed, removed=gone.total() - changed, changed=changed)


class PairDifference(FrozenModel):
    """A pair that was added (before: ""), removed (after: ""), or given another answer."""

    question: str
    before: str = ""
    after: str = ""


def diff_pairs(before: Sequence[Pair], after: Sequence[Pair]) -> list[PairDifference]:
    """What a reader needs to see of two sets of pairs: the changed ones first, then the added, then the removed."""
    known, now = (Counter(pair.identity for pair in pairs) for pairs in (before, after))
    come = now - known
    waiting = defaultdict[Any, deque[Any]](deque)  # those that came, by what is asked, oldest first
    for identity in come.elements():
        waiting[_asked(*identity)].append(identity)
    changed, removed = [], []
    for turns, system in (known - now).elements():
        question, answer = turns[-1]
        if candidates := waiting[_asked(turns, system)]:
            new = candidates.popleft()
            come[new] -= 1
            changed.append(PairDifference(question=question, before=answer, after=new[0][-1][1]))
        else:
            removed.append(PairDifference(question=question, before=answer))
    added = [PairDifference(question=turns[-1][0], after=turns[-1][1]) for turns, _ in come.elements()]
    return [*changed, *added, *removed]


def _asked(turns: tuple[tuple[str, str], ...], system: str) -> tuple[Any, ...]:
    """All of a pair but its answer."""
    return turns[:-1], turns[-1][0], system
