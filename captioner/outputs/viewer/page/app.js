"use strict";
// The page: a gallery of any length of which only what is seen exists, a dialog to review one
// caption, and the numbers. Whatever the server sends is put in as text, never as HTML.

const $ = (id) => document.getElementById(id);
const CARD_WIDTH = 260, CARD_HEIGHT = 312, MARGIN_ROWS = 2;
const TALLEST = 8_000_000;  // pixels; browsers end at some 30 million, and then count wrongly
const ENOUGH = 1_000;  // found beyond what is seen, before the search rests
const KEPT = 3_000;  // rows held

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function ask(path, options) {
  const reply = await fetch(path, options);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || `the server returned ${reply.status}`);
  return found;
}

const state = {
  view: "rows",
  status: null,
  total: 0,          // lines that the gallery knows of
  found: null,       // numbers of those that fit, where something is looked for
  next: null,        // where to go on looking; null at the end
  end: 0,            // the line after the last one that was looked at
  looked: 0,
  search: 0,         // counts searches: what an older one finds is dropped
  searching: false,
  rows: new Map(),   // by number
  asked: new Set(),
  current: 0,        // place in the gallery
  opened: null,
  busy: false,       // a review is on its way
  stale: false,      // the lines are in another order, and a caption is open
  top: 0,            // what is seen, in pixels of the gallery as it would be
  scrolled: 0,       // where the browser was at the last look
  nodes: new Map(),  // by place
};

const kind = () => state.view === "failures" ? "failures" : "rows";
const generation = () =>
  state.status ? state.status[kind() === "rows" ? "generation" : "failures_generation"] : 0;
const count = () => state.found ? state.found.length : state.total;
const numberAt = (place) =>
  state.found ? state.found[place] : $("newest").checked ? state.total - 1 - place : place;
const rowAt = (place) => state.rows.get(numberAt(place));

// -- the gallery ------------------------------------------------------------------------------

// A gallery of a million rows is taller than a browser can scroll. Then the bar stands for the
// whole, while small steps go as far as the finger or the wheel does.
function layout() {
  const gallery = $("gallery");
  const width = gallery.clientWidth, seen = gallery.clientHeight;
  const columns = Math.max(1, Math.floor(width / CARD_WIDTH));
  const height = Math.ceil(count() / columns) * CARD_HEIGHT;
  const real = Math.min(height, TALLEST);
  const ratio = real > seen ? (height - seen) / (real - seen) : 1;
  return {width, seen, columns, height, real, ratio};
}

function scrolled() {
  const now = $("gallery").scrollTop, at = layout(), by = now - state.scrolled;
  state.scrolled = now;
  const small = Math.abs(by) < 2 * at.seen;
  state.top = at.ratio === 1 ? now : small ? state.top + by : now * at.ratio;
  if (now <= 0) state.top = 0;
  if (now >= at.real - at.seen - 1) state.top = at.height - at.seen;
  state.top = Math.max(0, Math.min(state.top, at.height - at.seen));
  render();
}

function goTo(top) {
  const at = layout();
  state.top = Math.max(0, Math.min(top, at.height - at.seen));
  $("cards").style.height = `${at.real}px`;
  $("gallery").scrollTop = state.top / at.ratio;
  state.scrolled = $("gallery").scrollTop;
  render();
}

function render() {
  if (state.view === "charts") return;
  const at = layout(), top = state.top;
  $("cards").style.height = `${at.real}px`;
  const first = Math.max(0, Math.floor(top / CARD_HEIGHT) - MARGIN_ROWS) * at.columns;
  const last = Math.min(
    count(), (Math.ceil((top + at.seen) / CARD_HEIGHT) + MARGIN_ROWS) * at.columns);
  const missing = [];
  const put = (place, node) => {
    const line = Math.floor(place / at.columns);
    node.style.top = `${state.scrolled + line * CARD_HEIGHT - top}px`;
    node.style.left = `${(place % at.columns) * at.width / at.columns}px`;
    node.style.width = `${at.width / at.columns}px`;
    node.style.height = `${CARD_HEIGHT}px`;
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
    if (row && (node.row !== row || node.number !== number)) fill(node, row);
    if (!row && !state.asked.has(number)) missing.push(number);
    put(place, node);
    node.setAttribute("aria-setsize", state.next === null ? count() : -1);
    node.setAttribute("aria-posinset", place + 1);
  }
  for (let from = 0; from < missing.length; from += 100) load(missing.slice(from, from + 100));
  if (state.found && state.next !== null && last + ENOUGH / 2 > state.found.length) look();
}

function card(place) {
  const node = element("li"), button = element("button", undefined, "card");
  button.type = "button";
  button.append(element("span", "…", "frame"), element("span", "", "caption"),
    element("span", "", "foot"));
  button.addEventListener("click", () => open(place));
  button.addEventListener("focus", () => { state.current = place; });
  node.append(button);
  return node;
}

function fill(node, row) {
  const button = node.firstChild, [frame, caption, foot] = button.children;
  node.row = row;
  node.number = row.number;
  const failed = kind() === "failures";
  button.className = `card was-${row.verdict}`;
  frame.replaceChildren(image(row, 0, "small"));
  caption.textContent = failed ? row.message : Object.values(row.captions)[0];
  foot.replaceChildren();
  if (failed) foot.append(element("strong", row.code, "rejected"), ` line ${row.line ?? "?"}`);
  else {
    if (row.verdict !== "none") foot.append(element("strong", row.verdict, row.verdict), " ");
    foot.append(`#${row.number + 1}`);
    if (row.flags.length) foot.append(` · ${row.flags.join(", ")}`);
    if (row.note) foot.append(` · ${row.note}`);
  }
}

function image(row, which, size) {
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

async function load(numbers) {
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

// -- finding ----------------------------------------------------------------------------------

function query() {
  const asked = new URLSearchParams();
  const names = kind() === "rows"
    ? ["text", "verdict", "flag", "shortest", "longest"] : ["text", "code"];
  for (const name of names) if ($(name).value.trim()) asked.set(name, $(name).value.trim());
  return asked;
}

function restart() {
  state.search += 1;
  state.searching = false;
  state.stale = false;
  state.rows.clear();
  state.asked = new Set();
  state.nodes.forEach((node) => node.remove());
  state.nodes.clear();
  state.current = 0;
  state.total = lines();
  state.looked = 0;
  $("more").hidden = true;
  const anything = query().toString() !== "";
  state.found = anything ? [] : null;
  state.next = anything && state.total ? ($("newest").checked ? state.total - 1 : 0) : null;
  state.end = state.next ?? 0;
  goTo(0);
  tell();
  if (anything) look();
  render();
}

async function look() {
  if (state.searching || state.next === null) return;
  const search = state.search;
  state.searching = true;
  try {
    const asked = query();
    while (search === state.search && state.next !== null) {
      asked.set("first", state.next);
      if ($("newest").checked) asked.set("newest", "1");
      const some = await ask(`api/find/${kind()}?${asked}`);
      if (search !== state.search) return;
      state.found.push(...some.numbers);
      state.next = some.next;
      state.end = some.end;
      state.looked += some.looked_at;
      tell();
      render();
      const at = layout();
      const seen = Math.ceil((state.top + at.seen) / CARD_HEIGHT) * at.columns;
      if (state.found.length > seen + ENOUGH) break;
    }
  } catch (error) {
    say(error.message);
  } finally {
    if (search === state.search) state.searching = false;
  }
}

function say(text) {
  $("found").textContent = text;
}

function tell() {
  if (!state.found) {
    say(state.total ? "" : state.view === "failures" ? "No failures." : "No captions yet.");
    return;
  }
  const share = state.total ? Math.round(100 * Math.min(1, state.looked / state.total)) : 100;
  const found = `${state.found.length.toLocaleString("en")} found`;
  say(state.next === null ? found : `${found} so far, ${share} % searched`);
}

// -- live -------------------------------------------------------------------------------------

const lines = () => state.status ? state.status[kind()] : 0;

async function poll() {
  let wait = 5_000;
  try {
    const before = generation();
    const first = state.status === null;
    state.status = await ask("api/status");
    showCounts();
    if (before !== generation() && $("detail").open) state.stale = true;
    else if (first || before !== generation()) restart();
    else grow();
    if (state.view === "charts") showCharts(false);
    if (state.status.running || state.status.run) wait = 1_000;
  } catch (error) {
    $("counts").textContent = "The run has ended, or the page's server was stopped: " +
      `captioner view ${state.status?.output ?? "OUT"} opens this page again.`;
  }
  setTimeout(poll, document.hidden ? 5_000 : wait);
}

function grow() {
  const more = lines() - state.total;
  if (more <= 0 || state.view === "charts" || state.stale) return;
  const newest = $("newest").checked;
  // With the newest first, new rows move all others, so they wait while a card is in use.
  const looking = state.top > 60 || $("cards").contains(document.activeElement) || $("detail").open;
  if (state.found) {
    if (newest) { offer(more); return; }
    state.total = lines();
    if (state.next === null && state.end < state.total) {
      state.next = state.end;
      look();
    }
  } else if (newest && looking) {
    offer(more);
  } else {
    state.total = lines();
    if (newest) state.nodes.forEach((node) => { node.row = null; });
    tell();
    render();
  }
}

function offer(more) {
  $("more").textContent = `${more.toLocaleString("en")} new`;
  $("more").hidden = false;
}

function showCounts() {
  const now = state.status, verdicts = now.verdicts;
  $("title").textContent = now.model ? `Captions of ${now.model}` : "Captions";
  document.title = `${now.output} – captioner`;
  const facts = [now.output, `${now.rows.toLocaleString("en")} caption${now.rows === 1 ? "" : "s"}`,
    `${now.failures.toLocaleString("en")} failed`];
  for (const verdict of ["accepted", "edited", "rejected"]) {
    if (verdicts[verdict]) facts.push(`${verdicts[verdict].toLocaleString("en")} ${verdict}`);
  }
  if (now.run) {
    const last = now.run.spans[now.run.spans.length - 1];
    facts.push(now.run.stage);
    if (last) facts.push(`${last.rate}/s`);
    facts.push(`${now.run.in_flight} in flight`);
    if (now.run.cost) facts.push(`$${now.run.cost.toFixed(2)}`);
    if (now.run.waiting) facts.push(`waiting: ${now.run.waiting}`);
  } else if (now.running) facts.push("running");
  const text = facts.join(" · ");
  if ($("counts").textContent !== text) $("counts").textContent = text;
  const codes = $("code");
  for (const [code, found] of Object.entries(now.codes)) {
    let option = [...codes.options].find((one) => one.value === code);
    if (!option) {
      option = element("option");
      option.value = code;
      codes.append(option);
    }
    option.textContent = `${code} (${found.toLocaleString("en")})`;
  }
}

// -- one caption ------------------------------------------------------------------------------

async function open(place) {
  if (place < 0 || place >= count()) return;
  const search = state.search;
  state.current = place;
  if (!rowAt(place)) await load([numberAt(place)]);
  const row = rowAt(place);
  if (!row || state.current !== place || search !== state.search) return;
  state.opened = row;
  const failed = kind() === "failures";
  $("detail-title").textContent = failed ? `${row.code}, line ${row.line ?? "?"}` : `#${row.number + 1}`;
  $("images").replaceChildren(...(row.images.length
    ? row.images.flatMap((where, which) => [image(row, which, "large"), element("p", where)])
    : [element("p", "no image")]));
  $("texts").replaceChildren(...(failed ? [element("p", row.message)]
    : Object.entries(row.captions).map(([name, text]) => {
      const label = element("label", name), area = element("textarea");
      area.value = text;
      area.dataset.name = name;
      label.append(area);
      return label;
    })));
  for (const id of ["note-label", "verdicts"]) $(id).hidden = failed;
  $("note").value = failed ? "" : row.note;
  $("said").textContent = failed || row.verdict === "none" ? "" : row.verdict;
  $("said").className = row.verdict ?? "";
  const facts = [...Object.entries(row.extras ?? {}), ...Object.entries(row.fields)];
  if (!Object.values(row.fields).includes(row.prompt)) facts.unshift(["prompt", row.prompt]);
  if (failed) facts.push(["attempts", row.attempts]);
  $("members").replaceChildren(...facts.filter(([, value]) => value !== "" && value !== null)
    .flatMap(([name, value]) => [element("dt", name),
      element("dd", typeof value === "object" ? JSON.stringify(value) : String(value))]));
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
  bringIntoView(place);
}

function bringIntoView(place) {
  const at = layout(), line = Math.floor(place / at.columns) * CARD_HEIGHT;
  if (line < state.top) goTo(line);
  else if (line + CARD_HEIGHT > state.top + at.seen) goTo(line + CARD_HEIGHT - at.seen);
  else render();
}

function focusCard(place) {
  if (place < 0 || place >= count()) return;
  bringIntoView(place);
  state.nodes.get(place)?.firstChild.focus({preventScroll: true});
}

async function review(verdict, row, captions, note) {
  if (!row || kind() !== "rows" || state.busy) return false;
  state.busy = true;
  try {
    const kept = await ask("api/review", {
      method: "POST",
      body: JSON.stringify({number: row.number, key: row.key, of: row.of, verdict, captions, note}),
    });
    $("said").textContent = kept.verdict === "none" ? "taken back" : kept.verdict;
    $("said").className = kept.verdict;
    if (state.opened?.number === row.number) {
      const said = kept.verdict === "edited" || kept.verdict === "accepted" ? captions : {};
      const shown = {...state.opened.captions, ...said};
      state.opened = {...state.opened, verdict: kept.verdict, captions: shown};
    }
    if (state.stale) return true;
    await load([row.number]);  // as it is now
    if (state.opened?.number === row.number) {
      state.opened = state.rows.get(row.number) ?? state.opened;
    }
    return true;
  } catch (error) {
    $("said").className = "rejected";
    $("said").textContent = error.message;
    say(error.message);
    return false;
  } finally {
    state.busy = false;
  }
}

const written = () => Object.fromEntries(
  [...$("texts").querySelectorAll("textarea")].map((area) => [area.dataset.name, area.value]));

// What was typed is not dropped unasked.
const stay = () => kind() === "rows" && $("detail").open && state.opened !== null &&
  Object.entries(written()).some(([name, text]) =>
    text.trim() !== (state.opened.captions[name] ?? "").replace(/\r\n/g, "\n").trim()) &&
  !confirm("Drop what you have written?");

function turn(step) {
  if (!stay()) open(state.current + step);
}

function leave() {
  if (!stay()) $("detail").close();
}

async function judge(verdict) {
  const place = state.current, search = state.search;
  if ($("detail").open) {
    const done = await review(verdict, state.opened, written(), $("note").value);
    if (!done || state.current !== place || search !== state.search || !$("detail").open) return;
    if (verdict === "none") open(place);
    else if (place + 1 < count() && !state.stale) open(place + 1);
  } else if ($("cards").contains(document.activeElement)) {
    const row = rowAt(place);
    await review(verdict, row, row?.captions ?? {}, row?.note ?? "");
  }
}

// -- charts -----------------------------------------------------------------------------------

let chartsAsked = 0, charts = null, charting = false;

async function showCharts(fresh) {
  if (fresh) $("charts").replaceChildren(element("p", "Counting…"));
  if (!charting && (fresh || Date.now() - chartsAsked > 15_000)) {
    charting = true;
    try {
      charts = await ask("api/charts");
    } catch (error) {
      $("charts").replaceChildren(element("p", error.message));
      return;
    } finally {
      charting = false;
      chartsAsked = Date.now();
    }
  }
  if (charts && state.view === "charts") drawCharts($("charts"), charts, state.status?.run);
}

// -- what people do ---------------------------------------------------------------------------

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
  if (view === "charts") showCharts(true);
}

let typing = 0;
$("filters").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(restart, 250);
});
$("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  restart();
});
let resting = 0;
$("gallery").addEventListener("scroll", () => {
  requestAnimationFrame(scrolled);
  clearTimeout(resting);
  resting = setTimeout(() => { if (layout().ratio !== 1) goTo(state.top); }, 200);
}, {passive: true});
new ResizeObserver(render).observe($("gallery"));
$("more").addEventListener("click", restart);
for (const button of document.querySelectorAll("nav [data-view]")) {
  button.addEventListener("click", () => show(button.dataset.view));
}
for (const button of $("verdicts").children) {
  button.addEventListener("click", () => judge(button.dataset.verdict));
}
$("before").addEventListener("click", () => turn(-1));
$("after").addEventListener("click", () => turn(1));
$("close").addEventListener("click", leave);
$("detail").addEventListener("cancel", (event) => {
  event.preventDefault();
  leave();
});
$("detail").addEventListener("close", () => state.stale ? restart() : focusCard(state.current));
$("keys").addEventListener("click", () => $("help").showModal());
$("help-close").addEventListener("click", () => $("help").close());

document.addEventListener("keydown", (event) => {
  const target = event.target, inDetail = $("detail").open;
  if (event.repeat && !event.key.startsWith("Arrow")) return;
  if (event.ctrlKey && event.key === "Enter" && inDetail) { judge("edited"); return; }
  if (target.id === "note" && event.key === "Enter") {
    event.preventDefault();  // it would press the button that is focused next
    const verdict = state.opened.verdict;
    if (verdict !== "none") {
      review(verdict, state.opened, verdict === "rejected" ? {} : written(), $("note").value);
    }
    else if (kind() === "rows") $("said").textContent = "accept or reject, and the note is kept";
    $("close").focus();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (target.matches("input, textarea, select")) return;
  const columns = layout().columns, step = {
    j: 1, k: -1, ArrowRight: 1, ArrowLeft: -1,
    ArrowDown: inDetail ? 0 : columns, ArrowUp: inDetail ? 0 : -columns,
  }[event.key];
  if (state.view !== "charts" && step) {
    event.preventDefault();
    if (inDetail) turn(step);
    else if ($("cards").contains(document.activeElement)) focusCard(state.current + step);
    else focusCard(state.current);
    return;
  }
  const verdict = {a: "accepted", r: "rejected", u: "none"}[event.key];
  if (verdict && kind() === "rows" && state.view !== "charts") judge(verdict);
  else if (event.key === "e" && kind() === "rows" && count()) {
    event.preventDefault();
    (inDetail ? Promise.resolve() : open(state.current))
      .then(() => $("texts").querySelector("textarea")?.focus());
  } else if (event.key === "n" && kind() === "rows" && count()) {
    event.preventDefault();
    (inDetail ? Promise.resolve() : open(state.current)).then(() => $("note").focus());
  } else if (event.key === "/" && !inDetail) {
    event.preventDefault();
    $("text").focus();
  } else if (event.key === "?") $("help").showModal();
});

poll();
