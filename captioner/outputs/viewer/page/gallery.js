// A gallery of any length of which only what is seen exists.

import {$, ask, button, element} from "./dom.js";
import {open} from "./detail.js";
import {look, say} from "./finding.js";
import {judgeCard} from "./review.js";
import {select} from "./selection.js";
import {count, generation, inWords, kind, numberAt, state} from "./state.js";

const SIZES = {  // pixels of a card; a list has one column
  small: {width: 180, height: 264, image: "small"},
  medium: {width: 260, height: 362, image: "small"},
  large: {width: 440, height: 540, image: "large"},
  list: {width: Infinity, height: 132, image: "small"},
};
const MARGIN_ROWS = 2;
const TALLEST = 8_000_000;  // pixels; browsers end at some 30 million, and then count wrongly
const ENOUGH = 1_000;  // found beyond what is seen, before the search rests
const KEPT = 3_000;  // rows held

// A gallery of a million rows is taller than a browser can scroll. Then the bar stands for the
// whole, while small steps go as far as the finger or the wheel does.
export function layout() {
  const gallery = $("gallery"), size = SIZES[$("size").value];
  const width = gallery.clientWidth, seen = gallery.clientHeight;
  const columns = Math.max(1, Math.floor(width / size.width));
  const height = Math.ceil(count() / columns) * size.height;
  const real = Math.min(height, TALLEST);
  const ratio = real > seen ? (height - seen) / (real - seen) : 1;
  return {width, seen, columns, height, real, ratio, line: size.height, image: size.image};
}

export function scrolled() {
  const now = $("gallery").scrollTop, at = layout(), by = now - state.scrolled;
  state.scrolled = now;
  const small = Math.abs(by) < 2 * at.seen;
  state.top = at.ratio === 1 ? now : small ? state.top + by : now * at.ratio;
  if (now <= 0) state.top = 0;
  if (now >= at.real - at.seen - 1) state.top = at.height - at.seen;
  state.top = Math.max(0, Math.min(state.top, at.height - at.seen));
  render();
}

export function goTo(top) {
  const at = layout();
  state.top = Math.max(0, Math.min(top, at.height - at.seen));
  $("cards").style.height = `${at.real}px`;
  $("gallery").scrollTop = state.top / at.ratio;
  state.scrolled = $("gallery").scrollTop;
  render();
}

// Whether enough was found beyond what is seen.
export function hasEnough() {
  const at = layout();
  return count() > Math.ceil((state.top + at.seen) / at.line) * at.columns + ENOUGH;
}

export function render() {
  if (state.view === "charts") return;
  const at = layout(), top = state.top;
  $("cards").style.height = `${at.real}px`;
  const first = Math.max(0, Math.floor(top / at.line) - MARGIN_ROWS) * at.columns;
  const last = Math.min(
    count(), (Math.ceil((top + at.seen) / at.line) + MARGIN_ROWS) * at.columns);
  const missing = [];
  const put = (place, node) => {
    const line = Math.floor(place / at.columns);
    node.style.top = `${state.scrolled + line * at.line - top}px`;
    node.style.left = `${(place % at.columns) * at.width / at.columns}px`;
    node.style.width = `${at.width / at.columns}px`;
    node.style.height = `${at.line}px`;
  };
  for (const [place, node] of state.nodes) {
    if (place < first || place >= last) {
      if (node.contains(document.activeElement) && place < count()) put(place, node);
      else {
        node.remove();
        state.nodes.delete(place);
      }
    }
  }
  for (let place = first; place < last; place += 1) {
    const number = numberAt(place), row = state.rows.get(number);
    let node = state.nodes.get(place);
    if (!node) {
      node = card(place);
      state.nodes.set(place, node);
      $("cards").append(node);
    }
    if (row && (node.row !== row || node.number !== number)) fill(node, row, at.image);
    if (!row && !state.asked.has(number)) missing.push(number);
    node.chosen.checked = state.selected.has(number);
    put(place, node);
    node.setAttribute("aria-setsize", state.next === null ? count() : -1);
    node.setAttribute("aria-posinset", place + 1);
  }
  for (let from = 0; from < missing.length; from += 100) load(missing.slice(from, from + 100));
  if (state.found && state.next !== null && last + ENOUGH / 2 > state.found.length) look();
}

function card(place) {
  const node = element("li"), whole = button("", "", () => open(place), "card");
  whole.append(element("span", "…", "frame"), element("span", "", "caption"),
    element("span", "", "foot"));
  whole.addEventListener("focus", () => { state.current = place; });
  node.chosen = element("input");
  node.chosen.type = "checkbox";
  node.chosen.addEventListener("click", (event) => select(place, event.shiftKey));
  node.acts = element("div", undefined, "acts");
  node.acts.append(node.chosen,
    button("Accept", "", () => judgeCard(place, "accepted"), "primary"),
    button("Edit", "", () => open(place, true)),
    button("Reject", "", () => judgeCard(place, "rejected")));
  for (const one of node.acts.children) one.tabIndex = -1;  // keys do the same
  node.append(whole, node.acts);
  return node;
}

const nameOf = (row) => (row.images[0] ?? "").split(/[/#\\]/).pop();

function fill(node, row, size) {
  const whole = node.firstChild, [frame, caption, foot] = whole.children;
  node.row = row;
  node.number = row.number;
  const failed = kind() === "failures";
  node.className = `was-${row.verdict}`;
  node.acts.hidden = failed;
  for (const act of node.acts.children) {
    act.setAttribute("aria-label", `${act.textContent || "Select"} #${row.number + 1}`);
  }
  frame.replaceChildren(image(row, 0, size));
  caption.textContent = failed ? row.message : Object.values(row.captions)[0];
  foot.replaceChildren();
  if (failed) foot.append(element("strong", row.code, "rejected"), ` line ${row.line ?? "?"}`);
  else {
    if (row.verdict !== "none") {
      foot.append(element("strong", inWords(row.verdict), row.verdict), " ");
    }
    foot.append(`#${row.number + 1}`);
    if (row.flags.length) foot.append(` · ${row.flags.join(", ")}`);
    if (row.note) foot.append(` · ${row.note}`);
  }
  if (nameOf(row)) foot.append(` · ${nameOf(row)}`);
}

export function image(row, which, size) {
  if (which >= row.images.length) return element("span", "no image");
  const image = element("img");
  const place = `image/${kind()}/${generation()}/${row.number}/${which}/${size}`;
  image.alt = `Image of #${row.number + 1}: ${row.images[which]}`;
  image.loading = "lazy";
  image.addEventListener("error", async () => {
    const why = element("span", "the image cannot be shown");
    image.replaceWith(why);
    try { await ask(place); } catch (error) { why.textContent = error.message; }
  });
  image.src = place;
  return image;
}

export async function load(numbers) {
  const of = kind(), search = state.search, asked = state.asked;
  numbers.forEach((number) => asked.add(number));
  try {
    const rows = await ask(`api/${of}?numbers=${numbers.join(",")}`);
    if (of !== kind() || search !== state.search) return;
    for (const row of rows) state.rows.set(row.number, row);
    for (const number of state.rows.keys()) {
      if (state.rows.size <= KEPT) break;
      state.rows.delete(number);
    }
    render();
  } catch (error) {
    say(error.message);
  } finally {
    numbers.forEach((number) => asked.delete(number));
  }
}

// Show all rows as they are now, without moving.
export function reload() {
  state.rows.clear();
  state.nodes.forEach((node) => { node.row = null; });
  render();
}

export function bringIntoView(place) {
  const at = layout(), line = Math.floor(place / at.columns) * at.line;
  if (line < state.top) goTo(line);
  else if (line + at.line > state.top + at.seen) goTo(line + at.line - at.seen);
  else render();
}

export function focusCard(place) {
  if (place < 0 || place >= count()) return;
  bringIntoView(place);
  state.nodes.get(place)?.firstChild.focus({preventScroll: true});
}
