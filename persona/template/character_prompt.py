"""A persona's system prompt with what its card adds: macros, book entries, what stands after the conversation."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from persona.store.character_book import CharacterBook
from persona.store.cjk import is_chinese
from persona.store.persona_folder import PersonaCard
from persona.template.book_entries import FoundEntry, find_entries
from persona.template.macros import MacroValues, resolve_macros


@dataclass(frozen=True)
class PromptParts:
    """What stands before a conversation, and what after it. entries: those of the book that are in them."""

    system: str
    late: str = ""
    entries: tuple[FoundEntry, ...] = ()


@dataclass(frozen=True)
class CharacterPrompt:
    """What a card adds to its system prompt. in_training: to training rows, too."""

    name: str
    language: str = ""
    book: CharacterBook | None = None
    instructions: str = ""
    in_training: bool = False

    @staticmethod
    def of(card: PersonaCard) -> "CharacterPrompt":
        return CharacterPrompt(
            card.nickname or card.name, card.language, card.character_book, card.post_history_instructions,
            card.book_in_training,
        )  # fmt: skip

    def compose(
        self, system: str, history: Iterable[Sequence[str]], text: str, count_tokens: Callable[[str], int],
        training: bool = False,
    ) -> PromptParts:  # fmt: skip
        """The parts for a reply to `text` after the turns of `history`, macros resolved.

        {{pick}} is drawn once for a conversation, by its first message; {{random}} again for each reply.
        """
        messages = [*(message for turn in history for message in turn if message), text]  # a greeting answers nothing
        user = "用户" if is_chinese(self.language) else "the user"
        values = MacroValues(self.name, user, "\0".join(messages), messages[0])
        if training and not self.in_training:
            return PromptParts(resolve_macros(system, values))  # what is learned is the persona without its book
        found = find_entries(self.book, messages, len(messages) // 2, count_tokens, values.seed) if self.book else []
        texts = {place: [resolve_macros(f.text, values) for f in found if f.place == place]
                 for place in ("before", "after", "late")}  # fmt: skip
        whole = [*texts["before"], resolve_macros(system, values), *texts["after"]]
        late = [*texts["late"], resolve_macros(self.instructions, values)]
        return PromptParts(_join(whole), _join(late), tuple(found))


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has, where no tokenizer is at hand: one for three bytes of UTF-8."""
    return len(text.encode("utf-8", "replace")) // 3 + 1


def resolve_system(card: PersonaCard) -> str:
    """The card's system prompt with its macros resolved: for what leaves this program without them."""
    return CharacterPrompt.of(card).compose(card.system, (), "", estimate_tokens, training=True).system


def resolve_greeting(card: PersonaCard, greeting: str, chat: str = "") -> str:
    """A greeting as it is said: its macros resolved, the user addressed. chat: seed of what is drawn at random."""
    user = "你" if is_chinese(card.language) else "you"
    return resolve_macros(greeting, MacroValues(card.nickname or card.name, user, chat, chat))


def _join(texts: Iterable[str]) -> str:
    return "\n\n".join(text for text in texts if text.strip())
