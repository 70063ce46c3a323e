"""One talk in every layout that programs write: the same pairs come back, whatever a message holds."""

import re

import pytest
from cases import check_each
from plays import pairs, skips
from row_files import source

from persona.errors import PersonaError
from persona.store.pairs import Pair
from persona.write.importers import ImportNote, ImportOptions, chat_log, registry, screenplay
from persona.write.importers.chat_layouts import LAYOUTS
from persona.write.importers.chat_marks import load_marks, read_table

pytest_plugins = "plays"

TALKS = {
    "en": [("Bob", "What is under the bridge?"), ("Ann Lee", "Water, mostly."), ("Bob", "And the rest?"), ("Ann Lee", "Trolls.")],
    "zh": [("小王", "桥下有什么？"), ("阿绫", "多半是水。"), ("小王", "还有呢？"), ("阿绫", "妖怪。")],
    "ko": [("민수", "다리 밑에 뭐가 있어?"), ("지우", "거의 물이야."), ("민수", "그리고?"), ("지우", "도깨비.")],
    "ja": [("太郎", "橋の下に何がある？"), ("花子", "ほとんど水。"), ("太郎", "あとは？"), ("花子", "鬼。")],
    "de": [("Jörg", "Was ist unter der Brücke?"), ("Änne", "Wasser, meistens."), ("Jörg", "Und sonst?"), ("Änne", "Trolle.")],
}  # fmt: skip

# {n}: name, {m}: message, {0}: a minute that counts
FORMATS = {
    "whatsapp ios": "[12/3/24, 10:{0}:02] {n}: {m}",
    "whatsapp ios us": "\u200e[3/12/24, 1:{0}:02\u202fPM] {n}: {m}",
    "whatsapp android": "12/03/2024, 10:{0} - {n}: {m}",
    "whatsapp android es": "12/3/24 10:{0} p.\u00a0m. - {n}: {m}",
    "whatsapp android it": "12/03/24 10.{0} - {n}: {m}",
    "whatsapp android fr": "12/03/2024 à 10:{0} - {n}: {m}",
    "whatsapp zh": "2024/3/12 下午1:{0} - {n}: {m}",
    "whatsapp ja": "2024/03/12 10:{0} - {n}: {m}",
    "whatsapp ko": "2024. 3. 12. 오후 1:{0} - {n}: {m}",
    "kakao phone": "2024. 3. 12. 오후 1:{0}, {n} : {m}",
    "kakao phone 2": "2024년 3월 12일 오후 1:{0}, {n} : {m}",
    "kakao desktop": "[{n}] [오후 1:{0}] {m}",
    "whatsapp ar": "12/3/2024، 10:{0} ص - {n}: {m}",
    "zoom": "10:15:{0}\t From {n} to Everyone:\n\t{m}",
    "zoom saved": "10:15:{0}\t{n}:\t{m}",
    "zoom without tabs": "10:15:{0} From {n} to Everyone : {m}",
    "weechat": "2024-03-12 10:15:{0}\t{n}\t{m}",
    "line": "10:{0}\t{n}\t{m}",
    "irc": "10:{0} <{n}> {m}",
    "irc dated": "2024-03-12 10:{0}:02 <{n}> {m}",
    "irc bare": "<{n}> {m}",
    "clock": "10:{0} {n}: {m}",
    "range": "00:{0}.000 --> 00:{0}.900 {n}: {m}",
    "clock above": "10:{0} {n}\n{m}\n",
    "skype": "[2024-03-12 10:{0}:02] {n}: {m}",
    "whisper": "[00:{0}.000 - 00:{0}.900] {n}: {m}",
    "whisper arrows": "[00:00:{0}.000 --> 00:00:{0}.900] {n}: {m}",
    "transcript": "{n} (00:{0}): {m}",
    "transcript stamped": "[00:{0}:02] {n}: {m}",
    "colon": "{n}: {m}",
    "telegram": "{n}, [12.03.24 10:{0}]\n{m}\n",
    "telegram seconds": "{n}, [12.03.2024 10:{0}:02]\n{m}\n",
    "discord export": "[3/12/2024 10:{0} AM] {n}\n{m}\n",
    "discord export old": "[12-Mar-24 10:{0} AM] {n}\n{m}\n",
    "discord copied": "{n} — Today at 10:{0} AM\n{m}",
    "discord copied later": "{n} — 03/12/2024 10:{0} AM\n{m}",
    "slack": "{n}  10:{0} AM\n{m}",
    "teams": "[3/12 10:{0} AM] {n}\n{m}\n",
    "wechat": "{n} 2024/3/12 10:{0}:02\n{m}",
    "wechat export": "2024-03-12 10:{0}:02 {n}\n{m}\n",
    "qq": "2024-03-12 10:{0}:02 {n}(12345)\n{m}\n",
    "otter": "{n}  0:{0}\n{m}\n",
    "rev": "{n} (00:{0}):\n{m}\n",
    "srt": "{0}\n00:00:{0},000 --> 00:00:{0},900\n{n}: {m}\n",
    "vtt": "00:00:{0}.000 --> 00:00:{0}.900\n<v {n}>{m}</v>\n",
}  # fmt: skip
ASS = "[Script Info]\n\n[Events]\nFormat: Layer, Start, End, Style, Name, Effect, Text\n"


def write(format: str, talk, first: int = 10) -> str:
    return "\n".join(FORMATS[format].format(minute, n=n, m=m) for minute, (n, m) in enumerate(talk, first)) + "\n"


def replies(source, who: str, **options):
    """(instruction, output) of every pair, the format detected."""
    assert screenplay.sniff(source) > 0
    return [p[:2] for p in pairs(screenplay, source, who, **options)]


def test_one_talk_in_every_layout_and_language(source):
    def check(format, language):
        talk = TALKS[language]
        wanted = [(talk[0][1], talk[1][1]), (talk[2][1], talk[3][1])]
        assert replies(source(write(format, talk)), talk[1][0]) == wanted

    check_each([(f, x) for f in FORMATS for x in TALKS], check)


def test_every_layout_of_the_table_is_one_that_is_written(source):
    used = {screenplay.detect_layout(source(write(f, TALKS["en"])).lines()).chat for f in FORMATS}
    assert [n for n, layout in enumerate(LAYOUTS) if layout not in used] == []


LINES_OF_OTHERS = (
    "<center> PAGE NINE </center>",
    "<grins> Bold.",
    "<b>x</b>",
    "[link] (see there)",
    "10:30 sharp",
    "Note: bring a rope",
    "12:15",
    "(laughs) no",
)


def test_a_line_of_a_message_begins_no_other_message(source):
    chats = [
        f
        for f in FORMATS
        if f not in ("transcript", "colon", "rev", "srt", "vtt", "irc", "irc bare", "irc dated", "range", "clock above")
    ]

    def check(format, line):
        talk = [("Bob", "How?"), ("Ann", f"So:\n{line}\nthen nail it."), ("Bob", "Thanks"), ("Ann", "Mind the step.")]
        assert replies(source(write(format, talk)), "Ann") == [
            ("How?", f"So:\n{line}\nthen nail it."),
            ("Thanks", "Mind the step."),
        ]

    check_each([(f, x) for f in chats for x in LINES_OF_OTHERS], check)


def test_a_message_may_begin_like_another_layout(source):
    talk = [("Bob", "How?"), ("Ann", "<center> PAGE NINE </center>"), ("Bob", "And?"), ("Ann", "<grins> Bold.")]
    for format in ("telegram", "whatsapp android", "discord export", "wechat"):
        assert replies(source(write(format, talk)), "Ann") == [("How?", talk[1][1]), ("And?", talk[3][1])]


# --- what the program wrote itself ---------------------------------------------------------------------------------

PROGRAM_FORMAT = {
    "whatsapp": "whatsapp android",
    "telegram": "telegram",
    "discord": "discord export",
    "slack": "slack",
    "wechat": "wechat",
    "qq": "wechat",
    "line": "line",
    "kakaotalk": "kakao phone",
    "messenger": "discord copied later",
    "zoom": "zoom",
    "signal": "skype",
}


def phrases(*kinds):
    for program, languages in read_table().items():
        for language, table in languages.items():
            for kind in kinds:
                for phrase in table.get(kind, []):
                    yield program, language, phrase.replace("*", "xy").replace("?", "b")


def test_no_mark_of_a_program_is_learned(source):
    """Each whole-message mark stands between two messages of the persona, and once for one of somebody else."""

    def check(program):
        marks = [mark for name, _, mark in phrases("notice", "media", "sticker") if name == program]
        said = [
            turn
            for n, mark in enumerate(marks)
            for turn in (
                *(("Bob", f"How {n}?"), ("Ann", f"So {n}."), ("Bob", mark)),
                *(("Bob", f"When {n}?"), ("Ann", mark), ("Ann", f"Now {n}.")),
            )
        ]
        log = source("".join(write(PROGRAM_FORMAT[program], [turn], 10 + n % 50) for n, turn in enumerate(said)))
        wanted = [pair for n in range(len(marks)) for pair in ((f"How {n}?", f"So {n}."), (f"When {n}?", f"Now {n}."))]
        found = replies(log, "Ann")
        assert set(found) ^ set(wanted) == set(), [
            marks[int(re.findall(r"\d+", p[0])[-1])] for p in found if p not in wanted
        ]
        assert len(skips(screenplay, log, "Ann")) == 2 * len(marks), "each is listed"

    check_each([(program,) for program in PROGRAM_FORMAT], check)


def test_a_mark_within_a_message_leaves_its_text(source):
    def check(program, language, mark):
        ends = mark in read_table()[program].get(language, {}).get("end", [])
        said = f"So.{' ' if ends else chr(10)}{mark}"
        log = source(
            write(PROGRAM_FORMAT[program], [("Bob", "How?"), ("Ann", said), ("Bob", "When?"), ("Ann", "Now.")])
        )
        items = list(screenplay.read(log, ImportOptions(speakers=("Ann",))))
        assert [i.output for i in items if isinstance(i, Pair)] == ["So.", "Now."]
        assert any(isinstance(i, ImportNote) for i in items)

    check_each(phrases("end", "line", "block"), check)


def test_words_of_people_are_no_marks():
    cases = [
        "I deleted this message",
        "She said: this message was deleted",
        "Missed you",
        "<grins> Bold, always.",
        "the image omitted nothing of importance",
        "他拍了拍我的肩膀，笑了。",
        "第九页。[捂脸]",
        "null and void",
        "Photo of a cat, sent yesterday",
        "Seite neun <so ungefähr>",
        "(really?)",
    ]
    for text in cases:
        assert load_marks().clean(text).text == text


def test_what_whatsapp_writes_on_ios_is_known_in_any_language(source):
    said = [("Bob", "How?"), ("Ann", "So. \u200e<Ezt az üzenetet szerkesztették>"), ("Bob", "\u200ekép kihagyva"), ("Bob", "When?"), ("Ann", "Now.")]  # fmt: skip
    assert replies(source(write("whatsapp ios", said)), "Ann") == [("How?", "So."), ("When?", "Now.")]


def test_line_quotes_a_message_of_several_lines(source):
    log = 'LINE\n\n2024/03/12(火)\n10:15\tBob\tHow?\n10:16\tAnn\t"So ""there"".\nNow."\n10:17\t☎ 通話時間 1:23\n10:18\tBob\tAnd?\n10:19\tAnn\t"No"\n'
    assert replies(source(log), "Ann") == [("How?", 'So "there".\nNow.'), ("And?", '"No"')]
    quoted = [("Bob", "How?"), ("Ann", '"So\nthere"')]
    assert replies(source(write("telegram", quoted)), "Ann") == [("How?", '"So\nthere"')]


def test_a_sticker_is_answered_and_never_said(source):
    said = [("Bob", "hi"), ("Ann", "Hello."), ("Bob", "{Stickers}\nhttps://x/wave.png"), ("Ann", "Wave back."), ("Bob", "bye"), ("Ann", "{Stickers}\nhttps://x/wave.png")]  # fmt: skip
    log = source(write("discord export", said))
    assert replies(log, "Ann") == [("hi", "Hello."), (chat_log.STICKER, "Wave back.")]


def test_a_quotation_and_a_card_are_no_speech(source):
    said = [("Bob", "桥下？"), ("Ann", "「Bob：桥下？」\n- - - - - - - - - - - - - - -\n水。"), ("Bob", "还有？"), ("Ann", '<?xml version="1.0"?>\n<msg><title>x</title></msg>'), ("Bob", "谁？"), ("Ann", "妖怪。")]  # fmt: skip
    assert replies(source(write("wechat", said)), "Ann") == [("桥下？", "水。"), ("谁？", "妖怪。")]


# --- paragraphs, times, subtitles ----------------------------------------------------------------------------------


def test_paragraphs_go_on_with_a_speech_where_nothing_marks_scenes(source):
    text = "Ann: Hm.\n\nBob: One.\n\nTwo.\n\nAnn: *nods* Three.\n\nShe waits.\n\n“Four.”\n\nBob: Five: six.\n\nAnn: Seven.\n"
    assert replies(source(text), "Ann") == [
        ("One.\n\nTwo.", "*nods* Three.\n\nShe waits.\n\n“Four.”"),
        ("Five: six.", "Seven."),
    ]
    notes = [i for i in screenplay.read(source(text), ImportOptions(speakers=("Ann",))) if isinstance(i, ImportNote)]
    assert {n.what for n in notes} == {screenplay.PARAGRAPH} and len(notes) == 3
    with_scene = source("Scene 1\n\n" + text)
    assert all("She waits" not in p[1] for p in pairs(screenplay, with_scene, "Ann"))


def test_a_time_in_brackets_is_no_stage_direction(source):
    text = source("Bob (00:12): What?\nAnn (1:02:15): Water (00:16) mostly.\nBob [10:15 AM]: And?\nAnn: Trolls.\n")
    for actions in ("drop", "keep"):
        assert replies(text, "Ann", actions=actions) == [("What?", "Water mostly."), ("And?", "Trolls.")]


def test_subtitles(source):
    srt = "1\n00:00:01,000 --> 00:00:02,000\nBOB: <i>What</i> is\nunder it?\n\n2\n00:00:03,000 --> 00:00:04,000\nANN: Water,\n\n3\n00:00:05,000 --> 00:00:06,000\nmostly.\n\n4\n00:00:07,000 --> 00:00:08,000\n(thunder)\n\n5\n00:00:08,000 --> 00:00:09,000\nBOB: And?\nANN: Trolls.\n"
    assert replies(source(srt), "ANN") == [("What is under it?", "Water, mostly."), ("And?", "Trolls.")]
    assert [line for line, _ in skips(screenplay, source(srt), "ANN")] == [15]
    ass = ASS + "".join(
        f"Dialogue: 0,0:00:0{n}.00,0:00:0{n}.50,Default,{who},,{{\\i1}}{text}{{\\i0}}\n"
        for n, (who, text) in enumerate([("Bob", r"What is,\Nthen?"), ("Ann", r"Water,\hmostly."), ("", "???")])
    )
    assert replies(source(ass), "Ann") == [("What is, then?", "Water, mostly.")]


def test_subtitles_that_name_nobody_are_refused(source):
    text = source("1\n00:00:01,000 --> 00:00:02,000\nWhat?\n\n2\n00:00:03,000 --> 00:00:04,000\nWater.\n")
    with pytest.raises(PersonaError, match="nobody is named"):
        list(screenplay.read(text, ImportOptions(speakers=("Ann",))))


def test_lines_in_a_row_are_one_turn_in_a_transcript_and_two_speeches_in_a_play(tmp_path):
    said = [
        ("Bob", "Where?"),
        ("Bob", "Tell me."),
        ("Ann", "There."),
        ("Ann", "Under it."),
        ("Bob", "Oh."),
        ("Ann", "So."),
    ]

    def check(form, scene, wanted):
        text = scene + "".join(FORMATS[form].format(10 + n, n=who, m=m) + "\n" for n, (who, m) in enumerate(said))
        opened = source(tmp_path, "x.txt", text)
        found = registry.read_source(opened, "screenplay", ImportOptions(speakers=("Ann",)))
        assert [(i.instruction, i.output) for i in found if isinstance(i, Pair)] == wanted

    merged, apart = (
        [("Where?\nTell me.", "There.\nUnder it."), ("Oh.", "So.")],
        [("Tell me.", "There."), ("Oh.", "So.")],
    )
    check_each(
        [(form, "", merged) for form in ("transcript", "colon")]
        + [
            ("colon", "Scene 1\n", apart),
            ("colon", "Ann (softly): Hm.\n", apart),
            ("colon", "Bob: Hm.\n(He goes.)\n", apart),
        ],
        check,
    )
