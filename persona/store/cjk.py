"""Ranges of Chinese, Japanese and Korean letters, each to stand inside the [ ] of a regular expression."""

HAN = "\u3400-\u9fff"  # Chinese characters in use today; what is rarer is in HAN_RARE
HAN_RARE = "\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3040-\u30ff"
HANGUL = "\uac00-\ud7a3"
