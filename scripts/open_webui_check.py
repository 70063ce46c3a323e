"""Ask `persona serve` through Open WebUI: its list of models, whole replies, streams, a stop string, a stop half way.

    python scripts/open_webui_check.py FOLDER ADAPTER ADAPTER …

The adapters are given as for `persona serve`. The first call makes an environment with Open WebUI in FOLDER: it needs
the network and 3 GB. Open WebUI starts with data of its own, its first user signs up and adds the server as an OpenAI
connection, and every request goes by its own API. Greedy replies must be those that the server gives by itself. The
exit status is 1 where something differs.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from vllm_check import find_free_port, serving, wait_for_health

OPEN_WEBUI = "0.12.4"
QUESTION, GREEDY = "Who are you?", {"temperature": 0, "max_tokens": 12}
LONG = {"temperature": 0, "max_tokens": 512, "repetition_penalty": 1.3}
# no model of its own, no calls to other places
SETTINGS = {
    "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1", "RAG_EMBEDDING_ENGINE": "openai", "ENABLE_OLLAMA_API": "false",
    "BYPASS_EMBEDDING_AND_RETRIEVAL": "true", "ENABLE_VERSION_UPDATE_CHECK": "false", "DO_NOT_TRACK": "true",
    "ANONYMIZED_TELEMETRY": "false", "WEBUI_SECRET_KEY": "only here",
}  # fmt: skip


def make_environment(folder: Path) -> Path:
    """Open WebUI's program in `folder`/open-webui, which is made on the first call."""
    program = folder / "open-webui/bin/open-webui"
    if not program.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "open-webui")], check=True)
        pip = [program.with_name("python"), "-m", "pip", "install", "-q", f"open-webui=={OPEN_WEBUI}"]
        subprocess.run(pip, check=True)
    return program


@contextmanager
def open_webui(program: Path, folder: Path) -> Iterator[httpx.Client]:
    """A client of an Open WebUI without users, which is ended afterwards."""
    data, port, log = folder / "open-webui-data", find_free_port(), folder / "open-webui.log"
    shutil.rmtree(data, ignore_errors=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | SETTINGS | {"DATA_DIR": str(data)}
    with log.open("wb") as out:
        command = [program, "serve", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600, trust_env=False) as client:
                wait_for_health(client, server, log)
                yield client
        finally:
            server.terminate()
            server.wait(300)


def connect(client: httpx.Client, url: str) -> list[str]:
    """Sign up as the first user and add the server as an OpenAI connection. Returns the models that are listed then."""
    user = {"name": "Ann", "email": "ann@example.com", "password": "a-Password-1"}
    signed_up = client.post("/api/v1/auths/signup", json=user).raise_for_status().json()
    client.headers["Authorization"] = f"Bearer {signed_up['token']}"
    settings = {
        "ENABLE_OPENAI_API": True, "OPENAI_API_BASE_URLS": [url], "OPENAI_API_KEYS": ["none"], "OPENAI_API_CONFIGS": {},
    }  # fmt: skip
    client.post("/openai/config/update", json=settings).raise_for_status()
    return [m["id"] for m in client.get("/api/models").raise_for_status().json()["data"]]


def ask(client: httpx.Client, path: str, model: str, **settings: Any) -> str:
    """The reply to QUESTION, whole or put together from its stream."""
    request = {"model": model, "messages": [{"role": "user", "content": QUESTION}], **settings}
    if not settings.get("stream"):
        answer = client.post(path, json=request).raise_for_status().json()
        return str(answer["choices"][0]["message"]["content"])
    return "".join(stream(client, path, request))


def stream(client: httpx.Client, path: str, request: dict[str, Any]) -> Iterator[str]:
    """The pieces of a reply as they come."""
    with client.stream("POST", path, json=request) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                yield from (c["delta"].get("content") or "" for c in json.loads(line[6:])["choices"])


def stop_half_way(client: httpx.Client, path: str, model: str) -> bool:
    """Whether a reply that is left after three pieces goes no further: the next question is answered."""
    request = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": True, **LONG}
    pieces = stream(client, path, request)
    seen = [next(pieces) for _ in range(3)]
    pieces.close()
    return bool("".join(seen)) and bool(ask(client, path, model, **GREEDY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment, its data and the logs go")
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER")
    chosen = parser.parse_args()
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    program, theirs = make_environment(folder), "/api/chat/completions"
    equal = True
    with serving(chosen.adapters, folder / "persona.log") as server, open_webui(program, folder) as client:
        served = [m["id"] for m in server.get("/v1/models").raise_for_status().json()["data"]]
        listed = connect(client, f"{str(server.base_url).rstrip('/')}/v1")
        print(f"models: {listed}")
        equal &= sorted(listed) == sorted(served)
        for model in served:
            alone = ask(server, "/v1/chat/completions", model, **GREEDY)
            stop = alone[len(alone) // 2 :][:2]
            expected = [alone, alone, alone.split(stop)[0]]
            settings: list[dict[str, Any]] = [{}, {"stream": True}, {"stop": [stop]}]
            got = [ask(client, theirs, model, **GREEDY, **more) for more in settings]
            equal &= got == expected
            print(f"{model}: {'equal' if got == expected else f'{got} instead of {expected}'}")
        ended = stop_half_way(client, theirs, served[-1])
        equal &= ended
        print("stopped half way:", "yes" if ended else "no")
    raise SystemExit(0 if equal else 1)


if __name__ == "__main__":
    main()
