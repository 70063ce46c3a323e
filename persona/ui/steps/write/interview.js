// The interview. What is typed is sent to be kept after a short pause ("key_up"); an action carries what was typed too
// ("input"), and until it is answered nothing can be typed that would be lost.
const DRAFT_DELAY = 400; // milliseconds without a key before a draft is sent

const board = element.closest("#interview") ?? element; // where the page calls answered and kept
let draftTimer = null;
let sent = false;

function showState(state, why = "") {
  const line = element.querySelector(".saving");
  if (line) line.textContent = state ? `${line.dataset[state]} ${why}`.trim() : "";
}
function typed() {
  const { persona, number } = root().dataset;
  return { persona, number: Number(number), answer: box("reply")?.value ?? "", question: box("asked")?.value ?? "" };
}
function lock(locked) {
  sent = locked;
  element.querySelectorAll("textarea").forEach((node) => (node.readOnly = locked));
}
function act(action) {
  if (sent || !root()) return;
  if (action === "answer" && !box("reply").value.trim()) {
    box("reply").focus();
    return;
  }
  clearTimeout(draftTimer);
  lock(true);
  showState("saving");
  trigger("input", { do: action, ...typed() });
}
// why: "" when it is on disk, else the reason why it is not; null: no answer came
board.answered = (why) => {
  lock(false);
  if (why !== "") showState("refused", why ?? "");
  else if (!box("reply")?.value) showState("");
};
board.kept = () => {
  if (!sent && draftTimer === null) showState("kept");
};
function sendDraft() {
  draftTimer = null;
  if (!sent) trigger("key_up", typed());
}

element.addEventListener("input", (event) => {
  event.stopPropagation();
  grow(event.target);
  showState("typing");
  clearTimeout(draftTimer);
  draftTimer = setTimeout(sendDraft, DRAFT_DELAY);
});
element.addEventListener("keydown", (event) => {
  const keys = { ArrowDown: "skip", ArrowUp: "back", KeyM: "more" };
  if (event.isComposing || event.keyCode === 229) return; // Enter here chooses a word of an input method
  if (event.altKey && keys[event.code]) {
    event.preventDefault();
    element.querySelector(`[data-do="${keys[event.code]}"]:not(:disabled)`) && act(keys[event.code]);
  } else if (event.key === "Enter" && !event.shiftKey && event.target.matches("textarea")) {
    event.preventDefault();
    if (event.target.matches(".asked")) box("reply").focus();
    else act("answer");
  }
});
window.addEventListener("beforeunload", () => {
  if (draftTimer === null) return;
  clearTimeout(draftTimer);
  sendDraft();
});

onDrawing(() => {
  lock(false);
  element.querySelectorAll("textarea").forEach((node) => {
    node.value = node.defaultValue;
    grow(node);
  });
  const reply = box("reply");
  if (!reply || !element.offsetParent) return;
  reply.focus({ preventScroll: true });
  reply.setSelectionRange(reply.value.length, reply.value.length);
});
