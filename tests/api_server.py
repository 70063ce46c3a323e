"""The API on a real port in this process, for tests over HTTP."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from tiny_models import PLAIN_CPU, write_adapter
from waiting import wait_for

from persona.compare import session
from persona.compare.session import LoadedModel
from persona.models import adapter, hardware
from persona.models.base import Base
from persona.serve import http, model_list
from persona.serve.auth import ApiAuth
from persona.serve.batcher import Batcher

KEY = "a-key"


@dataclass
class Running:
    url: str
    model: LoadedModel
    batcher: Batcher
    models: list[model_list.ServedModel]


@contextmanager
def listening(app: Any):
    """The URL of an ASGI app behind uvicorn."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    wait_for(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        bound.close()


@contextmanager
def running(patch: Any, folder: Any, base_folder: Any):
    """Base "tiny" with the adapters "one" and "two" behind KEY, in float32.

    The model is random. Its stop token and byte tokens are suppressed, so that replies run to the limit and are valid text.
    """
    patch.setattr(hardware, "this_machine", lambda: PLAIN_CPU)
    base = Base("tiny", base_folder)
    found = []
    for seed, name in enumerate(("one", "two"), 1):
        write_adapter(base_folder, folder / name, seed=seed, template="gemma-base")
        found.append(("", adapter.read_adapter(folder / name), base))
    model = LoadedModel(base)
    patch.setattr(session, "_open", {(str(base.path), "none"): model})
    tokenizer = model.tokenizer
    mute = [i for word, i in tokenizer.get_vocab().items() if word.startswith("<0x") or i == tokenizer.eos_token_id]
    head = model.model.get_output_embeddings()
    real = head.forward

    def forward(hidden):
        scores = real(hidden)
        scores[..., mute] = -1e4
        return scores

    patch.setattr(head, "forward", forward)
    models, batcher = model_list.list_models(found, []), Batcher()
    with listening(http.build_api(lambda: models, ApiAuth((KEY, "another")), batcher)) as url:
        yield Running(url, model, batcher, models)
