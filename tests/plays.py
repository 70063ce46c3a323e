"""Plays, chat logs and a novel for tests of importers, and how to read them. Load with pytest_plugins."""

import pytest

from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, SkippedRow
from persona.write.importers.text_source import open_source

PLAY = """第一集

第1幕
（渡口。天未亮）
船夫：姑娘，今日风大。
阿绫：风大也要过江。
船夫（摇头）：那就坐稳了。（撑篙）开船——
阿绫：有劳。（递过铜钱）
（对岸传来钟声）
阿绫：到了么？

第2幕
阿绫：有人么？
店家；客官里边请。
阿绫，住店。
店家（擦桌）上房一间。
阿绫：多少银子？
店家：三钱，
包早饭。
阿绫；便宜些。
店家、阿绫：成交！
店家：楼上请。
阿绫：（点头）
阿绫：多谢。
"""


@pytest.fixture
def source(tmp_path):
    def write(text, name="a.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "replace"))
        return open_source(path)

    return write


def pairs(module, source, *names, **options):
    items = module.read(source, ImportOptions(speakers=names, **options))
    return [(p.instruction, p.output, int(p.source.rsplit(":", 1)[1])) for p in items if isinstance(p, Pair)]


def skips(module, source, *names, **options):
    return [
        (s.line, s.why)
        for s in module.read(source, ImportOptions(speakers=names, **options))
        if isinstance(s, SkippedRow)
    ]


CHATS = {
    "whatsapp-ios": "[12/3/24, 10:15:02] Bob: hi\n[12/3/24, 10:15:40] Ann: hello: you\nthere\n",
    "whatsapp-narrow-space": "\u200e[12/3/24, 10:15:02\u202fPM] Bob: hi\n[12/3/24, 10:15:40\u202fPM] Ann: hello: you\nthere\n",
    "whatsapp-android": "12/03/2024, 10:15 - Bob: hi\n12/03/2024, 10:15 - Ann: hello: you\nthere\n",
    "clock-and-nick": "[10:15] <Bob> hi\n[10:15] <Ann> hello: you\nthere\n",
    "nick": "<Bob> hi\n<Ann> hello: you\nthere\n",
    "qq": "2024-03-12 10:15:02 Bob(12345)\nhi\n\n2024-03-12 10:15:09 Ann(ann@b.c)\nhello: you\nthere\n",
    "wechat": "Bob 2024/3/12 10:15:02\nhi\nAnn 2024/3/12 10:15:30\nhello: you\nthere\n",
    "slack": "Bob 10:15 AM\nhi\nAnn 10:16 AM\nhello: you\nthere\n",
    "discord": "Bob — Today at 10:15 AM\nhi\nAnn — Today at 10:16 AM\nhello: you\nthere\n",
    "telegram": "Bob, [12.03.24 10:15]\nhi\n\nAnn, [12.03.24 10:16]\nhello: you\nthere\n",
    "exporter": "[12/03/2024 10:15 AM] Bob\nhi\n\n[12/03/2024 10:16 AM] Ann\nhello: you\nthere\n",
    "chinese-clock": "Bob 2024年3月12日 上午10:15\nhi\nAnn 2024年3月12日 下午1:16\nhello: you\nthere\n",
}


FOUNTAIN = """Title: The Lamp
Author: me

# Act

INT. LIGHTHOUSE - NIGHT

Rain. ANN listens.

BOB
Is it lit?

ANN (CONT'D)
(softly)
It is lit, [[louder?]]
my friend.

BOB
Good.

/* cut
ANN
Never.
*/
ANN ^
Good.

CUT TO:

@McNeil
Who is there?

ANN (V.O.)
Only me.

She puts the lamp down.

ANN
And the rain.

EXT. PIER - DAY

ANN
Alone.
"""


NOVEL = """第一章 渡口

  船夫低声问道：“姑娘，过江么？”
  阿绫点点头道：“过。”
  船夫看看天色，说道：“风大，坐稳了。”
  “我不怕。”阿绫说，“走吧。”
  “真不怕？”
  “不怕。”
  阿绫听了，忙笑道：“快些。”
  他是村里人说的“老江湖”，不再多话。
  船夫道：“到了。”阿绫又道：“多谢。”

第二章

  “有人么？”阿绫喊道。
"""
