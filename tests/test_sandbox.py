"""Chat templates of unknown origin: real ones render as in transformers, attacks end in a message, soon."""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cases import check_each
from transformers.utils.chat_template_utils import render_jinja_template

from persona.errors import Message, TemplateError
from persona.store.workspace import TEMPLATES_DIR, as_visitor
from persona.template import worker, worker_pool
from persona.template.chat_template import ChatTemplate, apply_template, build_messages
from persona.template.compatibility import SAMPLE_CHATS
from persona.template.jinja_engine import make_environment, render_chat
from persona.template.sandbox import inspect_template
from persona.template.worker_pool import render_in_worker

CHAT = [{"role": "user", "content": "hi " * 50}, {"role": "assistant", "content": "yes"}] * 20
OFFICIAL = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
REAL = [*OFFICIAL.glob("*.jinja"), *(TEMPLATES_DIR / "chat").glob("*.jinja")]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
ENDS = "longer than|without end|MemoryError"
HOURS = "{{ range(99999)|reject('in', range(99999)|list|reverse|list)|list|length }}"  # all in one expression

SECONDS = 0.5

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def pool(monkeypatch):
    """Workers of this test alone, with less time than a real one has: each test below uses it up."""
    pool = worker_pool._Pool()
    monkeypatch.setattr(worker_pool, "_pool", pool)
    limit = f"worker.MAX_SECONDS = {SECONDS}; worker.serve_requests()"
    monkeypatch.setattr(worker_pool, "_START", worker_pool._START.replace("worker.serve_requests()", limit))
    monkeypatch.setattr(worker_pool, "MAX_SECONDS", SECONDS)
    yield pool
    for one in list(pool.workers):
        one.end()


def render(text: str, chat: list[dict] = CHAT, **variables) -> str:
    return next(render_in_worker(text, [chat], variables)).text


def refuse(text: str) -> str:
    with pytest.raises(TemplateError, match=f"{ENDS}|recursion|Try again") as caught:
        render(text)
    return str(caught.value)


def test_templates_of_real_models_are_accepted():
    check_each(REAL, lambda file: inspect_template(make_environment(), file.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_templates_of_real_models_render_as_in_transformers():
    """In a worker; text and learned spans, or the same refusal."""
    chats = [[*chat, {"role": "assistant", "content": "Yes, 好。"}] for chat in SAMPLE_CHATS] + list(SAMPLE_CHATS)

    def check(file):
        text = file.read_text(encoding="utf-8")
        for chat in chats:
            try:
                theirs = render_jinja_template(
                    conversations=[chat], chat_template=text, return_assistant_tokens_mask=True, **SPECIAL
                )
                wanted = (theirs[0][0], [tuple(span) for span in theirs[1][0]])
            except Exception as e:
                wanted = f"{type(e).__name__}: {e}"
            try:
                ours = next(render_in_worker(text, [chat], SPECIAL))
                got = (ours.text, ours.learned)
            except TemplateError as e:
                got = str(e)
            assert got == wanted

    check_each(REAL, check)


def test_what_a_chat_template_has_no_use_for_is_refused_with_its_line():
    cases = [
        ("{{ 'a' * 9999999999 }}", "multiplies"),
        ("{{ 9 ** 9 ** 9 }}", "multiplies"),
        ("{{ '%999999999d' % 1 }}", "formats text"),
        ("{{ messages[0].content % [1] }}", "formats text"),
        ("{{ '{:>999999999}'.format(1) }}", "method 'format'"),
        ("{{ 'a'|center(999999999) }}", "filter 'center'"),
        ("{{ 'a'.center(n) }}", "method 'center'"),
        ("{{ 'a'.ljust(999999999) }}", "method 'ljust'"),
        ("{{ x|replace('a', x) }}", "not written there"),
        ("{{ x.replace('a', x) }}", "not written there"),
        ("{{ x|join(x) }}", "not written there"),
        ("{{ x.join(x) }}", "not written there"),
        ("{{ x|replace('a', '" + "a" * 1001 + "') }}", "1,001 times"),
        ("{{ x" + "|replace('a','aa')" * 11 + " }}", "2,048 times"),
        ("{{ x" + ".replace('','aaaaaaaaa')" * 4 + " }}", "10,000 times"),
        ("{{ 'aaaaaaaaa'.join('aaaaaaaaa'.join('aaaaaaaaa'.join('aaaaaaaaa'.join(x)))) }}", "10,000 times"),
        ("{{ x|tojson|tojson|tojson|tojson|tojson }}", "times as long"),
        ("{{ x|tojson(indent=900) }}", "indents"),
        ("{{ x|tojson(indent=n) }}", "not written there"),
        ("{{ 99999999999 }}", "number"),
        ("{% include '/etc/passwd' %}", "another file"),
        ("{% import 'os' as os %}", "another file"),
        ("{% extends 'x' %}", "another file"),
        ("{{ lipsum() }}", "calls lipsum"),
        ("{{ cycler('a') }}", "calls cycler"),
        ("{{ messages[0]['content']['x']() }}", "no name"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "__subclasses__"),
        ("{{ x|attr('__class__') }}", "filter 'attr'"),
        ("{{ " + " ~ ".join(["x"] * 60) + " }}", "joins more than"),
        ("{{ " + " + ".join(["x"] * 60) + " }}", "adds more than"),
        ("{% for m in messages %}", "line 1"),
        ("{{ unclosed", "line 1"),
        ("x" * 64_001, "64,001 characters"),
    ]

    def check(text, why):
        with pytest.raises(TemplateError, match=why.replace("(", r"\(")):
            inspect_template(make_environment(), text)

    check_each(cases, check)


def test_a_refusal_keeps_its_translation_on_its_way_from_the_worker():
    with pytest.raises(TemplateError) as caught:
        render("{{ x | xmlattr }}")
    reason = caught.value.message.values["reason"]
    assert isinstance(reason, Message) and reason.template == "uses the {what} {name!r}"


def test_what_the_template_raises_is_said_in_its_words():
    cases = {
        "{{ raise_exception('no é system') }}": "TemplateError: no é system",
        "{{ messages[0].x.y }}": "UndefinedError: 'dict object' has no attribute 'x'",
        "{{ messages[0].content[:2] + 1 }}": "TypeError",
        "{% set x = namespace() %}{% set x.__class__ = 1 %}": "SecurityError",
        "{{ namespace(_x=1) }}": "SecurityError",
    }

    def check(text, why):
        with pytest.raises(TemplateError, match=f"^{why}"):
            render(text)

    check_each(cases.items(), check)


BOMBS = [
    HOURS,
    "{{ range(99999)|map('string')|map('center',1000000)|join }}",
    "{{ ['%999999999d']|map('format', 1)|list|length }}",
    "{{ [range(99999)|list]|map('pprint')|map('pprint')|map('pprint')|list }}" + "{{ range(99999)|map('pprint')|list }}" * 500,
    "{{ range(99999)|map('string')|map('wordwrap', 1, true, 'a' ~ messages)|join }}" * 40,
    "{{ range(99999)|map('string')|map('indent', 1000000, true)|list|length }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(s='a') %}{% for m in messages %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(l=[1]) %}{% for m in messages %}{% set ns.l = ns.l + ns.l %}{% endfor %}",
    "{% for a in range(99999) %}{{ messages }}{% endfor %}",
    "{% for a in range(99999) %}{% generation %}{% endgeneration %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) if n > 400 else '' }}{{ f(n + 1) if n < 300 else '' }}{{ f(n + 1) if n < 300 else '' }}"
    "{% endmacro %}{{ f(0) }}",
]  # fmt: skip


@pytest.mark.parametrize("text", BOMBS, ids=range(len(BOMBS)))
def test_what_never_ends_ends_its_worker_alone(text, pool):
    refuse(text)
    assert render("{{ messages|length }}") == "40"


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the memory from /proc")
def test_memory_is_that_of_the_worker_and_limited(pool):
    def peak(pid):
        with contextlib.suppress(OSError):
            lines = dict(x.split(":", 1) for x in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in x)
            return int(lines["VmHWM"].split()[0]) << 10 if "VmHWM" in lines else 0
        return 0

    assert render("ok") == "ok"
    before, peaks = peak(os.getpid()), []
    child = next(iter(pool.workers)).process
    thread = threading.Thread(target=refuse, args=(BOMBS[1],))
    thread.start()
    while thread.is_alive():
        peaks.append(peak(child.pid))
        time.sleep(0.005)
    assert child.returncode is not None
    assert max(peaks) <= 256 << 20 and peak(os.getpid()) - before < 100 << 20


def test_another_renders_while_one_does_not_end(pool):
    thread = threading.Thread(target=refuse, args=(HOURS,))
    thread.start()
    while not pool._rendering.total():
        time.sleep(0.001)
    assert render("{{ messages|length }}") == "40"
    assert thread.is_alive()
    thread.join()


@pytest.mark.slow
def test_a_visitor_with_many_does_not_keep_another_waiting(pool, monkeypatch):
    monkeypatch.setenv("PERSONA_SHARED", "1")
    answers = []

    def attack(n):
        with as_visitor("a" * 40):
            answers.append(refuse(HOURS + "{# " + str(n) + " #}"))

    threads = [threading.Thread(target=attack, args=(n,)) for n in range(worker_pool.MAX_WAITING + 4)]
    for thread in threads:
        thread.start()
    while not pool._rendering.total():
        time.sleep(0.001)
    with as_visitor("b" * 40):
        assert render("{{ messages|length }}") == "40"
    assert sum(t.is_alive() for t in threads) > 1 and pool._rendering["a" * 40] <= 1
    for thread in threads:
        thread.join()
    assert len(answers) == len(threads) and any("longer than" in a for a in answers)
    assert not pool._rendering.total() and not pool._waiting.total()


@pytest.mark.slow
def test_what_took_too_much_is_refused_at_once_for_a_while(pool, monkeypatch):
    for _ in range(3):
        assert f"longer than {SECONDS} seconds" in refuse(HOURS)
        assert not pool.workers  # ended, and none was started for the second and third
    assert render("ok") == "ok"
    first = next(iter(pool.workers))
    monkeypatch.setattr(pool, "_refused", {digest: (0, why) for digest, (_, why) in pool._refused.items()})
    refuse(HOURS)
    assert not first.alive  # after that while it ran again


@pytest.mark.slow
def test_what_is_slow_each_time_is_refused_after_a_while(pool):
    """A template that stays below the limit of one request would hold up a check of all pairs for an hour."""
    slow = "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}"
    for _ in range(100):
        try:
            render(slow)
        except TemplateError as e:
            assert "longer than" in str(e)
            return
    pytest.fail("rendered 100 times")


def test_a_worker_that_was_killed_is_replaced(pool):
    assert render("a") == "a"
    first = next(iter(pool.workers)).process
    assert render("b") == "b" and {w.process.pid for w in pool.workers} == {first.pid}
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert render("c") == "c" and first.pid not in {w.process.pid for w in pool.workers}


@pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="reads the environment from /proc")
def test_a_worker_has_no_secrets_and_may_open_nothing(pool, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert render("ok") == "ok"
    pid = next(iter(pool.workers)).process.pid
    names = {x.split(b"=")[0] for x in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0") if x}
    assert names <= {n.encode() for n in worker_pool._ENVIRONMENT}
    limits = {line[:26].strip(): line[26:].split()[:2] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert limits["Max open files"] == limits["Max file size"] == limits["Max core file size"] == ["0", "0"]
    assert limits["Max address space"] == [str(worker.MAX_MEMORY)] * 2
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    opened = {str(fd.readlink()).split(":")[0] for fd in Path(f"/proc/{pid}/fd").iterdir()}
    assert opened <= {"pipe", "/dev/null"}


def _render_in_child(answers) -> None:
    answers.put((render("{{ messages|length }}"), [w.process.pid for w in worker_pool._pool.workers]))


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_daemonic_process_renders_with_a_worker_of_its_own(method, pool):
    assert render("a") == "a"
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    process = context.Process(target=_render_in_child, args=(answers,), daemon=True)
    process.start()
    text, pids = answers.get(timeout=100)
    assert text == "40" and len(pids) == 1 and pids != [w.process.pid for w in pool.workers]
    process.join()
    assert render("b") == "b" and len(pool.workers) == 1


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_worker_ends_with_the_process_that_started_it(end):
    code = (
        "import os, sys; from persona.template import worker_pool as p; next(p.render_in_worker('a', [[]], {}));"
        f"print(*[w.process.pid for w in p._pool.workers], flush=True); {end}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    pid = int(done.stdout)
    for _ in range(1000):
        try:
            os.kill(pid, 0)
            if "Z" in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
                return  # nobody collects it here, in a container without an init
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} lives on")


@pytest.mark.slow
def test_a_good_template_is_not_refused_for_having_waited(pool):
    """On a busy machine: what counts is its own work."""
    assert render("a") == "a"
    child = next(iter(pool.workers)).process
    os.kill(child.pid, signal.SIGSTOP)
    threading.Timer(SECONDS + 0.5, os.kill, (child.pid, signal.SIGCONT)).start()
    assert render("b") == "b" and child.poll() is None


def test_many_chats_are_a_few_requests(pool, monkeypatch):
    asked, ask = [], pool.ask
    monkeypatch.setattr(pool, "ask", lambda *args: asked.append(1) or ask(*args))
    chats = [build_messages("", [], f"question {n}") for n in range(1000)]
    assert [r.text for r in render_in_worker("{{ messages[0].content }}", chats, {})] == [
        c[0]["content"] for c in chats
    ]
    assert len(asked) < 20
    assert [len(c[0]["content"]) for c in chats] == [
        len(r.text) for r in render_in_worker("{{ messages[0].content }}", iter(chats), {})
    ]
    long = [build_messages("", [], "x" * 100_000)] * 5
    assert [len(r.text) for r in render_in_worker("{{ messages[0].content }}", long, {})] == [100_000] * 5


def test_an_answer_that_is_none_is_an_error():
    cases = [None, {}, [], {"chats": []}, {"chats": [["a"]]}, {"chats": [["a", [[1]]]]}, {"message": "x"}, {"kind": 1}]

    def check(answer):
        with pytest.raises((TemplateError, ValueError, TypeError)):
            worker_pool._read_answer(answer, 1)

    check_each([(case,) for case in cases], check)


def test_texts_of_every_kind_come_back_as_they_were():
    for text in ("你好 👩‍🚀 \x00\u2028", "\ud800 alone", "'\"\\\n"):
        chat = [{"role": "user", "content": text}]
        assert render("{{ messages[0].content }}", chat) == text
        assert json.loads(render("{{ messages[0].content|tojson }}", chat)) == text


def test_no_other_code_runs_a_chat_template():
    root = TEMPLATES_DIR.parent / "persona"
    calls = re.compile(r"\.apply_chat_template\(|render_jinja_template\(|SandboxedEnvironment\(")
    found = {
        f.name for f in root.rglob("*.py") if calls.search(re.sub('""".*?"""', "", f.read_text("utf-8"), flags=re.S))
    }
    assert found == {"jinja_engine.py"}


def test_shipped_templates_render_in_this_process(byte_tokenizer, pool):
    shipped = (TEMPLATES_DIR / "chat" / "chatml.jinja").read_text(encoding="utf-8")
    free = apply_template(byte_tokenizer, ChatTemplate("chatml", shipped), CHAT, tokenize=False)
    assert not pool.workers
    assert apply_template(byte_tokenizer, ChatTemplate("mine", shipped + "{# mine #}"), CHAT, tokenize=False) == free
    assert pool.workers


def test_a_value_that_is_not_there_stays_one_that_is_not_there():
    assert render("{% set x = messages[0].thinking %}{% if x is defined %}yes{% else %}no{% endif %}") == "no"


def test_the_limits_of_a_worker_are_not_those_of_shipped_templates():
    template = make_environment().from_string("{% for a in range(9) %}{% generation %}a{% endgeneration %}{% endfor %}")
    assert len(render_chat(template, CHAT[:1], {}).learned) == 9
    with pytest.raises(MemoryError):
        render_chat(template, CHAT[:1], {}, 100)
    with pytest.raises(MemoryError):
        render_chat(template, CHAT, {}, 5)
