// The conversations are as high as the window leaves them between all else and the box to write in, so that the box
// covers nothing; in a low window it stays in sight, over what scrolls.
const MIN_HEIGHT = 160; // pixels
const MAX_HEIGHT = 420;
const [columns, box] = ["columns", "composer"].map((id) => document.getElementById(id));
function fit() {
  if (!columns.offsetParent) return;
  const around = columns.offsetHeight - columns.querySelector("[id^=chat-]").offsetHeight + box.offsetHeight;
  const gap = parseFloat(getComputedStyle(columns.parentElement).rowGap) || 0;
  const left = innerHeight - columns.getBoundingClientRect().top - scrollY - around - gap;
  columns.style.setProperty("--chat-room", `${Math.floor(Math.min(MAX_HEIGHT, Math.max(MIN_HEIGHT, left)))}px`);
}
const observer = new ResizeObserver(fit);
[document.body, columns, box].forEach((node) => observer.observe(node));
window.addEventListener("resize", fit);
