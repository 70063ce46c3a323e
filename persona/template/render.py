"""Pair + persona + chat template + tokenizer → token ids and the label mask; and the chat prompt.

Preview, trainer, chat and API all render here: the page colours what is trained, and the prompt of a chat is, id for
id, the beginning of a training example. The tokenizer is passed in: no torch, no transformers.
"""

import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from persona.errors import InputError, Message, TemplateError, join
from persona.store import thinking
from persona.store.pairs import Pair, find_unfinished
from persona.template.character_prompt import CharacterPrompt, PromptParts
from persona.template.chat_template import (
    ChatTemplate,
    build_messages,
    encode_chat,
    encode_sanitized,
    mask_learned,
    render_chats,
)  # fmt: skip
from persona.template.compatibility import (
    control_token_ids,
    find_incompatibilities,
    find_stop_token,
    marker_token_ids,
    takes_late_system,
)
from persona.template.jinja_engine import RenderedChat

MAX_LENGTH = 512  # tokens of one row by default
MAX_LENGTH_RANGE = (8, 32_768)
PAIRS_AT_ONCE = 64
IGNORE_INDEX = -100  # the label that a cross-entropy loss skips (torch.nn.functional.cross_entropy, ignore_index)


@dataclass(frozen=True)
class PreviewToken:
    """One token as the page shows it. The texts of all tokens joined are the rendered text."""

    id: int
    text: str
    learned: bool
    special: bool = False


@dataclass(frozen=True)
class TrainingExample:
    """One training row. labels: as long as input_ids; the id where it is learned, else IGNORE_INDEX."""

    input_ids: list[int]
    labels: list[int]
    text: str
    ends: list[int] = field(repr=False)  # where each token ends in `text`, in characters
    problems: tuple[str, ...] = ()

    @property
    def learned(self) -> int:
        return sum(x != IGNORE_INDEX for x in self.labels)


@dataclass(frozen=True)
class ChatPrompt:
    """The prompt of a chat: text and token ids. entries: names of the book entries in it.

    thinking: None where the model is to answer at once; else with what its thinking begins, "" where it writes that.
    """

    text: str
    ids: list[int]
    entries: tuple[str, ...] = ()
    thinking: str | None = None


@dataclass(frozen=True)
class Renderer:
    """Turns pairs and chats into token ids: tokenizer, template, system prompt and limits in one value.

    max_length: tokens; a longer example is reported as a problem, never cut.
    learn_history: earlier replies are learned too, not only the last one; one of weight 0 never is.
    learned_elsewhere: (user message, reply) of the other rows: an earlier reply among them is not learned twice.
    character: what the persona's card adds to the system prompt; None for nothing.
    """

    tokenizer: Any
    template: ChatTemplate
    system: str = ""
    max_length: int = MAX_LENGTH
    learn_history: bool = False
    learned_elsewhere: frozenset[tuple[str, str]] = frozenset()
    character: CharacterPrompt | None = None

    def render_example(self, pair: Pair) -> TrainingExample:
        """Render, mask and check one pair; `problems` says what is wrong with it."""
        return next(self.iterate_examples([pair]))

    def iterate_examples(self, pairs: Iterable[Pair]) -> Iterator[TrainingExample]:
        """Render, mask and check pairs, many at a time: a template that is not shipped renders in another process."""
        rest = iter(pairs)
        while batch := list(itertools.islice(rest, PAIRS_AT_ONCE)):
            yield from self._render_batch(batch)

    def _render_batch(self, pairs: list[Pair]) -> list[TrainingExample]:
        if not self.template.thinking:
            pairs = [leave_out_thinking(pair) for pair in pairs]
        unfinished = {n: tuple(why for _, why in find_unfinished([pair])) for n, pair in enumerate(pairs)}
        whole = [n for n in unfinished if not unfinished[n]]
        parts = {n: self._row_parts(pairs[n]) for n in whole}
        chats = [self._chat(parts[n], pairs[n].history, pairs[n].instruction, pairs[n].output) for n in whole]
        examples = [TrainingExample([], [], "", [], why) for why in unfinished.values()]
        for n, rendered in zip(whole, self._render(chats), strict=True):
            examples[n] = self._label(pairs[n], parts[n], rendered)
        sound = [n for n in whole if not examples[n].problems]
        asked = [(n, turn) for n in sound for turn in self.learned_turns(pairs[n])]
        prompts = self._render(
            (self._prompt_chat(pairs[n], parts[n], turn) for n, turn in asked), add_generation_prompt=True
        )
        for (n, turn), prompt in zip(asked, prompts, strict=True):
            if not examples[n].problems and (why := self._prompt_mismatch(examples[n], prompt, pairs[n], turn)):
                examples[n] = replace(examples[n], problems=(why,))
        return examples

    def _label(self, pair: Pair, parts: PromptParts, rendered: RenderedChat) -> TrainingExample:
        encoded = encode_chat(self.tokenizer, self.template, rendered, return_offsets_mapping=True)
        ids, mask = list(encoded["input_ids"]), mask_learned(encoded, rendered)
        mask = _keep_runs(mask, self.learned_turns(pair), len(pair.history) + 1)
        labels = [token if learned else IGNORE_INDEX for token, learned in zip(ids, mask, strict=True)]
        problems = self._problems(pair, parts, ids, labels)
        return TrainingExample(
            ids, labels, rendered.text, [end for _, end in encoded["offset_mapping"]], tuple(problems)
        )

    def render_prompt(self, history: Iterable[Sequence[str]], instruction: str, system: str = "") -> ChatPrompt:
        """The prompt of a reply to `instruction`. Control tokens typed by a user are encoded as plain text.

        system: a pair's own system prompt; "" for the persona's.
        """
        turns = [(user, self._reply_parts(reply)[-1]) for user, reply in history]
        parts = self.prompt_parts(turns, instruction, system)
        chat = self._chat(parts, turns, instruction)
        prompt = next(self._render([chat], add_generation_prompt=True))
        if any(self.control_tokens(m["content"]) for m in chat):
            ids = encode_sanitized(self.tokenizer, self.template, chat, add_generation_prompt=True)
        else:
            ids = self._encode(prompt)
        begun = thinking.OPEN if prompt.text.rstrip().endswith(thinking.OPEN) else ""
        entries = tuple(found.entry.title for found in parts.entries)
        return ChatPrompt(prompt.text, ids, entries, begun if self.template.shows_thinking else None)

    def prompt_parts(self, history: Iterable[Sequence[str]], instruction: str, system: str = "") -> PromptParts:
        """What stands before and after the conversation in the prompt of a reply to `instruction`."""
        return self._compose(system or self.system, history, instruction)

    def _row_parts(self, pair: Pair) -> PromptParts:
        """The same of a training row."""
        return self._compose(pair.system or self.system, pair.history, pair.instruction, training=True)

    def _compose(self, system: str, history: Iterable[Sequence[str]], text: str, training: bool = False) -> PromptParts:
        if self.character is None:
            return PromptParts(system)
        return self.character.compose(system, history, text, self._count_tokens, training)

    def _count_tokens(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _chat(
        self, parts: PromptParts, history: Iterable[Sequence[str]], instruction: str, reply: str | None = None
    ) -> list[dict]:
        """The conversation as messages. What stands after it is a system message where the template takes one there."""
        if parts.late and not self._takes_late_system:
            instruction, parts = f"{instruction}\n\n{parts.late}", replace(parts, late="")
        return build_messages(parts.system, history, instruction, reply, parts.late)

    @cached_property
    def _takes_late_system(self) -> bool:
        return takes_late_system(self.tokenizer, self.template)

    def length_if_near_limit(self, pair: Pair) -> int:
        """Tokens of the pair's row; 0, without encoding it, when it certainly fits into max_length.

        A text has at most one token per byte.
        """
        texts = sum(len(t.encode("utf-8", "replace")) for _, t in self._texts(pair, self._row_parts(pair)))
        if texts + self._turn_tokens * (len(pair.history) + 1) <= self.max_length:
            return 0
        return len(self.render_example(pair).input_ids)

    @cached_property
    def _turn_tokens(self) -> int:
        """Tokens that the template adds to a turn, the system prompt's wrapping counted with each."""
        return len(self.render_example(Pair("a", "b")).input_ids)

    def tokens(self, example: TrainingExample) -> list[PreviewToken]:
        """The example token by token; a character split over several tokens belongs to the last of them."""
        pieces, written = [], 0
        for n, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
            following = example.ends[n + 1 :][:1]
            end = example.ends[n] if not following or following[0] > example.ends[n] else written
            pieces.append(
                PreviewToken(token, example.text[written:end], label != IGNORE_INDEX, token in self._controls)
            )
            written = max(written, end)
        if pieces and written < len(example.text):  # a tokenizer that drops trailing white space
            last = pieces[-1]
            pieces[-1] = PreviewToken(last.id, last.text + example.text[written:], last.learned, last.special)
        return pieces

    def control_tokens(self, text: str) -> list[str]:
        """Control tokens (<end_of_turn>, <eos>, …) that `text` would turn into if it were encoded as it stands."""
        if not text:
            return []
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = {self.tokenizer.convert_ids_to_tokens(i) for i in ids if i in self._controls}
        unknown = self.tokenizer.unk_token  # stands for what the model cannot write, too
        return sorted(t for t in found if t != unknown or t in text)

    @cached_property
    def _controls(self) -> frozenset[int]:
        """The tokenizer's control tokens, and other markers of the template such as <think>."""
        return control_token_ids(self.tokenizer) | marker_token_ids(self.tokenizer, self.template)

    @cached_property
    def stop_id(self) -> int:
        """The token that ends every reply. Raises TemplateError when template and tokenizer do not fit together."""
        if wrong := find_incompatibilities(self.tokenizer, self.template):
            raise TemplateError(join("\n", wrong))
        stop = find_stop_token(self.tokenizer, self.template)
        assert stop is not None  # find_incompatibilities has looked
        return stop

    def _problems(self, pair: Pair, parts: PromptParts, ids: list[int], labels: list[int]) -> list[str]:
        problems: list[str] = []
        learned = [i for i in labels if i != IGNORE_INDEX]
        if not learned:
            if not self.learned_turns(pair):
                return [
                    Message(
                        "no reply would be learned: the last one has the weight 0, and the earlier ones are only "
                        "learned with learn_history, or by another pair"
                    )
                ]
            return [Message("no token would be learned: the template marks nothing of the reply")]
        if self.stop_id not in learned[-2:]:  # some templates learn the line break after it too
            problems.append(
                Message("the stop token {stop} would not be learned", stop=self.tokenizer.decode([self.stop_id]))
            )
        if len(ids) > self.max_length:
            problems.append(
                Message(
                    "the reply would be cut: {count:,} tokens, max_length is {max_length:,}. Shorten or split "
                    "the pair, or raise max_length",
                    count=len(ids),
                    max_length=self.max_length,
                )
            )
        if thinking.has_block(pair.output) and not thinking.split_thinking(pair.output)[1]:
            problems.append(Message("the reply is thinking alone. Write what the persona says after it"))
        for name, text in self._texts(pair, parts):
            if found := self.control_tokens(text):
                problems.append(
                    Message(
                        "'{name}' holds {found}, which this model reads as control. Delete it",
                        name=name,
                        found=", ".join(found),
                    )
                )
            elif unwritable := self._unwritable(text):
                problems.append(
                    Message(
                        "'{name}' holds {characters}, for which this model has no token: it would learn to say "
                        "{token} instead. Reword it, or choose another base",
                        name=name,
                        characters=unwritable,
                        token=self.tokenizer.unk_token,
                    )
                )
        return problems

    def learned_turns(self, pair: Pair) -> list[int]:
        """The turns, from 0, whose reply is learned in the pair's row."""
        return find_learned_turns(pair, self.learn_history, self.learned_elsewhere)

    def _prompt_chat(self, pair: Pair, parts: PromptParts, turn: int) -> list[dict]:
        """The chat that is answered in this turn of the pair."""
        late = parts.late if turn == len(pair.history) else ""
        return self._chat(replace(parts, late=late), pair.turns[:turn], pair.turns[turn][0])

    def _prompt_mismatch(self, example: TrainingExample, prompt: RenderedChat, pair: Pair, turn: int) -> str:
        """Why a learned reply does not start exactly where its prompt ends; "" where it does, or after its thinking."""
        ids, labels, asked = example.input_ids, example.labels, self._encode(prompt)
        end, is_earlier = len(asked), turn < len(pair.history)
        first = next((n for n in range(end, len(labels)) if labels[n] != IGNORE_INDEX), 0)
        is_prompt = ids[:end] == asked and first and labels[end - 1] == IGNORE_INDEX
        thought = "" if is_earlier else thinking.split_thinking(pair.output)[0]
        if is_prompt and self._thinking_fits(example, end, first, thought):
            return ""
        if is_earlier and (is_prompt or not example.text.startswith(prompt.text)):
            return Message(
                "template {template} writes an earlier reply in another way than the last one, so it "
                "cannot be learned as a chat would ask for it. Set learn_history to false",
                template=self.template.name,
            )
        return Message(
            "the chat prompt is not the beginning of the training text; the reply may start with white "
            "space that melts into the template"
        )

    def _thinking_fits(self, example: TrainingExample, end: int, first: int, thought: str) -> bool:
        """Whether just the thinking stands between the prompt, of `end` tokens, and the first learned token (keep), or
        begins what is learned (train); nothing does where there is none.
        """
        start = example.ends[first - 1]
        gap = example.text[example.ends[end - 1] : start]
        if self.template.thinking == "keep":
            return thinking.is_block_of(gap, thought)
        if self.template.thinking == "train":
            reply = example.text[start:]
            return first == end and thinking.has_block(reply) and thinking.split_thinking(reply)[0] == thought
        return first == end

    def _unwritable(self, text: str) -> str:
        """The first characters of `text` without a token in this vocabulary; "" where there are none."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None or unknown not in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            return ""
        lost = (c for c in dict.fromkeys(text) if unknown in self.tokenizer(c, add_special_tokens=False)["input_ids"])
        return ", ".join(map(repr, itertools.islice(lost, 5))) or Message("a part")

    def _texts(self, pair: Pair, parts: PromptParts) -> list[tuple[str, str]]:
        turns = [("history", x) for user, reply in pair.history for x in (user, self._reply_parts(reply)[-1])]
        said = [("instruction", pair.instruction), *(("output", x) for x in self._reply_parts(pair.output))]
        return [("system", parts.system), *turns, *said, *([("system", parts.late)] if parts.late else [])]

    def _reply_parts(self, reply: str) -> tuple[str, ...]:
        """What the template writes of a reply: its thinking, where that is not left out, and the rest."""
        parts = thinking.split_thinking(reply) if self.template.thinking else (reply,)
        return parts if self.template.shows_thinking else parts[-1:]

    def _render(self, chats: Iterable[list[dict]], **variables: Any) -> Iterator[RenderedChat]:
        return render_chats(self.tokenizer, self.template, chats, **variables)

    def _encode(self, rendered: RenderedChat) -> list[int]:
        return list(encode_chat(self.tokenizer, self.template, rendered)["input_ids"])


def find_learned_turns(pair: Pair, learn_history: bool, learned_elsewhere: Collection[tuple[str, str]]) -> list[int]:
    """The turns of a pair, from 0, whose reply is learned in its row. The settings: as in Renderer."""
    last = len(pair.history)
    return [
        n
        for n, turn in enumerate(pair.turns)
        if pair.may_learn(n) and (n == last or (learn_history and turn not in learned_elsewhere))
    ]


def leave_out_thinking(pair: Pair) -> Pair:
    """The pair without the thinking that its replies begin with; a reply of thinking alone is left as it is."""
    if not any(thinking.CLOSE in reply for _, reply in pair.turns):
        return pair
    history = tuple((user, thinking.split_thinking(reply)[1]) for user, reply in pair.history)
    return replace(pair, history=history, output=thinking.split_thinking(pair.output)[1] or pair.output)


def _keep_runs(mask: list[int], turns: Collection[int], count: int) -> list[int]:
    """`mask` with only the runs of ones of these `turns`, of `count` in all; the last run is the last turn's."""
    runs = sum(learned > before for before, learned in itertools.pairwise([0, *mask]))
    number, kept = count - 1 - runs, list[int]()
    for before, learned in itertools.pairwise([0, *mask]):
        number += learned > before
        kept.append(int(learned and number in turns))
    return kept


def render_examples(renderer: Renderer, pairs: Sequence[Pair]) -> list[TrainingExample]:
    """Every pair rendered. Raises InputError naming each row (from 1) that cannot be trained on, and why."""
    _ = renderer.stop_id
    examples = list(renderer.iterate_examples(pairs))
    wrong = [
        Message("pair {row}: {problem}.", row=row, problem=why)
        for row, e in enumerate(examples, 1)
        for why in e.problems
    ]
    if wrong:
        more = [Message("… and {count} more.", count=len(wrong) - 20)] if len(wrong) > 20 else []
        raise InputError(join("\n", wrong[:20] + more))
    return examples
