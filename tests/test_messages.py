"""A text keeps its template and values: wherever it goes, and when it is said in another language."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from persona.errors import InputError, Message, PersonaError, describe_validation_error, join, with_templates

ZH = {
    "{path}: no such file.": "{path}：没有这个文件。",
    "Pair {row}: {problem}": "第 {row} 对：{problem}",
    "{count:,} pairs": "{count:,} 对",
    "; ": "；",
}


def test_a_message_is_its_english_text():
    said = Message(
        "{path}: has {count:,} pairs, {share:.0%} of {name!r}.", path=Path("/x"), count=1234, share=0.5, name="a"
    )
    assert said == "/x: has 1,234 pairs, 50% of 'a'." and isinstance(said, str)
    assert json.loads(json.dumps([said])) == ["/x: has 1,234 pairs, 50% of 'a'."]
    assert {said: 1}["/x: has 1,234 pairs, 50% of 'a'."] == 1
    assert said.values["path"] == "/x", "a value is a text or a number, nothing that holds more"
    assert Message("{{% generation %}}") == "{% generation %}"
    numbers = Message("{a:.2f} {b:,}", a=np.float32(0.5), b=np.int64(1234))
    assert numbers == "0.50 1,234" and json.dumps(numbers.to_json()["values"]) == '{"a": 0.5, "b": 1234}'


def test_an_error_carries_its_message():
    with pytest.raises(InputError) as caught:
        raise InputError("{path}: no such file.", path="/x")
    assert str(caught.value) == "/x: no such file." == caught.value.message
    assert caught.value.message.translated(ZH) == "/x：没有这个文件。"
    assert str(PersonaError(caught.value.message)) == "/x: no such file."
    with pytest.raises(KeyError):
        PersonaError("{path}: no value for it")


def test_values_that_are_messages_are_translated_with_it():
    error = InputError("{path}: no such file.", path="/x")
    assert Message("Pair {row}: {problem}", row=3, problem=error).translated(ZH) == "第 3 对：/x：没有这个文件。"
    both = join("; ", [Message("{count:,} pairs", count=1000), "", error.message, "as it is"])
    assert both == "1,000 pairs; /x: no such file.; as it is"
    assert both.translated(ZH) == "1,000 对；/x：没有这个文件。；as it is"
    assert join("\n", ["a", "b"]).translated(ZH) == "a\nb", "a separator needs no translation"


@pytest.mark.parametrize("typed", ["{path}: no such file.", "{count:,} pairs", "{0.__class__}", "%s \\1 {", "}{", "; "])
def test_a_value_is_never_a_template(typed):
    said = Message("Pair {row}: {problem}", row=1, problem=typed)
    assert said == f"Pair 1: {typed}" and said.translated(ZH) == f"第 1 对：{typed}"
    assert Message.of(typed) == typed == Message.of(typed).translated(ZH)


def test_what_the_catalogue_lacks_stays_english():
    assert Message("Nobody knows {x}.", x=1).translated(ZH) == "Nobody knows 1."


def test_copies_keep_the_template():
    said = Message("Pair {row}: {problem}", row=1, problem=join("; ", [Message("{count:,} pairs", count=2)]))
    error = InputError("{path}: no such file.", path="/x")
    for again in (pickle.loads(pickle.dumps(said)), copy.copy(said), copy.deepcopy(said)):
        assert again == said and again.translated(ZH) == "第 1 对：2 对"
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is InputError and again.message.translated(ZH) == "/x：没有这个文件。"


def test_a_file_keeps_it_beside_the_text():
    said = Message("Pair {row}: {problem}", row=1, problem=join("; ", [Message("{count:,} pairs", count=2), "x"]))
    row = json.loads(json.dumps(with_templates({"state": "failed", "message": said})))
    assert set(row) == {"state", "message", "message_template"} and row["message"] == "Pair 1: 2 pairs; x"
    again = Message.from_json(row["message"], row["message_template"])
    assert again == said and isinstance(again, Message) and again.translated(ZH) == "第 1 对：2 对；x"
    assert with_templates({"message": "plain"}) == {"message": "plain"}


@pytest.mark.parametrize("data", [
    None, 3, "text", [], {}, {"text": "said"}, {"text": "other", "template": "{path}: no such file.", "values": {}},
    {"text": "said", "template": 1, "values": {}}, {"text": "said", "template": "x", "values": []},
])  # fmt: skip
def test_a_file_without_it_gives_the_plain_text(data):
    assert type(Message.from_json("said", data)) is str and Message.from_json("said", data) == "said"


@pytest.mark.parametrize("template, values", [
    ("{x.__class__.__mro__}", {"x": 1}), ("{x:>999999999}", {"x": 1}), ("{path}: no such file.", {}),
    ("{count:,} pairs", {"count": "many"}), ("{count:,} pairs", {"count": {"text": 3}}), ("{count:,} pairs", {"count": None}),
])  # fmt: skip
def test_a_file_from_anyone_makes_no_text_but_its_own(template, values):
    """Its template is looked up and never formatted; with values that do not fit, the English text is shown."""
    said = Message.from_json("said", {"text": "said", "template": template, "values": values})
    assert said == "said" == said.translated(ZH)
    assert pickle.loads(pickle.dumps(said)) == "said"


def test_replaced_values():
    said = Message("Pair {row}: {problem}", row=1, problem=Message("{path}: no such file.", path="/tmp/a1/x"))
    assert said.replaced("/tmp/a1", "a") == "Pair 1: a/x: no such file."
    assert said.replaced("/tmp/a1", "a").translated(ZH) == "第 1 对：a/x：没有这个文件。"


@pytest.mark.parametrize("text", ["Input should be a valid string", "Value error, {x} is odd"])
def test_a_fault_that_pydantic_names_otherwise_is_said_as_it_is(text):
    assert describe_validation_error({"type": "string_type", "msg": text}) == text
