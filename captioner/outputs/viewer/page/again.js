// Captioning the selected captions again, here or by a command.

import {$, counted, send} from "./dom.js";
import {reload} from "./gallery.js";
import {about} from "./selection.js";
import {state} from "./state.js";

let typing = 0;
let asked = 0;  // counts commands that were asked for: an older reply is dropped
const question = () => ({question: $("question").value});

export function openAgain() {
  $("marked").textContent = "";
  $("again-dialog").showModal();
  $("question").focus();
  showCommand();
}

export function typedQuestion() {
  clearTimeout(typing);
  asked += 1;
  $("start").disabled = true;
  typing = setTimeout(showCommand, 250);
}

async function showCommand() {
  const captions = counted(state.selected.size, "caption"), mine = asked += 1;
  try {
    const found = await send("api/command", question());
    if (mine !== asked) return;
    showText(found.command);
    $("where").textContent = found.obstacle
      ? `${captions} selected. It cannot be started from here: ${found.obstacle}.`
      : `${captions} selected. What is marked goes to ${found.model || "the model"} at ` +
        `${found.endpoint}, within the output's budget.`;
    $("start").disabled = Boolean(found.obstacle);
  } catch (error) {
    if (mine !== asked) return;
    showText("");
    $("where").textContent = `${captions} selected. There is no command: ${error.message}.`;
    $("start").disabled = true;
  }
}

function showText(command) {
  $("command").textContent = command;
  $("command").hidden = $("command-title").hidden = !command;
}

// Mark the selected captions; return whether that worked.
export async function markSelected() {
  try {
    await send("api/judge", {...about(), verdict: "again"});
    $("marked").textContent =
      `${counted(state.selected.size, "caption")} marked; z undoes it when this is closed.`;
    reload();
    return true;
  } catch (error) {
    $("marked").textContent = error.message;
    return false;
  }
}

export async function startAgain() {
  $("start").disabled = true;
  if (!await markSelected()) return;
  try {
    state.status.again = await send("api/again", question());
    showAgain();
    $("again-dialog").close();
  } catch (error) {
    $("marked").textContent = `Marked, but not started: ${error.message}.`;
  }
}

// What the run that was started here does, or how it ended.
export function showAgain() {
  const {running, said} = state.status.again;
  const text = running ? `Captioning again. ${said.at(-1) ?? ""}` : said.join("\n");
  if ($("redone").textContent !== text) $("redone").textContent = text;
  $("redone").hidden = !text;
}
