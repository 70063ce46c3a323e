// The review: one key is one decision about the pair that is shown. While one is on its way no other is taken, so that
// nothing is decided unseen.
const board = element.closest("#review") ?? element; // where the page calls answered
const KEYS = { k: "keep", e: "edit", d: "drop", j: "next", u: "undo", arrowdown: "next", arrowright: "next",
               arrowup: "previous", arrowleft: "previous" };
let sent = false;

const isEdited = () => box("reply") && !box("reply").readOnly;
function edit(on) {
  element.querySelectorAll("textarea").forEach((node) => {
    node.readOnly = !on;
    if (!on) node.value = node.defaultValue;
    grow(node);
  });
  if (on) box("reply")?.focus();
  else document.activeElement?.blur();
}
function act(action) {
  const button = element.querySelector(`[data-do="${action}"]`);
  if (sent || !button || button.disabled) return;
  if (action === "edit") {
    edit(!isEdited());
    return;
  }
  sent = true;
  const { persona, item, dropped } = root().dataset;
  trigger("input", { do: action, persona, item, dropped, question: box("asked")?.value, answer: box("reply")?.value });
}
board.answered = () => (sent = false);

element.addEventListener("input", (event) => {
  event.stopPropagation();
  grow(event.target);
});
document.addEventListener("keydown", (event) => {
  if (!element.offsetParent || !root() || event.isComposing || event.keyCode === 229) return;
  const inside = element.contains(event.target);
  if (inside && isEdited()) {
    if (event.key === "Escape") edit(false);
    else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) act("keep");
    else return;
    event.preventDefault();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (!inside && event.target.closest("input, textarea, select, [contenteditable], [role=tab], [role=listbox]")) return;
  const action = KEYS[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  act(action);
});

onDrawing(() => {
  sent = false;
  edit(false);
});
