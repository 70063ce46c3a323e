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

from persona.errors import InputError, PersonaError
from persona.models import base as bases
from persona.models import bundled, download, zerogpu
from persona.serve import model_list
from persona.share import archive, hub
from persona.store import deployment, persona_folder, quotas, workspace
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.template import chat_template
from persona.train import launcher, run_folder
from persona.train.config import RunConfig
from persona.ui.middleware import visitors as ui_middleware_visitors
from persona.ui.middleware import workspaces
from tests.tiny_models import write_adapter

ANN, BEN = workspaces.visitor_of_secret(workspaces.new_secret()), workspaces.visitor_of_account("512")
DAY = 86_400.0
PAIRS = [Pair(f"question {n}", f"answer {n}") for n in range(6)]


@pytest.fixture
def shared(monkeypatch, home):
    """A shared server, on which nobody is known to ask yet."""
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(workspace, "_visitor_lookup", lambda: None)
    return home


def persona_of(visitor: str, name: str = "Mags", pairs: list[Pair] = PAIRS) -> persona_folder.Persona:
    with workspace.as_visitor(visitor):
        return persona_folder.create_persona_at(persona_folder.free_path(name), PersonaCard(name=name), pairs)


def run_of(visitor: str, name: str = "Mags") -> run_folder.Run:
    with workspace.as_visitor(visitor):
        return launcher.create_run(persona_of(visitor, name), RunConfig())


# --- whose folder ------------------------------------------------------------------------------------------------


def test_on_an_own_machine_there_is_one_user_and_no_limit(home, monkeypatch):
    for name in ("PAIRS", "STEPS", "DISK_MB", "REQUESTS"):
        monkeypatch.setenv(f"PERSONA_MAX_{name}", "1")
    assert (
        not deployment.is_shared_server()
        and workspace.current_visitor() == ""
        and workspace.current_workspace() == workspace.data_root() == home.resolve()
    )
    assert quotas.read_quotas() == quotas.current_quotas() == quotas.UNLIMITED and workspaces.kept_until(ANN) is None
    assert len(persona_of(ANN).pairs()) == 6 and workspaces.remove_idle_workspaces(time.time() + 999 * DAY) == []


@pytest.mark.parametrize("space_id, said, is_shared",
                         [("", "", False), ("a/b", "", True), ("a/b", "0", False), ("", "1", True), ("", "0", False)])  # fmt: skip
def test_a_server_is_shared_on_a_space_or_when_its_owner_says_so(space_id, said, is_shared, monkeypatch):
    monkeypatch.delenv("GRADIO_SHARE", raising=False)
    monkeypatch.setenv("SPACE_ID", space_id)
    monkeypatch.setenv("PERSONA_SHARED", said)
    assert deployment.is_shared_server() == is_shared
    monkeypatch.setenv("GRADIO_SHARE", "True")  # strangers reach it as they reach a Space
    assert deployment.is_shared_server() == (said != "0")
    monkeypatch.setenv("PERSONA_SHARED", "yes")
    with pytest.raises(InputError, match="PERSONA_SHARED='yes'"):
        deployment.is_shared_server()


def test_who_is_not_known_gets_no_folder_at_all(shared):
    """Not that of the owner, and not in a thread or process that was started for a visitor either."""
    said = []

    def work():
        with pytest.raises(InputError, match="Allow cookies") as e:
            workspace.current_workspace()
        said.append(str(e.value))

    work()
    with workspace.as_visitor(ANN):
        assert workspace.current_workspace() == shared.resolve() / "visitors" / ANN
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    code = "from persona.store import workspace\ntry: print(workspace.current_workspace())\nexcept ValueError as e: print(type(e).__name__)"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert len(said) == 2 and child.stdout == "InputError\n", child.stderr


@pytest.mark.parametrize("wrong", ["..", "../x", "a" * 39, "A" * 40, "a" * 40 + "/..", "/etc"])
def test_no_name_but_an_id_is_a_folder(wrong, shared):
    with workspace.as_visitor(wrong), pytest.raises(InputError):
        workspace.current_workspace()


def test_ids_tell_neither_secret_nor_account(shared):
    secret = workspaces.new_secret()
    assert (
        len(
            {
                workspaces.visitor_of_secret(secret),
                workspaces.visitor_of_account(secret),
                workspaces.visitor_of_account("ann"),
                ANN,
                BEN,
            }
        )
        == 5
    )
    assert secret[:8] not in workspaces.visitor_of_secret(secret) and len(workspaces.visitor_of_secret(secret)) == 40
    assert [workspaces.visitor_of_secret(x) for x in ("", secret[:-1], secret + "a", secret[:-1] + "/")] == [None] * 4


def test_the_shell_is_the_owners(shared, monkeypatch, capsys):
    from persona import cli

    monkeypatch.setattr(sys, "argv", ["persona", "doctor", "--json"])
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["home"] == str(shared.resolve())


def test_the_api_offers_the_owners_personas_alone(shared, tiny_llama, monkeypatch):
    monkeypatch.setattr(bases, "find_local_base", lambda name: bases.Base(name or "none", tiny_llama))
    for who, name in (("", "Owned"), (ANN, "Anns")):
        run = run_of(who, name)
        write_adapter(tiny_llama, run.adapter, card=PersonaCard(name=name))
    with workspace.as_visitor(ANN):
        names = [s.id for s in model_list.list_home_models()]
    assert "owned" in names and "anns" not in names


def test_what_forks_is_told_whose_it_is(shared, monkeypatch):
    """A process of ZeroGPU serves one visitor after the other; what it knows of an earlier one must not count."""
    monkeypatch.setenv("SPACES_ZERO_GPU", "1")

    def forked(function, duration):
        def call(*args):
            with workspace.as_visitor(BEN):  # left over
                return function(*args) if "stream" not in function.__name__ else list(function(*args))

        return call

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=forked))

    def plain(x: int) -> tuple:
        return x, workspace.current_visitor()

    def steps(x: int):
        yield x, workspace.current_visitor()
        yield x + 1, workspace.current_visitor()

    with workspace.as_visitor(ANN):
        assert zerogpu.request_gpu(60)(plain)(1) == (1, ANN)
        assert list(zerogpu.request_gpu(60)(steps)(1)) == [(1, ANN), (2, ANN)]
    with pytest.raises(InputError):
        zerogpu.request_gpu(60)(plain)(1)


def test_visitors_name_no_places_of_this_machine_and_use_no_login_of_it(shared, tiny_llama, tmp_path, monkeypatch):
    (tmp_path / "x.jinja").write_text("x")
    monkeypatch.setenv("HF_TOKEN", "hf_" + "o" * 34)
    own = persona_of(ANN).path / "template.jinja"
    own.write_text("{{ mine }}")
    for who, allowed in (("", nullcontext()), (ANN, pytest.raises(InputError, match="none of its own folders"))):
        with workspace.as_visitor(who):
            for act in (lambda: bases.resolve_base(str(tiny_llama)), lambda: bases.find_local_base(str(tiny_llama))):
                with allowed:
                    act()
            with nullcontext() if not who else pytest.raises(PersonaError, match="no such template"):
                chat_template.read_template(str(tmp_path / "x.jinja"))
    with workspace.as_visitor(BEN), pytest.raises(PersonaError):
        chat_template.read_template(str(own))
    with workspace.as_visitor(ANN):
        assert chat_template.read_template(str(own)).text == "{{ mine }}"
        assert hub._resolve_token(None) is None and download._token() is False


@pytest.mark.slow
def test_a_training_writes_into_its_run_and_needs_no_workspace(shared, tiny_gemma):
    """It is a process of its own, in which nobody is known to ask."""
    with workspace.as_visitor(ANN):
        run = launcher.create_run(persona_of(ANN), RunConfig(max_steps=2, eval_fraction=0.25, diary_probes=0))
    file = run.path / "run.json"  # a visitor may not name a folder; it is as if the base were on the Hub
    file.write_text(file.read_text().replace(bundled.DEFAULT_BASE, str(tiny_gemma)))
    ran = subprocess.run([sys.executable, "-m", "persona.train", str(run.path)], capture_output=True, text=True)
    assert run.progress().status == "done", ran.stderr[-2000:]
    assert (run.adapter / "adapter_model.safetensors").is_file() and not (shared / "personas").exists()
    with workspace.as_visitor(ANN):
        assert archive.pack_adapter(run.adapter, run.path / "x.zip").is_file()


# --- signing in --------------------------------------------------------------------------------------------------


def scope_of(secret: str, account: str = "", expires: float | None = None) -> dict:
    info = {"oauth_info": {"userinfo": {"sub": account}, "expires_at": expires}} if account else {}
    return {"headers": [(b"cookie", f"a=b; {workspaces.VISITOR_COOKIE}={secret}; c=d".encode())], "session": info}


def test_an_account_counts_where_the_space_can_sign_in_and_nowhere_else(shared, monkeypatch):
    secret = workspaces.new_secret()
    persona_of(workspaces.visitor_of_secret(secret))
    guest, account = workspaces.visitor_of_secret(secret), workspaces.visitor_of_account("512")
    assert ui_middleware_visitors.identify_visitor(scope_of(secret, "512")) == (guest, None), (
        "off a Space Gradio's session can be forged"
    )
    for name in ("SPACE_ID", *deployment.OAUTH_VARIABLES):
        monkeypatch.setenv(name, "x")
    assert ui_middleware_visitors.identify_visitor(scope_of(secret, "512")) == (account, guest)
    assert ui_middleware_visitors.identify_visitor(scope_of("forged", "512")) == (account, None)
    assert ui_middleware_visitors.identify_visitor(scope_of(secret, "512", time.time() - 1)) == (guest, None)
    assert ui_middleware_visitors.identify_visitor({"headers": []}) == (None, None)


def test_what_was_made_before_signing_in_comes_along(shared):
    run = run_of(ANN)
    persona_of(ANN, "Idle")
    persona_of(BEN, "Idle")
    run_folder.record_worker(run, psutil.Process().pid)
    workspaces.move_to_account(ANN, BEN)
    with workspace.as_visitor(BEN):
        assert {p.slug for p in persona_folder.list_personas()} == {"idle", "idle-2"}
    with workspace.as_visitor(ANN):
        assert [p.slug for p in persona_folder.list_personas()] == ["mags"], "its training would lose its folder"
