"""ZeroGPU without its GPU: the package `spaces` itself, its scheduler as a local server, and a CPU in the GPU's place.

Run as a program, it is such a Space's page, which trains, answers and measures as the page's events do; it writes what
came of it as JSON. Of `spaces` two functions are replaced, `torch.init` and `torch.move`, which start CUDA in the
worker; all else is its own code: patched torch, scheduling, quota errors, the forked workers and what is pickled.
"""

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from urllib.request import urlopen

GRANTED_SECONDS = 120  # as for a visitor who has not signed in
BASE, VISITOR = "someone/tiny", "a" * 40
REAL_CUDA = "13.0"  # spaces.zero.torch.static reads torch.version.cuda, which a CPU build lacks


class Scheduler(ThreadingHTTPServer):
    """Answers as `spaces.zero.api` expects. calls: (path, parameters) in their order."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.refuse = False  # as a visitor whose quota is used up


class _Answer(BaseHTTPRequestHandler):
    server: Scheduler

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        values = dict(parse_qsl(url.query))
        self.server.calls.append((url.path, values))
        too_long = int(values.get("durationSeconds", 0)) > GRANTED_SECONDS
        if url.path == "/schedule" and (too_long or self.server.refuse):
            self._send(429, {"left": 0, "wait": -1 if too_long else 3600})
        else:  # idle: a worker of this task that has no work is taken again
            token = str(len(self.server.calls))
            self._send(200, {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": token})

    def _send(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None: ...


def environment(home: Path, scheduler: Scheduler) -> dict[str, str]:
    """What the Hub sets in a Space with ZeroGPU, and where the page finds its base."""
    group = home / "cgroup"
    group.write_text("0::/space\n")
    return {
        "HOME": str(home), "SPACE_ID": "ann/persona", "SPACE_HOST": "ann-persona.hf.space", "SYSTEM": "spaces",
        "SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": f"http://127.0.0.1:{scheduler.server_port}",
        "ZEROGPU_PROC_SELF_CGROUP_PATH": str(group),
        "PERSONA_HOME": str(home / "data"), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def _is_in_bad_fork() -> bool:
    return False


def replace_cuda() -> None:
    """Import `spaces` as it is on a CUDA build of torch, with a CPU in the workers."""
    import torch

    torch.version.cuda, torch._C._cuda_init, torch.cuda._is_in_bad_fork = REAL_CUDA, lambda: None, _is_in_bad_fork
    import spaces.zero.torch as patched

    def init(_: str) -> None:
        from persona.models import hardware

        torch.version.cuda = None
        hardware.this_machine.cache_clear()

    patched.init, patched.move = init, lambda callback: None


def _in_thread(work: Callable[[], Any]) -> Any:
    """As Gradio runs a handler. An error is its result, as text."""

    def run() -> Any:
        try:
            return work()
        except Exception as e:
            return f"{type(e).__name__}: {getattr(e, 'message', e)}"

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run).result()


def _use_page(scheduler: Scheduler) -> Iterator[tuple[str, Any]]:
    """Launch the page; train, answer, score and measure in it. Yields what came of each."""
    from gradio.context import LocalContext
    from starlette.datastructures import Headers

    import app
    from persona.models import hardware
    from persona.store import workspace
    from persona.store.pairs import Pair
    from persona.store.persona_folder import PersonaCard, create_persona_at
    from persona.template.chat_template import read_template
    from persona.train import gpu_slices, launcher, plan
    from persona.train.config import make_config
    from persona.ui.model_queue import ModelTurn
    from persona.ui.page import RenderSettings
    from persona.ui.steps.compare import blind_vote_tab, chat_tab, judge_tab, questions_tab
    from persona.ui.steps.compare.controls import SamplingSettings, Selection
    from persona.ui.steps.template import facts

    workspace.set_visitor_lookup(lambda: VISITOR)
    _, address, _ = app.demo.launch(prevent_thread_lock=True, quiet=True)
    with urlopen(address) as page:
        yield "page", page.status
    pairs = [Pair(f"question {n}?", f"answer {n}.") for n in range(8)]
    mags = create_persona_at(workspace.workspace_of(VISITOR) / "personas/mags", PersonaCard(name="Mags"), pairs)
    own = mags.path / "template.jinja"  # not a shipped one: it is rendered in a process of its own
    own.write_text(read_template("gemma-base").text + "{# mine #}")
    settings = {"template": str(own), "quantization": "int8", "batch_size": 4, "max_steps": 2, "eval_fraction": 0.25}
    config = make_config(base=BASE, **settings)
    yield "machine", _in_thread(lambda: repr(hardware.this_machine()))
    yield "plan", _in_thread(lambda: plan.estimate_on_this_machine(mags, config, pairs).plan.reason)

    gpu_slices.TRAINING_SECONDS = 0.0  # a step a slice
    judge_tab.SLICE_SECONDS = 3600.0  # in one, however slow this machine is
    run = launcher.create_run(mags, config)
    yield "train", _in_thread(lambda: len(list(gpu_slices.train_in_slices(run))))
    yield "trained", [run.progress().status, run.progress().step, run.progress().message]
    adapter = f"run/mags/{run.name}"
    sampling = SamplingSettings(1.0, 0.7, 0.9, 40, 0, 1.0, 16, 1)

    def ask(handler: Callable[..., Iterator], *inputs: Any) -> Any:
        shown = [v for step in handler(*inputs)
                 for v in (map(step.show, step.work(*step.args)) if isinstance(step, ModelTurn) else [step])]  # fmt: skip
        return str(shown[-2:])

    selection = Selection("k" * 32, "mags", adapter, ["base"], "")
    yield "chat", _in_thread(lambda: ask(chat_tab.send_message, "Who?", *selection, *sampling))

    def ask_in_chinese() -> Any:
        headers = Headers({"accept-language": "zh-CN"})  # the package asks for more than a mapping
        LocalContext.request.set(SimpleNamespace(headers=headers))  # type: ignore[arg-type]
        return ask(chat_tab.send_message, "Who?", *selection, *sampling)

    yield "chat in Chinese", _in_thread(ask_in_chinese)
    yield (
        "questions",
        _in_thread(lambda: ask(questions_tab.answer_questions, "Who?\nWhere?", "mags", adapter, ["base"], *sampling)),
    )
    yield (
        "refused",
        _in_thread(  # in the worker: there is no such rival
            lambda: ask(blind_vote_tab.ask_both, "Who?", "k" * 32, "mags", adapter, "nobody", *sampling)
        ),
    )
    render = RenderSettings(BASE, str(own), 512, False)
    yield "scores", _in_thread(lambda: facts.score_with_base("mags", *render, progress=lambda *_, **__: None))
    yield "measured", _in_thread(lambda: ask(judge_tab.measure_in_slices, adapter, False))
    scheduler.refuse = True
    more = launcher.create_run(mags, config)
    yield "no quota", _in_thread(lambda: list(gpu_slices.train_in_slices(more)))
    yield "calls", scheduler.calls


if __name__ == "__main__":
    place, scheduler = Path(sys.argv[1]), Scheduler()
    threading.Thread(target=scheduler.serve_forever, daemon=True).start()
    os.environ |= environment(place, scheduler)
    replace_cuda()
    Path(sys.argv[2]).write_text(json.dumps(dict(_use_page(scheduler))))
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(0)
