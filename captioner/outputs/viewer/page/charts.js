"use strict";
// Bars and lines as SVG, each with its numbers in words: no library, no inline styles.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 720, HEIGHT = 160;

function number(value) {
  if (Math.abs(value) >= 100 || Number.isInteger(value)) return Math.round(value).toLocaleString("en");
  return value.toPrecision(3);
}

function drawing(label) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  return svg;
}

function section(heading, svg, from, to, top) {
  const part = element("section");
  part.append(element("h3", heading));
  if (top !== undefined) part.append(element("p", `highest: ${top}`, "axis"));
  part.append(svg);
  const axis = element("div", "", "axis");
  axis.append(element("span", from), element("span", to));
  part.append(axis);
  return part;
}

// Bars: pairs of an upper bound and a count.
function bars(heading, pairs, unit) {
  const most = Math.max(1, ...pairs.map(([, count]) => count));
  const end = pairs[pairs.length - 1][0];
  const svg = drawing(`${heading}: up to ${number(end)} ${unit}, ${number(most)} in the highest bar`);
  pairs.forEach(([bound, count], at) => {
    const bar = document.createElementNS(SVG, "rect");
    const width = WIDTH / pairs.length;
    const height = (HEIGHT - 4) * count / most;
    bar.setAttribute("x", at * width + 1);
    bar.setAttribute("y", HEIGHT - height);
    bar.setAttribute("width", Math.max(1, width - 2));
    bar.setAttribute("height", height);
    const title = document.createElementNS(SVG, "title");
    title.textContent = `up to ${number(bound)} ${unit}: ${number(count)}`;
    bar.append(title);
    svg.append(bar);
  });
  return section(heading, svg, "0", `${number(end)} ${unit}`, number(most));
}

// A line: pairs of a time in seconds and a value.
function line(heading, pairs, unit) {
  const most = Math.max(...pairs.map(([, value]) => value), 1e-9);
  const first = pairs[0][0], last = pairs[pairs.length - 1][0];
  const path = pairs.map(([at, value], index) => {
    const x = last > first ? WIDTH * (at - first) / (last - first) : 0;
    return `${index ? "L" : "M"}${x.toFixed(1)} ${(HEIGHT - 3 - (HEIGHT - 8) * value / most).toFixed(1)}`;
  }).join("");
  const now = pairs[pairs.length - 1][1];
  const svg = drawing(`${heading}: ${number(now)} ${unit} now, at most ${number(most)}`);
  const drawn = document.createElementNS(SVG, "path");
  drawn.setAttribute("d", path);
  svg.append(drawn);
  return section(`${heading}: ${number(now)} ${unit}`, svg, `${number(first)} s`, `${number(last)} s`,
    `${number(most)} ${unit}`);
}

function table(pairs) {
  const made = element("table"), body = element("tbody");
  for (const [name, value] of pairs) {
    const row = element("tr"), head = element("th", name);
    head.setAttribute("scope", "row");
    row.append(head, element("td", value));
    body.append(row);
  }
  made.append(body);
  return made;
}

function counted(pairs) {
  return pairs.map(([name, count]) => `${name} ${number(count)}`).join(" · ");
}

function spread(found) {
  return `${number(found.min)} to ${number(found.max)}, median ${number(found.median)}, ` +
    `mean ${number(found.mean)}, 95th percentile ${number(found.p95)}`;
}

function drawCharts(into, found, run) {
  const parts = [];
  if (run && run.spans.length > 1) {
    const over = (name) => run.spans.map((span) => [span.at, span[name]]);
    parts.push(line("Records a second", over("rate"), "/s"));
    parts.push(line("Latency", over("latency"), "s"));
    parts.push(line("Tokens a second", over("tokens"), "/s"));
  }
  const quality = found.quality;
  if (quality.histogram.length) {
    parts.push(bars("Caption length", quality.histogram, "characters"));
  }
  const named = {latency: ["Latency of a caption", "s"], prompt_tokens: ["Prompt tokens", "tokens"],
    completion_tokens: ["Completion tokens", "tokens"]};
  for (const [name, pairs] of Object.entries(found.histograms)) {
    parts.push(bars(named[name][0], pairs, named[name][1]));
  }
  if (!run && !Object.keys(found.histograms).length) {
    parts.push(element("p", "Rate, latency and tokens appear during a run (--view), or " +
      "if the rows contain them (--with usage,latency)."));
  }
  const facts = element("section");
  facts.append(element("h3", "Statistics"), table([
    ["captions", found.rows > quality.captions * 1.5
      ? `${number(quality.captions)} of ${number(found.rows)} sampled` : number(quality.captions)],
    ["characters", spread(quality.chars)],
    ["words", spread(quality.words)],
    ["word-for-word duplicates", number(quality.duplicates)],
    ["near-duplicates", `${number(quality.near_duplicates)} of a sample of ${number(quality.sample)}`],
    ["refusals", number(quality.refusals)],
    ["distinct words", number(quality.vocabulary)],
    ["repeated openings", counted(quality.openings) || "none"],
    ["frequent words", counted(quality.top_words) || "none"],
    ["languages of a sample", counted(Object.entries(quality.languages)) ||
      "unknown (pip install py3langid)"],
  ]));
  parts.push(facts);
  into.replaceChildren(...parts);
}
