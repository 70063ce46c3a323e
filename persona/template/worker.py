"""The process in which templates of unknown origin render: requests on stdin, answers on stdout, limits on itself.

A message is its length (4 bytes, big-endian) and JSON. Request: {"template", "chats", "variables"}. Reply: {"answer",
"seconds"} of CPU, where the answer is {"chats": [[text, learned spans], …]}, {"message"} for a refused template, or
{"kind", "reason"} for what the template raised. A first {} says that the process is ready.

Where time or memory runs out there is no reply: the process ends, and worker_pool.py starts another.
"""

import contextlib
import json
import signal
import sys
import time
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.debug  # Jinja imports it when a template raises, and then no file can be opened any more

from persona.errors import TemplateError
from persona.template.jinja_engine import make_environment, render_chat
from persona.template.sandbox import inspect_template

MAX_SECONDS = 2.0  # of CPU for one request; waiting on a busy machine does not count. A real chat takes a millisecond
MAX_MEMORY = 256 << 20  # bytes of address space, where the system keeps to it (Linux); 40 MB are Python's
MAX_OUTPUT = 2_000_000  # characters of one rendered chat
MAX_REASON = 1_000  # characters of what a template raises

_environment = make_environment()


@lru_cache(maxsize=32)
def _compile(text: str) -> jinja2.Template:
    return _environment.from_string(inspect_template(_environment, text))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Raises MemoryError where the template writes or keeps too much."""
    try:
        template = _compile(request["template"])
        rendered = [render_chat(template, chat, request["variables"], MAX_OUTPUT) for chat in request["chats"]]
    except TemplateError as e:
        return {"message": e.message.to_json()}
    except MemoryError:
        raise
    except Exception as e:  # Jinja, sandbox and raise_exception errors have no common base class
        return {"kind": type(e).__name__, "reason": str(e)[:MAX_REASON]}
    return {"chats": [[chat.text, chat.learned] for chat in rendered]}


def serve_requests() -> None:
    """Answer until stdin is closed, which it is when the asking process ends."""
    requests = sys.stdin.buffer
    _import_what_jinja_needs_later()
    _limit_process()
    _send({})
    while len(head := requests.read(4)) == 4:
        body = requests.read(int.from_bytes(head, "big"))
        _limit_cpu(MAX_SECONDS)
        before = time.process_time()
        answered = answer(json.loads(body))
        _limit_cpu(0)
        _send({"answer": answered, "seconds": time.process_time() - before})


def _send(answered: dict[str, Any]) -> None:
    encoded = json.dumps(answered).encode()
    sys.stdout.buffer.write(len(encoded).to_bytes(4, "big") + encoded)
    sys.stdout.buffer.flush()


def _import_what_jinja_needs_later() -> None:
    answer({"template": "{{ 'a\\n' | tojson }}{{ strftime_now('%c %Z') }}", "chats": [[]], "variables": {}})
    answer({"template": "{{ raise_exception('é') }}", "chats": [[]], "variables": {}})


def _limit_process() -> None:
    """No file, no other process, no core file; memory. On Windows there is no such module."""
    try:
        import resource
    except ImportError:
        return
    limits = {"CORE": 0, "FSIZE": 0, "NOFILE": 0, "NPROC": 0, "AS": MAX_MEMORY}
    for name, limit in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on this system, or lower already
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)


def _limit_cpu(seconds: float) -> None:
    """End this process after so much CPU time, also inside a single call; 0 takes the limit back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)
