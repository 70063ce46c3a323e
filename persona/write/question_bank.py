"""Questions to ask an author who answers as the persona: `questions/*.toml`, by topic, and what may be asked next."""

import re
import tomllib
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from persona.store.cjk import is_chinese
from persona.store.pairs import Pair

QUESTIONS_DIR = Path(__file__).parent / "questions"
BANK_LANGUAGES = ("en", "zh")
# their first questions, to start a persona with: the answers show who speaks, and how
STARTER_TOPICS = (
    "identity", "greeting", "work", "taste", "smalltalk", "feeling", "home", "request", "opinion", "farewell",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class QuestionBank:
    """topics: topic → its questions, the best first. follow_ups: what an answer may hold → questions about that."""

    topics: Mapping[str, tuple[str, ...]]
    follow_ups: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]

    def follow_up(self, answer: str, asked: Container[str]) -> str:
        """A question about what the answer says, by the first rule that has one not yet asked; "" if none has."""
        for pattern, questions in self.follow_ups:
            if found := pattern.search(answer.strip()):
                for question in (q.replace("{0}", found[1]) if found.lastindex else q for q in questions):
                    if question not in asked:
                        return question
        return ""


@cache
def load_question_bank(language: str) -> QuestionBank:
    """The bank for a persona's language (BCP 47): Chinese for zh, English for any other."""
    name = "zh" if is_chinese(language) else "en"
    data = tomllib.loads((QUESTIONS_DIR / f"{name}.toml").read_text(encoding="utf-8"))
    follow_ups = tuple((re.compile(rule["when"]), tuple(rule["ask"])) for rule in data.pop("follow_ups"))
    return QuestionBank({topic: tuple(questions) for topic, questions in data.items()}, follow_ups)


def find_topic(question: str) -> str:
    """The topic of a question of the bank in either language, "" for any other question."""
    return _topics_by_question().get(question.strip(), "")


@cache
def _topics_by_question() -> dict[str, str]:
    banks = map(load_question_bank, BANK_LANGUAGES)
    return {q: topic for bank in banks for topic, questions in bank.topics.items() for q in questions}


def make_starter_pairs(language: str) -> list[Pair]:
    """Ten everyday questions in the persona's language, each with an answer yet to be written."""
    topics = load_question_bank(language).topics
    return [Pair(topics[topic][0], "") for topic in STARTER_TOPICS]
