"""Circles in a text: found at the third round, and never in what people write."""

from cases import check_each

from persona.compare.repetition import is_repeating
from persona.store import persona_folder


def test_circles_are_found():
    cases = [
        "I am the king. I am a man who knows. " + "I am the one who is not afraid to die. " * 3,
        "你是谁？" + "我是一个很好的人，我是一个" * 3,
        "ha " * 24,
        "".join(f"{n}. The light is on the rock again.\n" for n in range(1, 4)),
        "." * 24,
    ]

    def check(text):
        assert is_repeating(text)

    check_each(cases, check)


def test_no_reply_of_the_examples_is_one():
    for example in persona_folder.list_examples():
        for pair in example.scan()[0]:
            assert not any(is_repeating(pair.output[:end]) for end in range(len(pair.output) + 1)), pair.output


def test_two_rounds_are_a_refrain():
    assert not is_repeating("Row, row, row your boat, gently down the stream. " * 2)
    assert not is_repeating("")
