// The review: one key is one decision about the pair that is shown. While one is on its way no other is taken, so that
// nothing is decided unseen.
const board = element.closest("#review") ?? element; // where the page calls answered
const root = () => element.querySelector(".review");
const box = (name) => element.querySelector(`textarea.${name}`);
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
function grow(node) {
  if (CSS.supports("field-sizing", "content")) return;
  node.style.height = "auto";
  node.style.height = `${node.scrollHeight + 2}px`;
}

element.addEventListener("input", (event) => {
  event.stopPropagation();
  grow(event.target);
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.stopPropagation();
  act(button.dataset.do);
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

// Gradio patches the page instead of replacing it: a text box that was typed in keeps what it shows
let drawing = null;
function afterDrawing() {
  if (!root() || root().dataset.drawing === drawing) return;
  drawing = root().dataset.drawing;
  sent = false;
  edit(false);
}
new MutationObserver(afterDrawing).observe(element, { childList: true, subtree: true, attributeFilter: ["data-drawing"] });
afterDrawing();
