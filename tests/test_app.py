"""`python app.py`: its options, which beat the variables, and what a public link makes of the page."""

import json
import os
import subprocess
import sys

import pytest

from persona.store.workspace import PROJECT_DIR

# app.py with each command line and its variables, up to the launch: what it would be launched with, and what follows from
# it. Gradio takes seconds to import and is imported once, before a child is forked for each
STARTED = """
import json, os, runpy, sys
import gradio as gr
import torch

def launch(self, **options):
    from persona.store.deployment import is_shared_server
    from persona.store.workspace import data_root

    middleware = [m.cls.__name__ for m in options["app_kwargs"]["middleware"]]
    print(json.dumps({"host": options["server_name"], "port": options["server_port"], "share": options["share"],
                      "api": "routes" in options["app_kwargs"], "middleware": middleware, "home": str(data_root()),
                      "shared": is_shared_server(), "poll": self._queue.sleep_when_free}), flush=True)

def run(words, env):
    os.environ.update(env)
    from persona.ui.middleware import workspaces

    gr.Blocks.launch = launch
    workspaces.start_retention_sweep = lambda: None
    sys.argv = ["app.py", *words]
    runpy.run_path("app.py", run_name="__main__")

for words, env in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        run(words, env)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{words}: ended with an error")
"""


OUTER = ["SecurityHeaders", "ProxyHeaders"]
INNER = ["UploadCheck", "HeadScriptsMiddleware", "FrontEndMiddleware"]


def start(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    own = {k: v for k, v in os.environ.items() if not k.startswith(("GRADIO", "SPACE", "PERSONA_"))}
    return subprocess.run(list(map(str, words)), env={**own, "PYTHONPATH": str(PROJECT_DIR), **env}, cwd=PROJECT_DIR,
                          capture_output=True, text=True, timeout=120)  # fmt: skip


def test_help_waits_for_nothing():
    done = start(sys.executable, "-X", "importtime", "app.py", "--help")
    assert done.returncode == 0 and all(o in done.stdout for o in ("--host", "--port", "--share", "--home"))
    assert not [name for name in ("gradio", "torch", "transformers") if f"| {name}" in done.stderr]


@pytest.mark.parametrize("words, env, why", [
    (["--prot", "8000"], {}, "No such option: --prot"),
    (["--por", "8000"], {}, "No such option: --por"),
    (["datasets"], {}, "unexpected extra argument(s) (datasets)"),
    (["--port", "70000"], {}, "'--port'"),
    ([], {"PORT": "http"}, "'--port' (env var: "),
    (["--home", "README.md"], {}, "'README.md' is not a folder"),
    (["--home", ""], {}, "'' is not a folder"),
])  # fmt: skip
def test_what_is_wrong_is_refused(words, env, why):
    done = start(sys.executable, "app.py", *words, **env)
    assert (done.returncode, done.stdout) == (2, "") and why in done.stderr


@pytest.mark.slow
def test_what_the_page_is_launched_with(tmp_path):
    """Options beat variables. A public link makes a shared server, as on a Space: visitors are kept apart, no API without
    keys; on the address of the link, not of this machine.
    """
    env = {"GRADIO_SERVER_NAME": "127.0.0.9", "GRADIO_SERVER_PORT": "9999", "PERSONA_HOME": str(tmp_path / "variable")}
    words = ["--host", "localhost", "--port", "8123", "--home", str(tmp_path / "option")]
    shared = {"PORT": "8123", "PERSONA_HOME": str(tmp_path)}
    done = start(sys.executable, "-c", STARTED, json.dumps([(words, env), (["--share"], shared)]))
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] == [
        {
            "host": "localhost", "port": 8123, "share": False, "api": True, "home": str(tmp_path / "option"),
            "middleware": [*OUTER, "TrustedHostMiddleware", "OriginCheck", *INNER], "shared": False, "poll": 0.01,
        },
        {
            "host": "127.0.0.1", "port": 8123, "share": True, "api": False, "home": str(tmp_path),
            "middleware": [*OUTER, "OriginCheck", "VisitorIsolation", *INNER], "shared": True, "poll": 0.01,
        },
    ], done.stderr  # fmt: skip
