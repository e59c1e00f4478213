// The dialog with one caption.

import {$, button, element} from "./dom.js";
import {bringIntoView, image, load} from "./gallery.js";
import {showLeft} from "./review.js";
import {count, inWords, kind, numberAt, rowAt, state} from "./state.js";

export async function open(place, toEdit = false) {
  if (place < 0 || place >= count()) return;
  const search = state.search;
  state.current = place;
  if (!rowAt(place)) await load([numberAt(place)]);
  const row = rowAt(place);
  if (!row || state.current !== place || search !== state.search) return;
  state.opened = row;
  const failed = kind() === "failures";
  $("detail-title").textContent =
    failed ? `${row.code}, line ${row.line ?? "?"}` : `#${row.number + 1}`;
  $("detail").classList.remove("zoomed");
  $("images").replaceChildren(...(row.images.length
    ? row.images.flatMap((where, which) => [zoomable(row, which), element("p", where)])
    : [element("p", "no image")]));
  $("texts").replaceChildren(...(failed ? [element("p", row.message)]
    : Object.entries(row.captions).map(([name, text]) => {
      const label = element("label", name), area = element("textarea");
      area.value = text;
      area.dataset.name = name;
      label.append(area);
      return label;
    })));
  for (const id of ["note-label", "verdicts", "left"]) $(id).hidden = failed;
  $("note").value = failed ? "" : row.note;
  $("said").textContent = failed || row.verdict === "none" ? "" : inWords(row.verdict);
  $("said").className = row.verdict ?? "";
  showLeft();
  const facts = [...Object.entries(row.extras ?? {}), ...Object.entries(row.fields)];
  if (!Object.values(row.fields).includes(row.prompt)) facts.unshift(["prompt", row.prompt]);
  if (row.model) facts.unshift(["model", row.model]);
  if (failed) facts.push(["attempts", row.attempts]);
  $("members").replaceChildren(...facts.filter(([, value]) => value !== "" && value !== null)
    .flatMap(([name, value]) => [element("dt", name),
      element("dd", typeof value === "object" ? JSON.stringify(value) : String(value))]));
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
  bringIntoView(place);
  if (toEdit) $("texts").querySelector("textarea")?.focus();
}

// An image that a click shows in its own size, and a second click small again.
function zoomable(row, which) {
  const made = button("", `Zoom image ${which + 1} of #${row.number + 1}`, () => {
    const zoomed = $("detail").classList.toggle("zoomed");
    made.setAttribute("aria-pressed", zoomed);
    made.replaceChildren(image(row, which, zoomed ? "full" : "large"));
  }, "zoom");
  made.setAttribute("aria-pressed", false);
  made.append(image(row, which, "large"));
  return made;
}

export const written = () => Object.fromEntries(
  [...$("texts").querySelectorAll("textarea")].map((area) => [area.dataset.name, area.value]));

// What was typed is not dropped unasked.
const stay = () => kind() === "rows" && $("detail").open && state.opened !== null &&
  Object.entries(written()).some(([name, text]) =>
    text.trim() !== (state.opened.captions[name] ?? "").replace(/\r\n/g, "\n").trim()) &&
  !confirm("Drop what you have written?");

export function turn(step) {
  if (!stay()) open(state.current + step);
}

export function leave() {
  if (!stay()) $("detail").close();
}
