// The page of two outputs. Which caption is whose is known to the server alone.

import {$, ask, counted, element, number, send} from "./dom.js";

let pair = null;
let busy = false;
let skipped = 0;  // pairs that come again at the end
const voted = [];  // pairs, for undo

const about = (one) => ({place: one.place, first: one.first, second: one.second});

function showCounts(found) {
  const facts = [`${number(found.voted)} voted`, `${number(found.left)} left`];
  if (found.equal) facts.push(`${number(found.equal)} with equal captions`);
  if (found.hidden) facts.push(`${number(found.hidden)} that cannot be shown`);
  if (found.by_image) facts.push("paired by image");
  $("counts").textContent = facts.join(" · ");
}

// Show the next pair without a vote.
async function next(from) {
  const began = from;
  let found;
  do {
    found = await ask(`api/pair?from=${from}`);
    showCounts(found);
    from = found.more ?? from;
  } while (!found.pair && found.more);
  pair = found.pair;
  $("pair").hidden = !pair;
  for (const button of document.querySelectorAll("#main [data-better], #skip")) {
    button.disabled = !pair;
  }
  $("undo").disabled = !voted.length;
  if (pair) show();
  else if (skipped || began !== "0") {  // more pairs may have come meanwhile
    skipped = 0;
    await next("0");
  } else if (found.pairs && !found.left) {
    $("said").textContent = "All pairs are decided. Result shows which output is better.";
  } else {
    $("said").textContent = found.pairs
      ? "No more pairs yet." : "The outputs have no record and no image in common.";
    setTimeout(() => { if (!pair) act(() => next("0")); }, 2_000);  // they may still be read
  }
}

function show() {
  const image = element("img");
  image.alt = pair.image ? `Image of #${pair.number + 1}: ${pair.image}` : "";
  image.src = `image/rows/${pair.generation}/${pair.number}/0/large`;
  image.addEventListener("error", async () => {
    const why = element("p", "the image cannot be shown");
    image.replaceWith(why);
    try { await ask(image.getAttribute("src")); } catch (error) { why.textContent = error.message; }
  });
  $("image").replaceChildren(pair.image ? image : element("p", "no image"));
  for (const [at, id] of ["caption-1", "caption-2"].entries()) {
    $(id).replaceChildren(...pair.captions[at].map((text) => element("p", text)));
  }
  $("main").scrollTop = 0;
}

// Do one thing at a time.
async function act(what) {
  if (busy) return;
  busy = true;
  $("said").textContent = "";
  try {
    await what();
  } catch (error) {
    $("said").textContent = error.message;
  } finally {
    busy = false;
  }
}

const vote = (better) => act(async () => {
  if (!pair) return;
  const decided = pair;
  await send("api/vote", {...about(decided), better});
  voted.push(decided);
  await next(decided.next);
});

const skip = () => act(async () => {
  if (!pair) return;
  skipped += 1;
  await next(pair.next);
});

const undo = () => act(async () => {
  const last = voted.pop();
  if (!last) return;
  await send("api/vote", {...about(last), better: "none"});
  await next(last.place);
  $("said").textContent = "The last vote is taken back.";
});

async function showResult() {
  $("adopted").textContent = "";
  $("votes").replaceChildren();
  try {
    const found = await ask("api/result");
    $("summary").textContent = found.summary;
    $("first").textContent = found.first;
    const lines = [
      [`${found.first} is better`, found.votes.first],
      [`${found.second} is better`, found.votes.second],
      ["equally good", found.votes.equal],
    ];
    $("votes").append(...lines.map(([name, count]) => {
      const row = element("tr"), head = element("th", name);
      head.scope = "row";
      row.append(head, element("td", counted(count, "vote")));
      return row;
    }));
  } catch (error) {
    $("summary").textContent = error.message;
  }
  if (!$("result").open) $("result").showModal();
}

async function adopt() {
  try {
    const found = await send("api/adopt", {});
    $("adopted").textContent =
      `${counted(found.edited ?? 0, "caption")} replaced, ${number(found.accepted ?? 0)} accepted.`;
  } catch (error) {
    $("adopted").textContent = error.message;
  }
}

for (const button of document.querySelectorAll("[data-better]")) {
  button.addEventListener("click", () => vote(button.dataset.better));
}
for (const [id, does] of Object.entries({
  skip, undo, adopt, "show-result": showResult, "result-close": () => $("result").close(),
  keys: () => $("help").showModal(), "help-close": () => $("help").close(),
})) $(id).addEventListener("click", () => does());

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  if ($("result").open || $("help").open) return;
  const better = {
    1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", 0: "equal", ArrowDown: "equal",
  }[event.key];
  if (better) {
    event.preventDefault();
    vote(better);
  } else if (event.key === "s") skip();
  else if (event.key === "z") undo();
  else if (event.key === "?") $("help").showModal();
});

act(() => next("0"));
