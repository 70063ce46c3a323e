"""Ten everyday questions to start a persona with: its answers to them show who speaks, and how."""

from persona.store.pairs import Pair

STARTER_QUESTIONS = {
    "en": (
        "Who are you?",
        "Good morning! How did you sleep?",
        "What do you do all day?",
        "What do you like to eat?",
        "I had a terrible day at work.",
        "What makes you angry?",
        "Tell me about where you live.",
        "Can you help me write an email?",
        "What do you think of people who are always late?",
        "I have to go now. Goodbye!",
    ),
    "zh": (
        "你是谁？",
        "早上好！昨晚睡得怎么样？",
        "你平时一天都做些什么？",
        "你喜欢吃什么？",
        "今天上班糟透了。",
        "什么事会让你生气？",
        "说说你住的地方吧。",
        "能帮我写一封邮件吗？",
        "你怎么看总是迟到的人？",
        "我得走了，再见！",
    ),
}


def make_starter_pairs(language: str) -> list[Pair]:
    """The questions in the persona's language, each with an answer yet to be written."""
    questions = STARTER_QUESTIONS["zh" if language.startswith("zh") else "en"]
    return [Pair(question, "") for question in questions]
