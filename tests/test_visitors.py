"""Whose folder it is: the owner's, a visitor's, or nobody's who is known."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest

from persona import base as bases
from persona import fetch, files, folder, hub, limits, runs, space, templates, visitors
from persona.api import menu
from persona.config import RunConfig
from persona.errors import InputError
from persona.folder import Card
from persona.pairs import Pair
from persona.ui import guests
from tests.tiny import write_adapter

ANN, BEN = visitors.of_secret(visitors.new_secret()), visitors.of_account("512")
DAY = 86_400.0
PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(6)]


@pytest.fixture
def shared(monkeypatch, home):
    """A shared server, on which nobody is known to ask yet."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(files, "_ask", lambda: None)
    return home


def persona_of(visitor: str, name: str = "Mags", pairs: list[Pair] = PAIRS) -> folder.Persona:
    with files.asking(visitor):
        return folder.create(folder.free_path(name), Card(name=name), pairs)


def run_of(visitor: str, name: str = "Mags") -> runs.Run:
    with files.asking(visitor):
        return runs.create_run(persona_of(visitor, name), RunConfig())


# --- whose folder ------------------------------------------------------------------------------------------------


def test_on_an_own_machine_there_is_one_user_and_no_limit(home, monkeypatch):
    for name in ("PAIRS", "STEPS", "DISK_MB", "REQUESTS"):
        monkeypatch.setenv(f"PERSONA_MAX_{name}", "1")
    assert not files.shared() and files.visitor() == "" and files.home() == files.root() == home.resolve()
    assert limits.read() == limits.here() == limits.NONE and visitors.kept_until(ANN) is None
    assert len(persona_of(ANN).pairs()) == 6 and visitors.sweep(time.time() + 999 * DAY) == []


@pytest.mark.parametrize("space_id, said, is_shared",
                         [("", "", False), ("a/b", "", True), ("a/b", "0", False), ("", "1", True), ("", "0", False)])  # fmt: skip
def test_a_server_is_shared_on_a_space_or_when_its_owner_says_so(space_id, said, is_shared, monkeypatch):
    monkeypatch.delenv("GRADIO_SHARE", raising=False)
    monkeypatch.setenv("SPACE_ID", space_id)
    monkeypatch.setenv("PERSONA_SHARED", said)
    assert files.shared() == is_shared
    monkeypatch.setenv("GRADIO_SHARE", "True")  # strangers reach it as they reach a Space
    assert files.shared() == (said != "0")
    monkeypatch.setenv("PERSONA_SHARED", "yes")
    with pytest.raises(InputError, match="PERSONA_SHARED='yes'"):
        files.shared()


def test_who_is_not_known_gets_no_folder_at_all(shared):
    """Not that of the owner, and not in a thread or process that was started for a visitor either."""
    said = []

    def work():
        with pytest.raises(InputError, match="Allow cookies") as e:
            files.home()
        said.append(str(e.value))

    work()
    with files.asking(ANN):
        assert files.home() == shared.resolve() / "visitors" / ANN
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    code = "from persona import files\ntry: print(files.home())\nexcept ValueError as e: print(type(e).__name__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert len(said) == 2 and child.stdout == "InputError\n", child.stderr


@pytest.mark.parametrize("wrong", ["..", "../x", "a" * 39, "A" * 40, "a" * 40 + "/..", "/etc"])
def test_no_name_but_an_id_is_a_folder(wrong, shared):
    with files.asking(wrong), pytest.raises(InputError):
        files.home()


def test_ids_tell_neither_secret_nor_account(shared):
    secret = visitors.new_secret()
    assert len({visitors.of_secret(secret), visitors.of_account(secret), visitors.of_account("ann"), ANN, BEN}) == 5
    assert secret[:8] not in visitors.of_secret(secret) and len(visitors.of_secret(secret)) == 40
    assert [visitors.of_secret(x) for x in ("", secret[:-1], secret + "a", secret[:-1] + "/")] == [None] * 4


def test_the_shell_is_the_owners(shared, monkeypatch, capsys):
    from persona import cli

    monkeypatch.setattr(sys, "argv", ["persona", "doctor", "--json"])
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["home"] == str(shared.resolve())


def test_the_api_offers_the_owners_personas_alone(shared, tiny_llama, monkeypatch):
    monkeypatch.setattr(bases, "ready", lambda name: bases.Base(name or "none", tiny_llama))
    for who, name in (("", "Owned"), (ANN, "Anns")):
        run = run_of(who, name)
        write_adapter(tiny_llama, run.adapter, card=Card(name=name))
    with files.asking(ANN):
        names = [s.id for s in menu.at_home()]
    assert "owned" in names and "anns" not in names


def test_what_forks_is_told_whose_it_is(shared, monkeypatch):
    """A process of ZeroGPU serves one visitor after the other; what it knows of an earlier one must not count."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")

    def forked(function, duration):
        def call(*args):
            with files.asking(BEN):  # left over
                return function(*args) if "stream" not in function.__name__ else list(function(*args))

        return call

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=forked))

    def plain(x: int) -> tuple:
        return x, files.visitor()

    def steps(x: int):
        yield x, files.visitor()
        yield x + 1, files.visitor()

    with files.asking(ANN):
        assert space.gpu(60)(plain)(1) == (1, ANN)
        assert list(space.gpu(60)(steps)(1)) == [(1, ANN), (2, ANN)]
    with pytest.raises(InputError):
        space.gpu(60)(plain)(1)


def test_visitors_name_no_places_of_this_machine_and_use_no_login_of_it(shared, tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "x.jinja").write_text("x")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    own = persona_of(ANN).path / "template.jinja"
    own.write_text("{{ mine }}")
    for who, allowed in (("", nullcontext()), (ANN, pytest.raises(InputError, match="none of its own folders"))):
        with files.asking(who):
            for act in (lambda: bases.resolve(str(tiny_llama)), lambda: bases.ready(str(tiny_llama)),
                        lambda: templates.read_template(str(tmp_path / "x.jinja"))):  # fmt: skip
                with allowed:
                    act()
    with files.asking(BEN), pytest.raises(InputError):
        templates.read_template(str(own))
    with files.asking(ANN):
        assert templates.read_template(str(own)).text == "{{ mine }}"
        assert hub._login(None) is None and fetch._token() is False


@pytest.mark.slow
def test_a_training_writes_into_its_run_and_needs_no_workspace(shared, tiny_gemma):
    """It is a process of its own, in which nobody is known to ask."""
    with files.asking(ANN):
        settings = {"base": str(tiny_gemma), "max_steps": 2, "eval_fraction": 0.25, "diary_probes": 0}
        run = runs.create_run(persona_of(ANN), RunConfig(**settings))
    ran = subprocess.run([sys.executable, "-m", "persona.train", str(run.path)], capture_output=True, text=True)
    assert run.progress().status == "done", ran.stderr[-2000:]
    assert (run.adapter / "adapter_model.safetensors").is_file() and not (shared / "personas").exists()
    with files.asking(ANN):
        assert hub.share.pack(run.adapter, run.path / "x.zip").is_file()


# --- signing in --------------------------------------------------------------------------------------------------


def scope_of(secret: str, account: str = "", expires: float | None = None) -> dict:
    info = {"oauth_info": {"userinfo": {"sub": account}, "expires_at": expires}} if account else {}
    return {"headers": [(b"cookie", f"a=b; {visitors.COOKIE}={secret}; c=d".encode())], "session": info}


def test_an_account_counts_where_the_space_can_sign_in_and_nowhere_else(shared, monkeypatch):
    secret = visitors.new_secret()
    guest, account = visitors.of_secret(secret), visitors.of_account("512")
    assert guests.of_request(scope_of(secret, "512")) == (guest, None), "off a Space Gradio's session can be forged"
    for name in ("SPACE_ID", *space.OAUTH):
        monkeypatch.setenv(name, "x")
    assert guests.of_request(scope_of(secret, "512")) == (account, guest)
    assert guests.of_request(scope_of("forged", "512")) == (account, None)
    assert guests.of_request(scope_of(secret, "512", time.time() - 1)) == (guest, None)
    assert guests.of_request({"headers": []}) == (None, None)


def test_what_was_made_before_signing_in_comes_along(shared):
    run = run_of(ANN)
    persona_of(ANN, "Idle")
    persona_of(BEN, "Idle")
    runs.note_worker(run, psutil.Process().pid)
    visitors.move_in(ANN, BEN)
    with files.asking(BEN):
        assert {p.slug for p in folder.list_personas()} == {"idle", "idle-2"}
    with files.asking(ANN):
        assert [p.slug for p in folder.list_personas()] == ["mags"], "its training would lose its folder"
