// Reviews of one caption, and undoing.

import {$, send} from "./dom.js";
import {open, written} from "./detail.js";
import {say} from "./finding.js";
import {focusCard, load, reload} from "./gallery.js";
import {count, kind, rowAt, state} from "./state.js";

export async function review(verdict, row, captions, note) {
  if (!row || kind() !== "rows" || state.busy) return false;
  state.busy = true;
  try {
    const kept = await send("api/review",
      {number: row.number, key: row.key, of: row.of, verdict, captions, note});
    $("said").textContent = kept.verdict === "none" ? "taken back" : kept.verdict;
    $("said").className = kept.verdict;
    if (state.opened?.number === row.number) {
      const said = kept.verdict === "edited" || kept.verdict === "accepted" ? captions : {};
      const shown = {...state.opened.captions, ...said};
      state.opened = {...state.opened, verdict: kept.verdict, captions: shown};
    }
    countLeft(row.verdict, kept.verdict);
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

function countLeft(before, after) {
  const verdicts = state.status?.verdicts ?? {};
  if (before !== "none") verdicts[before] -= 1;
  if (after !== "none") verdicts[after] = (verdicts[after] ?? 0) + 1;
  showLeft();
}

export function left() {
  const said = Object.values(state.status?.verdicts ?? {}).reduce((sum, one) => sum + one, 0);
  return Math.max(0, (state.status?.rows ?? 0) - said);
}

export function showLeft() {
  $("left").textContent = `${left().toLocaleString("en")} left`;
}

// Review what is open or chosen, and go on to the next.
export async function judge(verdict) {
  const place = state.current, search = state.search;
  if ($("detail").open) {
    const done = await review(verdict, state.opened, written(), $("note").value);
    if (!done || state.current !== place || search !== state.search || !$("detail").open) return;
    if (verdict === "none") open(place);
    else if (place + 1 < count() && !state.stale) open(place + 1);
  } else if ($("cards").contains(document.activeElement)) await judgeCard(place, verdict);
}

export async function judgeCard(place, verdict) {
  const row = rowAt(place), search = state.search;
  if (!await review(verdict, row, row?.captions ?? {}, row?.note ?? "")) return;
  if (search === state.search && !$("detail").open) {
    focusCard(verdict === "none" ? place : Math.min(place + 1, count() - 1));
  }
}

export async function undo() {
  if (state.busy) return;
  state.busy = true;
  try {
    const {records} = await send("api/undo", {});
    say(records ? `${records.toLocaleString("en")} undone` : "there is nothing to undo");
    reload();
    if ($("detail").open) open(state.current);
  } catch (error) {
    say(error.message);
  } finally {
    state.busy = false;
  }
}
