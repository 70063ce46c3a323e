"""Check that this repository would start as a Hugging Face Space, as far as can be tested locally.

    python scripts/space_check.py [--quick]

It checks README's front matter, requirements.txt and file sizes. Then it imports app.py as a Space would, with the
environment of a Space instead of this machine's, and reports network access and new processes. Last, unless --quick, it
installs into a new virtual environment what the Hub's builder installs, starts the page in it and asks it for / and
/config. That takes minutes, and downloads some gigabytes where pip has them not. What only the Hub can show (its base
image, ZeroGPU, signing in) is not checked.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from huggingface_hub import RepoCard
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parent.parent
MAX_FILE = 10_000_000  # bytes; the Hub refuses larger files unless they are in LFS
MAX_ALL = 1_000_000_000  # bytes; limit of a Space's repository
KEYS = set(  # https://huggingface.co/docs/hub/spaces-config-reference
    "title emoji colorFrom colorTo sdk sdk_version python_version app_file app_port base_path fullWidth header "  # noqa: SIM905
    "short_description license models datasets tags thumbnail pinned suggested_hardware startup_duration_timeout "
    "preload_from_hub disable_embedding custom_headers hf_oauth hf_oauth_scopes hf_oauth_expiration_minutes".split()
)
COLOURS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# what the builder installs with requirements.txt, in one command, as its logs show
BUILDER = ("gradio[oauth,mcp]=={sdk_version}", "uvicorn>=0.14.0", "websockets>=10.4", "spaces")
START_SECONDS = 300  # until the page has to answer
SETTLE_SECONDS = 5.0
SCOPES = {"email", "read-repos", "contribute-repos", "write-repos", "manage-repos", "inference-api", "jobs"}

IMPORT = """
import json, sys
sys.path.insert(0, sys.argv[1])
seen, order = [], []
WATCHED = ("torch", "spaces", "persona.models.zerogpu", "gradio", "persona.models.hardware")
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "os.fork", "os.exec", "os.posix_spawn",
                 "os.system", "subprocess.Popen"):
        seen.append(f"{event} {args[1:2] if event == 'socket.connect' else args[:2]}"[:200])
    elif event == "import" and args[0] in WATCHED:
        order.append(args[0])
sys.addaudithook(watch)
import app
print(json.dumps({"seen": seen, "order": list(dict.fromkeys(order)), "oauth": app.demo.expects_oauth}))
"""


def front_matter(readme: str, requirements: str) -> list[str]:
    """What is wrong with README's front matter, which configures the Space."""
    data: dict[str, Any] = RepoCard(readme).data.to_dict()
    wrong = [f"unknown key {key!r}" for key in sorted(set(data) - KEYS)]
    wrong += [
        f"{key} is missing" for key in ("title", "sdk", "sdk_version", "app_file", "license") if not data.get(key)
    ]
    pinned = re.search(r"^gradio(?:\[.*?\])?==(\S+)", requirements, re.M)
    if data.get("sdk") != "gradio" or not pinned or str(data.get("sdk_version")) != pinned[1]:
        wrong.append(
            f"sdk {data.get('sdk')} {data.get('sdk_version')}: requirements.txt says gradio {pinned and pinned[1]}"
        )
    if not isinstance(data.get("python_version"), str):
        wrong.append("python_version must be in quotes: 3.10 without them is 3.1")
    if not (PROJECT / str(data.get("app_file"))).is_file():
        wrong.append(f"app_file {data.get('app_file')}: no such file")
    wrong += [f"{k} {data[k]!r}: not one of {sorted(COLOURS)}" for k in ("colorFrom", "colorTo")
              if data.get(k) not in COLOURS]  # fmt: skip
    if len(str(data.get("short_description", ""))) > 60:
        wrong.append("short_description is longer than 60 characters")
    if unknown := set(data.get("hf_oauth_scopes", [])) - SCOPES:
        wrong.append(f"hf_oauth_scopes: unknown {sorted(unknown)}")
    if data.get("hf_oauth_scopes") and data.get("hf_oauth") is not True:
        wrong.append("hf_oauth_scopes without hf_oauth: true does nothing")
    return wrong


def loose_requirements(text: str) -> list[str]:
    """Lines that could resolve differently on another machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pinned = re.compile(r"[\w.\-\[\]]+==[\w.]+( ; .+)?")  # after ; an environment marker
    return [f"{line!r} is not NAME==VERSION" for line in lines if not pinned.fullmatch(line)]


def conflicts(requirements: str) -> list[str]:
    """Pins that the builder's gradio[oauth,mcp] does not allow, by the metadata of the gradio installed here."""
    pins = dict(re.findall(r"^([\w.-]+)(?:\[.*?\])?==([\w.]+)", requirements, re.M))
    versions = {canonicalize_name(name): version for name, version in pins.items()}
    extras = [{"extra": extra} for extra in ("", "oauth", "mcp")]
    wanted = [
        r for r in map(Requirement, requires("gradio") or []) if not r.marker or any(map(r.marker.evaluate, extras))
    ]
    return [
        f"{r.name}=={version}: gradio[oauth,mcp], which the Hub's builder adds, wants {r.specifier}"
        for r in wanted
        if (version := versions.get(canonicalize_name(r.name))) and not r.specifier.contains(version)
    ]


def too_large(folder: Path) -> list[str]:
    """Files, or a repository, too large for the Hub. Only tracked files are pushed."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout
    sizes = {name: (folder / name).lstat().st_size for name in listed.split("\0") if (folder / name).is_file()}
    wrong = [f"{n}: {s / 1e6:.1f} MB, more than {MAX_FILE / 1e6:.0f} and not in LFS" for n, s in sizes.items()
             if s > MAX_FILE and not _in_lfs(folder, n)]  # fmt: skip
    if sum(sizes.values()) > MAX_ALL:
        wrong.append(f"the repository has {sum(sizes.values()) / 1e9:.1f} GB, more than {MAX_ALL / 1e9:.0f}")
    return wrong


def _in_lfs(folder: Path, name: str) -> bool:
    said = subprocess.run(["git", "check-attr", "filter", "--", name], cwd=folder, capture_output=True, text=True)
    return said.stdout.strip().endswith(": lfs")


def space_environment(home: str, signing_in: bool = True) -> dict[str, str]:
    """The variables of a Space, and none of this machine's."""
    env = {"PATH": "/usr/bin:/bin", "HOME": home, "SPACE_ID": "ann/persona", "SPACE_HOST": "ann-persona.hf.space",
           "SYSTEM": "spaces", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}  # fmt: skip
    if signing_in:
        env |= {"OAUTH_CLIENT_ID": "id", "OAUTH_CLIENT_SECRET": "s", "OAUTH_SCOPES": "openid profile",
                "OPENID_PROVIDER_URL": "https://huggingface.co"}  # fmt: skip
    return env


def imported(signing_in: bool = True) -> list[str]:
    """What app.py must not do on import, but does."""
    with tempfile.TemporaryDirectory() as empty:
        env = space_environment(empty, signing_in)
        ran = subprocess.run([sys.executable, "-I", "-c", IMPORT, str(PROJECT)], env=env, cwd=empty, text=True,
                             capture_output=True, timeout=300)  # fmt: skip
        left = [str(p.relative_to(empty)) for p in Path(empty).rglob("*") if p.is_file()]
    if ran.returncode:
        return [f"app.py cannot be imported:\n{ran.stderr[-2000:]}"]
    found = json.loads(ran.stdout.splitlines()[-1])
    wrong = [f"on import: {event}" for event in found["seen"]]
    wrong += [f"on import it writes {name}" for name in left if "persona" in name]
    if found["order"][0] != "persona.models.zerogpu":
        wrong.append(
            f"{found['order'][0]} is imported before persona.models.zerogpu, which imports spaces first on ZeroGPU"
        )
    if found["oauth"] != signing_in:
        wrong.append(
            f"signing in is {'not ' * signing_in}offered, although hf_oauth is {'on' if signing_in else 'off'}"
        )
    return wrong


def built() -> list[str]:
    """What goes wrong when the page is built as the Hub builds it, and started."""
    front = RepoCard((PROJECT / "README.md").read_text(encoding="utf-8")).data.to_dict()
    name = f"python{front['python_version']}"
    if not (python := shutil.which(name)):
        return [f"{name}, README's python_version, is not on this machine"]
    packages = [package.format(**front) for package in BUILDER]
    with tempfile.TemporaryDirectory() as folder:
        here = f"{folder}/bin/python"
        for command in (
            [python, "-m", "venv", folder],
            [here, "-m", "pip", "install", "-q", "-r", PROJECT / "requirements.txt", *packages],
            [here, "-m", "pip", "check"],
        ):
            ran = subprocess.run(command, text=True, capture_output=True)
            if ran.returncode:
                return [f"{' '.join(map(str, command))}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}"]
        return answers(here)


def answers(python: str) -> list[str]:
    """What goes wrong when this Python runs app.py as a Space does, and the page is asked for / and /config."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as home, (Path(home) / "log").open("w+") as log:
        env = space_environment(home) | {
            "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "GRADIO_NUM_PORTS": "1",
            "GRADIO_ALLOW_FLAGGING": "never", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(PROJECT),
        }  # fmt: skip
        page = subprocess.Popen([python, "app.py"], cwd=PROJECT, env=env, stdout=log, stderr=log)
        try:
            end = time.monotonic() + START_SECONDS
            # a light path first: while it starts, Gradio asks for / itself, and gives up after three seconds
            while _status(port, "/robots.txt") is None and page.poll() is None and time.monotonic() < end:
                time.sleep(0.5)
            time.sleep(SETTLE_SECONDS)
            statuses = {path: _status(port, path) for path in ("/", "/config")}
        finally:
            page.terminate()
            page.wait(timeout=60)
        wrong = [f"{path}: {s or 'no answer'} instead of 200" for path, s in statuses.items() if s != 200]
        return [*wrong, (Path(home) / "log").read_text()[-2000:]] if wrong else []


def _status(port: int, path: str) -> int | None:
    """The status with which the page answers; None while nobody does."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as e:
        return e.code
    except OSError:
        return None


def main(quick: bool = False) -> int:
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    requirements = (PROJECT / "requirements.txt").read_text(encoding="utf-8")
    checks = {
        "README.md, front matter": lambda: front_matter(readme, requirements),
        "requirements.txt": lambda: loose_requirements(requirements) + conflicts(requirements),
        "sizes": lambda: too_large(PROJECT),
        "import of app.py": imported,
    }
    if not quick:
        checks["the page, built as on the Hub"] = built
    failed = False
    for name, check in checks.items():
        wrong = check()
        failed |= bool(wrong)
        print(f"{name}: {'good' if not wrong else ''}", *wrong, sep="\n  " if wrong else "")
    print("Not checked here: the Hub's base image, ZeroGPU, and signing in.")
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main("--quick" in sys.argv[1:]))
