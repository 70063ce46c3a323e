// The table of pairs. Every cell is a text box; what is typed is sent after a short pause, when the cell is left, and
// before any other action. One event ("input") carries all that changes pairs, so that the server sees it in order.
const SAVE_DELAY = 500; // milliseconds without a key before a cell is sent to be saved
const PREVIEW_DELAY = 40; // and before the mask is drawn from what is typed so far

const table = element.closest("#pairs") ?? element; // where the page calls refused, saved and paint
const cells = () => element.querySelectorAll("textarea[data-field]");
const rowOf = (node) => node.closest("[data-row]");
const number = (row) => Number(row.dataset.row);
const showState = (state) => {
  const line = document.querySelector("#pairs-status .saving");
  if (line) line.textContent = line.dataset[state]; // in the visitor's language
};

function send(cell) {
  clearTimeout(cell.saveTimer);
  const old = cell.dataset.saved ?? cell.defaultValue;
  // a text that was refused is not sent again as it is: each time would be another notice
  if (cell.value === old || cell.value === cell.refused) return;
  cell.dataset.saved = cell.value;
  cell.dataset.before = old;
  trigger("input", { do: "edit", row: number(rowOf(cell)), field: cell.dataset.field, old, text: cell.value });
}
// an action on a whole pair sends the pair's texts: another window may have put another pair into this row
const saw = (row) => [...(row?.querySelectorAll("textarea[data-field]") ?? [])].map(
  (cell) => cell.dataset.saved ?? cell.defaultValue);
const sendAll = () => cells().forEach(send);

// the server refused the edit: what is typed stays in its cell, and is sent again once it is changed
table.refused = () => {
  cells().forEach((cell) => {
    if (cell.dataset.before === undefined) return;
    cell.refused = cell.dataset.saved;
    cell.dataset.saved = cell.dataset.before;
    delete cell.dataset.before;
    cell.classList.add("unsaved", "refused");
    showRefused(rowOf(cell));
  });
  if (element.querySelector(".refused")) showState("refused");
};
// what was found in the text on disk says nothing of the text that is shown
function showRefused(row) {
  const line = document.querySelector("#pairs-status .saving");
  const note = Object.assign(document.createElement("div"), { textContent: line?.dataset.refused });
  note.classList.add("mark", "problem");
  row.querySelector(".marks")?.replaceChildren(note);
}
function accept(cell) {
  cell.classList.remove("unsaved", "refused");
  delete cell.refused;
}
table.saved = () => {
  cells().forEach((cell) => {
    delete cell.dataset.before;
    if (cell.value === (cell.dataset.saved ?? cell.defaultValue)) accept(cell);
  });
  // the status that the server sends is often the same text as before, and then Gradio does not redraw it
  if (!element.querySelector(".unsaved")) showState("saved");
};
// findings are put into the existing rows: redrawing the table would take the focus from the cell being typed in
table.paint = (marks) => element.querySelectorAll("[data-row]").forEach((row) => {
  if (row.querySelector(".refused")) return;
  const place = row.querySelector(".marks");
  const html = marks[row.dataset.row] ?? "";
  if (place.innerHTML !== html) place.innerHTML = html;
});

function select(row) {
  if (!row || row.classList.contains("selected")) return;
  element.querySelectorAll(".selected").forEach((other) => other.classList.remove("selected"));
  row.classList.add("selected");
  trigger("select", { row: number(row) });
}

function preview(row) {
  const texts = {};
  row.querySelectorAll("textarea[data-field]").forEach((cell) => (texts[cell.dataset.field] = cell.value));
  trigger("key_up", { row: number(row), texts });
}

function grow(cell) {
  if (CSS.supports("field-sizing", "content")) return;
  cell.style.height = "auto";
  cell.style.height = `${cell.scrollHeight + 2}px`;
}

element.addEventListener("input", (event) => {
  const cell = event.target.closest("textarea[data-field]");
  if (!cell) return;
  event.stopPropagation();
  grow(cell);
  cell.classList.add("unsaved");
  showState("saving");
  clearTimeout(cell.saveTimer);
  cell.saveTimer = setTimeout(send, SAVE_DELAY, cell);
  clearTimeout(element.previewTimer);
  element.previewTimer = setTimeout(preview, PREVIEW_DELAY, rowOf(cell));
});
element.addEventListener("focusout", (event) => event.target.matches("textarea[data-field]") && send(event.target));
element.addEventListener("focusin", (event) => select(rowOf(event.target)));
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.stopPropagation();
  sendAll();
  const row = rowOf(button);
  if (button.dataset.do === "page") trigger("click", { page: Number(button.dataset.page) });
  else trigger("input", { do: button.dataset.do, row: row ? number(row) : 0, key: button.dataset.key ?? "",
    saw: saw(row) });
});
element.addEventListener("keydown", (event) => {
  const row = rowOf(event.target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && row) {
    event.preventDefault();
    sendAll();
    trigger("input", { do: "add", row: number(row), key: "" });
  } else if (event.altKey && ["ArrowUp", "ArrowDown"].includes(event.key) && row) {
    event.preventDefault();
    const next = event.key === "ArrowUp" ? row.previousElementSibling : row.nextElementSibling;
    const field = event.target.dataset.field ?? "instruction";
    (next?.querySelector(`[data-field="${field}"]`) ?? next?.querySelector("textarea"))?.focus();
  } else if (event.key === "Escape") event.target.blur();
});
// Ctrl-Z inside a cell is the browser's own; anywhere else on this step it undoes the last edit
document.addEventListener("keydown", (event) => {
  if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(event.key.toLowerCase())) return;
  if (event.target.matches("input, textarea, select, [contenteditable]") || !element.offsetParent) return;
  event.preventDefault();
  const redo = event.shiftKey || event.key.toLowerCase() === "y";
  document.querySelector(redo ? "#redo-edit" : "#undo-edit")?.click();
});
window.addEventListener("beforeunload", sendAll);

// Gradio patches the page instead of replacing it: a text box that was typed in keeps what it shows, even when it now
// stands for another pair. So each drawing has a number, and a new number resets every cell.
function afterDrawing() {
  const drawing = element.querySelector("[data-drawing]")?.dataset.drawing;
  if (drawing !== table.drawing) {
    table.drawing = drawing;
    cells().forEach((cell) => {
      clearTimeout(cell.saveTimer);
      cell.value = cell.defaultValue;
      delete cell.dataset.saved;
      delete cell.dataset.before;
      accept(cell);
    });
  }
  cells().forEach(grow);
  const focused = element.querySelector("[data-focus]");
  if (!focused) return;
  focused.removeAttribute("data-focus");
  focused.scrollIntoView({ block: "nearest" });
  focused.querySelector('[data-field="instruction"]')?.focus();
}
new MutationObserver(afterDrawing).observe(element, { childList: true, subtree: true, attributeFilter: ["data-drawing"] });
afterDrawing();
