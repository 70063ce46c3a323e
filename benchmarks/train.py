"""Training tokens/s against the recipe that tutorials paste: stock transformers.Trainer with PEFT.

    python -m benchmarks.train [--rows 64] [--base NAME] [--nll] [--json]

Both sides get the same base, rows, template, LoRA shape (r=8, alpha=32 on q, k, v, o) and number of row visits, each
in a process of its own, one after the other. The recipe: batch 1 × accumulation 4, gradient checkpointing, dropout
0.1, logits at every position; in bfloat16 and in float32, and the faster of the two counts. Ours: the trainer as the
page runs it, with dropout 0. Tokens are those of all rows, unpadded.

flop_share: the FLOPs that the steps must do (memory.step_flops) per second of ours, as a part of the rate that one
matmul reaches on this machine in the same run. --nll: what both adapters, each learned with its own settings, say of
the same 32 rows that neither has seen, measured alike.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from persona.models import base, bundled, hardware, memory, open_renderer
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train import launcher, plan, run_folder
from persona.train.config import RunConfig, make_config
from persona.train.progress import ACTIVE_STATUSES

HELD_OUT = 32
LORA = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def recipe(base_path: str, rows_file: str, dtype: str, adapter: str) -> dict:
    """The stock side; runs in its own process."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_path)
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=getattr(torch, dtype))
    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **LORA))
    rows = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    for row in rows:
        row["attention_mask"] = [1] * len(row["input_ids"])
    args = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        num_train_epochs=1,
        learning_rate=1e-4,
        gradient_checkpointing=True,
        logging_steps=10_000,
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(model, args, DataCollatorForSeq2Seq(tokenizer, padding=True), train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    model.save_pretrained(adapter)
    return {"seconds": seconds, "tokens_per_s": sum(len(r["input_ids"]) for r in rows) / seconds}


def ours(base_name: str, persona: persona_folder.Persona, scratch: Path) -> dict:
    """The same rows through a run."""
    copy = persona_folder.create_persona_at(scratch / "persona", persona.card(), persona.pairs())
    config = make_config(
        "quick", base=base_name, epochs=1, eval_fraction=0, lora_r=8, lora_alpha=32, target_modules="attention"
    )
    run = train(copy, config)
    seen = run.progress()
    return {"adapter": run.adapter, "dtype": seen.plan["dtype"], **seen.result}


def train(persona: persona_folder.Persona, config: RunConfig) -> run_folder.Run:
    """A finished run, as the page and the command line start it."""
    run = launcher.create_run(persona, config)
    launcher.start_run(run)
    while (seen := run.progress()).status in ACTIVE_STATUSES:
        time.sleep(0.5)
        launcher.reap_children()
    if seen.status != "done":
        raise SystemExit(f"our run {seen.status}: {seen.message}")
    return run


def held_out_nll(found: base.Base, adapter: Path, rows: list, pad_id: int) -> float:
    """Nats per learned token of `rows` by the adapter on its base in float32."""
    from peft import PeftModel

    from persona.models.loss import mean_nll
    from persona.train.collator import Collator

    return mean_nll(PeftModel.from_pretrained(base.load_base_model(found, "float32"), adapter), rows, Collator(pad_id))


def flop_share(found: base.Base, rows: list, seconds: float, dtype: str) -> float:
    """The part of the machine's own matmul rate that the run has reached."""
    tokens, learned = sum(len(r.input_ids) for r in rows), sum(r.learned for r in rows)
    work = memory.step_flops(plan.read_base_shape(found), tokens, learned)
    return work / seconds / dict(hardware.this_machine().rates)[dtype]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--base", default=bundled.DEFAULT_BASE)
    parser.add_argument("--nll", action="store_true", help="compare what was learned, too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", nargs=4, metavar=("BASE", "ROWS", "DTYPE", "ADAPTER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.recipe:
        print(json.dumps(recipe(*given.recipe)))
        return
    hardware.this_machine()  # measured now and kept: while a run's process closes, it would come out too low
    example = persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        chosen = persona_folder.create_persona_at(scratch / "rows", example.card(), example.pairs()[: given.rows])
        found, renderer = open_renderer.open_renderer(example.card(), given.base)
        rows = [renderer.render_example(p) for p in chosen.pairs()]
        file = scratch / "rows.jsonl"
        file.write_text("".join(json.dumps({"input_ids": r.input_ids, "labels": r.labels}) + "\n" for r in rows))
        stock = {}
        for dtype in ("bfloat16", "float32"):
            command = [sys.executable, "-m", "benchmarks.train", "--recipe", found.path, file, dtype, scratch / dtype]
            done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
            stock[dtype] = json.loads(done.stdout.splitlines()[-1])
        mine = ours(given.base, chosen, scratch)
        share = flop_share(found, rows, mine["seconds"], mine["dtype"])
        best = max(stock, key=lambda d: stock[d]["tokens_per_s"])
        nll = {}
        if given.nll:
            unseen = [renderer.render_example(p) for p in example.pairs()[given.rows : given.rows + HELD_OUT]]
            sides = {"nll": mine["adapter"], "recipe_nll": scratch / best}
            pad = renderer.tokenizer.pad_token_id
            nll = {side: round(held_out_nll(found, place, unseen, pad), 3) for side, place in sides.items()}
    ratio = mine["tokens_per_s"] / stock[best]["tokens_per_s"]
    value = {
        "ratio": round(ratio, 2),
        "tokens_per_s": round(mine["tokens_per_s"], 1),
        "recipe_tokens_per_s": round(stock[best]["tokens_per_s"], 1),
        "recipe_dtype": best,
        "flop_share": round(share, 3),
        "rows": given.rows,
        "base": found.id,
        **nll,
    }
    text = (
        f"{given.rows} rows on {found.id}: {value['tokens_per_s']} tokens/s, the recipe {value['recipe_tokens_per_s']} "
        f"({best}): {value['ratio']} times as fast; {share:.0%} of the machine's matmul rate"
    )
    if nll:
        text += f". Held-out NLL {nll['nll']}, the recipe's {nll['recipe_nll']}"
    print(json.dumps(value) if given.json else text)


if __name__ == "__main__":
    main()
