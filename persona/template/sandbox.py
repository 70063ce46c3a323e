"""What a chat template of unknown origin may contain: an inexpensive first check, with a message that names the line.

Nothing depends on it: such a template is read and rendered in a process with limits of time and memory (worker.py),
in the immutable sandbox of Jinja: no attribute that leads out, no file, no import. Shipped templates do not pass here.
"""

# ruff: noqa: SIM905  (lists of words read better as words)
import math
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from persona.errors import Message, TemplateError

MAX_TEMPLATE = 64_000  # characters; the longest official ones have about 20,000
MAX_JOINED = 40  # texts joined in one expression

FILTERS = frozenset(
    "trim length count lower upper capitalize title first last tojson string default d selectattr rejectattr select "
    "reject map list items dictsort unique reverse sort safe join replace int bool e escape".split()
)
METHODS = frozenset(
    "split rsplit strip lstrip rstrip startswith endswith replace join items keys values get lower upper title "
    "capitalize find rfind index count removeprefix removesuffix isdigit isspace cycle splitlines".split()
)
FUNCTIONS = frozenset(("namespace", "raise_exception", "strftime_now", "range", "dict", "caller"))
GROWING = frozenset(("replace", "join", "tojson", "escape", "e"))  # each may make a text several times as long
MAX_GROWTH = 1_000  # times; by calls within each other, so that the longest text stays under a hundred megabytes


def inspect_template(environment: Environment, text: str) -> nodes.Template:
    """Parse a template. Raises TemplateError naming the line where it holds something that no chat template needs."""
    if len(text) > MAX_TEMPLATE:
        raise TemplateError(
            "The template has {count:,} characters, more than {limit:,}.", count=len(text), limit=MAX_TEMPLATE
        )
    try:
        tree = environment.parse(text)
    except TemplateSyntaxError as e:
        raise TemplateError(
            "The template's line {line}: {reason}. Correct it there.",
            line=e.lineno,
            reason=(e.message or "").rstrip("."),
        ) from e
    except RecursionError as e:
        raise TemplateError("The template is nested too deeply.") from e
    macros = {m.name for m in tree.find_all(nodes.Macro)}
    for node in tree.find_all(nodes.Node):
        if why := _refuse_node(node, macros):
            raise TemplateError(
                "The template's line {line}: {reason}, which a chat template does not need.",
                line=node.lineno,
                reason=why,
            )
    return tree


def _refuse_node(node: nodes.Node, macros: set[str]) -> str:
    if isinstance(node, nodes.Mul | nodes.Pow):
        return "multiplies"
    if isinstance(node, nodes.Mod) and not isinstance(node.right, nodes.Const | nodes.Name):
        return Message("formats text with %")
    if isinstance(node, nodes.Mod) and isinstance(node.left, nodes.Const) and isinstance(node.left.value, str):
        return Message("formats text with %")
    if isinstance(node, nodes.Import | nodes.FromImport | nodes.Include | nodes.Extends):
        return Message("asks for another file")
    if isinstance(node, nodes.Concat) and len(node.nodes) > MAX_JOINED:
        return Message("joins more than {limit} texts at once", limit=MAX_JOINED)
    if isinstance(node, nodes.Add) and sum(1 for _ in node.find_all(nodes.Add)) > MAX_JOINED:
        return Message("adds more than {limit} texts at once", limit=MAX_JOINED)
    if isinstance(node, nodes.Const) and isinstance(node.value, int) and abs(node.value) > 1_000_000:
        return Message("has the number {value}", value=node.value)
    if isinstance(node, nodes.Filter):
        return _refuse_call(node.name, node, FILTERS, Message("filter"))
    if isinstance(node, nodes.Call):
        called = node.node
        if isinstance(called, nodes.Getattr):
            return _refuse_call(called.attr, node, METHODS, Message("method"))
        if isinstance(called, nodes.ExtensionAttribute):  # {% generation %}
            return ""
        if isinstance(called, nodes.Name):
            return "" if called.name in FUNCTIONS | macros else Message("calls {name}()", name=called.name)
        return Message("calls something that has no name")
    return ""


def _refuse_call(name: str, call: nodes.Filter | nodes.Call, known: frozenset[str], what: str) -> str:
    if name not in known:
        return Message("uses the {what} {name!r}", what=what, name=name)
    if name not in GROWING:
        return ""
    if not all(isinstance(a, nodes.Const) for a in _arguments(call)):
        return Message("uses {name!r} with something that is not written there", name=name)
    if any(isinstance(a.value, int) and a.value > 8 for a in _arguments(call)):
        return Message("indents by more than 8")
    inner = [c for c in call.find_all((nodes.Filter, nodes.Call)) if _call_name(c) in GROWING]
    if all(isinstance(a, nodes.Const) for c in inner for a in _arguments(c)):
        longer = math.prod(_growth(c) for c in [call, *inner])
        return (
            Message("may make a text {longer:,.0f} times as long with {name!r}", longer=longer, name=name)
            if longer > MAX_GROWTH
            else ""
        )
    return ""


def _arguments(call: Any) -> list[Any]:
    if isinstance(call, nodes.Call) and isinstance(call.node, nodes.Getattr) and call.node.attr == "join":
        return [call.node.node]  # 'separator'.join(list)
    return [*call.args, *(k.value for k in call.kwargs)]


def _growth(call: Any) -> float:
    """By how many times a call may lengthen a text."""
    texts = [len(a.value) for a in _arguments(call) if isinstance(a.value, str)]
    if _call_name(call) == "replace" and len(texts) > 1:
        return max(1.0, texts[1] / max(1, texts[0]), (1 + texts[1]) * (texts[0] == 0))
    return 1.0 + texts[0] if _call_name(call) == "join" and texts else 6.0 if _call_name(call) == "tojson" else 5.0


def _call_name(node: Any) -> str:
    if isinstance(node, nodes.Filter):
        return node.name
    return node.node.attr if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) else ""
