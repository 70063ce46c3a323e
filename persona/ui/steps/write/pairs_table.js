// The table of pairs. Every cell is a text box; what is typed is sent after a short pause, when the cell is left, and
// before any other action. One event ("input") carries all that changes pairs, and the next is sent when it is answered:
// neither edits nor their answers can overtake each other on the way.
const SAVE_DELAY = 500; // milliseconds without a key before a cell is sent to be saved
const PREVIEW_DELAY = 40; // and before the mask is drawn from what is typed so far

const table = element.closest("#pairs") ?? element; // where the page calls answered, previewed and paint
const cells = () => element.querySelectorAll("textarea[data-field]");
const rowOf = (node) => node.closest("[data-row]");
const number = (row) => Number(row.dataset.row);
let shownState = () => {}; // the status that the server sends always says "saved", so it is shown again (watchStatus)
const showState = (state, why = "") => {
  shownState = () => {
    const line = document.querySelector("#pairs-status .saving");
    const text = `${line?.dataset[state]} ${why}`.trim(); // in the visitor's language
    if (line && line.textContent !== text) line.textContent = text;
  };
  shownState();
};
function watchStatus() {
  const status = document.querySelector("#pairs-status");
  if (!status || status.dataset.watched) return;
  status.dataset.watched = "";
  new MutationObserver(() => shownState()).observe(status, { childList: true, subtree: true });
}

const waiting = []; // {edit: the event's data, node: its cell or row, drawing: the table that it was made in}
let sent = null;
const pending = () => (sent ? [sent, ...waiting] : waiting);
let outdated = false; // the table was drawn while an edit was on its way

// What is typed and not sent yet. A drawing may give its cell to another pair: it is then put where its pair is now.
// cell → {persona, row, texts: of the pair, cell by cell, as they were saved; field, old, text, caret}
const drafts = new Map();
// Until an action that draws the table is answered and drawn, a row's number may be another pair's: nothing is sent.
const draws = ({ edit }) => !["edit", "ignore"].includes(edit.do) && !edit.shown;
let replaced = null; // the drawing in which the last such action was made
const awaitsDrawing = () => pending().some(draws) || (replaced !== null && replaced === table.drawing);
const persona = () => element.querySelector("[data-persona]")?.dataset.persona;

function submit(edit, node = null) {
  const last = waiting.at(-1);
  if (edit.do === "edit" && last?.node === node && last.drawing === table.drawing) last.edit.text = edit.text;
  else {
    // another persona may be open when this arrives
    waiting.push({ edit: { persona: persona(), ...edit }, node, drawing: table.drawing });
  }
  sendNext();
}
function sendNext() {
  if (sent || !waiting.length) return;
  sent = waiting.shift();
  trigger("input", sent.edit);
}
// why: "" when the edit is on disk, else the reason why it is not
table.answered = (why) => {
  const done = sent;
  sent = null;
  if (!done) return;
  const { edit, node, drawing } = done;
  if (why !== "") refuse(done, why);
  else if (draws(done)) replaced = drawing;
  else if (drawing !== table.drawing) outdated ||= edit.do === "edit" || edit.shown;
  else if (edit.do === "edit" && node.value === edit.text) accept(node);
  sendNext();
  if (sent) return;
  if (why === "") settle();
  if (outdated) document.querySelector("#reload")?.click();
  outdated = false;
};
// the status that the server sends is often the same text as before, and then Gradio does not redraw it
function settle() {
  if (!sent && !element.querySelector(".unsaved")) showState("saved");
}

function send(cell) {
  clearTimeout(cell.saveTimer);
  const old = cell.dataset.saved ?? cell.defaultValue;
  if (cell.value === old) {
    drafts.delete(cell);
    if (!cell.classList.contains("unsaved") || pending().some((item) => item.node === cell)) return;
    accept(cell); // typed, and taken back
    if (!rowOf(cell).querySelector(".unsaved")) rowOf(cell).classList.remove("unchecked");
    settle();
    return;
  }
  // a text that was refused is not sent again as it is: each time would be another notice
  if (cell.value === cell.refused || awaitsDrawing()) return;
  drafts.delete(cell);
  cell.dataset.saved = cell.value;
  submit({ do: "edit", row: number(rowOf(cell)), field: cell.dataset.field, old, text: cell.value }, cell);
}
// an action on a whole pair sends the pair's texts: another window may have put another pair into this row
const saw = (row) => [...(row?.querySelectorAll("textarea[data-field]") ?? [])].map(
  (cell) => cell.dataset.saved ?? cell.defaultValue);
const sendAll = () => cells().forEach(send);

// what is typed stays in its cell, and is sent again once it is changed
function refuse({ edit, node, drawing }, why) {
  const isShown = node && drawing === table.drawing;
  showState("refused", edit.do === "edit" && !isShown ? `${why} “${edit.text}”` : why); // to be copied
  if (draws({ edit })) sendAll(); // what waited for a drawing that does not come
  if (!isShown) return;
  lock(node, false);
  if (edit.shown) withdraw(node);
  if (edit.do !== "edit") return;
  for (const item of waiting.splice(0)) if (item.node !== node) waiting.push(item);
  node.refused = edit.text;
  node.dataset.saved = edit.old;
  node.classList.add("unsaved", "refused");
  // what was found in the text on disk says nothing of the text that is shown
  const line = document.querySelector("#pairs-status .saving");
  const note = document.createElement("div");
  note.textContent = why || line?.dataset.refused;
  note.classList.add("mark", "error");
  rowOf(node).classList.remove("unchecked");
  rowOf(node).querySelector(".marks")?.replaceChildren(note);
  send(node); // if it was changed since
}
function accept(cell) {
  cell.classList.remove("unsaved", "refused");
  delete cell.refused;
}

// A new pair is typed into at once: its row is made here, and the server need not draw the table for it.
function addBelow(row) {
  if (!number(row)) return;
  sendAll();
  const edit = { do: "add", row: number(row), key: "", shown: true };
  if (awaitsDrawing()) {
    submit({ ...edit, shown: false }, row); // the table is about to be drawn again, without this row
    lock(row, true);
    return;
  }
  const added = row.cloneNode(true);
  added.classList.remove("conversation", "selected");
  added.querySelectorAll("[data-field^=history], [data-field=system], .weight, .source, .found, .mark").forEach((node) => node.remove());
  added.querySelectorAll("textarea").forEach((cell) => {
    cell.value = cell.defaultValue = "";
    delete cell.dataset.saved;
    accept(cell);
  });
  shiftAfter(edit.row, 1);
  setNumber(added, edit.row + 1);
  row.after(added);
  submit(edit, added);
  added.querySelector("[data-field=instruction]").focus();
}
// the new pair is refused: what was typed into it can still be copied, and the others have their numbers again
function withdraw(row) {
  const at = number(row);
  setNumber(row, 0);
  shiftAfter(at, -1);
  for (const item of waiting.splice(0)) {
    if (row.contains(item.node)) continue;
    if (item.edit.row >= at) item.edit.row -= 1;
    waiting.push(item);
  }
}
function shiftAfter(at, by) {
  element.querySelectorAll("[data-row]").forEach((row) => number(row) > at && setNumber(row, number(row) + by));
  element.querySelectorAll("[data-count]").forEach((node) => {
    node.textContent = (Number(node.textContent.replaceAll(",", "")) + by).toLocaleString("en-US");
  });
}
function setNumber(row, n) {
  row.dataset.row = n;
  row.querySelector(".no").textContent = n;
  row.querySelectorAll("[aria-label]").forEach((node) => {
    node.setAttribute("aria-label", node.getAttribute("aria-label").replace(/\d+/, n));
  });
}

// An action that changes a row's texts keeps it from being typed in until the table is drawn.
function lock(row, isLocked) {
  if (!row.matches("[data-row]")) return;
  row.classList.toggle("locked", isLocked);
  row.querySelectorAll("textarea").forEach((cell) => (cell.readOnly = isLocked));
}

// findings are put into the existing rows: redrawing the table would take the focus from the cell being typed in
table.paint = (marks) => element.querySelectorAll("[data-row]").forEach((row) => {
  if (row.querySelector(".unsaved")) return; // the marks are of another text
  row.classList.remove("unchecked");
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

// one at a time: of the events that it defers, Gradio (6.31) sends the data of the first again instead of the last's
let previewing = false;
let previewNext = null; // a row
function preview(row) {
  if (previewing) {
    previewNext = row;
    return;
  }
  previewing = true;
  previewNext = null;
  const texts = {};
  row.querySelectorAll("textarea[data-field]").forEach((cell) => (texts[cell.dataset.field] = cell.value));
  const weights = [...row.querySelectorAll("[data-do=weight]")].map((tick) => Number(tick.ariaChecked === "true"));
  trigger("key_up", { row: number(row), texts, weights });
}
table.previewed = () => {
  previewing = false;
  if (previewNext) preview(previewNext);
};

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
  rowOf(cell).classList.add("unchecked");
  keepDraft(cell);
  watchStatus();
  showState("saving");
  clearTimeout(cell.saveTimer);
  cell.saveTimer = setTimeout(send, SAVE_DELAY, cell);
  clearTimeout(element.previewTimer);
  element.previewTimer = setTimeout(preview, PREVIEW_DELAY, rowOf(cell));
});
function keepDraft(cell) {
  const row = rowOf(cell);
  drafts.delete(cell); // the last one is the one that was typed in last
  drafts.set(cell, { persona: persona(), row: number(row), texts: saw(row), field: cell.dataset.field, text: cell.value,
    old: cell.dataset.saved ?? cell.defaultValue, caret: cell.selectionStart });
}
element.addEventListener("focusout", (event) => event.target.matches("textarea[data-field]") && send(event.target));
// not by a button: the tools of the row before would go, and the button move away from under the pointer
element.addEventListener("focusin", (event) => event.target.matches("textarea") && select(rowOf(event.target)));
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.stopPropagation();
  sendAll();
  const row = rowOf(button);
  if (button.dataset.do === "page") trigger("click", { page: Number(button.dataset.page) });
  else if (button.dataset.do === "add" && row) addBelow(row);
  else if (!row || !awaitsDrawing()) {
    submit({ do: button.dataset.do, row: row ? number(row) : 0, key: button.dataset.key ?? "", saw: saw(row) }, row);
    if (["delete", "split", "join"].includes(button.dataset.do)) lock(row, true);
  }
});
element.addEventListener("keydown", (event) => {
  const row = rowOf(event.target);
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && row) {
    event.preventDefault();
    addBelow(row);
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
window.addEventListener("beforeunload", (event) => {
  sendAll();
  waiting.splice(0).forEach((item) => trigger("input", item.edit));
  if (drafts.size) event.preventDefault(); // the browser asks whether to stay
});

// Gradio patches the page instead of replacing it: a text box that was typed in keeps what it shows, even when it now
// stands for another pair. So each drawing has a number, and a new number resets every cell.
function afterDrawing() {
  const drawing = element.querySelector("[data-drawing]")?.dataset.drawing;
  let typing = null;
  if (drawing !== table.drawing) {
    table.drawing = drawing;
    cells().forEach((cell) => {
      clearTimeout(cell.saveTimer);
      cell.value = cell.defaultValue;
      delete cell.dataset.saved;
      accept(cell);
    });
    element.querySelectorAll("[data-row]").forEach((row) => lock(row, false));
    element.querySelectorAll(".unchecked").forEach((row) => row.classList.remove("unchecked"));
    typing = restoreDrafts();
    watchStatus();
    showState(sent || drafts.size ? "saving" : "saved");
  }
  cells().forEach(grow);
  const focused = element.querySelector("[data-focus]");
  if (!focused) return;
  focused.removeAttribute("data-focus");
  if (typing) return; // it was clicked since
  focused.scrollIntoView({ block: "nearest" });
  focused.querySelector('[data-field="instruction"]')?.focus();
}
// Put what was typed meanwhile where its pair is now. Returns the cell that was typed in last, focused again.
function restoreDrafts() {
  const wasTyping = [document.body, ...drafts.keys()].includes(document.activeElement);
  let last = null;
  for (const [cell, draft] of [...drafts]) {
    drafts.delete(cell);
    const found = draft.persona === persona() ? findPair(draft) : null;
    last = null;
    if (!found) { // its pair is on another page, or gone: with what was seen of it, the server knows
      const { persona, row, field, old, text, texts } = draft;
      submit({ do: "edit", persona, row, field, old, text, saw: texts }, cell);
      continue;
    }
    last = found.querySelector(`[data-field="${draft.field}"]`);
    const before = pending().findLast(({ edit, node }) => edit.do === "edit" && node === cell);
    if (before) last.dataset.saved = before.edit.text; // on disk by the time this one is
    last.value = draft.text;
    last.classList.add("unsaved");
    found.classList.add("unchecked");
    last.setSelectionRange(draft.caret, draft.caret);
    keepDraft(last);
    last.saveTimer = setTimeout(send, SAVE_DELAY, last);
  }
  if (last && wasTyping) last.focus();
  return wasTyping ? last : null;
}
// The row that shows the pair, by its texts, the nearest one. What is still on its way may not be drawn yet.
function findPair({ row, texts }) {
  const before = (field) => pending().filter(({ edit }) => edit.do === "edit" && edit.row === row && edit.field === field)
    .map(({ edit }) => edit.old);
  const shows = (cell, text) => cell.defaultValue === text || before(cell.dataset.field).includes(cell.defaultValue);
  return [...element.querySelectorAll("[data-row]")]
    .filter((other) => {
      const shown = [...other.querySelectorAll("textarea[data-field]")];
      return shown.length === texts.length && shown.every((cell, n) => shows(cell, texts[n]));
    })
    .sort((a, b) => Math.abs(number(a) - row) - Math.abs(number(b) - row))[0];
}
new MutationObserver(afterDrawing).observe(element, { childList: true, subtree: true, attributeFilter: ["data-drawing"] });
afterDrawing();
