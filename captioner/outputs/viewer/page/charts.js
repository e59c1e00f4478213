// Charts with axes, drawn by uPlot, each with its numbers in words and in a table.

import {button, counted, element, number} from "./dom.js";

const HEIGHT = 220;
const STEPS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].flatMap((one) => [one, 2 * one, 5 * one]);

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axis(label) {
  return {
    label,
    labelFont: "13px system-ui, sans-serif",
    font: "12px system-ui, sans-serif",
    stroke: () => color("--soft"),
    grid: {stroke: () => color("--line"), width: 1},
    ticks: {stroke: () => color("--line"), width: 1},
    values: (_, values) => values.map((value) => value?.toLocaleString("en") ?? ""),
  };
}

// Add a chart to a part of the page that is seen: uPlot needs its width.
function plot(part, words, x, y, xs, ys, series) {
  const box = element("div", undefined, "plot");
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", words);
  part.append(box);
  const chart = new uPlot({
    width: Math.max(200, box.clientWidth),
    height: HEIGHT,
    legend: {show: false},
    cursor: {drag: {x: false, y: false}},
    scales: {x: {time: false}, y: {range: (_, low, high) => [0, Math.max(high, 1e-9) * 1.05]}},
    axes: [axis(x), {...axis(y), size: 64, ...(y === "captions" ? {incrs: STEPS} : {})}],
    series: [{}, {stroke: () => color("--bar"), width: 2, points: {show: false}, ...series}],
  }, [xs, ys], box);
  return {box, chart};
}

function section(into, heading) {
  const part = element("section");
  part.append(element("h3", heading));
  into.append(part);
  return part;
}

// Bars: pairs of an upper bound and a count.
function bars(into, heading, pairs, unit, onBar) {
  const end = pairs[pairs.length - 1][0], width = pairs[0][0];
  const most = Math.max(...pairs.map(([, count]) => count));
  const part = section(into, heading);
  const {box, chart} = plot(part,
    `${heading}: up to ${number(end)} ${unit}, ${number(most)} in the highest bar`,
    unit, "captions", pairs.map(([bound]) => bound - width / 2), pairs.map(([, count]) => count),
    {
      paths: uPlot.paths.bars({size: [0.9]}),
      fill: () => color("--bar"),
      width: 0,
    });
  chart.setScale("x", {min: 0, max: end});
  if (onBar) {
    box.classList.add("choosing");
    box.querySelector(".u-over").addEventListener("click", (event) => {
      const at = Math.floor(chart.posToVal(event.offsetX, "x") / width);
      if (pairs[at]) onBar(...between(pairs, at, width));
    });
  }
  const details = element("details"), body = element("tbody");
  pairs.forEach(([bound, count], at) => {
    const row = element("tr"), [low, high] = between(pairs, at, width);
    const head = element("th");
    head.scope = "row";
    const words = `${number(low)} to ${number(high)} ${unit}`;
    head.append(onBar ? button(words, "", () => onBar(low, high)) : words);
    row.append(head, element("td", counted(count, "caption")));
    body.append(row);
  });
  const table = element("table");
  table.append(body);
  details.append(element("summary", onBar ? "Numbers; a click shows the captions" : "Numbers"), table);
  part.append(details);
}

// The values of a bar: a value that is a bound belongs to the next one.
function between(pairs, at, width) {
  const whole = Number.isInteger(width), bound = pairs[at][0];
  return [bound - width, whole ? bound - 1 : bound];
}

// A line: pairs of a time in seconds and a value.
function line(into, heading, pairs, unit) {
  const most = Math.max(...pairs.map(([, value]) => value), 0);
  const now = pairs[pairs.length - 1][1];
  plot(section(into, `${heading}: ${number(now)} ${unit}`),
    `${heading}: ${number(now)} ${unit} now, at most ${number(most)}`,
    "seconds", unit, pairs.map(([at]) => at), pairs.map(([, value]) => value), {});
}

function table(pairs) {
  const made = element("table", undefined, "facts"), body = element("tbody");
  for (const [name, value] of pairs) {
    const row = element("tr"), head = element("th", name);
    head.setAttribute("scope", "row");
    row.append(head, element("td", value));
    body.append(row);
  }
  made.append(body);
  return made;
}

function listed(pairs) {
  return pairs.map(([name, count]) => `${name} (${number(count)})`).join(" · ");
}

function spread(found) {
  return `${number(found.min)} to ${number(found.max)}, median ${number(found.median)}, ` +
    `mean ${number(found.mean)}, 95th percentile ${number(found.p95)}`;
}

export function drawCharts(into, found, run, onLength) {
  const open = [...into.querySelectorAll("details")].map((one) => one.open);
  const top = into.scrollTop;
  into.replaceChildren();
  if (run && run.spans.length > 1) {
    const over = (name) => run.spans.map((span) => [span.at, span[name]]);
    line(into, "Records a second", over("rate"), "records/s");
    line(into, "Latency", over("latency"), "s");
    line(into, "Tokens a second", over("tokens"), "tokens/s");
  }
  const quality = found.quality;
  if (quality.histogram.length) {
    bars(into, "Caption length", quality.histogram, "characters", onLength);
  }
  const named = {latency: ["Latency of a caption", "seconds"], prompt_tokens: ["Prompt tokens", "tokens"],
    completion_tokens: ["Completion tokens", "tokens"]};
  for (const [name, pairs] of Object.entries(found.histograms)) {
    bars(into, named[name][0], pairs, named[name][1]);
  }
  if (!run && !Object.keys(found.histograms).length) {
    into.append(element("p", "Rate, latency and tokens appear during a run (--view), or " +
      "if the rows contain them (--with usage,latency)."));
  }
  section(into, "Statistics").append(table([
    ["captions", found.rows > quality.captions * 1.5
      ? `${number(quality.captions)} of ${number(found.rows)} sampled` : number(quality.captions)],
    ["characters", spread(quality.chars)],
    ["words", spread(quality.words)],
    ["word-for-word duplicates", number(quality.duplicates)],
    ["near-duplicates", `${number(quality.near_duplicates)} of a sample of ${number(quality.sample)}`],
    ["refusals", number(quality.refusals)],
    ["distinct words", number(quality.vocabulary)],
    ["repeated openings", listed(quality.openings) || "none"],
    ["frequent words", listed(quality.top_words) || "none"],
    ["languages of a sample", listed(Object.entries(quality.languages)) ||
      "unknown (pip install py3langid)"],
  ]));
  into.querySelectorAll("details").forEach((one, at) => { one.open = open[at] ?? false; });
  into.scrollTop = top;
}
