"""train: a run, from the shell."""

import json
import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona.cli.output import AsJson, PersonaDir, open_persona, print_note, print_result, split_key_value
from persona.errors import Message, PersonaError

RESULT_KEYS = ("run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
          "adapter_nll", "peak_memory_bytes")  # fmt: skip


def train(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help="Base model: embedded name, Hub id, folder or .gguf.")] = "",
    preset: Annotated[str, typer.Option(help="quick, balanced or thorough.")] = "quick",
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Any setting of a run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with.")] = None,
    launcher: Annotated[Literal["here", "ray"], typer.Option(help="Train on this machine or a Ray cluster.")] = "here",
    address: Annotated[str, typer.Option(help="Of the Ray cluster; else the one of this machine.")] = "",
    storage: Annotated[
        str, typer.Option(envvar="PERSONA_STORAGE", help="URL that all nodes of the cluster reach: s3://…, file:///…")
    ] = "",
    smaller: Annotated[bool, typer.Option("--smaller", help="With --resume: with what its failure proposed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA on the persona's pairs. Ctrl-C stops at the next step and keeps the best adapter so far.

    One run at a time trains on this machine; another waits in line for its turn.
    """
    from persona.train import launcher as train_launcher
    from persona.train import run_folder
    from persona.train.config import make_config

    persona = open_persona(directory)
    if launcher == "ray":
        from persona.train import ray_cluster

        ray_cluster.open_storage(storage)
    if resume:
        inside = persona.runs_dir / resume
        run = run_folder.open_run(inside if inside.is_dir() else resume)
    else:
        settings = dict(split_key_value(x, "--set") for x in changes or []) | ({"base": base} if base else {})
        run = train_launcher.create_run(persona, _fit_to_machine(persona, make_config(preset, **settings), settings))
    if resume and smaller:
        run = train_launcher.start_with_remedy(persona, run)
    elif launcher == "ray":
        train_launcher.start_on_cluster(run, storage, address)
    else:
        train_launcher.start_run(run)
    print_note(f"Run {run.path}")
    last = _follow(run)
    value = {k: last.result.get(k) for k in RESULT_KEYS} | {"run": str(run.path), "status": last.status}
    value["adapter"] = value["adapter"] and str(run.adapter)  # the result of a cluster names the worker's
    if last.status not in ("done", "stopped"):
        value["status"] = "failed"
        if as_json:
            typer.echo(json.dumps(value, ensure_ascii=False))
        raise PersonaError(
            Message.of(last.message)
            or Message("The run ended as {status}; see {log}.", status=last.status, log=run.path / "log.txt")
        )
    text = _summary(value) if last.result else f"{last.status}: {last.message or 'nothing was trained.'}"
    print_result(value, text, as_json)


def _fit_to_machine(persona: Any, config: Any, given: Any) -> Any:
    """The settings as they fit into this machine, as the page does it; what was given by hand stays."""
    from persona.train import plan

    seen = plan.estimate_on_this_machine(persona, config, persona.pairs())
    if seen is None:  # no base here yet, so nothing is known of it
        return config
    config, notes = plan.fit_config(config, seen.plan, given)
    for text in notes:
        print_note(text)
    return config


def _follow(run: Any) -> Any:
    """Show the run's events until it ends; Ctrl-C asks it to stop and waits for that."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from persona.train import launcher as train_launcher
    from persona.train import queue
    from persona.train.progress import ACTIVE_STATUSES

    asked: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    told = 0
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("starting", total=None)
            while True:
                if asked:
                    asked.clear()
                    train_launcher.stop_run(run)
                seen, place = queue.read_run_progress(run), queue.find_position(run)
                if place and place.number != told:
                    told = place.number
                    print_note(f"Waiting: {queue.describe_position(place)}. Ctrl-C cancels.")
                losses = [f"loss {seen.train[-1][1]:.2f}"] if seen.train else []
                losses += [f"held-out {seen.held_out[-1][1]:.2f}"] if seen.held_out else []
                words = "  ".join([seen.message or seen.status, *losses])
                bar.update(task, total=seen.steps or None, completed=seen.step, description=words)
                if seen.status not in ACTIVE_STATUSES:
                    train_launcher.reap_children()  # how it ended may be known only now
                    return run.progress()
                time.sleep(0.3)
                train_launcher.reap_children()
    finally:
        signal.signal(signal.SIGINT, previous)


def _summary(value: dict[str, Any]) -> str:
    nll = ""
    if value["base_nll"] is not None:
        nll = f"Held-out NLL: base {value['base_nll']:.3f}, adapter {value['adapter_nll']:.3f} nats per learned token\n"
    return (
        f"{value['status']}: {value['steps']} steps in {value['seconds']:.0f} s, {value['tokens_per_s']:.0f} tokens/s, "
        f"peak memory {value['peak_memory_bytes'] / 1e9:.1f} GB\n{nll}Adapter: {value['adapter']}"
    )
