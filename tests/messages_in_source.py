"""Every message template in persona/, read from its source: the first argument of each Message and PersonaError."""

import ast
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PERSONA = ROOT / "persona"


def _subclasses(roots: set[str]) -> frozenset[str]:
    """These classes and all in persona/ that derive from them."""
    classes = [
        (node.name, {base.id for base in node.bases if isinstance(base, ast.Name)})
        for file in PERSONA.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    known = set(roots)
    while found := {name for name, bases in classes if bases & known} - known:
        known |= found
    return frozenset(known)


ERRORS = _subclasses({"PersonaError"}) - {"ApiError"}  # of which the first argument is a status; the API is English
MAKERS = ERRORS | _subclasses({"Message"})


@dataclass(frozen=True)
class Made:
    """One call that makes a message. template: None if it is not a literal, as in an f-string."""

    place: str
    template: str | None
    values: frozenset[str]


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def of_source(source: str, file: str) -> Iterator[Made]:
    tree = ast.parse(source)
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MAKERS and node.args:
            values = frozenset(k.arg for k in node.keywords if k.arg)
            for text in _literals(node.args[0], constants):
                yield Made(f"{file}:{node.lineno}", text, values)


def _literals(node: ast.expr, constants: dict[str, ast.expr]) -> Iterator[str | None]:
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=orelse):
            yield from _literals(body, constants)
            yield from _literals(orelse, constants)
        case ast.Name(id=name) if name in constants:
            yield from _literals(constants[name], {})
        case ast.JoinedStr() | ast.BinOp() | ast.Call(func=ast.Name(id="str" | "repr")):
            yield None
        case ast.Call(func=ast.Attribute(attr="format")) | ast.Call(func=ast.Attribute(value=ast.Constant())):
            yield None
        # else a finished Message: e.message, Message.of(…), join(…), disk_message(…)


@cache
def made() -> tuple[Made, ...]:
    """All messages of persona/ and of the report's template."""
    files = [(p, str(p.relative_to(PERSONA))) for p in sorted(PERSONA.rglob("*.py"))]
    found = [m for path, name in files for m in of_source(path.read_text(encoding="utf-8"), name)]
    report = (ROOT / "templates" / "report.html.jinja").read_text(encoding="utf-8")
    return (
        *found,
        *(Made("report.html.jinja", t, frozenset(fields(t))) for t in re.findall(r'\btext\("([^"]*)"', report)),
    )
