"""Training tokens/s against two usual alternatives: the recipe of tutorials, and stock TRL.

    python -m benchmarks.train [--rows 64] [--base NAME] [--nll] [--json]

All sides get the same base, rows, labels, LoRA shape (r=8, alpha=32 on q, k, v, o) and number of epochs. They run one
after the other, each in a separate process.

recipe: transformers.Trainer with PEFT as in tutorials: batch 1 × accumulation 4, gradient checkpointing, dropout
0.1, logits at every position; in bfloat16 and in float32, and the faster of the two counts.
trl: trl.SFTTrainer with its defaults, except for what our rows need, at our batch size of 8 in bfloat16. On a CPU it
computes all logits of a batch, which makes it the slowest of the three there; on a GPU it does not.
ours: the trainer as the page runs it, with dropout 0.

Tokens are those of all rows, unpadded. flop_share: the FLOPs that our steps require (memory.step_flops) per second, as
a share of the rate that one matmul reaches on this machine in the same run. --nll: the NLL of 32 unseen rows under the
adapters of recipe and ours, each trained with its own settings.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from persona.models import base, bundled, hardware, memory, open_renderer
from persona.store import persona_folder
from persona.store.workspace import EXAMPLES_DIR
from persona.train import launcher, plan, run_folder
from persona.train.config import RunConfig, make_config

HELD_OUT = 32
LOOP = {
    "num_train_epochs": 1,
    "learning_rate": 1e-4,
    "logging_steps": 10_000,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}
LORA = {"r": 8, "lora_alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}


def run_stock(side: str, base_path: str, rows_file: str, dtype: str, adapter: str) -> dict:
    """Train one of the other sides in this process. side: recipe or trl."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base_path)
    model = AutoModelForCausalLM.from_pretrained(base_path, dtype=getattr(torch, dtype))
    rows = [json.loads(line) for line in Path(rows_file).read_text().splitlines()]
    trainer = (recipe_trainer if side == "recipe" else trl_trainer)(model, tokenizer, rows)
    trainer.remove_callback(PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.model.save_pretrained(adapter)
    return {"seconds": seconds, "tokens_per_s": sum(len(r["input_ids"]) for r in rows) / seconds}


def recipe_trainer(model: Any, tokenizer: Any, rows: list[dict], lora: dict = LORA, **loop: Any) -> Any:
    """The tutorials' trainer. loop: TrainingArguments in place of those of LOOP."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.1, **lora))
    args = TrainingArguments(
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        gradient_checkpointing=True,
        use_cpu=not torch.cuda.is_available(),
        **{**LOOP, **loop},
        output_dir=tempfile.mkdtemp(),
    )
    masked = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return Trainer(model, args, DataCollatorForSeq2Seq(tokenizer, padding=True), train_dataset=masked)


def trl_trainer(model: Any, tokenizer: Any, rows: list[dict], lora: dict = LORA, **loop: Any) -> Any:
    """SFTTrainer at our batch size, with the same labels as ours. loop: SFTConfig in place of LOOP."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    cuda = torch.cuda.is_available()
    args = SFTConfig(
        bf16=cuda,  # its default refuses to start on a CPU; the weights are bfloat16 there
        use_cpu=not cuda,
        max_length=RunConfig().max_length,
        **{**LOOP, "per_device_train_batch_size": RunConfig().batch_size, **loop},
        output_dir=tempfile.mkdtemp(),
    )
    peft = LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **lora)
    return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, peft_config=peft)


def ours(base_name: str, persona: persona_folder.Persona, scratch: Path) -> dict:
    """Train the same rows in a run."""
    copy = persona_folder.create_persona_at(scratch / "persona", persona.card(), persona.pairs())
    config = make_config(
        "quick", base=base_name, epochs=1, eval_fraction=0, lora_r=8, lora_alpha=32, target_modules="attention"
    )
    run = train(copy, config)
    seen = run.progress()
    return {"adapter": run.adapter, "dtype": seen.plan["dtype"], **seen.result}


def train(persona: persona_folder.Persona, config: RunConfig) -> run_folder.Run:
    """Train a run, started as the page and the command line do."""
    run = launcher.create_run(persona, config)
    launcher.start_run(run)
    launcher.wait_for_run(run)
    return run


def held_out_nll(found: base.Base, adapter: Path, rows: list, pad_id: int) -> float:
    """Nats per learned token of `rows` by the adapter on its base in float32."""
    from peft import PeftModel

    from persona.models.loss import mean_nll
    from persona.train.collator import Collator

    return mean_nll(PeftModel.from_pretrained(base.load_base_model(found, "float32"), adapter), rows, Collator(pad_id))


def flop_share(found: base.Base, rows: list, seconds: float, dtype: str) -> float:
    """The share of this machine's matmul rate that the run reached."""
    tokens, learned = sum(len(r.input_ids) for r in rows), sum(r.learned for r in rows)
    work = memory.step_flops(plan.read_base_shape(found), tokens, learned)
    return work / seconds / dict(hardware.this_machine().rates)[dtype]


def stock_side(side: str, found: base.Base, rows_file: Path, dtype: str, adapter: Path) -> dict:
    """run_stock() in a separate process."""
    command = [sys.executable, "-m", "benchmarks.train", "--stock", side, found.path, rows_file, dtype, adapter]
    done = subprocess.run(list(map(str, command)), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} in {dtype} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--base", default=bundled.DEFAULT_BASE)
    parser.add_argument("--nll", action="store_true", help="compare what was learned, too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--stock", nargs=5, metavar=("SIDE", "BASE", "ROWS", "DTYPE", "ADAPTER"), help=argparse.SUPPRESS
    )
    given = parser.parse_args()
    if given.stock:
        print(json.dumps(run_stock(*given.stock)))
        return
    hardware.this_machine()  # measured now and cached: it would be too low while a run's process is closing
    example = persona_folder.open_persona(EXAMPLES_DIR / "zhen-huan")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        chosen = persona_folder.create_persona_at(scratch / "rows", example.card(), example.pairs()[: given.rows])
        found, renderer = open_renderer.open_renderer(example.card(), given.base)
        rows = [renderer.render_example(p) for p in chosen.pairs()]
        file = scratch / "rows.jsonl"
        file.write_text("".join(json.dumps({"input_ids": r.input_ids, "labels": r.labels}) + "\n" for r in rows))
        stock = {d: stock_side("recipe", found, file, d, scratch / d) for d in ("bfloat16", "float32")}
        trl = stock_side("trl", found, file, "bfloat16", scratch / "trl")
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
        "trl_tokens_per_s": round(trl["tokens_per_s"], 1),
        "trl_ratio": round(mine["tokens_per_s"] / trl["tokens_per_s"], 2),
        "flop_share": round(share, 3),
        "rows": given.rows,
        "base": found.id,
        **nll,
    }
    text = (
        f"{given.rows} rows on {found.id}: {value['tokens_per_s']} tokens/s, the recipe {value['recipe_tokens_per_s']} "
        f"({best}): {value['ratio']} times as fast; stock SFTTrainer at batch 8 {value['trl_tokens_per_s']}: "
        f"{value['trl_ratio']} times; {share:.0%} of the machine's matmul rate"
    )
    if nll:
        text += f". Held-out NLL {nll['nll']}, the recipe's {nll['recipe_nll']}"
    print(json.dumps(value) if given.json else text)


if __name__ == "__main__":
    main()
