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

from persona.errors import InputError
from persona.store import pairs as store_pairs
from persona.store import persona_folder
from persona.store.files import safe_join, slugify
from persona.store.pairs import Pair, find_unfinished
from persona.store.persona_folder import Persona, PersonaCard, create_persona_at, open_persona
from persona.store.workspace import EXAMPLES_DIR, PROJECT_DIR
from persona.store.workspace import current_workspace as persona_home

MAGS = PersonaCard(name="Mags", system="Be dry.", probes=("Who?", "Where?"))
PAIRS = [Pair("Who are you?", "Mags."), Pair("And?", "That is all.", (("Hello", "Aye."),))]
SHIPPED = [p.name for p in sorted(EXAMPLES_DIR.iterdir()) if p.is_dir()]


def test_the_home_of_a_test_is_its_own(tmp_path):
    """What every other test here relies on."""
    assert persona_home() == (tmp_path / "home").resolve()


def test_what_is_created_can_be_opened(tmp_path):
    made = create_persona_at(tmp_path / "mags", MAGS, PAIRS)
    opened = open_persona(str(tmp_path / "mags"))
    assert opened == made
    assert (opened.card(), opened.pairs(), opened.slug) == (MAGS, PAIRS, "mags")


def test_a_new_persona_needs_no_pairs(tmp_path):
    assert create_persona_at(tmp_path / "mags", MAGS).pairs() == []


def test_create_never_overwrites(tmp_path):
    made = create_persona_at(tmp_path / "mags", MAGS, PAIRS)
    with pytest.raises(InputError, match="already exists"):
        create_persona_at(made.path, PersonaCard(name="Other"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        create_persona_at(tmp_path / "file", PersonaCard(name="Other"))
    assert (made.card(), made.pairs()) == (MAGS, PAIRS)


def test_create_takes_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    assert create_persona_at(tmp_path / "empty", MAGS).card() == MAGS


def test_a_folder_that_is_no_persona_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a persona folder .*persona new"):
        open_persona(tmp_path)


def test_one_that_is_gone_is_said_so_without_its_path(home):
    with pytest.raises(InputError, match="^There is no persona called “mags” here.$"):
        persona_folder.find_persona("mags")


def test_names_that_lead_elsewhere_are_refused(home):
    """They may come from a link or a browser; something to be found there must not help."""
    create_persona_at(home / "mags", MAGS)
    cases = ["../x", "..", ".", "", "/etc", "a/b", "a\\b", "\\\\server\\x", "x\0", "../mags"]

    def check(name):
        for use in (persona_folder.find_persona, persona_folder.copy_example, lambda n: safe_join(home, n)):
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
        assert slugify(name) == expected
        assert safe_join(home, slugify(name)).parent == home

    check_each(cases, check)


def test_free_path_counts_up():
    first = persona_folder.free_path("Mags")
    create_persona_at(first, MAGS)
    create_persona_at(persona_folder.free_path("Mags"), MAGS)
    assert first.name == "mags"
    assert persona_folder.free_path("Mags").name == "mags-3"


@pytest.mark.parametrize(
    ("make", "count"),
    [(lambda: persona_folder.copy_example(SHIPPED[0]), 1), (lambda: persona_folder.create_persona("Mags", MAGS), 2)],
)
def test_two_windows_at_the_same_moment(monkeypatch, make, count):
    """The second asks while the first is about to write: an example is copied once, a new persona is one for each."""
    made, real = [], persona_folder.create_persona_at
    second = threading.Thread(target=lambda: made.append(make()))

    def slowly(*given):
        if not second.ident:
            second.start()
            second.join(0.5)  # it is to wait; without a lock it is done by now
        return real(*given)

    monkeypatch.setattr(persona_folder, "create_persona_at", slowly)
    made.append(make())
    second.join()
    assert len({p.path for p in made}) == count == len(persona_folder.list_personas())


def test_list_is_most_recent_first_and_keeps_broken_ones():
    assert persona_folder.list_personas() == []
    names = ["a", "b", "c"]
    for n, name in enumerate(names):
        persona = create_persona_at(persona_folder.free_path(name), MAGS, PAIRS)
        for file in ("persona.json", "pairs.jsonl"):
            os.utime(persona.path / file, (1_000 + n, 1_000 + n))
    (persona_folder.personas_dir() / "not-one").mkdir()
    assert [p.slug for p in persona_folder.list_personas()] == ["c", "b", "a"]
    os.utime(persona_folder.find_persona("a").pairs_file, (2_000, 2_000))
    (persona_folder.personas_dir() / "b" / "persona.json").write_text("{")
    assert {p.slug for p in persona_folder.list_personas()} == {"a", "b", "c"}
    os.utime(persona_folder.personas_dir() / "b" / "persona.json", (1_500, 1_500))
    assert [p.slug for p in persona_folder.list_personas()] == ["a", "b", "c"]


def test_deleted_and_restored():
    persona = create_persona_at(persona_folder.free_path("mags.v2"), MAGS, PAIRS)
    trashed = persona_folder.trash_persona(persona)
    assert not persona.path.exists() and persona_folder.list_personas() == []
    back = persona_folder.restore_persona(trashed)
    assert (back.path, back.card(), back.pairs()) == (persona.path, MAGS, PAIRS)
    assert not trashed.exists()


def test_deleted_twice_and_restored_beside_a_new_one():
    """Two of one name in the trash do not overwrite each other, and a restored one takes a free name."""
    first = persona_folder.trash_persona(create_persona_at(persona_folder.free_path("mags"), MAGS, PAIRS))
    second = persona_folder.trash_persona(create_persona_at(persona_folder.free_path("mags"), MAGS))
    taken = create_persona_at(persona_folder.free_path("mags"), PersonaCard(name="New"))
    assert persona_folder.restore_persona(first).pairs() == PAIRS
    assert persona_folder.restore_persona(second).slug == "mags-3"
    assert taken.card().name == "New"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_copy_of_an_example_is_the_users_own(name):
    """Copied once: a second copy opens the first, and what was edited in it is still there."""
    example = open_persona(EXAMPLES_DIR / name)
    copy = persona_folder.copy_example(name)
    assert copy.path == persona_folder.personas_dir() / name
    assert (copy.card(), copy.pairs()) == (example.card(), example.pairs())
    copy.save_pairs([Pair("mine", "now")])
    again = persona_folder.copy_example(name)
    assert again.path == copy.path and again.pairs() == [Pair("mine", "now")]
    assert len(persona_folder.list_personas()) == 1
    assert len(example.pairs()) > 1, "the shipped persona was edited"


def test_a_corrupted_card_is_named_with_its_line(tmp_path):
    persona = create_persona_at(tmp_path / "mags", MAGS)
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
    persona = create_persona_at(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_bytes(content)
    with pytest.raises(InputError) as e:
        persona.card()
    assert "persona.json" in str(e.value) and why in str(e.value)


def test_all_wrong_fields_are_named_at_once(tmp_path):
    persona = create_persona_at(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_text(json.dumps({"name": "x" * 81, "system": "x" * 4_001, "author": 1}))
    with pytest.raises(InputError, match=r"'name'.*'system'.*'author'"):
        persona.card()


def test_unknown_keys_survive(tmp_path):
    """A newer program's file, saved by this one, keeps what this one does not know."""
    persona = create_persona_at(tmp_path / "mags", MAGS)
    (persona.path / "persona.json").write_text(json.dumps({"name": "Mags", "voice": {"pitch": 0.5}}))
    persona.save_card(persona.card().model_copy(update={"system": "New."}))
    saved = json.loads((persona.path / "persona.json").read_text())
    assert saved["voice"] == {"pitch": 0.5} and saved["system"] == "New."


def test_examples_are_listed():
    """The richest first: it is what a newcomer should open."""
    found = persona_folder.list_examples()
    assert sorted(p.slug for p in found) == SHIPPED and found[0].slug == "zhen-huan"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_persona_keeps_its_promises(name):
    persona = Persona(EXAMPLES_DIR / name)
    card, pairs = persona.card(), persona.pairs()
    assert len(pairs) >= (240 if name == "zhen-huan" else 120)
    assert card.name and card.system and card.greeting and card.language and card.source
    assert len(set(card.probes)) == 10
    said = {p.instruction.strip() for p in pairs} | {user.strip() for p in pairs for user, _ in p.history}
    assert not said & {p.strip() for p in card.probes}, "a probe is among the pairs, so it measures nothing"
    single = [p.instruction.strip() for p in pairs if not p.history]
    assert sorted(single) == sorted(set(single)), "two single-turn pairs ask the same"
    assert not store_pairs.scan_pairs(persona.pairs_file)[1]
    assert find_unfinished(pairs) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_persona_says_whose_text_it_is(name):
    """In persona.json, which travels with an adapter, and in its README."""
    card = Persona(EXAMPLES_DIR / name).card()
    readme = (EXAMPLES_DIR / name / "README.md").read_text(encoding="utf-8")
    licence = card.rights.split()[0].rstrip(",;")
    assert card.rights and f"license: {licence.lower()}" in readme
    assert any(line.startswith("#") and "rights" in line.lower() for line in readme.splitlines())
    assert all(probe in readme for probe in card.probes)


def test_our_datasets_folder_does_not_hide_the_datasets_library():
    """TRL imports `datasets`; a Python package of that name in the project's root would be found first."""
    assert not [*EXAMPLES_DIR.rglob("__init__.py"), *EXAMPLES_DIR.rglob("test_*.py")]
    find = "import importlib.util; print(importlib.util.find_spec('datasets').origin)"
    env = {**os.environ, "PYTHONPATH": str(PROJECT_DIR)}
    found = subprocess.run(
        [sys.executable, "-c", find], cwd=PROJECT_DIR, env=env, capture_output=True, text=True, check=True
    )
    assert Path(found.stdout.strip()).is_relative_to(sysconfig.get_path("purelib"))
