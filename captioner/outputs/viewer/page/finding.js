// Searching and filtering. The search rests when enough is found for what is seen.

import {$, ask, counted, element, number} from "./dom.js";
import {goTo, hasEnough, render} from "./gallery.js";
import {showSelection} from "./selection.js";
import {kind, lines, state} from "./state.js";

const FILTERS = {
  rows: ["text", "verdict", "flag", "repeated", "opening", "prompt", "model", "shortest", "longest"],
  failures: ["text", "code"],
};

export function query() {
  const asked = new URLSearchParams();
  for (const name of FILTERS[kind()]) {
    if ($(name).value.trim()) asked.set(name, $(name).value.trim());
  }
  return asked;
}

export const indexed = () => state.status?.indexed ?? 0;

export const needsIndex = () =>
  ["repeated", "opening", "prompt", "model"].some((name) => query().has(name));

export function restart() {
  state.search += 1;
  state.searching = state.stale = state.all = false;
  state.rows.clear();
  state.asked = new Set();
  state.nodes.forEach((node) => node.remove());
  state.nodes.clear();
  state.current = 0;
  state.total = lines();
  state.looked = 0;
  state.matching = null;
  $("more").hidden = true;
  const anything = query().toString() !== "";
  // Captions that are indexed later come before what is found, or repeat what was passed over.
  state.early = needsIndex() && indexed() < state.total &&
    ($("newest").checked || query().has("repeated"));
  state.found = anything ? [] : null;
  state.next = anything && state.total ? ($("newest").checked ? state.total - 1 : 0) : null;
  state.end = state.next ?? 0;
  goTo(0);
  tell();
  if (anything) look();
  render();
}

export async function look() {
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
      for (const found of some.numbers) state.found.push(found);
      state.matching = some.total ?? state.matching;
      state.next = some.next;
      state.end = some.end;
      state.looked += some.looked_at;
      tell();
      render();
      if (hasEnough() && !state.all) break;
    }
  } catch (error) {
    say(error.message);
  } finally {
    if (search === state.search) state.searching = false;
  }
}

// Look for everything that fits, and return its numbers.
export async function everything() {
  state.all = true;
  const search = state.search;
  while (state.found && state.next !== null && search === state.search) {
    await look();
    await new Promise((resolve) => setTimeout(resolve, 50));  // another one may be looking
  }
  state.all = false;
  return state.found ? [...state.found] : Array.from({length: state.total}, (_, at) => at);
}

export function say(text) {
  $("found").textContent = text;
}

export function tell() {
  showSelection();
  if (!state.found) {
    say(state.total ? "" : state.view === "failures" ? "No failures." : "No captions yet.");
    return;
  }
  if (needsIndex() && state.status?.indexed === null) {
    say("This filter needs an index: space on the disk, and an SQLite with full-text search.");
    return;
  }
  if (needsIndex() && indexed() < state.total) {
    const all = counted(indexed(), "caption");
    say(`${number(state.found.length)} found in the ${all} indexed so far`);
    return;
  }
  const share = state.total ? Math.round(100 * Math.min(1, state.looked / state.total)) : 100;
  if (state.next === null) say(`${number(state.found.length)} found`);
  else if (state.matching !== null) say(`${number(state.matching)} found`);
  else say(`${number(state.found.length)} found so far, ${share} % searched`);
}

let chosenAt = -1;

// Offer the openings, prompts and models that are frequent, when there are many new rows.
export async function offerChoices() {
  const now = indexed();
  if (now === chosenAt || (now < chosenAt * 1.1 && now < lines())) return;
  chosenAt = now;
  const found = await ask("api/choices");
  for (const [name, choices] of Object.entries(found)) {
    const select = $(name), value = select.value;
    select.replaceChildren(select.options[0], ...choices.map((choice) => {
      const option = element("option", `${choice.text || "(none)"} (${number(choice.rows)})`);
      option.value = choice.value;
      return option;
    }));
    select.value = choices.some((choice) => choice.value === value) ? value : "";
  }
}
