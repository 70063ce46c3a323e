"""Answers of the server that come late: nothing chosen is dropped, and no older answer is shown over a newer one."""

from collections import defaultdict

import pytest

from persona.ui.app import build_app

PRESSES = {"click", "submit", "upload", "clear", "edit", "load", "unload", "tick"}  # the second of two may be dropped


@pytest.fixture(scope="module")
def app():
    return build_app()


def listeners(app):
    """Each event that asks the server, with the events that begin its chain: "change", "input" and so on."""
    for event in app.fns.values():
        first = event
        while first.trigger_after is not None:
            first = app.fns[first.trigger_after]
        if event.fn is not None and not event.js:
            yield event, {name for _, name in first.targets}


def test_what_is_chosen_while_an_answer_is_on_its_way_is_not_dropped(app):
    dropped = [e.name for e, begun in listeners(app) if begun - PRESSES and e.trigger_mode == "once"]
    assert not dropped, "SHOWING, or trigger_mode='multiple'"


def test_an_event_with_data_of_its_own_does_not_wait_for_another(app):
    """Gradio sends the one that has waited with the data of the one before it."""
    waiting = [e.name for e, _ in listeners(app) if e.collects_event_data and e.trigger_mode == "always_last"]
    assert not waiting


@pytest.mark.parametrize("elem_id, limit", [
    ("navigation", 1), ("pairs", 16), ("replace-preview", 16), ("length-preview", 16), ("mask", 16), ("rival-note", 1),
])  # fmt: skip
def test_those_who_draw_the_same_are_answered_in_the_order_they_were_asked(app, elem_id, limit):
    """Gradio starts the events of one concurrency_id in their order; more than one at a time are kept apart by lane."""
    [shown] = [number for number, block in app.blocks.items() if getattr(block, "elem_id", None) == elem_id]
    drawing = defaultdict(set)
    for event in app.fns.values():
        if event.fn is not None and shown in {block._id for block in event.outputs}:
            drawing[event.concurrency_id, event.concurrency_limit].add(event.name)
    [(lane, most)] = drawing
    assert most == limit and len(drawing[lane, most]) > 1, drawing


def test_no_number_is_refused_by_gradio(app):
    """Its refusal is in English, names no field, and is repeated by every event that reads the field."""
    bounded = [
        block.elem_id or block.label
        for block in app.blocks.values()
        if type(block).__name__ == "Number" and (block.minimum, block.maximum) != (None, None)
    ]
    assert not bounded
