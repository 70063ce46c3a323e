"""Symbolic links that lead elsewhere, and that appear between a check and its use; and files that are another's to save."""

import contextlib
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from persona.errors import PersonaError
from persona.models import adapter as adapters
from persona.share import archive
from persona.store import persona_folder, workspace
from persona.store.persona_folder import PersonaCard
from persona.ui import page
from persona.ui.middleware import workspaces
from persona.ui.middleware.refusal import RequestRefused
from persona.ui.middleware.visitors import VisitorIsolation
from tests.test_workspaces import ANN, BEN, persona_of
from tests.tiny_models import write_adapter

SECRET = b"THE OWNER'S SECRET"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")


@pytest.fixture
def shared(monkeypatch, home, tmp_path):
    monkeypatch.setenv("PERSONA_SHARED", "1")
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "gradio"))
    monkeypatch.setattr(workspace, "_visitor_lookup", lambda: None)
    return home


@contextlib.contextmanager
def swapping(file: Path, target: Path):
    """While it lasts, another thread makes `file` by turns the file itself and a link to `target`."""
    whole, spare, over = file.read_bytes(), file.with_name("spare"), threading.Event()

    def swap() -> None:
        while not over.is_set():
            for make in (lambda: spare.symlink_to(target), lambda: spare.write_bytes(whole)):
                make()
                spare.replace(file)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "chat_template.jinja"])
def test_a_link_that_appears_after_the_check_takes_nothing_along(name, tiny_llama, tmp_path):
    """The folder is one that somebody else can write to, as on a disk that several use."""
    place, private = tmp_path / "adapter", tmp_path / "private"
    write_adapter(tiny_llama, place)
    (place / "README.md").write_text("A card.")
    private.write_bytes(SECRET)
    sent = refused = 0
    with swapping(place / name, private):
        for n in range(60):
            try:
                out = archive.pack_adapter(place, tmp_path / "x.zip")
                with zipfile.ZipFile(out) as made:
                    assert not any(SECRET in made.read(i) for i in made.namelist())
                copied = archive.copy_adapter(place, tmp_path / f"kept-{n}")
                assert not any(SECRET in f.read_bytes() for f in copied.iterdir())
                sent += 1
            except PersonaError:
                refused += 1
    assert sent + refused == 60


def test_a_file_is_examined_after_it_has_been_opened(tiny_llama, tmp_path, monkeypatch):
    """The race above, lost for certain: the name is a link while it is opened, and a file again when it is looked at."""
    place, private = tmp_path / "adapter", tmp_path / "private"
    write_adapter(tiny_llama, place)
    private.write_bytes(SECRET)
    file, real_open = place / "README.md", Path.open
    file.write_text("A card.")

    def open_in_the_wrong_moment(self, *args, **more):
        if self != file:
            return real_open(self, *args, **more)
        file.unlink()
        file.symlink_to(private)
        opened = real_open(self, *args, **more)
        file.unlink()
        with real_open(file, "w") as again:
            again.write("A card.")
        return opened

    monkeypatch.setattr(Path, "open", open_in_the_wrong_moment)
    with pytest.raises(PersonaError, match="link to another place"):
        adapters.open_adapter_file(file)
    with pytest.raises(PersonaError, match="being written all the time"):  # it is another file at every try
        archive.pack_adapter(place, tmp_path / "x.zip")
    assert not (tmp_path / "x.zip").exists()


def test_links_in_a_workspace_lead_neither_sweep_nor_move_out_of_it(shared):
    mine, theirs = persona_of(ANN, "Ann's"), persona_of(BEN, "Ben's")
    (theirs.path / "large").write_bytes(SECRET)
    (mine.path / "out").symlink_to(theirs.path)
    (mine.path.parent / "stolen").symlink_to(theirs.path)
    with workspace.as_visitor(ANN):
        persona_folder.trash_persona(mine)
    account = workspaces.visitor_of_account("7")
    workspaces.move_to_account(ANN, account)
    with workspace.as_visitor(account):
        assert persona_folder.list_personas() == []
    workspaces.remove_idle_workspaces(now=4e9)
    assert not workspace.workspace_of(ANN).exists()
    persona_of(BEN)
    outside = shared / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(SECRET)
    (workspace.workspace_of(ANN)).symlink_to(outside)
    workspaces.remove_idle_workspaces(now=4e9)
    assert (outside / "kept").read_bytes() == SECRET


@pytest.fixture
def guard(shared):
    return VisitorIsolation(lambda *_: None)


def test_a_file_to_save_belongs_to_the_visitor_it_was_made_for(guard):
    with workspace.as_visitor(ANN):
        file = page.download_path("x.zip")
    file.write_bytes(SECRET)
    guard.require_file(str(file), ANN)
    sibling = f"{file.parents[1]}-more/x.zip"  # a folder whose name begins alike
    for path in (str(file), f"{file.parent}/./{file.name}", str(file).replace("/", "//"), f"{file.parent}/../{file.parent.name}/{file.name}",
                 f"{file.parents[2]}/{BEN}/../{ANN}/{file.parent.name}/{file.name}", sibling, f"{file.parents[2]}/{BEN}", "", "\0"):  # fmt: skip
        with pytest.raises(RequestRefused):
            guard.require_file(path, BEN)


def test_a_link_among_files_to_save_or_uploads_is_not_followed(guard):
    """Whoever can write there could lead one visitor to the files of another, or of the server."""
    with workspace.as_visitor(ANN):
        file = page.download_path("x.zip")
    file.write_bytes(SECRET)
    with workspace.as_visitor(BEN):
        own = page.download_path("own.zip")
    own.write_bytes(b"Ben's")
    guard.require_file(str(own), BEN)
    for link, target in (
        (own.with_name("l.zip"), file),
        (own.with_name("folder"), file.parent),
        (own.with_name("etc"), Path("/etc")),
    ):
        link.symlink_to(target)
        for path in (link, link / file.name, link / "passwd"):
            with pytest.raises(RequestRefused):
                guard.require_file(str(path), BEN)
    uploaded = file.parents[2] / ("0" * 64) / "up.txt"
    uploaded.parent.mkdir()
    uploaded.write_bytes(b"Ben's")
    guard.record_uploads(BEN, f'["{uploaded}"]'.encode())
    guard.require_file(str(uploaded), BEN)
    uploaded.unlink()
    uploaded.symlink_to(file)
    with pytest.raises(RequestRefused):
        guard.require_file(str(uploaded), BEN)


def test_a_workspace_behind_a_link_is_still_the_owners(shared, tmp_path):
    """PERSONA_HOME itself may be a link: what lies below belongs to whom it did."""
    mine = persona_of(ANN)
    (tmp_path / "link").symlink_to(shared)
    assert workspace.owner_of(tmp_path / "link" / mine.path.relative_to(shared.resolve())) == ANN
    with workspace.as_visitor(ANN):
        (mine.path / "own.jinja").write_text("x")
        (mine.path / "out.jinja").symlink_to(persona_of(BEN).path / "persona.json")
        assert workspace.may_name(mine.path / "own.jinja")
        assert not workspace.may_name(mine.path / "out.jinja")
        assert not workspace.may_name(workspace.workspace_of(BEN) / "x.jinja")


def test_a_new_persona_goes_into_no_linked_folder(shared):
    with workspace.as_visitor(ANN):
        place = persona_folder.free_path("Mags")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(persona_of(BEN).path)
        with pytest.raises(PersonaError):
            persona_folder.create_persona_at(place, PersonaCard(name="Mags"))
        assert persona_folder.free_path("Mags") != place
