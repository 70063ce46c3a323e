"""On a Space: the order of imports, whose token it is, training in slices, and what `make space-check` finds."""

import importlib.util
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from persona.errors import PersonaError, RunError
from persona.models import zerogpu
from persona.store import deployment
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at
from persona.store.workspace import PROJECT_DIR
from persona.train import gpu_slices, launcher
from persona.train.config import make_config
from persona.train.launcher import create_run
from persona.train.run_folder import Run

PAIRS = [Pair(f"question {n}?", f"answer {n}.") for n in range(8)]
CHECK = PROJECT_DIR / "scripts" / "space_check.py"


@pytest.fixture
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("space_check", CHECK)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tmp_path: Path, tiny_gemma: Path) -> Run:
    settings = {"base": str(tiny_gemma), "dtype": "float32", "batch_size": 4, "max_steps": 3, "eval_fraction": 0.25}
    return create_run(create_persona_at(tmp_path / "mags", PersonaCard(name="Mags"), PAIRS), make_config(**settings))


def test_a_function_stays_itself_off_zerogpu_and_is_marked_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(tokens: int) -> str:
        return f"{tokens} tokens"

    durations: list[Any] = []
    fake = SimpleNamespace(GPU=lambda function, duration: durations.append(duration) or function)
    monkeypatch.setitem(sys.modules, "spaces", fake)
    assert zerogpu.request_gpu(60)(work) is work and not durations
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    for seconds in (60, 300, lambda tokens: tokens / 4):
        assert zerogpu.request_gpu(seconds)(work)(9) == "9 tokens"
    # of the same arguments after the visitor's, whole seconds, and no more than anyone may have
    assert [d("", 9) for d in durations] == [60, zerogpu.GRANTED_SECONDS, 3]


def test_a_slice_asks_for_less_of_the_gpu_where_the_run_ends_in_it(run: Run) -> None:
    asked = []
    for seconds, n in ((0.0, 0), (60.0, 30), (170.0, 85), (196.0, 98)):
        run.log("plan", steps=100, rows=6)
        run.log("step", step=n, loss=1.0, seconds=seconds)
        run.log("state", state="starting")
        asked.append(gpu_slices.slice_seconds(str(run.path)))
    assert asked == [zerogpu.GRANTED_SECONDS, zerogpu.GRANTED_SECONDS, 90.0, 64.0]


def test_measuring_takes_one_gpu_after_the_other_while_it_gets_further(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona.ui.steps.compare import judge_tab

    for reports, slices in (([["b", "c"], ["c"], None], 3), ([["b"], ["b"], None], 2), ([None], 1)):
        left = iter(reports)
        monkeypatch.setattr(judge_tab, "_measure_slice", lambda *_: iter(["a slice"]))
        monkeypatch.setattr(judge_tab.voice_picker, "find_adapter", lambda _: None)
        monkeypatch.setattr(
            judge_tab, "_stopped_report", lambda _, left=left: (m := next(left)) and SimpleNamespace(missing=m)
        )
        assert list(judge_tab.measure_in_slices("run/a/b", False)) == ["a slice"] * slices


def test_the_api_refuses_on_zerogpu_before_it_opens_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona.serve.batcher import Batcher

    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    with pytest.raises(Exception, match="a GPU of its own") as refused:
        Batcher().submit(SimpleNamespace())  # type: ignore[arg-type]
    assert refused.value.status == 503


def test_spaces_comes_before_torch_and_only_on_zerogpu(tmp_path: Path) -> None:
    """The import of persona.ui.server, with a stand-in for spaces that looks at what is there."""
    (tmp_path / "spaces.py").write_text("import sys; print('spaces', 'torch' in sys.modules)\nGPU = None")
    code = (
        "from persona import cli\nfrom persona.ui import server\nprint('torch' in sys.modules, 'gradio' in sys.modules)"
    )
    path = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(PROJECT_DIR)!r}]\n"
    for zero, said in (("true", "spaces False\nFalse False\n"), ("", "False False\n")):
        ran = subprocess.run([sys.executable, "-c", path + code], env={"SPACES_ZERO_GPU": zero}, capture_output=True,
                             text=True)  # fmt: skip
        assert ran.stdout == said, ran.stderr


def test_the_address_is_the_spaces_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona.ui.steps.share import begin_push

    at = lambda **headers: begin_push(SimpleNamespace(headers=headers))[0]  # type: ignore[arg-type]  # noqa: E731
    assert at(host="127.0.0.1:7861") == "http://127.0.0.1:7861"
    assert at(host="x", origin="https://persona.example") == "https://persona.example"
    monkeypatch.setenv("SPACE_HOST", "ann-persona.hf.space, persona.example")
    assert at(host="x", origin="https://evil.example") == "https://ann-persona.hf.space"


def test_a_push_from_a_space_takes_the_visitors_token_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona.share import hub
    from persona.ui.steps import share

    sent: list[Any] = []
    done = {"private": True, "url": "u", "link": "l"}
    monkeypatch.setattr(share, "open_chosen_adapter", lambda _: SimpleNamespace(path=Path("a")))
    monkeypatch.setattr(hub, "push_adapter", lambda *_, token, **__: sent.append(token) or done)
    visitor = SimpleNamespace(token="hf_visitor")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    for name in ("SPACE_ID", *deployment.OAUTH_VARIABLES):
        monkeypatch.setenv(name, "x")
    share.push_to_hub("run/a/b", "zhen", False, "http://x", visitor)
    share.push_to_hub("run/a/b", "zhen", False, "http://x", None)
    monkeypatch.delenv("OAUTH_CLIENT_ID")  # Gradio's sign-in is then a mock
    share.push_to_hub("run/a/b", "zhen", False, "http://x", visitor)
    assert sent == ["hf_visitor", None, None]


def test_the_owner_of_a_space_lends_nobody_their_token(monkeypatch: pytest.MonkeyPatch) -> None:
    from persona.share.hub import _resolve_token

    owner = "hf_" + "o" * 34
    monkeypatch.setenv("HF_TOKEN", owner)
    assert _resolve_token(None) == owner
    monkeypatch.setenv("SPACE_ID", "ann/persona")
    assert _resolve_token(None) is None and _resolve_token("hf_visitor") == "hf_visitor"


@pytest.mark.parametrize("on_space", [True, False])
def test_signing_in_and_duplicating_are_offered_on_a_space_only(
    monkeypatch: pytest.MonkeyPatch, on_space: bool
) -> None:
    from persona.ui.app import build_app

    if on_space:
        for name, value in {
            **dict.fromkeys(deployment.OAUTH_VARIABLES, "x"),
            "SPACE_ID": "a/b",
            "SYSTEM": "spaces",
        }.items():
            monkeypatch.setenv(name, value)
        for name in deployment.OAUTH_VARIABLES:  # Gradio has read them when it was imported
            monkeypatch.setattr(f"gradio.oauth.{name}", "x")
    demo = build_app()
    ids = {getattr(b, "elem_id", None) for b in demo.blocks.values()}
    assert demo.expects_oauth == on_space and ({"sign-in", "duplicate"} <= ids) == on_space
    assert bool({"sign-in", "duplicate"} & ids) == on_space


# --- slices ------------------------------------------------------------------------------------------------------


def sliced(monkeypatch: pytest.MonkeyPatch, *what: Any) -> list[str]:
    """Slices that do `what`, one after another: log these events, or raise."""
    calls: list[str] = []

    def one(folder: str) -> None:
        calls.append(folder)
        for todo in what[len(calls) - 1]:
            if isinstance(todo, Exception):
                raise todo
            Run(Path(folder)).log(todo[0], **todo[1])

    monkeypatch.setattr(gpu_slices, "train_slice", one)
    return calls


def step(n: int) -> tuple[str, dict[str, Any]]:
    return "step", {"step": n, "loss": 1.0, "seconds": 1.0}


STOPPED, DONE = ("state", {"state": "stopped"}), ("state", {"state": "done"})


def test_slices_follow_each_other_to_the_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sliced(monkeypatch, [step(1), STOPPED], [step(2), STOPPED], [step(3), DONE])
    assert list(gpu_slices.train_in_slices(run)) == [run.name] * 4 and len(calls) == 3
    assert run.progress().status == "done"


def test_a_stop_ends_the_slices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sliced(monkeypatch, [step(1), STOPPED], [step(2), STOPPED])
    for n, _ in enumerate(gpu_slices.train_in_slices(run)):
        if n == 1:
            run.stop()
    assert len(calls) == 2 and run.progress().status == "stopped"


def test_a_tab_that_is_closed_leaves_a_run_that_can_be_resumed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sliced(monkeypatch, [step(1), STOPPED], [step(2), DONE])
    going = gpu_slices.train_in_slices(run)
    next(going), next(going)
    going.close()
    assert len(calls) == 1 and run.progress().status == "stopped"
    assert list(gpu_slices.train_in_slices(run)) and run.progress().status == "done"


def test_a_gpu_that_is_not_given_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sliced(monkeypatch, [step(1), STOPPED], [RuntimeError("quota exceeded")])
    with pytest.raises(RunError, match="not given: quota exceeded.*Resume"):
        list(gpu_slices.train_in_slices(run))
    assert run.progress().status == "failed" and "quota exceeded" in run.progress().message
    sliced(monkeypatch, [PersonaError("row 3 is empty")])
    with pytest.raises(PersonaError, match="^row 3 is empty$"):
        list(gpu_slices.train_in_slices(run))


def test_a_training_that_fails_on_the_gpu_keeps_its_own_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = ("state", {"state": "failed", "message": "Row 3 is empty."})
    sliced(monkeypatch, [failed, RuntimeError("InputError")])  # as it comes out of another process
    with pytest.raises(RunError, match="^Row 3 is empty.$"):
        list(gpu_slices.train_in_slices(run))
    assert run.progress().message == "Row 3 is empty."


def test_slices_too_short_for_a_step_come_to_an_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = sliced(monkeypatch, [STOPPED], [STOPPED], [step(1), STOPPED], *[[STOPPED]] * 9)
    with pytest.raises(RunError, match="too short for one step"):
        list(gpu_slices.train_in_slices(run))
    assert len(calls) == 6


def test_no_process_is_started_on_zerogpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(launcher.subprocess, "Popen", never)
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    launcher.start_run(run)
    assert not (run.path / "log.txt").exists()


@pytest.mark.slow
def test_a_real_run_in_slices_off_the_main_thread(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ZeroGPU calls it: in a thread, where no signal can be caught; each slice makes one step here."""
    monkeypatch.setattr(gpu_slices, "TRAINING_SECONDS", 0.0)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: list(gpu_slices.train_in_slices(run))).result() == [run.name] * 4
    seen = run.progress()
    assert (seen.status, seen.step, run.adapter.is_dir()) == ("done", 3, True)


# --- make space-check --------------------------------------------------------------------------------------------


def test_front_matter_that_the_hub_would_refuse_is_found(check: ModuleType) -> None:
    readme, requirements = (
        (PROJECT_DIR / "README.md").read_text("utf-8"),
        (PROJECT_DIR / "requirements.txt").read_text("utf-8"),
    )
    assert check.front_matter(readme, requirements) == [] and check.loose_requirements(requirements) == []
    for old, new, why in [
        ("sdk: gradio", "sdk: streamlit", "requirements.txt says"), ("sdk_version: ", "sdk_version: 9", "says gradio"),
        ("emoji:", "emojy:", "unknown key 'emojy'"), ("app_file: app.py", "app_file: main.py", "no such file"),
        ("colorTo: gray", "colorTo: grey", "not one of"), ('"3.11"', "3.10", "in quotes"),
        ("contribute-repos", "all", "unknown ['all']"), ("hf_oauth: true", "hf_oauth: false", "does nothing"),
        ("short_description: ", "short_description: " + "x" * 60, "longer than 60"), ("license: ", "models: ", "license"),
    ]:  # fmt: skip
        assert old in readme
        assert any(why in w for w in check.front_matter(readme.replace(old, new, 1), requirements)), why
    assert check.conflicts(requirements) == []
    found = check.conflicts(requirements.replace("pydantic==", "pydantic==99."))
    assert found and "pydantic==99." in found[0] and "builder" in found[0]
    assert len(check.loose_requirements("a==1\nb>=2\n./c\n# d\n\ne[f]==1.0\n")) == 2


def test_files_that_the_hub_would_refuse_are_found(check: ModuleType, tmp_path: Path, monkeypatch) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    for name, size in (("big.bin", 101), ("big.png", 101), ("small.txt", 99), ("unknown.bin", 500)):
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitattributes").write_text("*.png filter=lfs")
    git("add", "big.bin", "big.png", "small.txt", ".gitattributes")
    monkeypatch.setattr(check, "MAX_FILE", 100)
    assert [w.split(":")[0] for w in check.too_large(tmp_path)] == ["big.bin"]
    monkeypatch.setattr(check, "MAX_ALL", 200)
    assert len(check.too_large(tmp_path)) == 2


@pytest.mark.parametrize(("app", "wrong"), [
    ("def send(self): self.send_response(200); self.end_headers()", []),
    ("def send(self): self.send_response(200 if self.path == '/' else 500); self.end_headers()", ["/config: 500"]),
    ("1 / 0", ["/: no answer", "/config: no answer", "ZeroDivisionError"]),
])  # fmt: skip
def test_a_page_that_does_not_answer_is_found(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str, wrong: list[str]
) -> None:
    serve = (
        "import http.server, os\nclass Page(http.server.BaseHTTPRequestHandler): do_GET = send\n"
        "at = os.environ['GRADIO_SERVER_NAME'], int(os.environ['GRADIO_SERVER_PORT'])\n"
        "http.server.HTTPServer(at, Page).serve_forever()\n"
    )
    (tmp_path / "app.py").write_text(f"{app}\n{serve}")
    monkeypatch.setattr(check, "PROJECT", tmp_path)
    monkeypatch.setattr(check, "SETTLE_SECONDS", 0.0)
    found = check.answers(sys.executable)
    assert all(any(why in text for text in found) for why in wrong) and bool(found) == bool(wrong), found


@pytest.mark.release
@pytest.mark.slow
def test_the_page_answers_as_a_space(check: ModuleType) -> None:
    assert check.answers(sys.executable) == []


@pytest.mark.slow
@pytest.mark.release
def test_the_repository_would_start_as_a_space(check: ModuleType) -> None:
    assert check.imported() == []


@pytest.mark.parametrize(("app", "why"), [
    ("import socket; socket.getaddrinfo('127.0.0.1', 1)", "getaddrinfo"), ("import subprocess; subprocess.run(['true'])", "Popen"),
    ("import persona.models.hardware", "persona.models.hardware is imported before"), ("1 / 0", "ZeroDivisionError"),
    ("", "signing in is not offered"),
])  # fmt: skip
def test_an_import_that_does_more_than_import_is_found(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: str, why: str
) -> None:
    (tmp_path / "persona" / "models").mkdir(parents=True)
    for name in ("__init__", "models/__init__", "models/zerogpu", "models/hardware"):
        (tmp_path / "persona" / f"{name}.py").touch()
    last = "import persona.models.zerogpu\nfrom types import SimpleNamespace\ndemo = SimpleNamespace(expects_oauth=False)\n"
    (tmp_path / "app.py").write_text(f"{app}\n{last}")
    monkeypatch.setattr(check, "PROJECT", tmp_path)
    assert any(why in w for w in check.imported()), check.imported()
