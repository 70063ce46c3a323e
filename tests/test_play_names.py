"""Plays as they are printed: `NAME. Text`, and names centred above the speech."""

from row_files import source

from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, registry

WANTED = [("What is under it?", "Water, mostly. A lot."), ("And?", "Trolls.")]
SAID = ("What is under it?", "Water, mostly.\nA lot.", "And?", "Trolls.")


def pairs(folder, data):
    opened = source(folder, "play.txt", data)
    found = registry.read_source(opened, registry.detect_format(opened), ImportOptions(speakers=("ANN",)))
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def play(format, names=("BOB", "ANN")):
    return "".join(format.format(n=names[k % 2], m=text) for k, text in enumerate(SAID))


def test_names_with_a_full_stop(tmp_path):
    for format in ("{n}. {m}\n\n", "{n}.\n{m}\n\n", "{n}. {m}\n"):
        assert pairs(tmp_path, "ACT I\n\nSCENE I. A bridge.\n\n" + play(format)) == WANTED, format
    assert pairs(tmp_path, play("{n}. {m}\n\n") + "EXEUNT. All.\n")[0] == WANTED[0]


def test_names_centred_above(tmp_path):
    for format in (" " * 20 + "{n}\n\n{m}\n\n", " " * 12 + "{n}.\n\n\n{m}\n\n"):
        assert pairs(tmp_path, play(format)) == WANTED, format


def test_capitals_in_a_chat_are_no_names(tmp_path):
    said = ["OK. Fine", "WOW. Really", "OK. Go", "WOW. Yes"]
    log = "".join(f"{'BOB' if k % 2 == 0 else 'ANN'}: {text}\n{text}\n" for k, text in enumerate(said))
    assert pairs(tmp_path, log)[0] == ("OK. Fine OK. Fine", "WOW. Really WOW. Really")
