// What the page knows. All modules read it, and change what is theirs.

import {$} from "./dom.js";

export const state = {
  view: "rows",
  status: null,
  total: 0,           // lines that the gallery knows of
  found: null,        // numbers of those that fit, where something is looked for
  matching: null,     // how many fit in all, where the index knows
  next: null,         // where to go on looking; null at the end
  end: 0,             // the line after the last one that was looked at
  looked: 0,
  search: 0,          // counts searches: what an older one finds is dropped
  searching: false,
  early: false,       // what is found may change when all is indexed
  all: false,         // look for everything, not only for what is seen
  rows: new Map(),    // by number
  asked: new Set(),
  selected: new Set(),  // numbers
  current: 0,         // place in the gallery
  opened: null,
  busy: false,        // a review is on its way
  stale: false,       // the lines are in another order, and a caption is open
  top: 0,             // what is seen, in pixels of the gallery as it would be
  scrolled: 0,        // where the browser was at the last look
  nodes: new Map(),   // by place
};

export const kind = () => state.view === "failures" ? "failures" : "rows";
export const lines = () => state.status ? state.status[kind()] : 0;
export const generation = () =>
  state.status ? state.status[kind() === "rows" ? "generation" : "failures_generation"] : 0;
export const count = () => state.found ? state.found.length : state.total;
export const numberAt = (place) =>
  state.found ? state.found[place] : $("newest").checked ? state.total - 1 - place : place;
export const inWords = (verdict) => verdict === "again" ? "to caption again" : verdict;
export const rowAt = (place) => state.rows.get(numberAt(place));
