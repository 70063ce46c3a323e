"""Records of the sections → the table for people, and one JSON object."""

import json
import statistics
from pathlib import Path
from typing import Any

Record = dict[str, Any]
NOT_MEASURED = "not measured"


def read_records(results: Path) -> list[Record]:
    """All whole lines: the last may be half written."""
    records = []
    for line in results.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def summarize(records: list[Record]) -> Record:
    """The one JSON object: the card, the figures that are aimed at, and every record."""
    card = next((r for r in records if r["section"] == "card" and "card" in r), {})
    return {"card": card.get("card", NOT_MEASURED), "torch": card.get("torch"), **aims(records), "records": records}


def cells(records: list[Record], **wanted: Any) -> list[Record]:
    return [r for r in records if "tokens_per_s" in r and all(r.get(k) == v for k, v in wanted.items())]


def find_rate(records: list[Record], **wanted: Any) -> float | None:
    found = [r for r in cells(records, **wanted) if r["section"] != "estimates"]
    return found[0]["tokens_per_s"] if found else None


def ratio(a: float | None, b: float | None) -> float | None:
    return round(a / b, 2) if a and b else None


def aims(records: list[Record]) -> Record:
    """Ours against the others on the same base, LoRA and rows, by base and number format."""
    found: Record = {}
    for base in dict.fromkeys(r["base"] for r in cells(records, side="ours")):
        for kind in ("none", "nf4"):
            same = {"base": base, "quantization": kind, "lora": "r8 qkvo", "rows": "short"}
            recipe = find_rate(records, side="recipe", **same)
            ours = find_rate(records, side="ours", batch=8, **same)
            figures = {
                "recipe_ratio_same_rows": ratio(find_rate(records, side="ours", batch=4, **same), recipe),
                "recipe_ratio": ratio(ours, recipe),
                "trl_ratio": ratio(ours, find_rate(records, side="trl", batch=8, **same)),
                "unsloth_ratio": ratio(ours, find_rate(records, side="unsloth", batch=8, **same)),
            }
            if kept := {k: v for k, v in figures.items() if v is not None}:
                found[f"{base} {'bf16' if kind == 'none' else kind}"] = kept
    errors = [memory_error(r) for r in records if r["section"] == "estimates" and "planned_bytes" in r]
    if errors:
        found["memory_error_worst"] = round(max(map(abs, errors)), 3)
        found["memory_error_median"] = round(statistics.median(map(abs, errors)), 3)
    return found


def memory_error(record: Record) -> float:
    """(planned - measured) / measured."""
    return record["planned_bytes"] / record["peak_bytes"] - 1


def render_table(records: list[Record]) -> str:
    """Markdown tables of what is there; what was left out comes last, with the reason."""
    card = next((r for r in records if r["section"] == "card" and "card" in r), None)
    lines = [f"# {card['card'] if card else NOT_MEASURED}", ""]
    if card:
        rates = ", ".join(f"{d} {r / 1e12:.1f}" for d, r in card["rates"].items())
        best, copied = f"{card['matmul_rate'] / 1e12:.1f}", f"{card['bandwidth'] / 1e9:.0f}"
        lines += [f"torch {card['torch']}; matmul TFLOP/s: {rates}, at its best {best}; copy {copied} GB/s", ""]
    lines += _training_table(records) + _chat_table(records) + _memory_table(records)
    if skipped := [r for r in records if "skipped" in r]:
        lines += ["## Not measured", ""]
        for r in skipped:
            what = " ".join(str(r[k]) for k in ("side", "base", "quantization", "lora", "rows", "batch") if k in r)
            lines.append(f"- {r['section']}: {what}{': ' if what else ''}{r['skipped']}")
    return "\n".join(lines) + "\n"


def _table(title: str, head: list[str], rows: list[list[Any]]) -> list[str]:
    if not rows:
        return []
    text = [[NOT_MEASURED if x is None else str(x) for x in row] for row in rows]
    return [f"## {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in text), ""]  # fmt: skip


def _training_table(records: list[Record]) -> list[str]:
    head = ["base", "weights", "LoRA", "rows", "rows a step", "side", "tokens/s", "peak GB", "of the matmul rate"]
    rows = [
        [r["base"], "bf16" if r["quantization"] == "none" else r["quantization"], r["lora"], r["rows"], r["batch"],
         r["side"], r["tokens_per_s"], f"{r['peak_bytes'] / 1e9:.2f}", f"{r.get('matmul_share', 0):.1%}"]
        for r in cells(records) if r["section"] != "estimates"
    ]  # fmt: skip
    return _table("Training", head, rows)


def _chat_table(records: list[Record]) -> list[str]:
    head = ["base", "columns", "tokens/s a column", "first token s", "plain generate tokens/s", "its first token s",
            "ratio", "limit tokens/s", "of the limit", "same texts", "with CUDA graphs: tokens/s a column", "ratio",
            "same texts", "captured"]  # fmt: skip
    keys = ("base", "columns", "column_tokens_per_s", "first_token_s", "plain_tokens_per_s", "plain_first_token_s",
            "ratio", "limit_tokens_per_s", "limit_share", "same_texts", "graph_tokens_per_s", "graph_ratio",
            "graph_same_texts", "graph_captured")  # fmt: skip
    return _table("Side by side", head, [[r.get(k) for k in keys] for r in records if "column_tokens_per_s" in r])


def _memory_table(records: list[Record]) -> list[str]:
    head = ["base", "weights", "LoRA", "rows", "batch", "checkpointing", "planned GB", "measured GB", "error",
            "planned s", "measured s"]  # fmt: skip
    rows = [
        [r["base"], "bf16" if r["quantization"] == "none" else r["quantization"], r["lora"], r["rows"], r["batch"],
         "yes" if r["checkpointing"] else "no", f"{r['planned_bytes'] / 1e9:.2f}", f"{r['peak_bytes'] / 1e9:.2f}",
         f"{memory_error(r):+.0%}", r["planned_seconds"], r["seconds"]]
        for r in records if "planned_bytes" in r
    ]  # fmt: skip
    return _table("Estimates", head, rows)
