"""Chinese as a language; and Chinese, Japanese and Korean letters, ranges for the [ ] of a regular expression."""

HAN = "\u3400-\u9fff"  # Chinese characters in use today; what is rarer is in HAN_RARE
HAN_RARE = "\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u30ff"
HANGUL = "\uac00-\ud7a3"


def is_chinese(language: str) -> bool:
    """Whether a language tag (BCP 47), or the first of a browser's list of them, is Chinese."""
    return language.lower().startswith("zh")
