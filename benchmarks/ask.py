"""All visitors ask the model at the same moment, each with an adapter of their own open: how long they wait.

    python -m benchmarks.ask [--visitors 50] [--tiny] [--json]

The page, the visitors and the guarantees are those of load.py. Exit status 1: a guarantee was broken.
"""

import argparse
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load import QUESTIONS, TOKENS, SimulatedVisitor, asked_alone, latencies, not_kept, report
from benchmarks.page import Page, opened_with_adapter
from benchmarks.visitor import Refused, Visitor


def ask_together(page: Page, zipped: Path, visitors: int) -> dict[str, Any]:
    """Each visitor asks one question at the same moment; returns the waits in ms, memory, and broken guarantees."""
    first = SimulatedVisitor(Visitor(page.url), 0, zipped, random.Random(0))
    crowd = [SimulatedVisitor(Visitor(page.url), n + 1, zipped, random.Random(n)) for n in range(visitors)]
    for g in (first, *crowd):
        g.visitor.open()
        g.visitor.open_zip(zipped)
        g.visitor.settle_chat(0, TOKENS)
    first.visitor.say("Is the model open?")
    first.visitor.close()
    rss, start = page.rss(), time.monotonic()
    at_once = threading.Barrier(visitors)

    def ask(g: SimulatedVisitor) -> None:
        question = f"{QUESTIONS[g.number % len(QUESTIONS)]}, asks {g.name}?"
        at_once.wait()
        try:
            shown = g.visitor.say(question)
        except (Refused, httpx.HTTPError) as e:
            g.errors.append(f"{g.name}: {type(e).__name__} {e}")
            return
        if len(shown) < 2 or any(said != question for said, _ in shown):
            g.wrong.append(f"{g.name} asked {question!r} and was shown {shown}")
        g.said[question] = [reply for _, reply in shown]

    threads = [threading.Thread(target=ask, args=(g,)) for g in crowd]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.monotonic() - start
    errors = [e for g in crowd for e in (*g.errors, *g.visitor.refusals)]
    kept = [w for g in crowd for w in (*g.wrong, *not_kept(page.home, g))]
    wrong = kept + asked_alone(page, crowd)
    words = [("first word", at) for g in crowd for at in g.visitor.first_words]
    answers = [(name, s) for g in crowd for name, s in g.visitor.times if name == "send_after_greeting"]
    for g in crowd:
        g.visitor.close()
    return {
        "visitors": visitors, "seconds": round(seconds, 1), "answers": len(answers), "errors": len(errors),
        "wrong_windows": len(wrong), "rss_before_mb": round(rss / 1e6), "rss_end_mb": round(page.rss() / 1e6),
        "latency_ms": latencies([*words, *answers]), "broken": (errors + wrong)[:20],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ask")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with opened_with_adapter(given.tiny, PERSONA_MAX_REQUESTS="0") as (page, zipped):  # many requests at one moment
        value = ask_together(page, zipped, given.visitors)
    report(value, given.json)


if __name__ == "__main__":
    main()
