"""Files of Gradio's front end, mended: slow searches, events whose answers get lost, a plot that is gone.

Searches: for every value that an event changes, Gradio 6.31 looks for its component through the whole tree of the page,
about 600 components behind reactive proxies; and when the page opens, it asks each component for each event whether it
is meant. Together that was half of what the page cost the browser.

Lost answers: the answers to all events of a window come through one stream, which the server closes once nothing is
left to answer. An event that it takes while its word about closing is on the way was left without a stream, until the
next event; one that was answered before the browser knew its number opened a stream that nobody ever closed.

A plot: one that was drawn in a hidden step, and so is 0 wide, asks for its own width once more when it is removed, an
error in the browser's console.

A file that holds other code is served as it is.
"""

import re
from functools import cache
from pathlib import Path

import gradio
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

ASSETS = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
SERVED = re.compile(r"/assets/((?:core|index|Index)-[\w-]+\.js)")  # Index: of each component

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
# closing → closing, then opening again where an event still waits (after the answers that have come were handed out)
CLOSE_JS = "if(s.msg===`close_stream`){wt(r,o.abort_controller);return}"
CLOSE_AND_REOPEN_JS = """if (s.msg === `close_stream`) {
  wt(r, o.abort_controller);
  setTimeout(() => { if (!r.open && [...t].some((id) => e[id])) o.open_stream(); });
  return;
}"""
# answers that came early, then waiting for the event → waiting only where none of them was the last
WAIT_JS = "E in g&&(g[E].forEach(e=>t(e)),delete g[E]),v[E]=t,y.add(E),h.open||await this.open_stream()"
WAIT_IF_UNANSWERED_JS = """v[E] = t;
if (E in g) { g[E].forEach((e) => t(e)); delete g[E]; }
if (v[E]) { y.add(E); if (!h.open) await this.open_stream(); }"""
# a size that changes → only of a plot that is still on the page
RESIZED_JS = "if(!(!e[0].target||!(e[0].target instanceof HTMLElement)))if(p(J)===0"
RESIZED_WHERE_SHOWN_JS = "if(p(W)&&e[0].target instanceof HTMLElement)if(p(J)===0"
MENDED = {
    "core": {FIND_NODE_JS: FIND_NODE_BY_PATH_JS, ATTACHED_EVENTS_JS: ATTACHED_EVENTS_BY_ID_JS},
    "index": {CLOSE_JS: CLOSE_AND_REOPEN_JS, WAIT_JS: WAIT_IF_UNANSWERED_JS},
    "Index": {RESIZED_JS: RESIZED_WHERE_SHOWN_JS},
}


@cache
def mended(name: str) -> str | None:
    """That file of Gradio's with its mends; None if it is not there or does not hold what they replace."""
    path = ASSETS / name
    if not path.is_file():
        return None
    text, mends = path.read_text(encoding="utf-8"), MENDED[name.partition("-")[0]]
    if not all(text.count(old) == 1 for old in mends):
        return None
    for old, new in mends.items():
        text = text.replace(old, new)
    return text


class FrontEndMiddleware:
    """ASGI: answers for those files."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = SERVED.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        if asked and (text := mended(asked[1])):
            kept = {"cache-control": "max-age=3600"}  # its name stays when the change here is another
            await Response(text, media_type="text/javascript", headers=kept)(scope, receive, send)
            return
        await self.app(scope, receive, send)
