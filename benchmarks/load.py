"""Load and soak test of the page: many visitors at once, or one for a long time, with every guarantee checked.

    python -m benchmarks.load [--visitors 50] [--minutes 5] [--pause 5] [--tiny] [--json]
    python -m benchmarks.load --soak [--edits 1000] [--turns 200] [--tiny] [--json]

The page is `python app.py` in a separate process with its own home and the embedded base (--tiny: a random one
of two layers, so that the page is measured and not the model). Visitors speak Gradio's protocol (visitor.py), since 50
browsers do not fit on 2 cores; they share the machine with the page. Exit status 1: a guarantee was broken.
"""

import argparse
import json
import random
import re
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.page import Page, opened_with_adapter, pairs_on_disk, persona_folder
from benchmarks.visitor import Refused, Visitor

TOKENS = 16  # per reply: the page is measured, not the model
ALONE = 12  # questions that are asked again at the end by a single visitor
GROWTH = 1.2, 64_000_000  # memory may grow by a fifth and 64 MB between a third of the time and the end
ACTION_NAMES = {  # path or handler of the page → what the report calls it
    "GET /": "open the page", "GET assets": "a script or style of it", "open_example": "open an example",
    "start_persona": "start a persona", "save_edit": "an edit, until saved", "preview_typed": "the mask while typing",
    "preview_mask": "the mask of a saved pair", "show_pair": "step 2, mask and facts",
    "check_all_pairs": "check all pairs", "update_findings": "check all pairs", "open_zip": "open an adapter",
    "send_after_greeting": "an answer, waiting included", "first word": "the first word of an answer",
    "on_start": "queue a run", "update_run_view": "watch a run",
}  # fmt: skip
QUESTIONS = ("Who are you", "What is the weather", "Where do you live", "What did you eat", "Whom do you trust")


@dataclass
class SimulatedVisitor:
    """A visitor with what the page has acknowledged: the pairs, and the replies to each question."""

    visitor: Visitor
    number: int
    zipped: Path
    rng: random.Random
    pairs: list[list[str]] = field(default_factory=list)
    said: dict[str, list[str]] = field(default_factory=dict)  # question → replies, one per column
    edits: int = 0
    queued: bool = False
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"Visitor {self.number}"


# ---- actions of a visitor


def arrive(g: SimulatedVisitor) -> None:
    """Open an example, as most do first, then start a new persona."""
    g.visitor.open(assets=True)
    g.visitor.fire(f"open-{g.rng.choice(['zhen-huan', 'lighthouse-keeper'])}", "click")
    g.visitor.start_persona(g.name)


def write(g: SimulatedVisitor) -> None:
    """Add a pair or change a text of one; recorded when the page has acknowledged it."""
    if len(g.pairs) < 4 or (len(g.pairs) < 40 and g.rng.random() < 0.3):
        g.visitor.act(do="add", row=len(g.pairs), key="")
        g.pairs.append(["", ""])
        row = len(g.pairs)
    else:
        row = g.rng.randint(1, len(g.pairs))
    for side, text in enumerate(
        (f"{g.name} asks {g.edits}?", f"Answer {g.edits} of {g.name}. " + "So. " * g.rng.randint(0, 30))
    ):
        g.visitor.act(do="edit", row=row, field=("instruction", "output")[side], old=g.pairs[row - 1][side], text=text)
        g.pairs[row - 1][side] = text
        g.edits += 1


def look(g: SimulatedVisitor) -> None:
    """The label mask of a text while it is typed, and step 2."""
    text = f"Typed{g.number}by{g.edits}"
    if text not in _text(g.visitor.mask(1, "A question", text)):
        g.wrong.append(f"{g.name}: the mask does not show {text}")
    if g.pairs:
        g.visitor.go("template")


def talk(g: SimulatedVisitor) -> None:
    """A unique question in a new conversation; each column must show it and its answer."""
    if not g.said:
        g.visitor.go("compare")
        g.visitor.open_zip(g.zipped)
    g.visitor.settle_chat(0, TOKENS)
    g.visitor.new_talk()
    question = f"{g.rng.choice(QUESTIONS)}, asks {g.name} for the {len(g.said) + 1}th time?"
    shown = g.visitor.say(question)
    if len(shown) < 2 or any(said != question for said, _ in shown):
        g.wrong.append(f"{g.name} asked {question!r} and was shown {shown}")
    g.said[question] = [reply for _, reply in shown]


def queue_run(g: SimulatedVisitor) -> None:
    """Start a run of two steps; then fetch its progress, as the page does every second."""
    if len(g.pairs) < 4:
        return write(g)
    if not g.queued:
        g.visitor.go("train")
        g.visitor.fill("set-max-steps", 2)
        g.visitor.fire("start-training", "click")
        g.queued = True
    tick = next(e for e in g.visitor.events if any(t[1] == "tick" for t in e["targets"]))
    g.visitor.run([tick])
    return None


def browse(g: SimulatedVisitor) -> None:
    """Reload; the persona is found again from what the browser stores."""
    g.visitor.open()
    if g.said:
        g.visitor.open_zip(g.zipped)


def stay(g: SimulatedVisitor, until: float, pause: float) -> None:
    """Random actions with a mean pause of `pause` seconds until the time is over; errors are recorded.

    The first actions are done regardless of time, so that every visitor has done something even on a busy machine.
    """
    runs = g.number % 10 == 1
    begin = [arrive, write, look, *([talk] if g.number % 10 in (1, 2) else [])]
    actions = (*[write] * 20, *[look] * 10, talk, *[browse] * 2, *([queue_run] * 4 if runs else []))
    while begin or time.monotonic() < until:
        try:
            (begin.pop(0) if begin else g.rng.choice(actions))(g)
        except (Refused, httpx.HTTPError) as e:
            g.errors.append(f"{g.name}: {type(e).__name__} {e}")
        time.sleep(min(g.rng.uniform(0.5, 1.5) * pause, max(0.0, until - time.monotonic())))


def _text(html: str) -> str:
    """The text of a mask without its HTML tags."""
    return re.sub(r"<[^>]*>", "", html)


# ---- the load test


def load(page: Page, zipped: Path, visitors: int, seconds: float, pause: float) -> dict[str, Any]:
    """Run all visitors, who arrive over the first tenth of the time; returns the figures and broken guarantees.

    One visitor has opened the model before, so that its weights do not count as growth.
    """
    first = SimulatedVisitor(Visitor(page.url), 0, zipped, random.Random(0))
    for action in (arrive, write, look, talk):
        action(first)
    first.visitor.close()
    crowd = [SimulatedVisitor(Visitor(page.url), n + 1, zipped, random.Random(n)) for n in range(visitors)]
    start = time.monotonic()
    memory: list[tuple[float, int]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.5):
            memory.append((time.monotonic() - start, page.rss()))

    def live(g: SimulatedVisitor) -> None:
        time.sleep(seconds / 10 * g.number / visitors)
        stay(g, start + seconds, pause)

    threads = [threading.Thread(target=live, args=(g,)) for g in crowd]
    sampler = threading.Thread(target=sample)
    for thread in (sampler, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    over.set()
    sampler.join()
    return judge(page, crowd, memory, visitors, seconds)


def judge(
    page: Page, crowd: Sequence[SimulatedVisitor], memory: Sequence[tuple[float, int]], visitors: int, seconds: float
) -> dict[str, Any]:
    errors = [e for g in crowd for e in (*g.errors, *(f"{g.name}: {r}" for r in g.visitor.refusals))]
    lost = [x for g in crowd for x in missing(page.home, g)]
    wrong = [w for g in crowd for w in (*g.wrong, *not_kept(page.home, g))] + asked_alone(page, crowd)
    third = next((rss for at, rss in memory if at >= seconds / 3), 0)
    end = memory[-1][1]
    broken = [*errors, *lost, *wrong]
    if end > third * GROWTH[0] + GROWTH[1]:
        broken.append(f"memory grew from {third / 1e6:.0f} to {end / 1e6:.0f} MB")
    for g in crowd:
        g.visitor.close()
    return {
        "visitors": visitors, "seconds": round(seconds), "edits": sum(g.edits for g in crowd), "lost_edits": len(lost),
        "answers": sum(len(g.said) for g in crowd), "wrong_windows": len(wrong), "errors": len(errors),
        "rss_third_mb": round(third / 1e6), "rss_end_mb": round(end / 1e6),
        "latency_ms": latencies([t for g in crowd for t in g.visitor.times]), "broken": broken[:20],
    }  # fmt: skip


def missing(home: Path, g: SimulatedVisitor) -> list[str]:
    """Acknowledged edits that are not in the visitor's pairs.jsonl."""
    if not g.pairs:
        return []
    there = pairs_on_disk(persona_folder(home, g.name))
    have = [*there, *[("", "")] * len(g.pairs)]
    return [
        f"{g.name}, pair {n + 1}: {p} acknowledged, {have[n]} on disk"
        for n, p in enumerate(g.pairs)
        if tuple(p) != have[n]
    ]


def not_kept(home: Path, g: SimulatedVisitor) -> list[str]:
    """Answers that the window showed but the conversation on disk does not have for that question."""
    kept: dict[str, list[str]] = {}
    for file in home.glob("**/talks/*/*.jsonl"):
        said: dict[int, str] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            said |= {row["id"]: row["said"]} if "said" in row else {}
            if "answers" in row:
                kept[said[row["parent"]]] = [_words(a["text"]) for a in row["answers"]]
    return [
        f"{g.name}: {q!r} was answered {a} in the window and {kept.get(q)} on disk"
        for q, a in g.said.items()
        if kept.get(q) != [_words(x) for x in a]
    ]


def _words(text: str) -> str:
    """A text with white space normalised: Gradio's chatbot strips and dedents it."""
    return " ".join(text.split())


def asked_alone(page: Page, crowd: Sequence[SimulatedVisitor]) -> list[str]:
    """Ask some of the questions again as the only visitor: decoding is greedy, so the answers must be equal."""
    asked = [(q, a, g) for g in crowd for q, a in g.said.items()]
    wrong = []
    if asked:
        lone = Visitor(page.url)
        lone.open()
        lone.start_persona("Alone")
        lone.go("compare")
        lone.open_zip(asked[0][2].zipped)
        for question, answers, g in random.Random(0).sample(asked, min(ALONE, len(asked))):
            lone.settle_chat(0, TOKENS)
            lone.new_talk()
            if (now := [reply for _, reply in lone.say(question)]) != answers:
                wrong.append(f"{g.name}: {question!r} was answered {answers}, alone {now}")
        lone.close()
    return wrong


def latencies(times: Sequence[tuple[str, float]]) -> dict[str, dict[str, int]]:
    """Milliseconds per kind of action: median, 95th and 99th percentile, maximum."""
    kinds: dict[str, list[float]] = {word: [] for word in ACTION_NAMES.values()}
    for name, seconds in times:
        kinds.setdefault(ACTION_NAMES.get(name, "everything else"), []).append(seconds * 1000)

    def of(values: list[float]) -> dict[str, int]:
        values.sort()
        at = {f"p{p}": round(values[min(len(values) - 1, len(values) * p // 100)]) for p in (50, 95, 99)}
        return {"count": len(values), **at, "max": round(values[-1])}

    return {kind: of(values) for kind, values in kinds.items() if values}


# ---- the soak test


def soak(page: Page, zipped: Path, edits: int, turns: int) -> dict[str, Any]:
    """`edits` edits of 20 pairs and `turns` turns of chat by one visitor; returns what grew after the first tenth."""
    g = SimulatedVisitor(Visitor(page.url), 1, zipped, random.Random(0))
    arrive(g)
    g.visitor.go("compare")
    g.visitor.open_zip(zipped)
    before: dict[str, int] = {}
    memory: list[int] = []  # MB after each tenth of the edits
    every, tenth, turn = max(1, edits // max(1, turns)), max(1, edits // 10), 0
    for n in range(edits):
        if n == tenth:
            before = page.measured()
        if n % tenth == 0:
            memory.append(round(page.rss() / 1e6))
        row = n % 20 + 1
        if row > len(g.pairs):
            g.visitor.act(do="add", row=len(g.pairs), key="")
            g.pairs.append(["", ""])
        g.visitor.act(do="edit", row=row, field="output", old=g.pairs[row - 1][1], text=f"Edit {n}. " + "So. " * 20)
        g.pairs[row - 1][1] = f"Edit {n}. " + "So. " * 20
        if n % every == 0 and turn < turns:
            g.visitor.settle_chat(0, TOKENS)
            if turn % 10 == 0:
                g.visitor.new_talk()
            g.visitor.say(f"Turn {turn}?")
            turn += 1
    after = page.measured()
    folder = persona_folder(page.home, g.name)
    undo = len(list((folder / "undo").glob("*.jsonl")))
    broken = [
        f"{name} grew from {before[name]:,} to {after[name]:,}"
        for name, more in ALLOWED.items()
        if after[name] > before[name] + more
    ]
    broken += missing(page.home, g) + g.visitor.refusals
    if undo > 200:
        broken.append(f"{undo} edits are kept to take back, 200 are promised")
    g.visitor.close()
    times = latencies(g.visitor.times)
    return {"edits": edits, "turns": turn, "before": before, "after": after, "rss_tenths_mb": memory,
            "undo_files": undo, "latency_ms": times, "broken": broken}  # fmt: skip


# allowed growth between the first tenth of a soak and its end
ALLOWED = {"rss": 100_000_000, "files": 4, "threads": 4, "temporary": 0}


def show(value: dict[str, Any]) -> None:
    for name, each in value.items():
        if name not in ("latency_ms", "broken"):
            print(f"{name:16} {each}")
    print(f"\n{'milliseconds':30}{'count':>7}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}")
    for kind, at in value["latency_ms"].items():
        print(
            f"{kind:30}"
            + "".join(f"{at[k]:>{7 if k == 'count' else 8}}" for k in ("count", "p50", "p95", "p99", "max"))
        )
    for what in value["broken"]:
        print("BROKEN:", what)


def report(value: dict[str, Any], as_json: bool) -> None:
    """Print the figures, and end with status 1 if a guarantee was broken."""
    if as_json:
        print(json.dumps(value))
    else:
        show(value)
    sys.exit(1 if value["broken"] else 0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--pause", type=float, default=5, help="mean seconds between two actions of a visitor")
    parser.add_argument("--soak", action="store_true")
    parser.add_argument("--edits", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    requests = {"PERSONA_MAX_REQUESTS": "0"} if given.soak else {}  # one visitor sends the requests of many
    with opened_with_adapter(given.tiny, **requests) as (page, zipped):
        if given.soak:
            value = soak(page, zipped, given.edits, given.turns)
        else:
            value = load(page, zipped, given.visitors, given.minutes * 60, given.pause)
    report(value, given.json)


if __name__ == "__main__":
    main()
