// The page: what people do with mouse and keyboard. The other modules do the rest.

import {$} from "./dom.js";
import {markSelected, openAgain, startAgain, typedQuestion} from "./again.js";
import {leave, open, turn, written} from "./detail.js";
import {restart} from "./finding.js";
import {focusCard, goTo, layout, reload, render, scrolled} from "./gallery.js";
import {poll, showCharts} from "./live.js";
import {judge, review, undo} from "./review.js";
import {
  apply, clearSelection, judgeSelected, openEdit, preview, select, selectAll, showSelection,
} from "./selection.js";
import {count, kind, state} from "./state.js";

function show(view) {
  state.view = view;
  for (const button of document.querySelectorAll("nav [data-view]")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  $("heading").textContent = {rows: "Captions", failures: "Failures", charts: "Charts"}[view];
  $("gallery").setAttribute("aria-label", $("heading").textContent);
  for (const label of document.querySelectorAll("[data-for]")) {
    label.hidden = label.dataset.for !== kind();
  }
  $("charts").hidden = view !== "charts";
  $("gallery").hidden = $("filters").hidden = view === "charts";
  restart();
  showSelection();
  if (view === "charts") showCharts(true, showLengths);
}

// Show the captions of a bar.
function showLengths(low, high) {
  $("shortest").value = low || "";
  $("longest").value = high;
  show("rows");
}

let typing = 0;
$("filters").addEventListener("input", (event) => {
  if (event.target.id === "size") return;
  clearTimeout(typing);
  typing = setTimeout(restart, 250);
});
$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  restart();
});
$("size").addEventListener("change", () => {
  const first = Math.floor(state.top / layout().line) * layout().columns;
  $("cards").className = $("size").value;
  reload();
  goTo(Math.floor(first / layout().columns) * layout().line);
});
$("filtering").addEventListener("click", () => {
  const shown = $("filters").classList.toggle("shown");
  $("filtering").setAttribute("aria-expanded", shown);
});
$("gallery").addEventListener("scroll", () => requestAnimationFrame(scrolled), {passive: true});
// Put the bar where it belongs. Before the end this would stop the browser's own scrolling.
$("gallery").addEventListener("scrollend", () => {
  scrolled();
  if (layout().ratio !== 1) goTo(state.top);
});
new ResizeObserver(render).observe($("gallery"));
let resizing = 0;
addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(() => { if (state.view === "charts") showCharts(false); }, 200);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  if (state.view === "charts") showCharts(false);
});
$("more").addEventListener("click", restart);
for (const button of document.querySelectorAll("nav [data-view]")) {
  button.addEventListener("click", () => show(button.dataset.view));
}
for (const button of $("verdicts").querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => judge(button.dataset.verdict));
}
for (const [id, act] of Object.entries({
  before: () => turn(-1), after: () => turn(1), close: leave,
  keys: () => $("help").showModal(), "help-close": () => $("help").close(),
  all: selectAll, clear: clearSelection, change: openEdit, undo, "undo-here": undo,
  "accept-all": () => judgeSelected("accepted"), "reject-all": () => judgeSelected("rejected"),
  again: openAgain, "again-close": () => $("again-dialog").close(), mark: markSelected,
  start: startAgain, "edit-close": () => $("edit").close(), preview, apply,
})) $(id).addEventListener("click", () => act());
$("detail").addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
$("detail").addEventListener("close", () => state.stale ? restart() : focusCard(state.current));
$("edit").addEventListener("input", () => { $("apply").disabled = true; });
$("question").addEventListener("input", typedQuestion);

function withNote(event) {
  event.preventDefault();  // it would press the button that is focused next
  const verdict = state.opened.verdict;
  if (verdict !== "none") {
    review(verdict, state.opened, verdict === "rejected" ? {} : written(), $("note").value);
  }
  else if (kind() === "rows") $("said").textContent = "accept or reject, and the note is kept";
  $("close").focus();
}

function move(event, inDetail) {
  const columns = layout().columns, step = {
    j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1,
    ArrowDown: inDetail ? 0 : columns, ArrowUp: inDetail ? 0 : -columns,
  }[event.key];
  if (state.view === "charts" || !step) return false;
  event.preventDefault();
  if (inDetail) turn(step);
  else if ($("cards").contains(document.activeElement)) focusCard(state.current + step);
  else focusCard(state.current);
  return true;
}

document.addEventListener("keydown", (event) => {
  const target = event.target, inDetail = $("detail").open;
  if (event.repeat && !event.key.startsWith("Arrow")) return;
  if (event.ctrlKey && event.key === "Enter" && inDetail) { judge("edited"); return; }
  if (target.id === "note" && event.key === "Enter") { withNote(event); return; }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("help").open || $("edit").open || $("again-dialog").open) return;
  if (target.matches("input:not([type=checkbox]), textarea, select")) return;
  if (move(event, inDetail)) return;
  if (event.key === "/" && !inDetail) {
    event.preventDefault();
    $("text").focus();
  } else if (event.key === "?") $("help").showModal();
  if (kind() !== "rows" || state.view === "charts") return;
  const verdict = {a: "accepted", r: "rejected", u: "none"}[event.key];
  if (verdict) judge(verdict);
  else if (event.key === "z") undo();
  else if (event.key === "x" && !inDetail && $("cards").contains(document.activeElement)) {
    select(state.current);
  } else if ((event.key === "e" || event.key === "n") && count()) {
    event.preventDefault();
    (inDetail ? Promise.resolve() : open(state.current)).then(() =>
      event.key === "e" ? $("texts").querySelector("textarea")?.focus() : $("note").focus());
  }
});

poll();
