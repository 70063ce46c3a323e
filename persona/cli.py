"""`python -m persona …`: the functions that the page calls, from a shell.

Readable text for people; with --json the last line of stdout is one JSON object. Exit status: 0 done, 1 refused or
failed (the message on stderr says place, value and next step), 2 wrong usage.
"""

import json
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from persona import __version__, hardware
from persona.errors import InputError, PersonaError

app = typer.Typer(
    help="Write pairs, train a LoRA, compare base and persona, share the adapter.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
)  # fmt: skip
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
PersonaDir = Annotated[Path, typer.Argument(metavar="DIR", help="A persona folder, e.g. datasets/zhen-huan.")]
RESULT = ("run", "adapter", "status", "steps", "seconds", "tokens_per_s", "learned_tokens_per_s", "base_nll",
          "adapter_nll", "peak_memory_bytes")  # fmt: skip


def main() -> int:
    """Run the command line. PersonaError is turned into exit status 1 here and nowhere else."""
    hardware.spin_less()
    try:
        return app(standalone_mode=False, prog_name="python -m persona") or 0
    except PersonaError as e:
        typer.secho(str(e), err=True, fg="red")
        return 1
    except typer.Exit as e:
        return e.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except Exception as e:
        show = getattr(e, "show", None)  # click's own usage errors know how to print themselves
        if show is None:
            raise
        show()
        return getattr(e, "exit_code", 2)


def put(value: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False) if as_json else text)


def note(text: str) -> None:
    """What happens meanwhile, on stderr."""
    typer.secho(text, err=True, dim=True)


@app.command()
def new(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the persona's folder is to be.")],
    name: Annotated[str, typer.Option(help="The persona's name.")],
    system: Annotated[str, typer.Option(help="System prompt, part of every row and chat.")] = "",
    as_json: AsJson = False,
) -> None:
    """Start a persona: a folder with persona.json and an empty pairs.jsonl."""
    from persona import folder

    card = folder.parse_card({"name": name, "system": system}, "--name/--system")
    made = folder.create(directory.expanduser(), card)
    put({"persona": str(made.path)}, f"{made.path}: write pairs into pairs.jsonl, or open it in the page.", as_json)


@app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A file, '-' for standard input, or a Hub dataset id.")],
    directory: PersonaDir,
    format: Annotated[str, typer.Option(help="Found by itself; or alpaca, sharegpt, table, screenplay, …")] = "",
    speaker: Annotated[list[str] | None, typer.Option(help="Who the persona is in it; again for other names.")] = None,
    column: Annotated[list[str] | None, typer.Option(metavar="FIELD=NAME", help="instruction=Question, …")] = None,
    actions: Annotated[str, typer.Option(help="Stage directions in a reply: drop, or keep as *action*.")] = "drop",
    history: Annotated[int, typer.Option(help="Earlier exchanges of the scene kept with each pair.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Add pairs from a file of another kind; what is no pair is listed. The persona is made if DIR is not there."""
    from persona import importers
    from persona.importers import hub, text

    if actions not in ("drop", "keep"):
        raise InputError(f"--actions {actions}: write drop or keep.")
    columns = dict(_key_value(x, "--column") for x in column or [])
    options = importers.Options(columns, tuple(speaker or ()), "keep" if actions == "keep" else "drop", history)
    typed = source == "-"
    with text.pasted(sys.stdin.buffer.read()) if typed else nullcontext(Path(source).expanduser()) as path:
        if not path.exists() and "/" in source and not path.is_absolute() and not path.parent.is_dir():
            path = hub.download(source)
        opened = text.open_source(path)
        chosen = format or importers.detect(opened)
        there = directory.expanduser().exists()
        persona = _open_or_make(directory, opened, chosen, options)
        try:
            done = importers.bring_in(persona, opened, chosen, options)
        except PersonaError:
            if not there:
                shutil.rmtree(persona.path)
            raise
    skipped = [{"line": s.line, "why": s.why} for s in done.skipped]
    value = {"read": done.read, "pairs": done.added, "known": done.known, "left_out": done.left_out,
             "skipped": skipped, "notes": done.notes, "format": chosen, "encoding": opened.encoding}  # fmt: skip
    lines = [f"{opened.name} ({chosen}, {opened.encoding}): {done.read:,} read, {done.added:,} pairs added"]
    lines += [f"{done.known:,} were there already"] * bool(done.known)
    lines += [f"{opened.name} line {s.line}: skipped, {s.why}" for s in done.skipped[:20]]
    lines += [f"… and {done.left_out - 20:,} more skipped (--json lists them)"] * (done.left_out > 20)
    lines += [f"{what}: {count:,} times" for what, count in done.notes.items()]
    put(value, "\n".join(lines), as_json)


def _open_or_make(directory: Path, source: Any, format: str, options: Any) -> Any:
    """The persona at `directory`; a new one, named by the file's card or the speaker, if nothing is there."""
    from persona import folder, importers

    directory = directory.expanduser()
    if directory.exists() and any(directory.iterdir()):
        return folder.open_persona(directory)
    card = importers.importer(format).survey(source).card
    name = options.speakers[0] if options.speakers else directory.name
    return folder.create(directory, card or folder.parse_card({"name": name}, str(directory)))


@app.command()
def lint(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help="Base model, for the length of rows.")] = "",
    max_length: Annotated[int, typer.Option(help="Longest row in tokens; 0: do not measure.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with the pairs, and whether there are enough of them."""
    from persona import base as bases
    from persona import folder
    from persona import lint as linting

    persona = folder.open_persona(directory)
    pairs, card = persona.pairs(), persona.card()
    length = None
    if max_length or base:
        _, renderer = bases.open_renderer(card, base, "auto", progress=note)
        length = replace(renderer, max_length=max_length or 512).length
    found = linting.lint(pairs, card, length, max_length or 512, linting.read_ignored(persona))
    summary = linting.summarise(pairs, card, found)
    value = {
        "pairs": len(pairs),
        "counts": linting.counts(found),
        "findings": [
            {"rule": f.rule, "severity": f.severity, "pairs": list(f.pairs), "message": f.message} for f in found
        ],
        "summary": summary.text,
        "kinds": dict(summary.kinds),
    }
    colours = {"error": "red", "warning": "yellow", "hint": "blue"}
    lines = [f"{typer.style(f.rule, fg=colours[f.severity])}: {f.message}" for f in found]
    put(value, "\n".join([*lines, summary.text]), as_json)


@app.command()
def render(
    directory: PersonaDir,
    pair: Annotated[int, typer.Option(help="Which pair, from 1.", min=1)] = 1,
    base: Annotated[str, typer.Option(help="Base model.")] = "",
    template: Annotated[str, typer.Option(help="Template name or .jinja file.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Show what the model reads and which tokens it learns: the very function that the trainer uses."""
    from persona import base as bases
    from persona import folder, stoptoken

    persona = folder.open_persona(directory)
    pairs = persona.pairs()
    if pair > len(pairs):
        raise InputError(f"{persona.pairs_file}: has {len(pairs)} pairs, there is no pair {pair}.")
    found, renderer = bases.open_renderer(persona.card(), base, template, progress=note)
    if unknown := stoptoken.problem(found, renderer):
        note(unknown)
    example = renderer.example(pairs[pair - 1])
    tokens = renderer.tokens(example)
    value = {
        "text": example.text,
        "tokens": [{"id": t.id, "text": t.text, "learned": t.learned} for t in tokens],
        "learned": example.learned,
        "masked": len(tokens) - example.learned,
        "problems": list(example.problems),
    }
    painted = "".join(typer.style(t.text, fg="green", bold=True) if t.learned else typer.style(t.text, dim=True)
                      for t in tokens)  # fmt: skip
    totals = f"\n\n{example.learned} learned, {len(tokens) - example.learned} masked tokens"
    put(value, painted + totals + "".join(f"\nProblem: {p}" for p in example.problems), as_json)


@app.command()
def train(
    directory: PersonaDir,
    base: Annotated[str, typer.Option(help="Base model: embedded name, Hub id, folder or .gguf.")] = "",
    preset: Annotated[str, typer.Option(help="quick, balanced or thorough.")] = "quick",
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="K=V", help="Any setting of a run.")] = None,
    resume: Annotated[Path | None, typer.Option(help="A run folder to go on with.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train a LoRA on the persona's pairs. Ctrl-C stops at the next step and keeps the best adapter so far."""
    from persona import folder, runs

    persona = folder.open_persona(directory)
    if resume:
        inside = persona.runs_dir / resume
        run = runs.open_run(inside if inside.is_dir() else resume)
    else:
        settings = dict(_key_value(x, "--set") for x in changes or []) | ({"base": base} if base else {})
        run = runs.create_run(persona, runs.make_config(preset, **settings))
    runs.start(run)
    note(f"Run {run.path}")
    last = _follow(run)
    value = {k: last.result.get(k) for k in RESULT} | {"run": str(run.path), "status": last.status}
    if last.status not in ("done", "stopped"):
        value["status"] = "failed"
        if as_json:
            typer.echo(json.dumps(value, ensure_ascii=False))
        raise PersonaError(last.message or f"The run ended as {last.status}; see {run.path / 'log.txt'}.")
    put(value, _summary(value), as_json)


def _key_value(text: str, option: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign:
        example = "--set epochs=2" if option == "--set" else "--column instruction=Question"
        raise InputError(f"{option} {text}: write it as name=value, e.g. {example}.")
    return key.strip(), value.strip()


def _follow(run: Any) -> Any:
    """Show the run's events until it ends; Ctrl-C asks it to stop and waits for that."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from persona import runs

    previous = signal.signal(signal.SIGINT, lambda *_: run.stop())
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
            task = bar.add_task("starting", total=None)
            while True:
                seen = run.progress()
                losses = [f"loss {seen.train[-1][1]:.2f}"] if seen.train else []
                losses += [f"held-out {seen.held_out[-1][1]:.2f}"] if seen.held_out else []
                words = "  ".join([seen.message or seen.status, *losses])
                bar.update(task, total=seen.steps or None, completed=seen.step, description=words)
                if seen.status not in runs.ACTIVE:
                    return seen
                time.sleep(0.3)
                runs.reap()
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


@app.command()
def chat(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder, or a zip.")],
    prompt: Annotated[list[str], typer.Option(help="What to say; give it again for more, each on its own.")],
    strength: Annotated[float, typer.Option(help="0: the base, 1: as trained.")] = 1.0,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.4,
    seed: Annotated[int, typer.Option(help="The same for both columns.")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest reply.")] = 128,
    base: Annotated[str, typer.Option(help="Base model, if not the adapter's own.")] = "",
    as_json: AsJson = False,
) -> None:
    """Ask base and persona the same, in one batch, with the same randomness."""
    from persona import adapter as adapters
    from persona import chat as chats
    from persona import files, share

    path = adapter.expanduser()
    found = share.unpack(path, files.home() / "adapters") if path.suffix == ".zip" else adapters.locate(path)
    sampling = chats.Sampling(temperature=temperature, seed=seed, max_new_tokens=max_new_tokens)
    turns, rate = chats.answer(adapters.check(found), prompt, sampling, strength, base)
    text = "\n\n".join(f"> {t['prompt']}\nbase:    {t['base']}\npersona: {t['adapter']}" for t in turns)
    turns = [{k: t[k] for k in ("prompt", "rendered", "base", "adapter")} for t in turns]
    put({"turns": turns, "tokens_per_s": round(rate, 2)}, text, as_json)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    kind: Annotated[str, typer.Option("--as", help="zip; more forms are not available yet.")] = "zip",
    as_json: AsJson = False,
) -> None:
    """Write the adapter as one file that the app opens again."""
    from persona import adapter as adapters
    from persona import share

    if kind != "zip":
        raise InputError(f"--as {kind}: not available yet. Use --as zip.")
    made = share.pack(adapters.locate(adapter.expanduser()), out.expanduser())
    put({"file": str(made), "bytes": made.stat().st_size}, f"{made}", as_json)


@app.command()
def push(
    adapter: Annotated[Path, typer.Argument(help="An adapter, run or persona folder.")],
    repo: Annotated[str, typer.Argument(metavar="USER/NAME")],
    public: Annotated[bool, typer.Option("--public", help="Visible to everyone; wants the rights field.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put the adapter on the Hugging Face Hub, private unless --public. Token: `hf auth login` or HF_TOKEN."""
    from persona import adapter as adapters
    from persona import share

    done = share.push(adapters.locate(adapter.expanduser()), repo, public=public)
    put({"url": done["url"], "link": done["link"]}, f"{done['url']}\n{done['link']}", as_json)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What this machine has, how Persona would use it, and which extras are installed."""
    from persona import base, files

    machine = hardware.this_machine()
    plan = hardware.make_plan(machine)
    wanted = ("torch", "transformers", "trl", "peft", "gradio", "bitsandbytes", "spaces")
    embedded = {e.name: base.is_installed(e) for e in base.EMBEDDED.values()}
    packages = {p: _version(p) for p in wanted}
    value = {
        "persona": __version__,
        "python": sys.version.split()[0],
        "machine": {"device": machine.device, "name": machine.name, "cores": machine.cores,
                    "memory_bytes": machine.memory, "matmul_flops": dict(machine.rates)},
        "plan": {"device": plan.device, "train_dtype": plan.train_dtype, "chat_dtype": plan.chat_dtype,
                 "reason": plan.reason},
        "packages": packages,
        "embedded": embedded,
        "home": str(files.home()),
        "not_verified": ["training and chat on a GPU (CUDA, MPS), 4 and 8 bits there", "the Hugging Face Hub itself",
                         "ModelScope", "ZeroGPU Spaces"],
    }  # fmt: skip
    listed = ", ".join(f"{p} {v or 'not installed'}" for p, v in packages.items())
    bases = ", ".join(f"{n} {'ready' if here else 'not installed'}" for n, here in embedded.items())
    text = (
        f"Persona {__version__}, Python {value['python']}\n{listed}\n{plan.reason}\n"
        f"{machine.cores} cores, {machine.memory / 1e9:.0f} GB memory\nEmbedded bases: {bases}\n"
        f"Personas, runs and bases: {value['home']}\nNot verified by us: {'; '.join(value['not_verified'])}"
    )
    put(value, text, as_json)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
