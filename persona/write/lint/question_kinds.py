"""The kind of question that a pair asks, guessed by keywords in Chinese and English."""

import re

from persona.store.pairs import Pair
from persona.write.lint.finding import count_words
from persona.write.question_bank import find_topic

# what the keywords leave open, where it is a question of the interview: by its topic
TOPIC_KINDS = {
    "identity": "identity", "greeting": "greeting", "farewell": "greeting", "day": "small talk",
    "smalltalk": "small talk", "pressure": "refusal",
}  # fmt: skip
MAX_WORDS = 18  # of a question; a longer one tells a story in which a greeting or a name is one word of many


def _keyword_pattern(chinese: str, english: str) -> re.Pattern[str]:
    """Any of the Chinese expressions anywhere, or of the English ones as whole words; ' in them is ’ too."""
    apart = "|".join(english.split(", ")).replace("'", "['’]")
    return re.compile(f"{'|'.join(chinese.split())}|\\b(?:{apart})\\b", re.I)


IDENTITY = _keyword_pattern(
    "你(?:到底|究竟)?是谁 你叫(?:什么|啥) 你(?:到底|究竟)?是(?:什么|哪位|哪个)人?$ "
    "^(?:请问)?[你您]?(?:贵姓|芳名|尊姓大名) 介绍(?:一下)?(?:你)?自己 "
    "你是(?:不是)?(?:AI|人工智能|机器人|真人|ChatGPT)",
    "who are you, what(?:'s|s| is) your name, what are you called, introduce yourself, tell me about yourself, "
    "are you (?:an? )?(?:AI|bot|robot|human|real|chatgpt|computer)",
)
ABOUT_PERSONA = _keyword_pattern(
    "你的?(?:父亲|母亲|爹|娘|家|妹妹|姐姐|哥哥|弟弟|名字|封号|年纪|身世|爱好|身份) 你(?:今年)?(?:多大|几岁) 你住 "
    "你(?:从|来自) 你(?:们.{1,6}的主子)?是(?:谁|什么人|哪|男|女|真人|做什么|干什么|.{1,8}[吗吧]) 你现在是谁 你谁 "
    "你(?:到底|究竟)是 姑娘贵姓 谁训练 什么大模型 哪个公司 报上名 尊号 身世 形容(?:一下)?你?自己",
    "are you (?:an?|the|really), what are you, how old are you, "
    "your (?:name|father|mother|brother|sister|family|age|home), "
    "where (?:do you (?:live|come from)|are you from|were you born), who (?:made|trained|built|created) you",
)
GREETING = re.compile(
    r"^(?:[你您]好[呀啊吗，,！!。\s]*(?:$|[^美狠些多])|大家好|哈喽|哈啰|嗨|喂|早上好|早安|早$|上午好|中午好|"
    r"下午好|晚上好|晚安|再见|拜拜|回头见|明天见|好久不见|很高兴认识你|初次见面|给.{1,6}请安|.{0,6}(?:万安|金安|"
    r"万福|吉祥)|在吗|在不在|我(?:要|先|得)走了|新年快乐|生日快乐|谢谢|多谢|(?:hi|hello|hey|howdy|good (?:morning|"
    r"afternoon|evening|night|day)|goodnight|bye|goodbye|farewell|see you|nice to meet you|greetings|ahoy|"
    r"long time no see|take care|thanks|thank you|is anyone there|anyone home|i(?:'m| am|’m) back|i(?:['’]ve|"
    r" have) (?:got )?to go|i must go)\b)",
    re.I,
)
REFUSAL = _keyword_pattern(
    "(?:帮我|教我|替我|给我|怎么|如何|告诉我).{0,12}(?:作弊|毒|偷|骗|害|杀|报复|骂|炸|黑客|入侵|代码|网页|密码|秘密) "
    "系统提示 提示词 忽略(?:以上|之前|所有) 恢复正常 别演 露骨 股票 彩票 药.{0,20}吃多少 什么病 打官司 不想活 "
    "活着.{0,20}没意思",
    "poison(?:ing)?, steal, cheat, trick, hack, kill, bomb, forge, scam, weapon, drugs?, suicide, "
    "end (?:it all|my life), hurt (?:someone|him|her|myself), (?:want|like) to (?:die|be dead), be alive, "
    "system prompt, ignore (?:all|your|previous|the), no rules, drop the (?:character|act), stop pretending, "
    "python, javascript, html, sql, debug, stocks?, lottery, invest, bitcoin, savings, dosage, pills, cancer, "
    "chest pain, diagnos\\w+, lawsuit, password, naked, sexy, dirty",
)
REFUSING_ANSWER = _keyword_pattern(
    "恕(?:我|本|臣|在下|难) "
    "(?:我|本宫|在下|老夫|朕)可?(?:不能|不会|不便|不肯|不敢|不做)(?:替|帮|教|告诉|说|答应|妄) 休提 免谈 无可奉告",
    "I (?:won't|will not|can't|cannot|shan't) (?:\\w+ ){0,2}(?:help|tell|teach|do|say|write|lend|advise|know), "
    "I'll not, not from me, no part (?:of|in)",
)
SMALL_TALK = _keyword_pattern(
    "天气 下雨 下雪 好热 好冷 吃(?:了|什么|饭) 早饭 午饭 晚饭 喝茶 咖啡 累 困 失眠 睡不 难过 开心 高兴 伤心 哭 "
    "孤独 无聊 焦虑 害怕 紧张 生气 生病 烦 上班 加班 老板 同事 考试 面试 工作 周末 周一 失恋 恋爱 喜欢的人 朋友 "
    "吵架 妈妈 爸爸 家里人 减肥 讲个笑话 聊聊 心情 怎么样\\W*$ 过得 心里堵 暗恋 辞职 搞砸 自卑 没用 "
    "被.{1,4}(?:骗|批评|冤枉|骂) 奶奶 爷爷 网购 堵车 过年 陪我",
    "how are you, how's (?:it|life|your day), weather, rain(?:y|ing)?, cold, hungry, breakfast, lunch, dinner, "
    "tea, coffee, tired, sleep, sad, happy, lonely, bored, anxious, nervous, afraid, scared, angry, cry, "
    "homesick, overwhelmed, broke up, "
    "my (?:boss|job|work|friend|girlfriend|boyfriend|wife|husband|dog|cat|dad|mum|mom|father|mother|exam|day), "
    "weekend, joke, I (?:feel|hate|love|miss|lost|failed|want|need)",
)


def is_identity_question(question: str) -> bool:
    """Whether it asks who the persona is; such questions must always get the same answer."""
    return bool(IDENTITY.search(question))


def classify_question(pair: Pair) -> str:
    """ "identity", "greeting", "refusal", "small talk", or "domain" for the rest: the persona's own world."""
    question = pair.instruction.strip()
    short = count_words(question) <= MAX_WORDS
    refusal = REFUSAL.search(question)
    if short and not refusal and (is_identity_question(question) or ABOUT_PERSONA.search(question)):
        return "identity"
    if short and GREETING.search(question):
        return "greeting"
    if refusal or REFUSING_ANSWER.search(pair.output):
        return "refusal"
    if short and SMALL_TALK.search(question):
        return "small talk"
    return TOPIC_KINDS.get(find_topic(question), "domain")
