"""Files of preferences: recognised and asked about in step 1, kept with the persona, and used by the runs."""

import json
from dataclasses import replace

import pytest

from persona.compare.preference_sources import collect_all
from persona.errors import InputError
from persona.store import quotas
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, create_persona_at, personas_dir
from persona.store.preferences import add_preferences, load_preferences, read_preferences
from persona.ui.steps.write import preferences_import as tab

pytest_plugins = "tests.cli_fixtures"
TRL = {
    "prompt": [{"role": "system", "content": "Be dry."}, {"role": "user", "content": "Hi"},
               {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Why?"}],
    "chosen": [{"role": "assistant", "content": "So."}], "rejected": [{"role": "assistant", "content": "<b>No."}],
}  # fmt: skip
LLAMA_FACTORY = {"instruction": "When?", "input": "Today?", "chosen": "Now.", "rejected": "Later."}
ROWS = [TRL, LLAMA_FACTORY, LLAMA_FACTORY, {"prompt": "Equal?", "chosen": "a", "rejected": "a"}]


@pytest.fixture
def mags():
    return create_persona_at(personas_dir() / "mags", PersonaCard(name="Mags"), [Pair("a", "b")])


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "both.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_the_page_asks_and_keeps_them_with_the_persona(mags, file):
    said, button = tab.ask(str(file), "", "")
    assert "3 preferences" in said and "&lt;b&gt;No." in said and "1 skipped" in said and button.visible
    assert load_preferences(mags).preferences == (), "nothing before the answer"
    view = tab.keep("mags", str(file), "", "")
    assert (
        "<b>2 preferences kept.</b> 1 were" in view.question and "preferences: 2." in view.kept and view.remove.visible
    )
    assert load_preferences(mags).preferences == read_preferences(file).preferences[:2], "all of a row is kept"
    assert mags.pairs() == [Pair("a", "b")]
    assert "<b>0 preferences kept.</b>" in tab.keep("mags", str(file), "", "").question
    assert set(load_preferences(mags).preferences) <= set(collect_all(mags).preferences)
    assert not tab.remove("mags")[1].visible and collect_all(mags).preferences == ()


def test_of_other_files_nothing_is_asked(mags, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"instruction": "Why?", "output": "So."}))
    for given in ((str(pairs), "", ""), (None, "Mags: Hi", ""), (None, "", "")):
        said, button = tab.ask(*given)
        assert (said, button.visible) == ("", False)
    pairs.write_text(json.dumps(ROWS[3]))
    said, button = tab.ask(str(pairs), "", "")
    assert "equal" in said and not button.visible


def test_a_damaged_file_is_refused_and_a_visitors_limit_holds(mags, file, monkeypatch):
    monkeypatch.setattr("persona.store.quotas.current_quotas", lambda: replace(quotas.UNLIMITED, max_pairs=1))
    with pytest.raises(InputError, match="2 pairs"):
        add_preferences(mags, read_preferences(file).preferences)
    (mags.path / "preferences.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"preferences\.jsonl: no row"):
        load_preferences(mags)


def test_the_command_line_says_what_becomes_of_them_and_keeps_them(mags, file, value, call):
    found = value("import", file, mags.path, "--preferences")
    assert found == {"preferences": 2, "known": 1, "left_out": ["row 4: the two answers are equal."]}
    assert len(mags.pairs()) == 1 and len(load_preferences(mags).preferences) == 2
    status, _, err = call("import", file, mags.path)
    assert status == 0 and "--preferences keeps both" in err
