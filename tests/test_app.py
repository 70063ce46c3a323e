"""`python app.py`: its options, which beat the variables, and what a public link makes of the page."""

import json
import os
import subprocess
import sys

import pytest

from persona.store.workspace import PROJECT_DIR

# app.py with this command line, up to the launch: what it would be launched with, and what follows from it
STARTED = """
import json, runpy, sys
import gradio as gr
from persona.store.deployment import is_shared_server
from persona.store.workspace import data_root
from persona.ui.middleware import workspaces

def launch(self, **options):
    middleware = [m.cls.__name__ for m in options["app_kwargs"]["middleware"]]
    print(json.dumps({"host": options["server_name"], "port": options["server_port"], "share": options["share"],
                      "api": "routes" in options["app_kwargs"], "middleware": middleware, "home": str(data_root()),
                      "shared": is_shared_server()}))

gr.Blocks.launch = launch
workspaces.start_retention_sweep = lambda: None
sys.argv[0] = "app.py"
runpy.run_path("app.py", run_name="__main__")
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
def test_options_beat_variables(tmp_path):
    env = {"GRADIO_SERVER_NAME": "127.0.0.9", "GRADIO_SERVER_PORT": "9999", "PERSONA_HOME": str(tmp_path / "variable")}
    words = ["--host", "localhost", "--port", "8123", "--home", tmp_path / "option"]
    done = start(sys.executable, "-c", STARTED, *words, **env)
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "host": "localhost", "port": 8123, "share": False, "api": True, "home": str(tmp_path / "option"),
        "middleware": [*OUTER, "TrustedHostMiddleware", "OriginCheck", *INNER], "shared": False,
    }, done.stderr  # fmt: skip


@pytest.mark.slow
def test_a_public_link_makes_a_shared_server(tmp_path):
    """As on a Space: visitors are kept apart, no API without keys; on the address of the link, not of this machine."""
    done = start(sys.executable, "-c", STARTED, "--share", PORT="8123", PERSONA_HOME=str(tmp_path))
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "host": "127.0.0.1", "port": 8123, "share": True, "api": False, "home": str(tmp_path),
        "middleware": [*OUTER, "OriginCheck", "VisitorIsolation", *INNER], "shared": True,
    }, done.stderr  # fmt: skip
