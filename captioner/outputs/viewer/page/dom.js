// The elements of the page and the requests to its server. What the server sends is put in as
// text, never as HTML.

export const $ = (id) => document.getElementById(id);

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function button(text, label, onClick, className) {
  const made = element("button", text, className);
  made.type = "button";
  if (label) made.setAttribute("aria-label", label);
  made.addEventListener("click", onClick);
  return made;
}

export async function ask(path, options) {
  const reply = await fetch(path, options);
  const found = await reply.json();
  if (!reply.ok) throw new Error(found.error || `the server returned ${reply.status}`);
  return found;
}

export const send = (path, body) => ask(path, {method: "POST", body: JSON.stringify(body)});

export const number = (value) => Number.isInteger(value) || Math.abs(value) >= 100
  ? Math.round(value).toLocaleString("en") : value.toPrecision(3);

export const counted = (count, what) => `${number(count)} ${what}${count === 1 ? "" : "s"}`;
