"""Every English text that the library makes, read off its source; test_translation.py wants each in the catalogue."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

PERSONA = Path(__file__).resolve().parent.parent / "persona"
HOLE = "\0"  # where a value stands


@dataclass(frozen=True)
class Text:
    file: str  # in persona/
    line: int
    within: str  # the function, or what the name of the module is that it is given to
    text: str  # a HOLE for each value; one Text for each side of a condition


def library() -> Iterator[Text]:
    """The texts of two words and more, and whatever is raised, of all but the page, the command line and the API."""
    for path in sorted(PERSONA.rglob("*.py")):
        file = str(path.relative_to(PERSONA))
        if not file.startswith(("ui/", "cli/", "api/", "__")):
            yield from _found(file, ast.parse(path.read_text(encoding="utf-8")), "", False)


def _found(file: str, node: ast.AST, within: str, raised: bool) -> Iterator[Text]:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return  # a docstring
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        within = node.name
    elif not within and isinstance(node, ast.Assign | ast.AnnAssign):
        within = ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target)
    if isinstance(node, ast.Raise):
        raised = True
    words = r"[A-Za-z]{3}" if raised else r"[A-Za-z]{2}[^A-Za-z]* .*[A-Za-z]{2}"
    rest: list[ast.AST] = []
    if _is_text(node):
        texts = _variants(node, rest)
        yield from (Text(file, node.lineno, within, t) for t in dict.fromkeys(texts) if re.search(words, t, re.S))
        raised = False
    else:
        rest = list(ast.iter_child_nodes(node))
    for below in rest:
        yield from _found(file, below, within, raised and not isinstance(below, ast.expr_context))


def _is_text(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=str()) | ast.JoinedStr():
            return True
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _is_text(left) or _is_text(right)
        case ast.BinOp(left=ast.Constant(value=str()), op=ast.Mult()):
            return True
    return False


def _variants(node: ast.AST, rest: list[ast.AST]) -> list[str]:
    """What a text can come out as. What is no text of its own is a hole; it goes to `rest`, to be looked through."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return _joined(values, rest)
        case ast.FormattedValue(value=value):
            return _variants(value, rest)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if _is_text(node):
            return _joined([left, right], rest)
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mult()):
            return ["", text]
        case ast.IfExp(body=body, orelse=orelse) if _is_text(body) or _is_text(orelse):
            return _variants(body, rest) + _variants(orelse, rest)
        case ast.BoolOp(op=ast.And(), values=[*_, last]) if _is_text(last):
            return ["", *_variants(last, rest)]
        case ast.BoolOp(op=ast.Or(), values=[*_, last]) if _is_text(last):
            return [HOLE, *_variants(last, rest)]
    rest.append(node)
    return [HOLE]


def _joined(nodes: list, rest: list[ast.AST]) -> list[str]:
    return ["".join(parts) for parts in product(*(_variants(n, rest) for n in nodes))]
