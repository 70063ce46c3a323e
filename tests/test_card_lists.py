"""Write, tab Who it is: the lists of a card, edited item by item; suggestions for probes."""

import json
import zipfile

import gradio as gr
import pytest
from PIL import Image

from persona.errors import InputError
from persona.judge.probes import find_broken_rules
from persona.share.exports.character_card import export_card
from persona.store import edit_history
from persona.store.character_book import BookEntry
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard, ProbeRule, create_persona_at, default_card, free_path, update_card
from persona.train.run_folder import Run
from persona.ui.steps.write import book_editor, card_lists, card_tab, picture_editor, probes_editor
from persona.ui.steps.write.book_editor import BOOK, EntryForm
from persona.ui.steps.write.card_lists import ChosenItem
from persona.ui.steps.write.greetings_editor import GREETINGS
from persona.ui.steps.write.probes_editor import PROBES
from persona.write.probe_suggestions import suggest_probes


@pytest.fixture
def ada(home):
    return create_persona_at(free_path("ada"), default_card("Ada"), [Pair("Tea?", "At Sable Point, always.")])


def click(of, slug, do, at):
    return card_lists.do_with_item(of, slug, gr.EventData(None, {"do": do, "at": str(at)}))


def test_probes_are_added_edited_moved_and_deleted(ada):
    new = ChosenItem()
    card_lists.save_item(PROBES, "ada", new, " Who are you? ", "Ada|Ada L.\n\n", "AI\n |")
    listing, chosen, *_ = card_lists.save_item(PROBES, "ada", new, "Where <b>?", "", "")
    assert chosen == new and "must mention: Ada / Ada L." in listing and "Where &lt;b&gt;?" in listing
    card = ada.card()
    assert card.probes == ("Who are you?", "Where <b>?")
    assert card.probe_rules == (ProbeRule(ask="Who are you?", must_mention=("Ada|Ada L.",), must_not_mention=("AI",)),)
    _, chosen, _, ask, must, must_not = click(PROBES, "ada", "edit", 0)
    assert (ask, must, must_not) == ("Who are you?", "Ada|Ada L.", "AI")
    card_lists.save_item(PROBES, "ada", chosen, ask, "Ada", "")
    assert ada.card().probe_rules[0].must_mention == ("Ada",)
    click(PROBES, "ada", "up", 1)
    assert ada.card().probes == ("Where <b>?", "Who are you?")
    click(PROBES, "ada", "delete", 0)
    assert ada.card().probes == ("Who are you?",)


def test_a_probe_that_another_window_changed_is_not_overwritten(ada):
    card_lists.save_item(PROBES, "ada", ChosenItem(), "Who?", "", "")
    chosen = click(PROBES, "ada", "edit", 0)[1]
    card_lists.save_item(PROBES, "ada", chosen, "Who else?", "", "")
    with pytest.raises(InputError, match="changed elsewhere"):
        card_lists.save_item(PROBES, "ada", chosen, "Who then?", "", "")
    for values, wrong in ((("who ELSE", "", ""), "there already"), ((" ", "", ""), "needs a question"),
                          (("x" * 2_001, "", ""), "2,001")):  # fmt: skip
        with pytest.raises(InputError, match=wrong):
            card_lists.save_item(PROBES, "ada", ChosenItem(), *values)
    assert ada.card().probes == ("Who else?",)
    with pytest.raises(InputError, match="no longer there"):
        click(PROBES, "ada", "edit", 7)


def test_unknown_keys_of_a_rule_survive_an_edit(ada):
    file = ada.path / "persona.json"
    card = json.loads(file.read_text())
    file.write_text(json.dumps(card | {"probe_rules": [{"ask": "Who?", "weight": 3}]}))
    chosen = click(PROBES, "ada", "edit", 0)[1]
    card_lists.save_item(PROBES, "ada", chosen, "Who?", "Ada", "")
    assert json.loads(file.read_text())["probe_rules"][0]["weight"] == 3


@pytest.mark.parametrize("name, language, told, denied", [
    ("Mags Tolliver", "en", "I'm Tolliver.", "I am an AI, made by Google."),
    ("王小明", "zh", "叫我小明就好。", "我是AI，由谷歌训练。"),
])  # fmt: skip
def test_probes_are_suggested_by_kind_in_the_language(name, language, told, denied):
    card = PersonaCard(name=name, language=language)
    found = suggest_probes(card)
    assert {s.kind for s in found} == {"identity", "facts", "machine", "role"}
    assert all(find_broken_rules(s.rule, denied) for s in found), "an assistant's answer breaks every one"
    assert not any(find_broken_rules(s.rule, told) for s in found if s.kind == "identity")
    asked = tuple(s.rule.ask for s in found)
    assert suggest_probes(card.model_copy(update={"probes": asked})) == []


def test_a_held_out_pair_is_suggested_with_the_facts_of_its_answer():
    card = PersonaCard(name="Mags", system="You keep the light.", language="en")
    pairs = [Pair("Where do you live?", "Out here. At Sable Point, since 1962."), Pair("a", "b", (("x", "y"),))]
    (found,) = [s for s in suggest_probes(card, pairs) if s.kind == "held-out"]
    assert found.rule.must_mention == ("Sable|Point|1962",) and found.pair == pairs[0]
    zhen = PersonaCard(name="甄嬛", system="家父甄远道，官居大理寺少卿。", language="zh")
    (found,) = [s for s in suggest_probes(zhen, [Pair("令尊是谁？", "家父是大理寺少卿。")]) if s.kind == "held-out"]
    assert found.rule.must_mention == ("家父|大理寺少卿",)


def test_a_held_out_pair_that_becomes_a_probe_is_no_pair_any_more(ada):
    pairs = [*ada.pairs(), Pair("Coffee?", "Never.")]
    ada.save_pairs(pairs)
    run = Run(ada.runs_dir / "20261122-104653-02e8")
    run.path.mkdir(parents=True)
    (run.path / "run.json").write_text("{}")
    rows = [pairs[0].to_dict() | {"held_out": True}, pairs[1].to_dict()]
    (run.path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, shown = probes_editor.propose_probes("ada")
    at = next(n for n, s in enumerate(found) if s.pair)
    assert found[at].pair == pairs[0] and "Move here" in shown
    event = gr.EventData(None, {"do": "take", "at": str(at)})
    rest, _, listing, *_ = probes_editor.take_suggestion("ada", found, event)
    assert len(rest) == len(found) - 1 and "Tea?" in listing and ada.card().probes == ("Tea?",)
    assert ada.pairs() == [pairs[1]]
    edit_history.undo(ada)
    assert ada.pairs() == pairs


# ---- greetings and book


def test_greetings_are_edited(ada):
    card_lists.save_item(GREETINGS, "ada", ChosenItem(), " Ahoy, {{user}}. ")
    card_lists.save_item(GREETINGS, "ada", ChosenItem(), "Hm.")
    assert ada.card().alternate_greetings == ("Ahoy, {{user}}.", "Hm.")
    click(GREETINGS, "ada", "delete", 0)
    assert ada.card().alternate_greetings == ("Hm.",)
    for text in (" ", "x" * 10_001):
        with pytest.raises(InputError, match="1 to 10,000"):
            card_lists.save_item(GREETINGS, "ada", ChosenItem(), text)


def test_an_entry_keeps_what_the_form_does_not_show(ada):
    raw = {"keys": ["cat"], "content": "Bosun.", "case_sensitive": None, "extensions": {"a": 1}, "id": 7}
    update_card(ada, lambda _: {"character_book": {"name": "B", "entries": [raw]}})
    chosen, form = click(BOOK, "ada", "edit", 0)[1], EntryForm(*click(BOOK, "ada", "edit", 0)[3:])
    assert (form.keys, form.enabled, form.position) == ("cat", True, "after_char")
    card_lists.save_item(BOOK, "ada", chosen, *form)
    assert ada.card().character_book.model_dump(mode="json") == {"name": "B", "entries": [raw]}
    edited = form._replace(keys="cat\nBosun", secondary_keys="ship\n", selective=True, insertion_order=3)
    card_lists.save_item(BOOK, "ada", chosen, *edited)
    assert ada.card().character_book.model_dump(mode="json")["entries"] == [
        raw | {"keys": ["cat", "Bosun"], "secondary_keys": ["ship"], "selective": True, "insertion_order": 3}
    ]


def test_an_entry_is_added_and_one_that_could_never_join_is_refused(ada):
    new = EntryForm(keys="sea", content="Cold.")
    card_lists.save_item(BOOK, "ada", ChosenItem(), *new)
    (entry,) = ada.card().character_book.entries
    assert entry == BookEntry(keys=("sea",), content="Cold.", enabled=True, insertion_order=100)
    for form, wrong in ((new._replace(keys=" "), "needs a key"), (new._replace(content=""), "1 to 20,000"),
                        (new._replace(keys="\n".join(map(str, range(300)))), "keys")):  # fmt: skip
        with pytest.raises(InputError, match=wrong):
            card_lists.save_item(BOOK, "ada", ChosenItem(), *form)
    card_lists.save_item(BOOK, "ada", ChosenItem(), *EntryForm(content="Always.", constant=True))
    assert len(ada.card().character_book.entries) == 2


def test_how_a_book_is_searched_is_saved_where_it_differs(ada):
    assert book_editor.load_settings("ada") == (2, 1_024, False, False)
    book_editor.save_settings("ada", 2, 1_024, False, False)
    assert ada.card().character_book is None, "nothing was changed"
    book_editor.save_settings("ada", 5, 1_024, False, True)
    assert ada.card().book_in_training and ada.card().character_book.model_dump() == {"scan_depth": 5}
    assert book_editor.load_settings("ada") == (5, 1_024, False, True)


def test_every_list_is_loaded_for_the_page(ada):
    page = card_tab.load_lists("ada")
    assert len(page) == sum(3 + n for n in (1, len(EntryForm._fields), 3)) + 5 and len(card_tab.load_lists("")) == len(
        page
    )


def test_a_picture_is_kept_shown_and_goes_out_with_the_card(ada, tmp_path):
    assert picture_editor.picture_html("ada") == "" == picture_editor.picture_html("")
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    Image.new("RGB", (2_000, 1_000), (9, 8, 7)).save(tmp_path / "me.jpg", exif=exif)
    shown = picture_editor.save_picture("ada", str(tmp_path / "me.jpg"))
    assert 'src="data:image/jpeg;base64,' in shown and len(shown) < 20_000
    assert b"taken at home" not in (ada.path / "picture.png").read_bytes()
    for name in ("a.png", "a.charx"):
        export_card(ada.card(), [], tmp_path / name, home=ada.path)
    with Image.open(tmp_path / "a.png") as out:
        assert out.size == (1_024, 512)
    with zipfile.ZipFile(tmp_path / "a.charx") as out, out.open("assets/icon/images/main.png") as icon:
        assert Image.open(icon).size == (1_024, 512)
    (tmp_path / "no.png").write_text("no picture")
    with pytest.raises(InputError, match="cannot be opened as a picture"):
        picture_editor.save_picture("ada", str(tmp_path / "no.png"))
    assert picture_editor.remove_picture("ada") == "" and not (ada.path / "picture.png").exists()
