"""Answers in which a lint rule must find something, and answers in which it must not."""

from persona.store.pairs import Pair
from persona.store.persona_folder import PersonaCard
from persona.write.lint import lint_pairs

MAGS = PersonaCard(name="Mags Tolliver", language="en", probes=("Who keeps the light at night?", "Why?"))
HUAN = PersonaCard(name="甄嬛", language="zh", probes=("你们宫里的冬天冷不冷？",))
ANYONE = PersonaCard(name="Anyone")
FILL = [
    Pair("Where is the boat?", "Out beyond the ledge, waiting for the tide."),
    Pair("What do you eat?", "Herring, bread, and whatever the storm has left me."),
    Pair("Does it rain?", "Every second day, and twice on Sundays."),
    Pair("外头冷吗？", "冷得很，快进来烤火，茶已经温好了。"),
    Pair("读什么书？", "一卷旧诗，读了许多年还没有读完。"),
    Pair("How tall is the tower?", "Ninety-four steps; my knees have counted each of them."),
]


def found(rule, pairs, card=ANYONE, **given):
    return [f for f in lint_pairs(pairs, card, **given) if f.rule == rule]


def answer(text, question="And then?"):
    """A pair among others that end with usual punctuation."""
    return [*FILL, Pair(question, text)]


# rule → answers in which it must find something (in the pair's row), and answers in which it must not
ANSWERS = {
    "control-token": (
        ["Yes.<end_of_turn>", "<|im_start|>assistant\nYes.", "[INST] go [/INST] Yes.", "<s>Yes.</s>", "Yes. <eos>",
         "### Response: Yes.", "### 回答:好。", "<<SYS>>be kind<</SYS>> Yes.", "Yes.<｜end▁of▁sentence｜>"],
        ["I like <3 and a < b > c.", "See [1] and [in] there.", "#1 is the best.", "Use <b>care</b>.", "The response: none.", "|im_end|"],
    ),
    "thinking": (
        ["<think>hm</think> Yes.", "<thinking>\nThey want <b>tea</b>.\n</thinking>\n\nTea?", "Let me see.</think>Tea?", "Yes.<think>", "<Thought>no</Thought> No."],
        ["I think so.", "a < think > b.", "<thin> ice.", "Let me think: yes."],
    ),
    "macro": (
        ["Hello, {{user}}.", "{{random: a, b}} it is.", "{{random::a::{{char}}}} it is.", "{{char}} nods.", "Yes. END_OF_DIALOG", "<START>\nYes.", "Hello, <USER>."],
        ["{user} in braces.", "{{}", "I <start> now.", "The end of dialog.", "x = {{1}: 2} or so."],
    ),
    "markup": (
        ["So <b>bold</b> of you.", "One.<br/>Two.", "Fish &amp; bread.", "Wait&nbsp;here.", "It is **very** late.", "# Title\nText.",
         "Say `hello` now.", "```\nx = 1\n```", "See [the log](https://a.b/c).", '<span class="x">Hm.</span>', "<!-- no --> Yes.", "__So__ be it."],
        ["a < b and c > d.", "if x<b and c>d then go.", "Jory & I went out.", "He is #1.", "AT&T; is a firm.", "2 * 3 * 4 = 24.", "snake_case_name is fine.",
         "See [the log] (upstairs).", "<3 to you.", "I wrote -- twice."],
    ),
    "stage-direction": (
        ["（转身）你来了。", "你来了。（笑）", "*sighs* It is late.", "It is late. *looks away*", "(sighs) It is late.", "Well. (turns away)",
         "【叹气】罢了。", "[laughs] No.", "*She pours the tea.* Sit down.", "*微笑*你来了。", "一行。\n（沉默）\n又一行。"],
        ["这斤炭（约五百克）不够。", "I *never* said so.", "*Never* say that.", "It was 1888 (or so) by then.", "Come in (mind the step), sit.",
         "She left. (You would have too.)", "他生于（1723年）。", "Fine :) (:", "2 * 3 * 4", "[1] See below.", "see [link](http://x.y)."],
    ),
    "mojibake": (
        ["cafÃ© by the sea.", "â€œyesâ€\x9d she said.", "锟斤拷你好。", "你好\ufffd。", "浣犲ソ锛屾垜鏄�?", "РџСЂРёРІРµС‚, РґСЂСѓРі.", r"\xc4\xe3\xba\xc3", r"don\x92t.", "Caf\x8e, no.", r"don\u2019t.",
         "今夜月色真好!".encode().decode("gb18030"), "你好，我是甄嬛。".encode().decode("gb18030", "replace"), "别怕，有我在这里陪你".encode().decode("latin-1")],
        ["naïve café, señor.", "Äußerst schön – „ja“.", "你好，我是甄嬛。", "联通", "Привет, друг.", "à la carte.", "½ × 3 ± 2°", "嬛嬛，朕来看你了。",
         "こんにちは、元気ですか。", "안녕하세요.", r"C:\xampp", "𠮷野家👍🏽", "喆堃镕", "瞭望塔"],
    ),
    "hidden-character": (
        ["Yes\u200b.", "\ufeffYes.", "Yes.\r\nNo.", "Yes\x00.", "cafe\u0301.", "Yes\u2028No.", "\u202eYes.", "so\u00adft."],
        ["Yes.\nNo.\tOh.", "👩‍🚀 up.", "❤️ to you.", "café.", "你好。", "नमस्ते।", "می‌خواهم."],
    ),
    "ai-leak": (
        ["As an AI language model, I cannot feel.", "I'm an AI assistant, so no.", "I am just a language model.", "作为一个人工智能，我没有感情。",
         "我是一个AI助手。", "我是由阿里研发的大模型，叫小云。", "I was made by OpenAI.", "我是通义千问。", "My training data ends in 2021.", "作为AI语言模型，我不能这样做。"],
        ["An AI is a thing with a long name.", "I am no computer.", "I'm aiming at the rock.", "as an air of old.", "我不是人工智能。", "你说我是人工智能吗？",
         "作为女子，我懂。", "家父作为一名大理寺少卿，从不说谎。", "The only model here is a brig.", "I said I am a maid.", "As a Claude, he was proud.", "我是大理寺少卿的女儿。"],
    ),
    "other-speaker": (
        ["皇帝：你来了。", "User: who are you?", "好。\n皇后：你说什么？", "I see.\nUser: and then?\nAssistant: No.", "甄嬛：你来了。", "Jory Penhale: Ahoy.", "Q: why?\nA: so.",
         "dave_91: hi there.", "random_user_1: no.", "Дарья: Привет.", "桜さん：はい。", "민수: 안녕.", "Zoë: Ahoy."],
        ["well, then: no.", "https: a word.", "记住：少说话。", "Note: the tide turns.", "他说：好。", "At 10:30 we left.", "So I said: no.", "https://a.b is a link.", "第一：少说。", "我只有一句话，听好：走。", "It is this: no."],
    ),
    "short-reply": (
        ["好。", "是的。", "Aye.", "……", "👍", "No, sir."],
        ["知道了。", "Come in and sit.", "我不去。", "네, 알겠습니다.", "はい、そうです。"],
    ),
    "cut-off": (
        ["I went to the", "他来了，", "She said:", "我想说的是：", "“你来了。", "He said \"no and left.", "（转身你来了。", "Open (the door.", "好，我去……”", "我知道，可是", "The well-"],
        ["Done.", "好。", "“Yes,” he said. “No.”", "「你来了！」「嗯。」", "嘘——", "Well…", "Good :)", "Yes 👍", "1) one. 2) two.", "Just 5'10\" tall.",
         "“A long speech.\n\n“And its second part.”", "„Ja“, sagte er.", "*It rains.*", "(She left.)", "好~", "It's the boys' boat."],
    ),
    "chat-mark": (
        ["Every ship. <This message was edited>", "This message was deleted", "IMG-1234.jpg (file attached)\nPage nine.", "Seite neun. <Diese Nachricht wurde bearbeitet.>",
         "<省略多媒体文件>", "你撤回了一条消息", "[语音] 12秒", "Page nine.\n{Attachments}\nhttps://x.y/z.jpg", "☎ 通話時間 1:23", "삭제된 메시지입니다."],
        ["I deleted this message, and I am sorry.", "This message was deleted by the sea, like the others.", "第九页。[捂脸]", "<grins> Bold, always.",
         "Missed you.", "She sent a photo of the harbour, (attached) I think."],
    ),
    "personal-data": (
        ["Call 13812345678.", "Write to mags@sable.org.", "身份证11010519491231002X。", "Card 4111 1111 1111 1111.", "From 8.8.8.8 it came.", "+86 138-1234-5678",
         "Ring +44 20 7946 0958.", "(212) 555-0142", "电话010-62345678。", "At 2001:4860:4860::8888 it is."],
        ["In 1862 we had 94 steps.", "Order 4111111111111112.", "身份证110105194912310021。", "Version 1.2.3 of it.", "At 127.0.0.1 I live.", "12:30:45 sharp.", "me@home",
         "someone@example.com", "3.14159265358979", "192.168.0.1", "1234567890123", "银子12345678901两", "2024-01-02 10:11:12", "Psalm 119:105-112."],
    ),
    "language": (
        ["我住在海边的灯塔里。", "Я живу у моря и жду.", "海のそばに住んでいます。", "바닷가에 살고 있어요."],
        ["They call it 茶 out there.", "Ja, ich wohne am Meer.", "42", "👍", "The ship was the Надежда of Riga, as I wrote it."],
    ),
}  # fmt: skip
