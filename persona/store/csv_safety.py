"""CSV cells that no spreadsheet runs as a formula, and the exact text back again."""

import re

# White space first, then the sign, is a formula to some programs; full-width signs are to Excel in Chinese (OWASP)
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@＝＋－＠])")


def escape_formula(text: str) -> str:
    """`text` with ' before it if a spreadsheet could run it; `unescape_formula` removes this ' again, and no other."""
    return "'" + text if _FORMULA.match(text) else text


def unescape_formula(cell: str) -> str:
    """The text before escape_formula(). A ' that guards nothing, as in 'Twas, is part of the text and stays."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
