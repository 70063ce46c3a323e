"""`persona train`: a training run, followed until it ends."""

import signal
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from persona.cli.output import BASE_HELP, AsJson, PersonaDir, open_persona, print_note, print_result, split_key_value
from persona.cli.settings_list import print_settings
from persona.errors import InputError, format_counts

RESULT_KEYS = ("run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
          "adapter_nll", "start_nll", "peak_memory_bytes", "trainable_parameters", "total_parameters")  # fmt: skip


def train(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help=BASE_HELP)] = "",
    preset: Annotated[
        str,
        typer.Option(
            help="How long and how large: quick (3 epochs), balanced (5) or thorough (8); further (new "
            "pairs 12 times) for --from. Default: quick, and further with --from."
        ),
    ] = "",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any setting of a run, e.g. epochs=2, also by its name in PEFT, TRL or transformers. Repeat for more. "
            "They are listed below.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Settings from a YAML or JSON file, or those of a run, by its folder or name. --base and --set come "
            "on top. Default: the preset's.",
        ),
    ] = None,
    settings: Annotated[
        bool,
        typer.Option("--settings", callback=print_settings, is_eager=True, help="List the settings alone, and exit."),
    ] = False,
    parent: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="ADAPTER",
            help="Go on from this adapter, on its base and template: a run of DIR by its name, RUN@STEP, or any "
            "adapter as in `persona chat`. Default: a new one.",
        ),
    ] = "",
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Continue this run, by its folder or name; --set changes what can still change. Default: a new run.",
        ),
    ] = None,
    launcher: Annotated[
        Literal["here", "ray"], typer.Option(help="here: on this machine. ray: on a Ray cluster.")
    ] = "here",
    address: Annotated[
        str, typer.Option(help="With --launcher ray: address of the cluster. Default: the one on this machine.")
    ] = "",
    storage: Annotated[
        str,
        typer.Option(
            envvar="PERSONA_STORAGE",
            help="With --launcher ray: URL that every node can read and write, s3://… or file:///… Default: none.",
        ),
    ] = "",
    smaller: Annotated[
        bool,
        typer.Option("--smaller", help="With --resume of a run out of memory: use the smaller settings it proposed."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA on the persona's pairs. Ctrl-C stops after the current step and keeps the best adapter so far.

    One run at a time trains on this machine; others wait in a queue.
    """
    from persona.train import launcher as train_launcher

    persona = open_persona(directory)
    if launcher == "ray":
        from persona.train import ray_cluster

        ray_cluster.open_storage(storage)
    given = dict(split_key_value(x, "--set") for x in changes or [])
    if resume:
        _refuse_with_resume({"--base": base, "--preset": preset, "--config": config, "--from": parent})
        run = reopen_run(persona, resume, given)
    else:
        settings_given = _merge_settings(persona, base, config, given)
        run = _create_run(persona, preset, settings_given, launcher, open_parent_of(persona, parent))
    if resume and smaller:
        run = train_launcher.retry_smaller(persona, run)
    elif launcher == "ray":
        train_launcher.start_on_cluster(run, storage, address)
    else:
        train_launcher.start_run(run)
    print_note(f"Run {run.path}")
    print_outcome(run, follow_run(run), as_json)


def _refuse_with_resume(options: dict[str, Any]) -> None:
    if given := [name for name, value in options.items() if value]:
        raise InputError(
            "{options} with --resume: a run keeps its base and settings. Leave it out, or start a new run with "
            "--config RUN. --set changes what can still change.",
            options=", ".join(given),
        )


def _find_run_path(persona: Any, name: Path) -> Path:
    """The folder of a run of the persona, which may be given by its name; any other path as it is."""
    inside: Path = persona.runs_dir / name
    return inside if inside.is_dir() else name


def reopen_run(persona: Any, resume: Path, changes: dict[str, str]) -> Any:
    """The run to resume, with its settings changed."""
    from persona.train import launcher, run_folder

    run = run_folder.open_run(_find_run_path(persona, resume))
    for text in launcher.change_run(run, changes) if changes else []:
        print_note(text)
    return run


def _merge_settings(persona: Any, base: str, config: Path | None, changes: dict[str, str]) -> dict[str, Any]:
    """Settings by the names of RunConfig: of the file, with --set on top, and --base on top of both."""
    from persona.train.aliases import resolve_aliases
    from persona.train.config import make_config
    from persona.train.settings_file import read_settings

    make_config(**changes)  # names what is wrong as it was written
    from_file = read_settings(_find_run_path(persona, config)) if config else {}
    return from_file | resolve_aliases(changes) | ({"base": base} if base else {})


def open_parent_of(persona: Any, text: str) -> Any:
    """The adapter to go on from, a train.parent.Parent; None where none is named."""
    if not text:
        return None
    from persona.share import open_adapter
    from persona.share.adapter_ref import AdapterRef

    inside = _find_run_path(persona, Path(text.partition("@")[0]))
    if inside.parent == persona.runs_dir:
        text = str(inside.parent / text)
    return open_adapter.open_parent(AdapterRef.parse(text))


def _create_run(persona: Any, preset: str, settings: dict[str, Any], launcher: str, parent: Any) -> Any:
    from persona.train import launcher as train_launcher
    from persona.train.config import FURTHER, count_rehearsal, make_config
    from persona.train.parent import adopt_settings, describe_pairs, repeat_new

    config = make_config(preset or (FURTHER if parent else "quick"), **settings)
    if launcher == "ray":  # the machines of a cluster are others than this one
        config = adopt_settings(config, parent, settings) if parent else config
        run = train_launcher.create_run(persona, config, parent=parent)
    else:
        run, notes = train_launcher.create_fitted_run(persona, config, settings, parent)
        for text in notes:
            print_note(text)
    if rows := count_rehearsal(config, len(repeat_new(run.rows(), config.new_pair_repeats))):
        print_note(f"Rehearsal: {rows} general rows an epoch beside the pairs; the base answers them first.")
    if parent:
        print_note(describe_pairs(run.rows(), parent, config.new_pair_repeats))
    return run


def print_outcome(run: Any, progress: Any, as_json: bool, keys: tuple[str, ...] = ()) -> None:
    """Print the result: RESULT_KEYS and `keys`. Raises RunError, with --json after printing, when the run failed."""
    from persona.train import launcher

    value = {k: progress.result.get(k) for k in (*RESULT_KEYS, *keys)} | {
        "run": str(run.path),
        "status": progress.status,
    }
    if rehearsed := progress.result.get("rehearsal_rows"):
        value["rehearsal_rows"] = rehearsed
    value["parent"] = run.manifest().get("parent", {}).get("adapter")
    value["adapter"] = value["adapter"] and str(run.adapter)  # the result of a cluster names the worker's
    if progress.status not in ("done", "stopped"):
        value["status"] = "failed"
        if as_json:
            print_result(value, "", as_json)
        launcher.require_success(run, progress)
    text = (
        _summary(value, progress)
        if progress.result
        else f"{progress.status}: {progress.message or 'nothing was trained.'}"
    )
    print_result(value, text, as_json)


def follow_run(run: Any) -> Any:
    """Show the run's progress until it ends, and return its RunProgress. Ctrl-C asks it to stop and waits for that."""
    from persona.train import launcher as train_launcher
    from persona.train import queue
    from persona.train.progress import ACTIVE_STATUSES
    from persona.train.progress_bar import show_progress_bar

    interrupts: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    last_position = 0
    try:
        with show_progress_bar() as move_bar:
            while True:
                if interrupts:
                    interrupts.clear()
                    train_launcher.stop_run(run)
                progress, position = queue.read_run_progress(run), queue.find_position(run)
                if position and position.number != last_position:
                    last_position = position.number
                    print_note(f"Waiting: {queue.describe_position(position)}. Ctrl-C cancels.")
                move_bar(progress)
                if progress.status not in ACTIVE_STATUSES:
                    train_launcher.reap_children()  # how it ended may be known only now
                    return run.progress()
                time.sleep(train_launcher.WAIT_SECONDS)
                train_launcher.reap_children()
    finally:
        signal.signal(signal.SIGINT, previous)


def _summary(value: dict[str, Any], progress: Any) -> str:
    """value: the result of the run with that progress."""
    from persona.judge import preference_verdict, rehearsal_gain, training_gain
    from persona.train.run_folder import Run

    nll, expected = "", progress.expected
    planned = f" ({expected['memory'] / 1e9:.1f} GB planned)" if "memory" in expected else ""
    if value["base_nll"] is not None:
        nll = f"Held-out NLL: base {value['base_nll']:.3f}, adapter {value['adapter_nll']:.3f} nats per learned token\n"
    if (trained := value["trainable_parameters"]) and (total := value["total_parameters"]):
        nll += f"Trained {trained:,} of {total:,} parameters: {100 * trained / total:.2f} %\n"
    if change := training_gain.estimate_change(progress):
        nll += f"Since {value['parent']}: {training_gain.describe_change(change)}\n"
    if verdict := preference_verdict.describe_preferences(progress):
        nll += f"{verdict}\n"
    if "rehearsal_rows" in value:
        nll += f"{rehearsal_gain.describe_rehearsal(Run(Path(value['run'])), progress)}\n"
    steps = format_counts("{n} step(s)", {"n": value["steps"]})
    return (
        f"{value['status']}: {steps} in {value['seconds']:.0f} s, {value['tokens_per_s']:.0f} tokens/s, "
        f"peak memory {value['peak_memory_bytes'] / 1e9:.1f} GB{planned}\n{nll}Adapter: {value['adapter']}"
    )
