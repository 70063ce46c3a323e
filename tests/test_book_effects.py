"""SillyTavern's sticky, cooldown, delay, probability and inclusion groups of book entries."""

from cases import check_each

from persona.store.character_book import BookEntry, CharacterBook
from persona.template.book_entries import find_entries

SAID = ["cat", "r1", "x", "r2", "cat", "r3", "x", "r4", "x", "r5", "cat"]  # a cat is spoken of at 1, 5 and 11 messages


def fired(entries, messages, **book):
    made = [BookEntry.model_validate({"content": f"<{n}>", **entry}) for n, entry in enumerate(entries)]
    whole = CharacterBook.model_validate({"entries": made, "scan_depth": 1, **book})
    found = find_entries(whole, messages, len(messages) // 2, lambda text: 10, "\0".join(messages))
    return [f.text for f in found]


def over_time(**extensions):
    """Of each reply, whether an entry with the key cat joined."""
    entries = [{"keys": ["cat"], "extensions": extensions}]
    return "".join("x" if fired(entries, SAID[:end]) else "." for end in range(1, 12, 2))


def test_timed_effects_last_for_their_messages():
    cases = {
        "none": ({}, "x.x..x"),
        "sticky": ({"sticky": 3}, "xxxx.x"),
        "sticky once": ({"sticky": 2}, "x.x..x"),
        "cooldown": ({"cooldown": 6}, "x....x"),
        "short cooldown": ({"cooldown": 2}, "x.x..x"),
        "cooldown after sticky": ({"sticky": 3, "cooldown": 4}, "xx...x"),
        "delay": ({"delay": 4}, "..x..x"),
        "no number": ({"sticky": "long", "cooldown": None, "delay": True}, "x.x..x"),
    }
    check_each(cases, lambda extensions, wanted: _check(over_time(**extensions), wanted))


def _check(found, wanted):
    assert found == wanted


def entry(group, **more):
    order = more.pop("order", 100)
    return {"constant": True, "insertion_order": order, "extensions": {"group": group, **more}}


def test_of_a_group_one_joins():
    cases = {
        "by weight": ([entry("a", group_weight=0), entry("a", group_weight=5)], ["<1>"]),
        "the prioritized": (
            [entry("a"), entry("a", group_override=True, order=1), entry("a", group_override=True)],
            ["<2>"],
        ),
        "two groups": ([entry("a", group_weight=0), entry("b"), entry("a, c")], ["<1>", "<2>"]),
        "no group": ([entry(""), entry(None), entry(3)], ["<0>", "<1>", "<2>"]),
        "a winner that fails": ([entry("a", probability=0), entry("a", group_weight=0)], []),
    }
    check_each(cases, lambda entries, wanted: _check(fired(entries, ["x"]), wanted))
    even = [entry("a"), entry("a", group_weight=300)]
    winners = [fired(even, [str(n)]) for n in range(200)]
    assert all(len(winner) == 1 for winner in winners) and 30 < winners.count(["<0>"]) < 75
    assert fired(even, ["again"]) == fired(even, ["again"])


def test_a_group_that_joined_takes_no_other_on_recursion():
    entries = [entry("a") | {"content": "a dog"}, {"keys": ["dog"], "extensions": {"group": "a"}}]
    assert fired(entries, ["x"], recursive_scanning=True) == ["a dog"]


def test_what_is_sticky_wins_its_group_and_needs_no_luck():
    entries = [
        {"keys": ["cat"], "extensions": {"sticky": 9, "group": "a"}},
        {"keys": ["x"], "extensions": {"group": "a"}},
    ]
    assert fired(entries, SAID[:3]) == ["<0>"]
    rare = [{"keys": ["cat"], "extensions": {"sticky": 50, "probability": 40}}]
    talks = [[f"cat {n}", "r", "x", "r", "x"] for n in range(40)]
    assert all(fired(rare, talk) == fired(rare, talk[:1]) for talk in talks)


def test_probability_needs_no_second_setting():
    assert fired([{"constant": True, "extensions": {"probability": 0}}], ["x"]) == []
    assert fired([{"constant": True, "extensions": {"probability": 0, "useProbability": False}}], ["x"]) == ["<0>"]


def test_a_greeting_counts_as_a_message():
    entries = [{"keys": ["cat"], "extensions": {"sticky": 3}}]
    assert fired(entries, ["Welcome.", "cat", "r", "x"]) == ["<0>"]
