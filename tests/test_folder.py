"""Persona folders: made, opened, listed, moved to the trash and back; and the shipped ones keep what they promise."""

import json
import os
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
from cases import check_each

from persona import folder
from persona.errors import InputError
from persona.files import PROJECT, SHIPPED_PERSONAS, inside, slug
from persona.files import home as persona_home
from persona.folder import Card, Persona, create, open_persona
from persona.pairs import Pair, unfinished

MAGS = Card(name="Mags", system="Be dry.", probes=("Who?", "Where?"))
PAIRS = [Pair("Who are you?", "Mags."), Pair("And?", "That is all.", (("Hello", "Aye."),))]
SHIPPED = [p.name for p in sorted(SHIPPED_PERSONAS.iterdir()) if p.is_dir()]


def test_the_home_of_a_test_is_its_own(tmp_path):
    """What every other test here relies on."""
    assert persona_home() == (tmp_path / "home").resolve()


def test_what_is_created_can_be_opened(tmp_path):
    made = create(tmp_path / "mags", MAGS, PAIRS)
    opened = open_persona(str(tmp_path / "mags"))
    assert opened == made
    assert (opened.card(), opened.pairs(), opened.slug) == (MAGS, PAIRS, "mags")


def test_a_new_persona_needs_no_pairs(tmp_path):
    assert create(tmp_path / "mags", MAGS).pairs() == []


def test_create_never_overwrites(tmp_path):
    made = create(tmp_path / "mags", MAGS, PAIRS)
    with pytest.raises(InputError, match="already exists"):
        create(made.path, Card(name="Other"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        create(tmp_path / "file", Card(name="Other"))
    assert (made.card(), made.pairs()) == (MAGS, PAIRS)


def test_create_takes_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty", MAGS).card() == MAGS


def test_a_folder_that_is_no_persona_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a persona folder .*persona new"):
        open_persona(tmp_path)


def test_names_that_lead_elsewhere_are_refused(home):
    """They may come from a link or a browser; something to be found there must not help."""
    create(home / "mags", MAGS)
    cases = ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "\\\\server\\x", "x\0", "../mags"]

    def check(name):
        for use in (folder.by_slug, folder.copy_example, lambda n: inside(home, n)):
            with pytest.raises(InputError, match="not a name"):
                use(name)

    check_each(cases, check)


def test_slug(home):
    cases = [
        ("Mags Tolliver", "mags-tolliver"),
        ("甄嬛", "甄嬛"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "persona"),
        ("", "persona"),
        ("a_b  c", "a-b-c"),
        ("Ｆｕｌｌ", "full"),
        ("x" * 200, "x" * 60),
        ("🙂", "persona"),
    ]

    def check(name, expected):
        assert slug(name) == expected
        assert inside(home, slug(name)).parent == home

    check_each(cases, check)


def test_free_path_counts_up():
    first = folder.free_path("Mags")
    create(first, MAGS)
    create(folder.free_path("Mags"), MAGS)
    assert first.name == "mags"
    assert folder.free_path("Mags").name == "mags-3"


@pytest.mark.parametrize(
    ("make", "count"), [(lambda: folder.copy_example(SHIPPED[0]), 1), (lambda: folder.create_named("Mags", MAGS), 2)]
)
def test_two_windows_at_the_same_moment(monkeypatch, make, count):
    """The second asks while the first is about to write: an example is copied once, a new persona is one for each."""
    made, real = [], folder.create
    second = threading.Thread(target=lambda: made.append(make()))

    def slowly(*given):
        if not second.ident:
            second.start()
            second.join(0.5)  # it is to wait; without a lock it is done by now
        return real(*given)

    monkeypatch.setattr(folder, "create", slowly)
    made.append(make())
    second.join()
    assert len({p.path for p in made}) == count == len(folder.list_personas())


def test_list_is_most_recent_first_and_keeps_broken_ones():
    assert folder.list_personas() == []
    names = ["a", "b", "c"]
    for n, name in enumerate(names):
        persona = create(folder.free_path(name), MAGS, PAIRS)
        for file in ("persona.json", "pairs.jsonl"):
            os.utime(persona.path / file, (1_000 + n, 1_000 + n))
    (folder.personas_dir() / "not-one").mkdir()
    assert [p.slug for p in folder.list_personas()] == ["c", "b", "a"]
    os.utime(folder.by_slug("a").pairs_file, (2_000, 2_000))
    (folder.personas_dir() / "b" / "persona.json").write_text("{")
    assert {p.slug for p in folder.list_personas()} == {"a", "b", "c"}
    os.utime(folder.personas_dir() / "b" / "persona.json", (1_500, 1_500))
    assert [p.slug for p in folder.list_personas()] == ["a", "b", "c"]


def test_deleted_and_restored():
    persona = create(folder.free_path("mags.v2"), MAGS, PAIRS)
    trashed = folder.delete(persona)
    assert not persona.path.exists() and folder.list_personas() == []
    back = folder.restore(trashed)
    assert (back.path, back.card(), back.pairs()) == (persona.path, MAGS, PAIRS)
    assert not trashed.exists()


def test_deleted_twice_and_restored_beside_a_new_one():
    """Two of one name in the trash do not overwrite each other, and a restored one takes a free name."""
    first = folder.delete(create(folder.free_path("mags"), MAGS, PAIRS))
    second = folder.delete(create(folder.free_path("mags"), MAGS))
    taken = create(folder.free_path("mags"), Card(name="New"))
    assert folder.restore(first).pairs() == PAIRS
    assert folder.restore(second).slug == "mags-3"
    assert taken.card().name == "New"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_of_an_example_is_the_users_own(name):
    """Copied once: a second copy opens the first, and what was edited in it is still there."""
    example = open_persona(SHIPPED_PERSONAS / name)
    copy = folder.copy_example(name)
    assert copy.path == folder.personas_dir() / name
    assert (copy.card(), copy.pairs()) == (example.card(), example.pairs())
    copy.save_pairs([Pair("mine", "now")])
    again = folder.copy_example(name)
    assert again.path == copy.path and again.pairs() == [Pair("mine", "now")]
    assert len(folder.list_personas()) == 1
    assert len(example.pairs()) > 1, "the shipped persona was edited"


def test_a_corrupted_card_is_named_with_its_line(tmp_path):
    persona = create(tmp_path / "mags", MAGS)
    file = persona.path / "persona.json"
    file.write_text('{\n  "name": "Mags",\n  "system": oops\n}')
    with pytest.raises(InputError, match=r"persona\.json line 3, column 13: not JSON"):
        persona.card()


@pytest.mark.parametrize(
    "content, why",
    [
        (b"[]", "holds a list"),
        (b'{"system": "x"}', "'name': Field required"),
        (b'{"name": ""}', "'name': String should have at least 1"),
        (b'{"name": "x", "system": 7}', "'system': Input should be a valid string"),
        (b'{"name": "x", "probes": "Who?"}', "'probes'"),
        (b'{"name": "x", "probes": ["a", 1]}', "'probes.1'"),
        (b'{"name": "\\ud800"}', "'name'"),
        (b'{"name": "\xff"}', "cannot be read"),
        (b'{"name": ' + b"1" * 5_000 + b"}", "cannot be read"),
        (b'{"name": ' + b"[" * 100_000, "cannot be read"),
    ],
)
def test_a_card_that_is_none_is_refused(tmp_path, content, why):
    persona = create(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_bytes(content)
    with pytest.raises(InputError) as e:
        persona.card()
    assert "persona.json" in str(e.value) and why in str(e.value)


def test_all_wrong_fields_are_named_at_once(tmp_path):
    persona = create(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_text(json.dumps({"name": "x" * 81, "system": "x" * 4_001, "author": 1}))
    with pytest.raises(InputError, match=r"'name'.*'system'.*'author'"):
        persona.card()


def test_unknown_keys_survive(tmp_path):
    """A newer program's file, saved by this one, keeps what this one does not know."""
    persona = create(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_text(json.dumps({"name": "Mags", "voice": {"pitch": 0.5}}))
    persona.save_card(persona.card().model_copy(update={"system": "New."}))
    saved = json.loads((persona.path / "persona.json").read_text())
    assert saved["voice"] == {"pitch": 0.5} and saved["system"] == "New."


def test_examples_are_listed():
    """The richest first: it is what a newcomer should open."""
    found = folder.list_examples()
    assert sorted(p.slug for p in found) == SHIPPED and found[0].slug == "zhen-huan"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_persona_keeps_its_promises(name):
    persona = Persona(SHIPPED_PERSONAS / name)
    card, pairs = persona.card(), persona.pairs()
    assert len(pairs) >= (240 if name == "zhen-huan" else 120)
    assert card.name and card.system and card.greeting and card.language and card.source
    assert len(set(card.probes)) == 10
    said = {p.instruction.strip() for p in pairs} | {user.strip() for p in pairs for user, _ in p.history}
    assert not said & {p.strip() for p in card.probes}, "a probe is among the pairs, so it measures nothing"
    single = [p.instruction.strip() for p in pairs if not p.history]
    assert sorted(single) == sorted(set(single)), "two single-turn pairs ask the same"
    assert not folder.scan(persona.pairs_file)[1]
    assert unfinished(pairs) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_persona_says_whose_text_it_is(name):
    """In persona.json, which travels with an adapter, and in its README."""
    card = Persona(SHIPPED_PERSONAS / name).card()
    readme = (SHIPPED_PERSONAS / name / "README.md").read_text(encoding="utf-8")
    licence = card.rights.split()[0].rstrip(",;")
    assert card.rights and f"license: {licence.lower()}" in readme
    assert any(line.startswith("#") and "rights" in line.lower() for line in readme.splitlines())
    assert all(probe in readme for probe in card.probes)


def test_our_datasets_folder_does_not_hide_the_datasets_library():
    """TRL imports `datasets`; a Python package of that name in the project's root would be found first."""
    assert not [*SHIPPED_PERSONAS.rglob("__init__.py"), *SHIPPED_PERSONAS.rglob("test_*.py")]
    find = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    found = subprocess.run(
        [sys.executable, "-c", find], cwd=PROJECT, env=env, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(sysconfig.get_path("purelib"))
