"""What a visitor types as the name of a base or template: the same answer for every path, and the disk not looked at."""

import os
import sys
from pathlib import Path

import pytest
from cases import check_each

from persona.errors import PersonaError
from persona.models import base as bases
from persona.share.adapter_ref import AdapterRef
from persona.share.exports import gguf_files
from persona.store import persona_folder, workspace
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.template import chat_template
from persona.train import launcher, run_folder
from persona.train.config import RunConfig
from persona.ui.middleware import workspaces

ANN = workspaces.visitor_of_secret("a" * 43)
LONG = "x" * 5_000


@pytest.fixture
def shared(monkeypatch, home):
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setattr(workspace, "_visitor_lookup", lambda: None)
    return home


@pytest.fixture
def typed(tiny_llama, tmp_path, monkeypatch) -> list[str]:
    """Names that lead to something, each beside one that leads nowhere."""
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "link").symlink_to(closed / "inside")
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "config.json").write_text("{}")
    closed.chmod(0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return [str(tiny_llama), f"{tiny_llama}-none", "~", "~/own", "~/none", "~root", "~nobody-of-this-name", "~nobody-of-this-name/x",
            ".", "..", "/", "/etc", "/etc/none", str(tmp_path / "x.gguf"), str(tmp_path / "none.gguf"), "x.gguf", str(closed / "x"),
            str(tmp_path / "link"), LONG, f"/{LONG}", f"~{LONG}", f"a/{LONG}", f"{LONG}.gguf", "\0", "a\0b", "\ud800", "own", "none",
            "modelscope:../..", "modelscope:/etc", "modelscope:~/x"]  # fmt: skip


@pytest.fixture
def touched():
    """Every path that is looked at while it is on: os.stat has no audit event, so its callers are wrapped."""
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (os, "stat"),
            (os, "lstat"),
            (os, "open"),
            (os, "listdir"),
            (os, "scandir"),
            (os, "readlink"),
        ):
            real = getattr(module, name)

            def look(path, *args, _real=real, **more):
                seen.append(os.fspath(path) if isinstance(path, str | os.PathLike) else "")
                return _real(path, *args, **more)

            patch.setattr(module, name, look)
        yield seen


def refusal(act, text: str) -> str:
    """What is said, without the name itself."""
    with pytest.raises(PersonaError) as refused:
        act()
    said = str(refused.value)
    assert len(said) < 1_500
    return said.replace(f"{text[: bases.MAX_SHOWN]!r}", "NAME")


def test_a_visitor_names_a_base_by_its_id_alone(shared, typed, touched):
    asked: set[str] = set()

    def check(text):
        del touched[:]
        with workspace.as_visitor(ANN):
            asked.add(refusal(lambda: bases.resolve_base(text), text))
            asked.add(refusal(lambda: bases.find_local_base(text), text))
        names = [p for p in touched if p.rstrip("/") in (text, os.path.expanduser(text)) or LONG[:300] in p]  # noqa: PTH111
        assert not names

    check_each([(text,) for text in typed], check)
    assert len(asked) == 1, asked


def test_a_folder_named_like_a_hub_id_is_not_opened_for_a_visitor(shared, typed):
    """own/model lies in the folder in which the server was started."""
    with workspace.as_visitor(ANN):
        assert bases.find_local_base("own/model") is None
        with pytest.raises(PersonaError, match="cannot be reached"):
            bases.resolve_base("own/model")
    with workspace.as_visitor(""):
        assert bases.find_local_base("own/model").path == Path("own/model").resolve()  # type: ignore[union-attr]


def test_no_run_of_a_visitor_starts_on_a_path(shared, typed):
    """The process that trains is the server's own and would open it."""
    with workspace.as_visitor(ANN):
        pairs = [Pair(f"question {n}", f"answer {n}") for n in range(6)]
        mine = persona_folder.create_persona_at(persona_folder.free_path("Mags"), PersonaCard(name="Mags"), pairs)
        (workspace.data_root() / "x.jinja").write_text("{{ secret }}")
        for wrong in ({"base": typed[0]}, {"base": "x.gguf"}, {"template": str(workspace.data_root() / "x.jinja")}):
            with pytest.raises(PersonaError, match=r"none of its own folders|no such template"):
                launcher.create_run(mine, RunConfig(**wrong))
        assert run_folder.list_runs(mine) == [] and launcher.create_run(mine, RunConfig(template="chatml"))


def test_a_template_is_one_of_ours_or_of_the_visitors_workspace(shared, typed, tmp_path, touched):
    with workspace.as_visitor(ANN):
        home = workspace.current_workspace()
        home.mkdir(parents=True)
    (tmp_path / "secret.jinja").write_text("SECRET")
    (home / "link.jinja").symlink_to(tmp_path / "secret.jinja")
    (home / "own.jinja").write_text("mine")
    names = [str(tmp_path / "secret.jinja"), str(tmp_path / "none.jinja"), "~/secret.jinja", "secret.jinja", f"{LONG}.jinja",
             str(home / "link.jinja"), f"{home}/../../../secret.jinja", "~nobody-of-this-name.jinja", "\0.jinja"]  # fmt: skip
    said = set()
    for name in [*typed, *names]:
        del touched[:]
        with workspace.as_visitor(ANN):
            said.add(refusal(lambda name=name: chat_template.read_template(name), name))  # type: ignore[misc]
        # of a link in the workspace, where it leads to is found out, and no more
        assert "/link.jinja" in name or not [p for p in touched if "secret.jinja" in p or "none.jinja" in p], name
    assert len(said) == 1, said
    with workspace.as_visitor(ANN):
        assert chat_template.read_template(str(home / "own.jinja")).text == "mine"


def test_an_exports_gguf_is_not_looked_for_by_a_visitors_path(shared, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    base = bases.Base("x", tmp_path)
    with workspace.as_visitor(ANN):
        assert gguf_files.find_source_gguf(base, str(tmp_path / "x.gguf"), tmp_path) is None
    with workspace.as_visitor(""):
        assert gguf_files.find_source_gguf(base, str(tmp_path / "x.gguf"), tmp_path) == tmp_path / "x.gguf"


def test_on_an_own_machine_every_name_is_opened_or_refused_in_words(typed, tiny_llama):
    """No exception for a name that is too long, of no user, or closed."""

    def check(text):
        for act in (lambda: bases.resolve_base(text), lambda: bases.find_local_base(text),
                    lambda: chat_template.read_template(f"{text}.jinja"), lambda: AdapterRef.parse(text),
                    lambda: AdapterRef.parse_voice(text), lambda: persona_folder.open_by_name(text)):  # fmt: skip
            try:
                act()
            except PersonaError as e:
                assert len(str(e)) < 12_000

    check_each([(text,) for text in typed if not text.endswith("x.gguf")], check)
    assert bases.resolve_base(str(tiny_llama)).path == tiny_llama.resolve()
    if sys.platform != "win32":
        assert bases.find_local_base("~/own/model").path.name == "model"  # type: ignore[union-attr]
