"""Unsloth's trainer with the settings of its notebooks, for a process of its own: it patches what it imports.

Its packages are in a folder that comes first on PYTHONPATH. Written from its notebooks, and tried on a CPU, where
Unsloth takes another path than on a GPU.
"""

import tempfile
from pathlib import Path
from typing import Any

MAX_LENGTH = 2048
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def make_trainer(base: Path, quantization: str, tokenizer: Any, rows: list[dict], lora: dict, loop: dict) -> Any:
    """quantization: none or nf4. rows: input_ids and labels."""
    from unsloth import FastLanguageModel  # isort: skip  (before the packages that it patches)
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    model, _ = FastLanguageModel.from_pretrained(
        str(base), max_seq_length=MAX_LENGTH, load_in_4bit=quantization == "nf4", dtype=None
    )
    modules = ALL_LINEAR if lora["target_modules"] == "all-linear" else lora["target_modules"]
    model = FastLanguageModel.get_peft_model(
        model, r=lora["r"], lora_alpha=lora["lora_alpha"], target_modules=modules, lora_dropout=0, bias="none",
        use_gradient_checkpointing="unsloth", random_state=3407,
    )  # fmt: skip
    args = SFTConfig(
        per_device_train_batch_size=2, gradient_accumulation_steps=4, warmup_steps=5, learning_rate=2e-4,
        optim="adamw_8bit", weight_decay=0.001, lr_scheduler_type="linear", logging_steps=1, seed=3407,
        save_strategy="no", report_to="none", disable_tqdm=True, output_dir=tempfile.mkdtemp(),
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, **loop,
    )  # fmt: skip
    masked = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(masked), processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    )  # fmt: skip
