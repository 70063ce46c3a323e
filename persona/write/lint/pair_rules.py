"""Rules for one pair, some of which compare it with the card or with the other answers."""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from persona.errors import Message, join
from persona.store.cjk import HAN, HANGUL, KANA
from persona.store.pairs import Pair, find_unfinished
from persona.store.persona_folder import PersonaCard
from persona.write.lint.finding import (
    ANSWER,
    QUESTION,
    Finding,
    Severity,
    count_words,
    finding_key,
    label_texts,
    pair_texts,
    pairs_named,
    quote_text,
    quote_texts,
)
from persona.write.lint.text_rules import TEXT_RULES
from persona.write.writing_systems import count_scripts, expected_scripts, find_foreign_script, split_chinese_forms

SHORT_REPLY_WORDS = 2  # "是。", "Yes." and "好的。" say nothing of who speaks
MIN_ANSWERS = 5  # fewer do not show a habit
FINAL_MARK_SHARE = 0.8  # share of answers with a final mark from which one without it stands out
DIRECTION_SHARE = 0.5  # share of answers with stage directions from which they are the persona's style


def make_finding(rule: str, severity: Severity, row: int, pair: Pair, problem: str, fix: str = "",
          place: str = ANSWER) -> Finding:  # fmt: skip
    """place: of the pair, "" for all of it."""
    where = Message("Pair {row}, {place}", row=row, place=place) if place else Message("Pair {row}", row=row)
    message = Message("{place}: {problem}", place=where, problem=problem)
    return Finding(rule, severity, (row,), message, fix, finding_key(rule, pair_texts(pair)))


def is_blank(pair: Pair) -> bool:
    return not any(text.strip() for text in pair_texts(pair))


# what find_unfinished says by the names of the file's fields
EMPTY = {
    "'instruction' is empty": Message("the question is empty"),
    "'output' is empty": Message("the answer is empty"),
    "'history' has an empty turn": Message("an earlier turn is empty"),
    "no reply of it is to be learned: each has the weight 0": Message("none of its replies is ticked to be learned"),
}


def find_unfinished_pairs(pairs: Sequence[Pair]) -> Iterator[Finding]:
    if blank := tuple(row for row, pair in enumerate(pairs, 1) if is_blank(pair)):
        label = Message("Delete the empty pair")
        if len(blank) > 1:
            label = Message("Delete {count} empty pair(s)", count=len(blank))
        message = Message("{pairs}: nothing is written. Write it, or delete it.", pairs=pairs_named(blank))
        yield Finding("unfinished", "error", blank, message, label, finding_key("unfinished", []))
    missing: dict[int, list[str]] = {}
    for row, empty in find_unfinished(pairs):
        if not is_blank(pairs[row - 1]):
            missing.setdefault(row, []).append(EMPTY.get(empty, empty))
    for row, what in missing.items():
        problem = Message("{what}. It cannot be trained on. Complete it, or delete the pair.", what=join(" and ", what))
        yield make_finding("unfinished", "error", row, pairs[row - 1], problem, place="")


def apply_text_rules(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """Findings of the rules in text_rules.py, one for each pair and rule."""
    with_directions: list[Finding] = []
    for row, pair in enumerate(pairs, 1):
        places = label_texts(pair)
        characters = set().union(*(text for _, text in places))
        for rule in TEXT_RULES:
            if rule.needs and rule.needs.isdisjoint(characters):
                continue
            matches = [
                (p, text, what)
                for p, text in places
                if (not rule.reply_only or "answer" in p) and (what := rule.find(text))
            ]
            if not matches:
                continue
            found = [w for _, _, words in matches for w in words]
            cleaned = [rule.cleaned(text) for _, text, _ in matches]
            safe = rule.clean and all(new.strip() and not rule.find(new) for new in cleaned)
            label = rule.label(quote_texts(found)) if safe and rule.label else ""
            problem = Message("{what}: {why}.", what=quote_texts(found), why=rule.why)
            place = join(" and ", [p for p, _, _ in matches])
            finding = make_finding(rule.name, rule.severity, row, pair, problem, label, place)
            if rule.name == "stage-direction":
                with_directions.append(finding)
            else:
                yield finding
    if len(with_directions) < MIN_ANSWERS or len(with_directions) < DIRECTION_SHARE * len(pairs):
        yield from with_directions


AI_NOUN = r"(?:AI|artificial intelligence|(?:large )?language model|chat ?bot|virtual assistant|computer program)\b"
CHINESE_AI = r"(?:人工智能|AI|ＡＩ|(?:大型|大)?(?:语言)?模型|語言模型|聊天机器人|智能助[手理]|虚拟助[手理])"
CLAIMS_TO_BE_AI = re.compile(
    rf"\bas an? {AI_NOUN}|\bI(?:'|’)?(?: a)?m (?:just |only |merely |actually |really )?an? {AI_NOUN}"
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
MACHINE_NOUN = r"(?:AI|robot|android|chat ?bot|assistant|computer|language model)"
PERSONA_IS_MACHINE = re.compile(
    rf"\b(?:you are|you're) an? (?:[\w-]+ ){{0,3}}{MACHINE_NOUN}\b|你是.{{0,8}}(?:人工智能|机器人|AI|助手)", re.I
)


def find_ai_leaks(pairs: Sequence[Pair], card: PersonaCard) -> Iterator[Finding]:
    """Answers that come from an assistant. A persona that is a machine may say so."""
    if PERSONA_IS_MACHINE.search(card.system):
        return
    for row, pair in enumerate(pairs, 1):
        replies = "\n".join([*(reply for _, reply in pair.history), pair.output])
        claims = [m[0] for m in CLAIMS_TO_BE_AI.finditer(replies)]
        brands = BRANDS.findall(replies)
        asked = "\n".join([*(user for user, _ in pair.history), pair.instruction]).casefold() if brands else ""
        # asked "Are you ChatGPT?", the persona may name it
        own = {brand for brand in {b.casefold() for b in brands} if brand not in asked}
        claims += [brand for brand in brands if brand.casefold() in own]
        if claims:
            problem = Message(
                "{what}: an assistant speaks here, not the persona. Rewrite the answer in the persona's voice, or "
                "delete the pair.", what=quote_texts(claims),
            )  # fmt: skip
            yield make_finding("ai-leak", "warning", row, pair, problem)


ROLE_LABELS = {
    *("user", "assistant", "human", "ai", "system", "bot", "model", "narrator", "q", "a", "question", "answer"),
    *("用户", "助手", "系统", "人类", "机器人", "旁白", "画外音", "问", "答", "提问", "回答", "字幕"),
}
# what else stands before a colon at the beginning of a line
NOT_SPEAKERS = {
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
_CAPITAL = "A-ZÀ-ÖØ-ÞΑ-ΩА-ЯЁ"
_LABEL = (
    rf"(?:\*\*)?([{_CAPITAL}][\w'’.]*(?: [{_CAPITAL}][\w'’.]*){{0,2}}|(?i:user|assistant|human|system)"
    # a user's name, such as dave_91
    rf"|(?=\w{{0,39}}[\d_])[a-z]\w{{1,39}}|[{HAN}·]{{1,6}}"
    rf"|(?=[{HAN}]{{0,8}}[{KANA}])[{HAN}{KANA}・]{{2,10}}|[{HANGUL}]{{2,6}})"
    rf"(?:\*\*)?[ \t]*(?:：|:(?=\s|[{HAN}“\"「]))"
)
SPEAKER_LABEL = re.compile(rf"^[ \t]*{_LABEL}", re.M)
_LABEL_HERE = re.compile(rf"\s*{_LABEL}")
_SPEECH_VERB = re.compile(r".+(?:说|道|问|答|曰|云|想|是|有|话|下)$|.*(?:说|听|看|想)好$")  # 她说：, 听好：, 原来如下：


def find_speaker_labels(text: str) -> list[tuple[re.Match[str], str]]:
    """(where, name) of what looks like a speaker's name at the start of a line."""
    if ":" not in text and "：" not in text:
        return []
    return [(m, m[1]) for m in SPEAKER_LABEL.finditer(text) if _is_label(m[1])]


def _is_label(name: str) -> bool:
    folded = name.casefold()
    return folded in ROLE_LABELS or not (folded in NOT_SPEAKERS or _SPEECH_VERB.match(name))


def remove_own_name(text: str, card: PersonaCard) -> str:
    """A reply that begins with the persona's name, or with the role of the one who replies, without that."""
    at = 0
    while (label := _LABEL_HERE.match(text, at)) and _is_label(label[1]) and _is_persona_name(label[1], card):
        at = label.end()
    return text[at:].strip() if at else text


def _is_persona_name(name: str, card: PersonaCard) -> bool:
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


def find_other_speakers(pairs: Sequence[Pair], card: PersonaCard) -> Iterator[Finding]:
    """Replies with lines of several speakers. An unknown name is a hint: "皇帝：" is a speaker, "三样：" is not.

    A question is found by a role or the persona's own name, or by two such lines: one may well begin with “Note:”.
    """
    for row, pair in enumerate(pairs, 1):
        if not (labels := find_speaker_labels(pair.output)):
            asked = [name for _, name in find_speaker_labels(pair.instruction)]
            if len(asked) > 1 or any(_is_known_speaker(name, card) for name in asked):
                problem = Message(
                    "{what}: begins like a line of a script, which nobody says. Take the name out.",
                    what=quote_texts([f"{name}:" for name in asked]),
                )  # fmt: skip
                yield make_finding("other-speaker", "hint", row, pair, problem, place=QUESTION)
            continue
        names = [name for _, name in labels]
        known = [n for n in names if _is_known_speaker(n, card)]
        new = remove_own_name(pair.output, card)
        safe = new != pair.output and new and not find_speaker_labels(new)
        shown = quote_texts([f"{name}:" for name in names])
        problem = Message(
            "{what}: begins like a line of a script, so the persona would learn to speak for others. Keep only what "
            "the persona says.", what=shown,
        )  # fmt: skip
        severity: Severity = "warning" if known or len(names) > 1 else "hint"
        label = Message("Take out {what}", what=shown) if safe else ""
        yield make_finding("other-speaker", severity, row, pair, problem, label)


def _is_known_speaker(name: str, card: PersonaCard) -> bool:
    return _is_persona_name(name, card) or name.casefold() in ROLE_LABELS


def find_short_replies(pairs: Sequence[Pair]) -> Iterator[Finding]:
    """One finding for all pairs with the same reply."""
    given: dict[str, list[int]] = {}
    for row, pair in enumerate(pairs, 1):
        reply = pair.output.strip()
        if reply and len(reply) < 60 and count_words(reply) <= SHORT_REPLY_WORDS:
            given.setdefault(reply, []).append(row)
    for reply, rows in given.items():
        message = Message(
            "{pairs}, answer: {reply}: so short that nothing of the persona is in it. A few are fine; many teach the "
            "persona to say little.", pairs=pairs_named(rows), reply=quote_text(reply),
        )  # fmt: skip
        yield Finding("short-reply", "hint", tuple(rows), message, "", finding_key("short-reply", [reply]))


FINAL_MARKS = set("。！？!?….～~—♪؟۔।॥⋯")
CLOSING_MARKS = set("”’\"'」』）)】》]*_")
BRACKETS = (("“", "”"), ("（", "）"), ("「", "」"), ("『", "』"), ("《", "》"), ("【", "】"), ("(", ")"), ("[", "]"))


SMILEY = r"[:;=8xX][-'^o]?[()]+"


def classify_ending(text: str) -> str:
    """ "final", "open" (stops in the middle of a sentence) or "bare" (no mark at all)."""
    if re.search(rf"{SMILEY}$", text.rstrip()[-4:]):
        return "final"
    last = next((c for c in reversed(text) if not _is_passed_over(c)), "")
    if not last or last in FINAL_MARKS or unicodedata.category(last) == "So":  # an emoji ends a sentence too
        return "final"
    return "open" if last in "，、,：:；;(（“「『《【-" else "bare"


def _is_passed_over(c: str) -> bool:
    return c.isspace() or c in CLOSING_MARKS or unicodedata.category(c) in ("Sk", "Mn", "Cf", "Me")


def find_unbalanced_mark(text: str) -> str:
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


def find_cut_off_replies(pairs: Sequence[Pair]) -> Iterator[Finding]:
    ends = [classify_ending(pair.output) for pair in pairs if pair.output.strip()]
    habit = len(ends) >= MIN_ANSWERS and ends.count("final") >= FINAL_MARK_SHARE * len(ends)
    for row, pair in enumerate(pairs, 1):
        if not pair.output.strip():
            continue
        end, last = classify_ending(pair.output), quote_text(pair.output[-12:])
        if end == "open":
            problem = Message("ends in the middle of a sentence ({last}). Finish it.", last=last)
            yield make_finding("cut-off", "warning", row, pair, problem)
        elif mark := find_unbalanced_mark(pair.output):
            problem = Message(
                "{mark} stands alone; its other half may have been cut away. Complete it, or take it out.", mark=mark
            )
            yield make_finding("cut-off", "warning", row, pair, problem)
        elif end == "bare" and habit and count_words(pair.output) > SHORT_REPLY_WORDS:
            problem = Message(
                "ends without a final mark ({last}), while most answers have one. Is something missing?", last=last
            )
            yield make_finding("cut-off", "hint", row, pair, problem)


def find_language_drift(pairs: Sequence[Pair], card: PersonaCard) -> Iterator[Finding]:
    answers = [count_scripts(pair.output) for pair in pairs]
    own = expected_scripts(card.language, answers)
    for row, (pair, answer) in enumerate(zip(pairs, answers, strict=True), 1):
        if script := find_foreign_script(answer, own):
            problem = Message(
                "written mostly in {script}, unlike the persona. Translate it, or delete the pair.", script=script
            )
            yield make_finding("language", "warning", row, pair, problem)
    for row, severity, characters, kind in find_mixed_chinese(card.language, [pair.output for pair in pairs]):
        problem = Message(
            "{kind} characters ({characters}) in a set that is written in the other form. Convert them.",
            kind=kind, characters=characters,
        )  # fmt: skip
        yield make_finding("mixed-script", severity, row, pairs[row - 1], problem)


def find_too_long(pairs: Sequence[Pair], length: Callable[[Pair], int], max_length: int) -> Iterator[Finding]:
    for row, pair in enumerate(pairs, 1):
        if all(text.strip() for text in pair_texts(pair)) and (tokens := length(pair)) > max_length:
            problem = Message(
                "{tokens:,} tokens, more than {most:,}: its end would be cut off. Shorten it, or raise the length.",
                tokens=tokens, most=max_length,
            )  # fmt: skip
            yield make_finding("too-long", "error", row, pair, problem, place="")


def find_mixed_chinese(language: str, answers: Sequence[str]) -> list[tuple[int, Severity, str, str]]:
    """(row, severity, the characters, what they are) of answers with characters of the set's rarer Chinese script."""
    code = language.lower()
    if code.split("-")[0] in ("ja", "ko"):
        return []
    rows = [split_chinese_forms(answer) for answer in answers]
    simplified, traditional = (sum(len(pair[n]) for pair in rows) for n in (0, 1))
    wants_traditional = traditional > simplified
    if re.search(r"\b(hant|tw|hk|mo)\b", code):
        wants_traditional = True
    elif re.search(r"\b(hans|cn|sg)\b", code):
        wants_traditional = False
    kind = Message("simplified") if wants_traditional else Message("traditional")
    found: list[tuple[int, Severity, str, str]] = []
    for row, (simple, full) in enumerate(rows, 1):
        own, other = (full, simple) if wants_traditional else (simple, full)
        if other:
            order = [c for c in dict.fromkeys(answers[row - 1]) if c in other]
            found.append((row, "warning" if len(other) > len(own) else "hint", "".join(order[:8]), kind))
    return found
