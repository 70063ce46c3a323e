"""Macros, book entries by the rules of the card formats, and where they stand in prompts and training rows."""

import pytest
from cases import check_each
from rendering import renderer_of

from persona.store.character_book import BookEntry, CharacterBook
from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.template.book_entries import find_entries
from persona.template.character_prompt import CharacterPrompt, resolve_greeting, resolve_system
from persona.template.chat_template import shipped_templates
from persona.template.macros import MacroValues, resolve_macros
from persona.template.render import IGNORE_INDEX

VALUES = MacroValues("Mags", "Ann", "turn", "chat")


def resolved(text, values=VALUES):
    return resolve_macros(text, values)


def test_macros_stand_for_what_the_formats_say():
    check_each({
        "names": ("{{char}}, {{USER}}, <bot> and <USER>", {"Mags, Ann, Mags and Ann"}),
        "random": ("{{random:a,b}}", {"a", "b"}), "of SillyTavern": ("{{random::a, x::b}}", {"a, x", "b"}),
        "escaped": ("{{random:a\\,b}}", {"a,b"}), "one": ("{{pick:only}}", {"only"}),
        "within": ("{{random:{{char}},{{char}}}}", {"Mags"}), "d6": ("{{roll:d6}}", set("123456")),
        "number": ("{{roll:6}}", set("123456")), "dice": ("{{roll:2d1+3}}", {"5"}), "bad": ("{{roll:x}}", {"{{roll:x}}"}),
        "comments": ("a{{// no}}b{{comment: no}}c{{hidden_key:k}}", {"abc"}), "original": ("{{original}}x", {"x"}),
        "reverse": ("{{reverse:abc}}", {"cba"}), "unknown": ("{{ x }} and {{getvar::y}}", {"{{ x }} and {{getvar::y}}"}),
        "no macro": ("1 < 2 {} {{", {"1 < 2 {} {{"}), "a date": ("{{isodate}}", None),
    }, lambda text, wanted: _is_one_of(resolved(text), wanted))  # fmt: skip


def _is_one_of(text, wanted):
    assert text in wanted if wanted else "{{" not in text, text


def test_a_pick_lasts_for_the_chat_and_a_random_choice_for_the_turn():
    options = ",".join(map(str, range(1000)))
    turns = [MacroValues("M", "A", str(n), "chat") for n in range(5)]
    assert len({resolved(f"{{{{pick:{options}}}}}", v) for v in turns}) == 1
    assert len({resolved(f"{{{{random:{options}}}}}", v) for v in turns}) > 2
    assert resolved(f"{{{{random:{options}}}}}") == resolved(f"{{{{random:{options}}}}}"), "a retry reads the same"
    first, second = resolved(f"{{{{random:{options}}}}} {{{{random:{options}}}}}").split()
    assert first != second


def fired(messages, *entries, spoken=0, **book):
    made = [BookEntry.model_validate({"content": f"<{n}>", **entry}) for n, entry in enumerate(entries)]
    found = find_entries(CharacterBook.model_validate({"entries": made, **book}), messages, spoken, lambda t: 10, "s")
    return [f.text for f in found]


CAT = {"keys": ["cat"]}
RULES = {
    "a key": (["my cat"], [CAT, {"keys": ["dog"]}], {}, [0]), "case": (["CAT"], [CAT, CAT | {"case_sensitive": True}], {}, [0]),
    "off": (["cat"], [CAT | {"enabled": False}, CAT], {}, [1]), "constant": (["x"], [{"constant": True}, CAT], {}, [0]),
    "selective, missing": (["cat"], [CAT | {"selective": True, "secondary_keys": ["sea"]}], {}, []),
    "selective": (["cat at sea"], [CAT | {"selective": True, "secondary_keys": ["sky", "sea"]}], {}, [0]),
    "secondary without selective": (["cat"], [CAT | {"secondary_keys": ["sea"]}], {}, [0]),
    "order": (["cat"], [CAT | {"insertion_order": 5}, CAT | {"insertion_order": -1}], {}, [1, 0]),
    "depth 2 by default": (["cat", "a", "b"], [CAT], {}, []), "depth": (["cat", "a", "b"], [CAT], {"scan_depth": 3}, [0]),
    "depth 0": (["cat"], [CAT, {"constant": True}], {"scan_depth": 0}, [1]),
    "budget by order": (["cat"], [CAT | {"insertion_order": 1}, CAT | {"insertion_order": 2}], {"token_budget": 15}, [1]),
    "budget by priority": (["cat"], [CAT | {"insertion_order": 1, "priority": 9}, CAT | {"insertion_order": 2, "priority": 1}],
                           {"token_budget": 15}, [0]),
    "no budget": (["cat"], [CAT], {"token_budget": 0}, []),
    "recursive": (["cat"], [CAT | {"content": "a dog"}, {"keys": ["dog"]}], {"recursive_scanning": True}, ["a dog", 1]),
    "not recursive": (["cat"], [CAT | {"content": "a dog"}, {"keys": ["dog"]}], {}, ["a dog"]),
    "in a circle": (["cat"], [CAT | {"content": "dog cat"}, {"keys": ["dog"], "content": "cat"}],
                    {"recursive_scanning": True}, ["dog cat", "cat"]),
    "not from others": (["cat"], [CAT | {"content": "a dog"}, {"keys": ["dog"], "extensions": {"exclude_recursion": True}}],
                        {"recursive_scanning": True}, ["a dog"]),
    "not to others": (["cat"], [CAT | {"content": "a dog", "extensions": {"prevent_recursion": True}}, {"keys": ["dog"]}],
                      {"recursive_scanning": True}, ["a dog"]),
    "regex": (["cats"], [{"keys": ["/c[au]ts?$/"]}, {"keys": ["/C/"]}, {"keys": ["/C/i"]}], {}, [0, 2]),
    "use_regex": (["cats"], [{"keys": ["c.t"], "use_regex": True}, {"keys": ["c.t"]}], {}, [0]),
    "broken regex": (["(cat"], [{"keys": ["/(/"]}, {"keys": ["(cat"], "use_regex": True}], {}, [1]),
    "not all": (["cat sea"], [CAT | {"selective": True, "secondary_keys": ["sea", "sky"], "extensions": {"selectiveLogic": n}}
                              for n in range(4)], {}, [0, 1]),
    "none": (["cat"], [CAT | {"selective": True, "secondary_keys": ["sea", "sky"], "extensions": {"selectiveLogic": n}}
                       for n in range(4)], {}, [1, 2]),
    "whole words": (["cathedral"], [CAT, CAT | {"extensions": {"match_whole_words": True}}], {}, [0]),
    "never": (["cat"], [CAT | {"extensions": {"probability": 0, "useProbability": True}}], {}, []),
    "decorated": (["x"], [{"content": "@@activate\nyes"}, {"content": "@@dont_activate\nno", "constant": True}], {}, ["yes"]),
    "keys of decorators": (["cat sea"], [CAT | {"content": "@@additional_keys sky,sea\na"}, CAT | {"content": "@@exclude_keys sea\nb"}],
                           {}, ["a"]),
    "fallback": (["x"], [{"content": "@@only_elsewhere\n@@@activate\na"}, {"content": "@@activate\n@@@dont_activate\nb"}],
                 {}, ["a", "b"]),
    "scan depth of an entry": (["cat", "a", "b"], [CAT | {"content": "@@scan_depth 5\na"}], {}, ["a"]),
    "nothing to say": (["cat"], [CAT | {"content": "@@activate\n"}], {}, []),
    "Chinese": (["灯塔上的猫"], [{"keys": ["猫"]}, {"keys": ["狗"]}], {}, [0]),
}  # fmt: skip


def test_entries_join_by_the_rules_of_the_formats():
    def check(messages, entries, book, wanted):
        assert fired(messages, *entries, **book) == [f"<{x}>" if isinstance(x, int) else x for x in wanted]

    check_each(RULES, check)


def test_entries_that_wait_for_replies():
    entries = [{"content": "@@activate_only_after 2\na", "constant": True},
               {"content": "@@activate_only_every 2\nb", "constant": True}]  # fmt: skip
    assert [fired(["x"], *entries, spoken=n) for n in range(4)] == [["b"], [], ["a", "b"], ["a"]]


def test_an_expression_that_never_ends_does_not_match():
    assert fired(["a" * 5_000 + "!"], {"keys": ["/(a|aa)+$/"]}, CAT | {"constant": True}) == ["<1>"]


# ---- in prompts and rows

BOOK = CharacterBook.model_validate({"scan_depth": 4, "entries": [
    {"keys": ["cat"], "content": "Bosun is {{char}}'s cat."}, {"keys": ["sea"], "content": "It is cold.", "position": "before_char"},
]})  # fmt: skip
CARD = PersonaCard(name="Mags Tolliver", nickname="Mags", system="You are {{char}}.", character_book=BOOK,
                   post_history_instructions="Be brief, {{char}}.", greeting="Hm, {{user}}.")  # fmt: skip


def test_parts_of_a_prompt():
    parts = CharacterPrompt.of(CARD).compose(CARD.system, [("sea", "yes")], "A cat?", len)
    assert parts.system == "It is cold.\n\nYou are Mags.\n\nBosun is Mags's cat." and parts.late == "Be brief, Mags."
    assert [(f.why, f.place) for f in parts.entries] == [("cat", "after"), ("sea", "before")]
    plain = CharacterPrompt.of(CARD).compose(CARD.system, [], "cat", len, training=True)
    assert (plain.system, plain.late, plain.entries) == ("You are Mags.", "", ())
    assert resolve_system(CARD) == "You are Mags." and resolve_greeting(CARD, CARD.greeting) == "Hm, you."
    chinese = PersonaCard(name="阿灯", language="zh", greeting="进来，{{user}}。")
    assert resolve_greeting(chinese, chinese.greeting) == "进来，你。"


@pytest.fixture(scope="module", params=sorted(shipped_templates()))
def renderer(request):
    return renderer_of(request.param, CARD.system, character=CharacterPrompt.of(CARD), max_length=4_000)


def test_a_prompt_holds_what_was_said_and_ends_with_the_instructions(renderer):
    prompt = renderer.render_prompt([("Hello", "Hm.")], "My cat?")
    assert "Bosun is Mags's cat." in prompt.text and "It is cold." not in prompt.text and "{{" not in prompt.text
    assert prompt.text.index("My cat?") < prompt.text.index("Be brief, Mags."), "after the conversation"
    assert renderer.render_prompt([], "Hello").text.count("Bosun") == 0


def learned(renderer, example):
    return renderer.tokenizer.decode([x for x in example.labels if x != IGNORE_INDEX])


@pytest.mark.parametrize("learn_history", [False, True])
def test_training_rows_hold_it_where_the_author_wants(renderer, learn_history):
    from dataclasses import replace

    pair = Pair("My cat?", "Asleep.", (("The sea?", "Cold."),))
    if replace(renderer, character=None, learn_history=learn_history).render_example(pair).problems:
        pytest.skip("this template cannot learn an earlier reply")
    rows = {}
    for wanted in (False, True):
        character = replace(renderer.character, in_training=wanted)
        one = replace(renderer, character=character, learn_history=learn_history)
        example = one.render_example(pair)
        assert example.problems == () and example.learned
        assert "Asleep." in learned(one, example) and "Bosun" not in learned(one, example), "masked as the prompt is"
        assert ("Cold." in learned(one, example)) == learn_history
        rows[wanted] = example.text
        if wanted:
            prompt = one.render_prompt(pair.history, pair.instruction)
            assert example.input_ids[: len(prompt.ids)] == prompt.ids, "the row begins as the chat's prompt"
    assert "Bosun" not in rows[False] and "brief" not in rows[False] and "{{" not in rows[False] + rows[True]
    assert "Bosun is Mags's cat." in rows[True] and "It is cold." in rows[True] and "Be brief, Mags." in rows[True]
