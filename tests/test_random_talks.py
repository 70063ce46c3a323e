"""A random talk, written in every layout and form of data, gives back each reply of the persona, whole."""

import random
from unicodedata import normalize

import pytest
from cases import check_each
from row_files import source

from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, registry
from tests.random_talk import CHATS, NAMES, ROLES, random_talk, wanted_pairs, write_log
from tests.test_chat_layouts import FORMATS

# a line of a message in these is one of its own, or a clock time alone begins a message
ONE_LINE = ("irc", "irc bare", "irc dated", "weechat", "clock", "range")
# plays: two speeches of one speaker are two, brackets hold stage directions, lines are joined
PLAYS = ("transcript", "colon", "rev", "srt", "vtt", "clock above")
ENCODINGS = {"zh": ("gb18030",), "tw": ("big5",), "ja": ("shift_jis",), "ko": ("euc_kr",), "ru": ("cp1251",)}


def read_pairs(folder, name, data, persona=""):
    opened = source(folder, name, data)
    options = ImportOptions(speakers=(persona,) if persona else ())
    found = registry.read_source(opened, registry.detect_format(opened), options)
    return [(i.instruction, i.output) for i in found if isinstance(i, Pair)]


def check_talks(folder, cases):
    def check(form, language, seed):
        rng = random.Random(f"{form} {language} {seed}")
        talk = random_talk(rng, language, inner=form not in ONE_LINE)
        persona = talk[1][0]
        if form in FORMATS:
            data = write_log(form, talk).replace("\n", rng.choice(["\n", "\r\n"]))
            encoding = rng.choice(["utf-8", "utf-8-sig", "utf-16"])
            assert read_pairs(folder, "x.txt", data.encode(encoding), persona) == wanted_pairs(talk, persona)
        else:
            data = (CHATS | ROLES)[form](talk, persona)
            assert read_pairs(folder, form, data, persona if form in CHATS else "") == wanted_pairs(talk, persona)

    check_each(cases, check)


FORMS = [form for form in (*FORMATS, *CHATS, *ROLES) if form not in PLAYS]


def test_a_random_talk_in_every_form(tmp_path):
    languages = list(NAMES)
    check_talks(tmp_path, [(form, languages[n % len(languages)], 0) for n, form in enumerate(FORMS)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.release) for seed in (2, 3))])
def test_random_talks_in_every_form_and_language(tmp_path, seed):
    check_talks(tmp_path, [(form, language, seed) for form in FORMS for language in NAMES])


def test_a_random_talk_in_the_encodings_of_its_language(tmp_path):
    def check(language, encoding, seed):
        rng = random.Random(f"{encoding} {seed}")
        talk = [(who, normalize("NFC", text)) for who, text in random_talk(rng, language, emoji=False, length=30)]
        data = write_log("whatsapp android", talk).encode(encoding, "ignore")
        kept = [(who.encode(encoding, "ignore").decode(encoding), text) for who, text in talk]
        found = read_pairs(tmp_path, "x.txt", data, kept[1][0])
        assert found == wanted_pairs(kept, kept[1][0])

    check_each([(x, e, seed) for x, found in ENCODINGS.items() for e in found for seed in range(3)], check)


def test_a_list_within_a_message_stays_in_it(tmp_path):
    log = write_log(
        "whatsapp android",
        [("Bob", "What to bring?"), ("Ann", "This:\n* rope\n* light"), ("Bob", "Ok?"), ("Ann", "Ok.")],
    )
    assert read_pairs(tmp_path, "x.txt", log, "Ann")[0] == ("What to bring?", "This:\n* rope\n* light")
