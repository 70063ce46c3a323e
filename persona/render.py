"""Pair + persona + chat template + tokenizer → token ids and the label mask; and the chat prompt.

The preview, the trainer, the chat and the tests all come here: what the page colours is what is trained, and the
prompt of a chat is, id for id, the beginning of a training example. Nothing else calls `apply_chat_template`.
The tokenizer is passed in, so this file needs neither torch nor transformers.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from persona.errors import InputError, TemplateError
from persona.files import TEMPLATES
from persona.pairs import Pair, unfinished

IGNORED = -100  # the label that a cross-entropy loss skips (torch.nn.functional.cross_entropy, ignore_index)
_lock = threading.Lock()  # transformers keeps one generation-span tracker per template, without a lock of its own


@dataclass(frozen=True)
class Template:
    """A chat template: Jinja text with {% generation %} around what the model is to learn."""

    name: str
    text: str

    @property
    def about(self) -> str:
        """The header comment: where the template comes from and what was changed."""
        found = re.match(r"\s*\{#-?(.*?)-?#\}", self.text, re.S)
        return " ".join(found[1].split()) if found else ""


@dataclass(frozen=True)
class Token:
    """One token as the page shows it. The texts of all tokens joined are the rendered text."""

    id: int
    text: str
    learned: bool
    special: bool = False


@dataclass(frozen=True)
class Example:
    """One training row. `labels` has the length of `input_ids`: the id where it is learned, else IGNORED."""

    input_ids: list[int]
    labels: list[int]
    text: str
    ends: list[int] = field(repr=False)  # where each token ends in `text`, in characters
    problems: tuple[str, ...] = ()

    @property
    def learned(self) -> int:
        return sum(x != IGNORED for x in self.labels)


@dataclass(frozen=True)
class Prompt:
    """What the model is given in a chat: the text, and its ids."""

    text: str
    ids: list[int]


def shipped_templates() -> dict[str, Template]:
    """Every file of templates/chat by name."""
    files = sorted((TEMPLATES / "chat").glob("*.jinja"))
    return {f.stem: Template(f.stem, f.read_text(encoding="utf-8")) for f in files}


def read_template(name: str) -> Template:
    """A shipped template by name, or a .jinja file by path."""
    shipped = shipped_templates()
    if name in shipped:
        return shipped[name]
    path = Path(name).expanduser()
    if path.suffix == ".jinja" and path.is_file():
        return Template(path.stem, path.read_text(encoding="utf-8"))
    raise TemplateError(f"{name!r}: no such template. Choose one of {', '.join(shipped)}, or name a .jinja file.")


def messages(system: str, history: Iterable[Sequence[str]], instruction: str, reply: str | None = None) -> list[dict]:
    """The conversation in the role/content form that chat templates read; an empty system prompt is left out."""
    turns = [{"role": "system", "content": system}] if system.strip() else []
    for user, answer in history:
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
    turns.append({"role": "user", "content": instruction})
    return turns if reply is None else [*turns, {"role": "assistant", "content": reply}]


@dataclass(frozen=True)
class Renderer:
    """Everything that decides how a pair becomes tokens, in one value.

    max_length: tokens; a longer example is a problem of its row, never a silent cut.
    learn_history: learn the replies of earlier turns too, not the last one alone.
    """

    tokenizer: Any
    template: Template
    system: str = ""
    max_length: int = 512
    learn_history: bool = False

    def example(self, pair: Pair) -> Example:
        """Render, mask and check one pair. What is wrong with it is in `problems`, in words."""
        empty = [why for _, why in unfinished([pair])]
        if empty:
            return Example([], [], "", [], tuple(empty))
        chat = messages(self.system, pair.history, pair.instruction, pair.output)
        got = self._apply(
            chat,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True},
        )
        ids, mask = list(got["input_ids"]), list(got["assistant_masks"])
        if not self.learn_history:
            mask = _last_run(mask)
        labels = [token if learned else IGNORED for token, learned in zip(ids, mask, strict=True)]
        text = self._apply(chat, tokenize=False)
        problems = self._problems(pair, ids, labels)
        return Example(ids, labels, text, [end for _, end in got["offset_mapping"]], tuple(problems))

    def prompt(self, history: Iterable[Sequence[str]], instruction: str) -> Prompt:
        """What the model sees before it answers. Control tokens typed by a user are encoded as plain text."""
        chat = messages(self.system, history, instruction)
        typed = any(self.control_tokens(m["content"]) for m in chat)
        ids = self._apply(chat, return_dict=False, add_generation_prompt=True, sanitize_control_tokens=typed)
        return Prompt(self._apply(chat, tokenize=False, add_generation_prompt=True), list(ids))

    def tokens(self, example: Example) -> list[Token]:
        """The example token by token; a character split over several tokens belongs to the last of them."""
        pieces, done = [], 0
        for n, (token, label) in enumerate(zip(example.input_ids, example.labels, strict=True)):
            following = example.ends[n + 1 :][:1]
            end = example.ends[n] if not following or following[0] > example.ends[n] else done
            pieces.append(Token(token, example.text[done:end], label != IGNORED, token in self._controls))
            done = max(done, end)
        if pieces and done < len(example.text):  # a tokenizer that drops trailing white space
            last = pieces[-1]
            pieces[-1] = Token(last.id, last.text + example.text[done:], last.learned, last.special)
        return pieces

    def control_tokens(self, text: str) -> list[str]:
        """Control tokens (<end_of_turn>, <eos>, …) that `text` would turn into if it were encoded as it stands."""
        if not text:
            return []
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return sorted({self.tokenizer.convert_ids_to_tokens(i) for i in ids if i in self._controls})

    @cached_property
    def _controls(self) -> frozenset[int]:
        return frozenset(i for i, t in self.tokenizer.added_tokens_decoder.items() if t.special)

    @cached_property
    def stop_id(self) -> int:
        """The token that ends every reply. Raises TemplateError when template and tokenizer do not fit together."""
        got = self._apply(messages("", [], "Hi", "Yes"), return_dict=True, return_assistant_tokens_mask=True)
        ids, mask = list(got["input_ids"]), list(got["assistant_masks"])
        learned = [i for i, m in zip(ids, mask, strict=True) if m]
        if not learned:
            raise TemplateError(
                f"Template {self.template.name}: no token would be learned. Put the assistant's content and its stop "
                "token inside {% generation %} … {% endgeneration %}."
            )
        last = next((i for i in reversed(learned) if self.tokenizer.decode([i]).strip()), learned[-1])
        if last not in self._controls:
            raise TemplateError(
                f"Template {self.template.name}: a reply ends with {self.tokenizer.decode([last])!r}, which is not a "
                "stop token of this model, so it would never learn to stop. Choose a template made for this base."
            )
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            raise TemplateError(f"Template {self.template.name}: the text begins with two {self.tokenizer.bos_token}.")
        return last

    def _problems(self, pair: Pair, ids: list[int], labels: list[int]) -> list[str]:
        problems = []
        learned = [i for i in labels if i != IGNORED]
        if not learned:
            return ["no token would be learned: the template marks nothing of the reply"]
        if self.stop_id not in learned[-2:]:  # some templates learn the line break after it too
            problems.append(f"the stop token {self.tokenizer.decode([self.stop_id])} would not be learned")
        if len(ids) > self.max_length:
            problems.append(
                f"the reply would be cut: {len(ids):,} tokens, max_length is {self.max_length:,}. "
                "Shorten or split the pair, or raise max_length"
            )
        for name, text in self._texts(pair):
            if found := self.control_tokens(text):
                problems.append(f"'{name}' holds {', '.join(found)}, which this model reads as control. Delete it")
        if not problems and not self._learning_follows_the_prompt(pair, ids, labels):
            problems.append(
                "the chat prompt is not the beginning of the training text; the reply may start with "
                "white space that melts into the template"
            )
        return problems

    def _learning_follows_the_prompt(self, pair: Pair, ids: list[int], labels: list[int]) -> bool:
        """Whether each learned reply starts exactly where the prompt of a chat would end."""
        turns = [*pair.history, (pair.instruction, pair.output)]
        for n in range(0 if self.learn_history else len(pair.history), len(turns)):
            prompt = self.prompt(turns[:n], turns[n][0]).ids
            end = len(prompt)
            if ids[:end] != prompt or end == len(ids) or labels[end - 1] != IGNORED or labels[end] == IGNORED:
                return False
        return True

    def _texts(self, pair: Pair) -> list[tuple[str, str]]:
        turns = [("history", x) for turn in pair.history for x in turn]
        return [("system", self.system), *turns, ("instruction", pair.instruction), ("output", pair.output)]

    def _apply(self, chat: list[dict], **options: Any) -> Any:
        try:
            with _lock:
                return self.tokenizer.apply_chat_template(chat, chat_template=self.template.text, **options)
        except Exception as e:  # Jinja, sandbox and raise_exception errors have no common base class
            raise TemplateError(f"Template {self.template.name}: {type(e).__name__}: {e}") from e


def _last_run(mask: list[int]) -> list[int]:
    """`mask` with only its last run of ones."""
    end = len(mask)
    while end and not mask[end - 1]:
        end -= 1
    start = end
    while start and mask[start - 1]:
        start -= 1
    return [int(start <= n < end) for n in range(len(mask))]


_SAMPLES = (
    messages("", [], "Hi.", "Yes."),
    messages("Be brief.", [], "你好", "好"),
    messages("Be brief.", [("a", "b")], "c\n d", "e"),
)


def choose_template(tokenizer: Any, language: str = "") -> Template:
    """The template for a base: its own format where it has one, else by its special tokens, else a plain form.

    A shipped template is taken for the base's own if both render the same text, character for character.
    Raises TemplateError when the base has a format that no shipped template reproduces.
    """
    shipped = shipped_templates()
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several by name; a chat uses the default one
        own = own.get("default")
    if not own:
        if "<start_of_turn>" in tokenizer.get_vocab():
            return shipped["gemma-base"]
        return shipped["alpaca-zh" if language.startswith("zh") else "alpaca-en"]
    for template in shipped.values():
        if _renders_like(tokenizer, template.text, own):
            return template
    if re.search(r"\{%-?\s*generation\s*-?%\}", own):
        return Template("own", own)
    raise TemplateError(
        "This base has a chat format of its own that no shipped template reproduces. Choose a template by hand "
        f"({', '.join(shipped)}), or give the base's own with {{% generation %}} around the reply as a .jinja file."
    )


def _renders_like(tokenizer: Any, text: str, own: str) -> bool:
    for chat in _SAMPLES:
        for turns, generation in ((chat, False), (chat[:-1], True)):
            try:
                with _lock:
                    a, b = (
                        tokenizer.apply_chat_template(
                            turns, chat_template=t, tokenize=False, add_generation_prompt=generation
                        )
                        for t in (text, own)
                    )
            except Exception:  # one of the two refuses this conversation: they differ
                return False
            if a != b:
                return False
    return True


def check_all(renderer: Renderer, pairs: Sequence[Pair]) -> list[Example]:
    """Every pair rendered. Raises InputError naming each row (from 1) that cannot be trained on, and why."""
    _ = renderer.stop_id
    examples = [renderer.example(p) for p in pairs]
    wrong = [f"pair {row}: {why}." for row, e in enumerate(examples, 1) for why in e.problems]
    if wrong:
        more = [f"… and {len(wrong) - 20} more."] if len(wrong) > 20 else []
        raise InputError("\n".join(wrong[:20] + more))
    return examples
