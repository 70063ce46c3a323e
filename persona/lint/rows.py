"""Rules that look at one pair, with what they must know of the persona and of the other answers."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from persona.errors import Message, join
from persona.folder import Card
from persona.lint.finding import (
    ANSWER,
    Finding,
    Severity,
    key_of,
    pairs_named,
    places,
    quote,
    quotes,
    texts_of,
    units,
)
from persona.lint.scripts import drift, expected, mixed, scripts
from persona.lint.texts import TEXT_RULES
from persona.pairs import Pair, unfinished

SHORT = 2  # units; "是。", "Yes." and "好的。" say nothing of who speaks
ENOUGH_ANSWERS = 5  # fewer do not show a habit
HABIT = 0.8  # share of answers that end with a final mark, from where one without it stands out
STYLE = 0.5  # share of answers with stage directions, from where they are the way she talks


def found(rule: str, severity: Severity, row: int, pair: Pair, problem: str, fix: str = "",
          place: str = ANSWER) -> Finding:  # fmt: skip
    """place: of the pair, "" for all of it."""
    where = Message("Pair {row}, {place}", row=row, place=place) if place else Message("Pair {row}", row=row)
    message = Message("{place}: {problem}", place=where, problem=problem)
    return Finding(rule, severity, (row,), message, fix, key_of(rule, texts_of(pair)))


def is_blank(pair: Pair) -> bool:
    return not any(text.strip() for text in texts_of(pair))


def unfinished_rows(pairs: Sequence[Pair]) -> Iterator[Finding]:
    if blank := tuple(row for row, pair in enumerate(pairs, 1) if is_blank(pair)):
        label = Message("Delete the empty pair")
        if len(blank) > 1:
            label = Message("Delete {count} empty pairs", count=len(blank))
        message = Message("{pairs}: nothing is written. Write it, or delete it.", pairs=pairs_named(blank))
        yield Finding("unfinished", "error", blank, message, label, key_of("unfinished", []))
    missing: dict[int, list[str]] = {}
    for row, empty in unfinished(pairs):
        if not is_blank(pairs[row - 1]):
            missing.setdefault(row, []).append(empty)
    for row, what in missing.items():
        problem = Message("{what}. It cannot be trained on. Write it, or delete the pair.", what=join(" and ", what))
        yield found("unfinished", "error", row, pairs[row - 1], problem, place="")


def text_rows(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """What the rules in texts.py find, one finding for a pair and a rule."""
    with_directions: list[Finding] = []
    for row, pair in enumerate(pairs, 1):
        standing = places(pair)
        characters = set().union(*(text for _, text in standing))
        for rule in TEXT_RULES:
            if rule.needs and rule.needs.isdisjoint(characters):
                continue
            hits = [
                (p, text, what)
                for p, text in standing
                if (not rule.said or "answer" in p) and (what := rule.find(text))
            ]
            if not hits:
                continue
            seen = [w for _, _, words in hits for w in words]
            cleaned = [rule.cleaned(text) for _, text, _ in hits]
            safe = rule.clean and all(new.strip() and not rule.find(new) for new in cleaned)
            label = rule.label(quotes(seen)) if safe and rule.label else ""
            problem = Message("{what}: {why}.", what=quotes(seen), why=rule.why)
            place = join(" and ", [p for p, _, _ in hits])
            finding = found(rule.name, rule.severity, row, pair, problem, label, place)
            if rule.name == "stage-direction":
                with_directions.append(finding)
            else:
                yield finding
    if len(with_directions) < ENOUGH_ANSWERS or len(with_directions) < STYLE * len(pairs):
        yield from with_directions


AI = r"(?:AI|artificial intelligence|(?:large )?language model|chat ?bot|virtual assistant|computer program)\b"
CHINESE_AI = r"(?:人工智能|AI|ＡＩ|(?:大型|大)?(?:语言)?模型|語言模型|聊天机器人|智能助[手理]|虚拟助[手理])"
SAYS_SO = re.compile(
    rf"\bas an? {AI}|\bI(?:'|’)?(?: a)?m (?:just |only |merely |actually |really )?an? {AI}"
    r"|\bmy (?:training data|knowledge cut-?off)\b|\bas of my last (?:update|training)\b"
    rf"|作为(?:一个|一名|一款|一种)?{CHINESE_AI}|(?<!若)(?<!说)(?<!如果)我(?:只|就|其实|确实|仅仅|不过)?是(?:一个|一名|一款|一种|个)?"
    rf"(?:由[^，。]{{1,12}}的)?{CHINESE_AI}(?!吗|么|？)|我的(?:训练数据|知识截止)|截至我的知识|无法(?:访问|浏览)互联网",
    re.I,
)
BRANDS = re.compile(
    r"\b(?:OpenAI|Chat ?GPT|GPT-?[345]|Anthropic|DeepSeek|Qwen|ChatGLM|LLaMA-?\d|Google Bard|Microsoft Copilot)"
    r"|通义千问|文心一言|讯飞星火|智谱清言|阿里云|月之暗面|百川智能",
    re.I,
)
A_MACHINE = r"(?:AI|robot|android|chat ?bot|assistant|computer|language model)"
IS_ONE = re.compile(
    rf"\b(?:you are|you're) an? (?:[\w-]+ ){{0,3}}{A_MACHINE}\b|你是.{{0,8}}(?:人工智能|机器人|AI|助手)", re.I
)


def ai_leaks(pairs: Sequence[Pair], card: Card) -> Iterator[Finding]:
    """Answers that come from an assistant. A persona that is a machine may say so."""
    if IS_ONE.search(card.system):
        return
    for row, pair in enumerate(pairs, 1):
        said = "\n".join([*(reply for _, reply in pair.history), pair.output])
        what = [m[0] for m in SAYS_SO.finditer(said)]
        asked = "\n".join([*(user for user, _ in pair.history), pair.instruction]).casefold()
        # asked "Are you ChatGPT?" she may name it
        what += [brand for brand in BRANDS.findall(said) if brand.casefold() not in asked]
        if what:
            problem = Message(
                "{what}: an assistant speaks here, not the persona. Rewrite the answer in the persona's voice, or "
                "delete the pair.", what=quotes(what),
            )  # fmt: skip
            yield found("ai-leak", "warning", row, pair, problem)


ROLES = {
    *("user", "assistant", "human", "ai", "system", "bot", "model", "narrator", "q", "a", "question", "answer"),
    *("用户", "助手", "系统", "人类", "机器人", "旁白", "画外音", "问", "答", "提问", "回答", "字幕"),
}
# what else stands before a colon at the beginning of a line
NO_NAMES = {
    *(
        "note",
        "ps",
        "tip",
        "hint",
        "example",
        "warning",
        "result",
        "step",
        "first",
        "second",
        "third",
        "finally",
        "rule",
    ),
    *("remember", "so", "well", "look", "listen", "yes", "no", "but", "and", "one", "two", "three", "today", "now"),
    *(
        "记住",
        "注意",
        "首先",
        "其次",
        "最后",
        "例如",
        "比如",
        "譬如",
        "提示",
        "总之",
        "原文",
        "译文",
        "上联",
        "下联",
        "横批",
    ),
    *(
        "诗曰",
        "词曰",
        "诗云",
        "有诗云",
        "古人云",
        "俗话说",
        "常言道",
        "正所谓",
        "其一",
        "其二",
        "其三",
        "第一",
        "第二",
        "第三",
    ),
    *("一", "二", "三", "结论", "答案", "步骤", "标题", "时间", "地点", "谜底", "谜面", "原因", "方法"),
}
LABEL = re.compile(
    r"^[ \t]*(?:\*\*)?([A-Z][\w'’.]*(?: [A-Z][\w'’.]*){0,2}|(?i:user|assistant|human|system)|[\u3400-\u9fff·]{1,6})"
    r"(?:\*\*)?[ \t]*(?:：|:(?=\s|[\u3400-\u9fff“\"「]))",
    re.M,
)
_SAID = re.compile(r".+(?:说|道|问|答|曰|云|想|是|有|话|下)$|.*(?:说|听|看|想)好$")  # 她说：, 听好：, 原来如下：


def labels(text: str) -> list[tuple[re.Match[str], str]]:
    """(where, name) of what looks like a speaker's name at the start of a line."""
    if ":" not in text and "：" not in text:
        return []
    return [
        (m, m[1])
        for m in LABEL.finditer(text)
        if m[1].casefold() in ROLES or not (m[1].casefold() in NO_NAMES or _SAID.match(m[1]))
    ]


def without_own_name(text: str, card: Card) -> str:
    """A reply that begins with the persona's name, or with the role of the one who replies, without that."""
    while (first := labels(text)) and not text[: first[0][0].start()].strip() and _is_hers(first[0][1], card):
        text = text[first[0][0].end() :].strip()
    return text


def _is_hers(name: str, card: Card) -> bool:
    own = {
        card.name.casefold(),
        *card.name.casefold().split(),
        "assistant",
        "ai",
        "bot",
        "model",
        "助手",
        "a",
        "答",
        "回答",
    }
    return name.casefold() in own


def other_speakers(pairs: Sequence[Pair], card: Card) -> Iterator[Finding]:
    """Whether "皇帝：" is a speaker and "三样：" is not, nobody can see from the words: a name not known is a hint."""
    for row, pair in enumerate(pairs, 1):
        if not (seen := labels(pair.output)):
            continue
        names = [name for _, name in seen]
        known = [n for n in names if _is_hers(n, card) or n.casefold() in ROLES]
        new = without_own_name(pair.output, card)
        safe = new != pair.output and new and not labels(new)
        shown = quotes([f"{name}:" for name in names])
        problem = Message(
            "{what}: begins like a line of a script, so the persona would learn to speak for others. Keep only what "
            "the persona says.", what=shown,
        )  # fmt: skip
        severity: Severity = "warning" if known or len(names) > 1 else "hint"
        label = Message("Take out {what}", what=shown) if safe else ""
        yield found("other-speaker", severity, row, pair, problem, label)


def short_replies(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """One finding for all pairs with the same reply."""
    given: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs, 1):
        reply = pair.output.strip()
        if reply and len(reply) < 60 and units(reply) <= SHORT:
            given.setdefault(reply, []).append(row)
    for reply, rows in given.items():
        message = Message(
            "{pairs}, answer: {reply}: so short that nothing of the persona is in it. A few are fine; many teach the "
            "persona to say little.", pairs=pairs_named(rows), reply=quote(reply),
        )  # fmt: skip
        yield Finding("short-reply", "hint", tuple(rows), message, "", key_of("short-reply", [reply]))


FINAL = set("。！？!?….～~—♪؟۔।॥⋯")
CLOSING = set("”’\"'」』）)】》]*_")
BRACKETS = (("“", "”"), ("（", "）"), ("「", "」"), ("『", "』"), ("《", "》"), ("【", "】"), ("(", ")"), ("[", "]"))


SMILEY = r"[:;=8xX][-'^o]?[()]+"


def ending(text: str) -> str:
    """ "final", "open" (stops in the middle of a sentence) or "bare" (no mark at all)."""
    text = text.rstrip()
    if re.search(rf"{SMILEY}$", text[-4:]):
        return "final"
    while text and (text[-1] in CLOSING or unicodedata.category(text[-1]) in ("Sk", "Mn", "Cf", "Me")):
        text = text[:-1].rstrip()
    if not text or text[-1] in FINAL or unicodedata.category(text[-1]) == "So":  # an emoji ends a sentence too
        return "final"
    return "open" if text[-1] in "，、,：:；;(（“「『《【-" else "bare"


def unbalanced(text: str) -> str:
    """The bracket or quotation mark that is left alone, else ""."""
    if "(" in text or ")" in text:  # smileys, and a) 1) of a list
        text = re.sub(rf"{SMILEY}|(?:^|(?<=\s))\w{{1,2}}\)", "", text)
    for first, last in BRACKETS:
        opened, closed = text.count(first), text.count(last)
        if opened == closed:
            continue
        if first == "“" and ("„" in text or (not opened and closed % 2 == 0) or (opened > closed and "\n" in text)):
            continue  # „German“, ”Swedish”, and a quotation whose every paragraph opens anew
        return first if opened > closed else last
    return '"' if re.sub(r'\d"', "", text).count('"') % 2 else ""


def cut_off(pairs: Sequence[Pair]) -> Iterator[Finding]:
    ends = [ending(pair.output) for pair in pairs if pair.output.strip()]
    habit = len(ends) >= ENOUGH_ANSWERS and ends.count("final") >= HABIT * len(ends)
    for row, pair in enumerate(pairs, 1):
        if not pair.output.strip():
            continue
        end, last = ending(pair.output), quote(pair.output[-12:])
        if end == "open":
            problem = Message("ends in the middle of a sentence ({last}). Finish it.", last=last)
            yield found("cut-off", "warning", row, pair, problem)
        elif mark := unbalanced(pair.output):
            problem = Message(
                "{mark} stands alone; its other half may have been cut away. Complete it, or take it out.", mark=mark
            )
            yield found("cut-off", "warning", row, pair, problem)
        elif end == "bare" and habit and units(pair.output) > SHORT:
            problem = Message(
                "ends without a final mark ({last}), while most answers have one. Is something missing?", last=last
            )
            yield found("cut-off", "hint", row, pair, problem)


def language_rows(pairs: Sequence[Pair], card: Card) -> Iterator[Finding]:
    answers = [scripts(pair.output) for pair in pairs]
    own = expected(card.language, answers)
    for row, (pair, answer) in enumerate(zip(pairs, answers, strict=True), 1):
        if script := drift(answer, own):
            problem = Message(
                "written mostly in {script}, unlike the persona. Translate it, or delete the pair.", script=script
            )
            yield found("language", "warning", row, pair, problem)
    for row, severity, characters, kind in mixed(card.language, [pair.output for pair in pairs]):
        problem = Message(
            "{kind} characters ({characters}) in a set that is written in the other form. Convert them.",
            kind=kind, characters=characters,
        )  # fmt: skip
        yield found("mixed-script", severity, row, pairs[row - 1], problem)


def too_long(pairs: Sequence[Pair], length: Callable[[Pair], int], most: int) -> Iterator[Finding]:
    for row, pair in enumerate(pairs, 1):
        if all(text.strip() for text in texts_of(pair)) and (tokens := length(pair)) > most:
            problem = Message(
                "{tokens:,} tokens, more than {most:,}: its end would be cut off. Shorten it, or raise the length.",
                tokens=tokens, most=most,
            )  # fmt: skip
            yield found("too-long", "error", row, pair, problem, place="")
