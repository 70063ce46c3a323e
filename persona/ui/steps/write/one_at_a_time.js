// One thing at a time, as the interview and the review show it; their scripts follow this one and define act().
const root = () => element.querySelector(".interview");
const box = (name) => element.querySelector(`textarea.${name}`);

function grow(node) {
  if (CSS.supports("field-sizing", "content")) return;
  node.style.height = "auto";
  node.style.height = `${node.scrollHeight + 2}px`;
}
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button) return;
  event.stopPropagation();
  act(button.dataset.do);
});
// Gradio patches the page instead of replacing it: a text box that was typed in keeps what it shows
function onDrawing(redraw) {
  let drawing = null;
  const look = () => {
    if (!root() || root().dataset.drawing === drawing) return;
    drawing = root().dataset.drawing;
    redraw();
  };
  new MutationObserver(look).observe(element, { childList: true, subtree: true, attributeFilter: ["data-drawing"] });
  look();
}
