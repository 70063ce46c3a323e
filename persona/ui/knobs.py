"""Step 3, the expert drawer: when to touch a setting. What it does is said by RunConfig itself."""

WHEN: dict[str, str] = {
    "epochs": "More when she is still too much like the base, fewer when she repeats her pairs word by word.",
    "max_steps": "Set it to try something out in a minute.",
    "learning_rate": "Halve it when the held-out loss jumps or rises, double it when nothing is learned.",
    "lr_scheduler_type": "Leave it, unless you compare with a run made elsewhere.",
    "warmup": "More when the loss jumps in the first steps.",
    "batch_size": "Lower it first when memory runs out; higher is calmer, and slower per step.",
    "gradient_accumulation_steps": "Raise it as you lower the batch size: then the training stays the same.",
    "optim": "Leave it on a CPU; 8 bits save memory on a GPU.",
    "weight_decay": "Leave it at 0.",
    "neftune_noise_alpha": "Try 5 when her answers are copies of her pairs.",
    "lora_r": "32 for many hundred pairs with much to know; 8 for a small set.",
    "lora_alpha": "Keep it at twice the rank.",
    "lora_dropout": "0.05 when she learns her pairs by heart.",
    "target_modules": "Leave it; attention alone is a smaller adapter that learns less.",
    "init_lora_weights": "Leave it; pissa learns faster in the first steps.",
    "use_rslora": "Only with a rank of 64 and more.",
    "use_dora": "Leave it off where you want to compare side by side quickly.",
    "train_stop_token": "When step 2 says that this base never learned to stop.",
    "quantization": "When the base does not fit into the memory of your GPU.",
    "dtype": "Leave it; float32 when the loss becomes “nan”.",
    "gradient_checkpointing": "When memory runs out and a smaller batch is not enough.",
    "packing": "Leave it on a CPU.",
    "engine": "Leave it on a CPU.",
    "eval_fraction": "0 only when every pair counts: then nobody can tell whether she learned.",
    "diary_probes": "0 makes a run a little faster; more lets you hear more of her.",
    "early_stopping_patience": "3 to 6 for long runs.",
    "save_steps": "Set it when a run takes hours and the power may fail.",
    "seed": "Another one to see how much of a result is chance.",
    "report_to": "When you keep the charts of all your runs in one place.",
}


def help_of(name: str, description: str) -> str:
    """What a setting does, and when to change it."""
    return f"{description} → {WHEN[name]}"
