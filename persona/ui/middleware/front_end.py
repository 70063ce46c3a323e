"""One file of Gradio's front end, with the two searches that keep the browser busy made short.

For every value that an event changes, Gradio 6.31 looks for its component through the whole tree of the page, about 600
components behind reactive proxies; and when the page opens, it asks each component for each event whether it is meant.
Together that was half of what the page cost the browser. A file that holds other code is served as it is.
"""

import re
from functools import cache
from pathlib import Path

import gradio
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
CORE_FILE = re.compile(r"/assets/(core-[\w-]+\.js)")

# the whole tree → the way to the component that was found last time, if it still leads there
FIND_NODE_JS = (
    "function Z(e,t){if(e.id===t)return e;"
    "if(e.children)for(let n of e.children){let e=Z(n,t);if(e)return e}return null}"
)
FIND_NODE_BY_PATH_JS = """function Z(root, id) {
  const paths = (Z.paths ??= new Map());
  const known = paths.get(id);
  if (known) {
    let node = root;
    for (const index of known) node = node?.children?.[index];
    if (node?.id === id) return node;
  }
  const search = (node, path) => {
    if (node.id === id) {
      paths.set(id, path);
      return node;
    }
    let index = 0;
    for (const child of node.children ?? []) {
      const found = search(child, [...path, index++]);
      if (found) return found;
    }
    return null;
  };
  return search(root, []);
}"""
# every component × every event → one pass over the events, and a look into a map for each component
ATTACHED_EVENTS_JS = (
    "let n=t.filter(t=>t.targets.find(([t])=>t===e.id))"
    ".map(t=>{let n=t.targets.find(([t])=>t===e.id);return n?n[1]:null}).filter(Boolean);"
    "return e.props.shared_props.attached_events=n,e}"
)
ATTACHED_EVENTS_BY_ID_JS = """
  this.attached_events ??= new WeakMap();
  if (!this.attached_events.has(t)) {
    const by_id = new Map();
    for (const { targets } of t) {
      const first = new Map([...targets].reverse());
      for (const [id, event] of first) if (event) by_id.set(id, [...(by_id.get(id) ?? []), event]);
    }
    this.attached_events.set(t, by_id);
  }
  e.props.shared_props.attached_events = this.attached_events.get(t).get(e.id) ?? [];
  return e;
}"""
SHORTER = {FIND_NODE_JS: FIND_NODE_BY_PATH_JS, ATTACHED_EVENTS_JS: ATTACHED_EVENTS_BY_ID_JS}


@cache
def shortened(name: str) -> str | None:
    """That file of Gradio's with both searches shortened; None if it is not there or does not hold them."""
    path = ASSETS / name
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if not all(text.count(search) == 1 for search in SHORTER):
        return None
    for search, shorter in SHORTER.items():
        text = text.replace(search, shorter)
    return text


class FrontEndMiddleware:
    """ASGI: answers for that file."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = CORE_FILE.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if asked and (text := shortened(asked[1])):
            kept = {"cache-control": "max-age=3600"}  # its name stays when the change here is another
            await Response(text, media_type="text/javascript", headers=kept)(scope, receive, send)
            return
        await self.app(scope, receive, send)
