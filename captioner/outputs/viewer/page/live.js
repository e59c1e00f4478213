// What is new on the server: counts, rows and the state of a run.

import {$, ask, counted, element, number} from "./dom.js";
import {showAgain} from "./again.js";
import {drawCharts} from "./charts.js";
import {indexed, look, needsIndex, offerChoices, restart, tell} from "./finding.js";
import {render} from "./gallery.js";
import {left, showLeft} from "./review.js";
import {generation, lines, state} from "./state.js";

export async function poll() {
  let wait = 5_000;
  try {
    const before = generation();
    const first = state.status === null;
    state.status = await ask("api/status");
    showCounts();
    showLeft();
    if (before !== generation()) state.selected.clear();
    if (before !== generation() && $("detail").open) state.stale = true;
    else if (first || before !== generation()) restart();
    else grow();
    await offerChoices();
    if (state.view === "charts" && (state.status.run || Date.now() - chartsAsked > CHARTS_MS)) {
      showCharts(false);
    }
    const indexing = state.status.indexed !== null && indexed() < state.status.rows;
    showAgain();
    const again = state.status.again.running;
    if (state.status.running || state.status.run || indexing || again) wait = 1_000;
  } catch (error) {
    $("counts").textContent = "The run has ended, or the page's server was stopped: " +
      `captioner view ${state.status?.output ?? "OUT"} opens this page again.`;
  }
  setTimeout(poll, document.hidden ? 5_000 : wait);
}

function grow() {
  const more = lines() - state.total;
  const waits = state.found && state.next === null && state.end < state.total;  // for the index
  if (state.view === "charts" || state.stale) return;
  const newest = $("newest").checked;
  // With the newest first, new rows move all others, so they wait while a card is in use.
  const looking = state.top > 60 || $("cards").contains(document.activeElement) || $("detail").open;
  if (state.early && indexed() >= lines()) {
    state.early = false;
    if (looking) invite("all are indexed: search again");
    else restart();
    return;
  }
  if (needsIndex()) tell();
  if (more <= 0 && !waits) return;
  if (state.found) {
    if (newest) { offer(more); return; }
    state.total = lines();
    state.matching = null;
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
  if (more > 0) invite(`${number(more)} new`);
}

function invite(text) {
  $("more").textContent = text;
  $("more").hidden = false;
}

function showCounts() {
  const now = state.status, verdicts = now.verdicts, data = now.input || now.output;
  $("title").textContent = now.model ? `${data}, captioned by ${now.model}` : data;
  document.title = `${data} – captioner`;
  const facts = [now.output, counted(now.rows, "caption"), `${number(now.failures)} failed`];
  for (const verdict of ["accepted", "edited", "rejected"]) {
    if (verdicts[verdict]) facts.push(`${number(verdicts[verdict])} ${verdict}`);
  }
  if (verdicts.again) facts.push(`${number(verdicts.again)} to caption again`);
  if (Object.keys(verdicts).length) facts.push(`${number(left())} left`);
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
    option.textContent = `${code} (${number(found)})`;
  }
}

const CHARTS_MS = 15_000;
let chartsAsked = 0, charts = null, charting = false;

export async function showCharts(fresh, onLength) {
  showCharts.onLength = onLength ?? showCharts.onLength;
  if (fresh) $("charts").replaceChildren(element("p", "Counting…"));
  if (!charting && (fresh || Date.now() - chartsAsked > CHARTS_MS)) {
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
  if (charts && state.view === "charts") {
    drawCharts($("charts"), charts, state.status?.run, showCharts.onLength);
  }
}
