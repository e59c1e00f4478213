// Selected captions, and what is done to all of them at once.

import {$, counted, element, number, send} from "./dom.js";
import {everything, say} from "./finding.js";
import {reload, render} from "./gallery.js";
import {generation, kind, numberAt, state} from "./state.js";

const MOST = 50_000;
let last = 0;  // the place that was selected last

// Select the caption at a place or take it out; with a range, all from the last one on.
export function select(place, range = false) {
  const on = !state.selected.has(numberAt(place));
  const [from, to] = range ? [Math.min(last, place), Math.max(last, place)] : [place, place];
  for (let at = from; at <= to; at += 1) {
    if (on) state.selected.add(numberAt(at));
    else state.selected.delete(numberAt(at));
  }
  last = place;
  showSelection();
  render();
}

export async function selectAll() {
  const numbers = await everything();
  if (numbers.length > MOST) {
    say(`${number(numbers.length)} captions are too many to select; ` +
      `filter them: at most ${number(MOST)} can be changed at once`);
    return;
  }
  state.selected = new Set(numbers);
  showSelection();
  render();
}

export function clearSelection() {
  state.selected.clear();
  showSelection();
  render();
}

export function showSelection() {
  $("selection").hidden = kind() !== "rows" || state.view === "charts" || !state.selected.size;
  $("selected").textContent = `${number(state.selected.size)} selected`;
}

export const about = () => ({numbers: [...state.selected], generation: generation()});

export async function judgeSelected(verdict) {
  try {
    const {records} = await send("api/judge", {...about(), verdict});
    say(`${counted(records, "caption")} ${verdict}; z undoes it`);
    reload();
  } catch (error) {
    say(error.message);
  }
}

// -- find and replace -------------------------------------------------------------------------

const edit = () => ({
  ...about(),
  find: $("find").value,
  replacement: $("replacement").value,
  is_pattern: $("pattern").checked,
  prefix: $("prefix").value,
  suffix: $("suffix").value,
});

export function openEdit() {
  $("changes").replaceChildren();
  $("edited").textContent = `${counted(state.selected.size, "caption")} selected`;
  $("apply").disabled = true;
  $("edit").showModal();
}

export async function preview() {
  try {
    const found = await send("api/edit", edit());
    const more = found.captions - found.changes.length;
    $("edited").textContent = `${counted(found.captions, "caption")} would change` +
      (more ? `; the first ${found.changes.length} are shown` : "");
    $("changes").replaceChildren(...found.changes.map((change) => {
      const item = element("li", `#${change.number + 1} `);
      item.append(element("del", change.before), " ", element("ins", change.after));
      return item;
    }));
    $("apply").textContent = `Change ${counted(found.captions, "caption")}`;
    $("apply").disabled = found.captions === 0;
  } catch (error) {
    $("edited").textContent = error.message;
    $("apply").disabled = true;
  }
}

export async function apply() {
  $("apply").disabled = true;
  try {
    const found = await send("api/edit", {...edit(), apply: true});
    $("edit").close();
    say(`${counted(found.captions, "caption")} changed; z undoes it`);
    reload();
  } catch (error) {
    $("edited").textContent = error.message;
  }
}
