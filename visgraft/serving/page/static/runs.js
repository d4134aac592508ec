// Runs as they train: a list, and of the chosen one its curves and its answers, looked at again every other second.
import { ask } from "./api.js";
import { chart } from "./curves.js";
import { made, shown, since } from "./made.js";

const EVERY_MS = 2000;
const STATES = { training: "training", stopped: "stopped", finished: "finished", failed: "failed", unreadable: "cannot be read" };

export function runsView(about, tell) {
  const list = made("ul", { className: "runs" }), one = made("div", { className: "run" });
  const element = made("section", { className: "bare", "aria-label": "Runs" }, made("div", { className: "card" }, made("h2", {}, "Runs"), list), one);
  const readings = new Map();  // of each chart, the step whose values are told
  let chosen = "", stamp = "", pictures = {}, timer = null, isLooking = false, hasFailed = false, last = null;

  async function look() {
    if (isLooking || document.hidden) return;
    isLooking = true;
    try {
      const runs = await ask("/page/runs");
      if (!chosen && runs.length) chosen = runs[0].name;
      drawList(runs);
      if (runs.some(run => run.name === chosen)) await lookAt(chosen);
      else one.replaceChildren();
      if (hasFailed) tell(null);
      hasFailed = false;
    } catch (error) {
      hasFailed = true;
      tell(error);
    }
    isLooking = false;
  }

  async function lookAt(name) {
    const told = await ask(`/page/run?name=${encodeURIComponent(name)}&known=${encodeURIComponent(stamp)}`);
    if (name !== chosen || told.stamp === stamp) return;
    if (told.prompts.some(prompt => prompt.image && !pictures[prompt.image]))
      pictures = await ask(`/page/run/pictures?name=${encodeURIComponent(name)}`);
    stamp = told.stamp;
    last = told;
    drawRun();
  }

  function drawList(runs) {
    const focused = document.activeElement?.closest?.(".runs a")?.hash;
    list.replaceChildren(...(runs.length ? runs.map(entry) : [made("li", { className: "soft" }, "No run is in this folder yet; `visgraft train` makes one.")]));
    if (focused) [...list.querySelectorAll("a")].find(link => link.hash === focused)?.focus();
  }

  function entry(run) {
    const facts = [STATES[run.state]];
    if (run.step !== undefined) facts.push(`step ${shown(run.step, 9)}`, `loss ${shown(run.loss)}`);
    if (run.validation_loss) facts.push(`validation ${shown(run.validation_loss)}`);
    if (run.state === "training" && run.samples_per_s) facts.push(`${shown(run.samples_per_s, 3)} samples/s`);
    if (run.state !== "finished") facts.push(`${since(run.silent_s)} ago`);
    const link = made("a", { href: `#runs/${run.name.split("/").map(encodeURIComponent).join("/")}` }, made("b", {}, run.name), made("span", { className: `state ${run.state}` }, facts.join(" · ")));
    if (run.name === chosen) link.setAttribute("aria-current", "true");
    return made("li", {}, link, run.problem ? made("p", { className: "bad" }, run.problem) : null);
  }

  function drawRun() {
    const room = one.clientWidth || 600, columns = room > 820 && last.charts.length > 1 ? 2 : 1;
    const width = Math.max(260, Math.floor((room - 18 * (columns - 1)) / columns) - 42);
    const focused = document.activeElement?.closest?.(".run [data-key]")?.dataset.key;
    const open = new Set([...one.querySelectorAll("details[open]")].map(details => details.dataset.key));
    const answers = last.prompts.map(prompt => promptCard(prompt, pictures[prompt.image], open));
    one.replaceChildren(made("div", { className: "curves" }, ...last.charts.map(each => chart(each, width, readingOf(each.name)))),
      ...(answers.length ? [made("div", { className: "card" }, made("h2", {}, "What it says"), made("div", { className: "prompts" }, ...answers))] : []));
    if (!focused) return;
    const again = [...one.querySelectorAll("[data-key]")].find(each => each.dataset.key === focused);
    (again?.querySelector("summary") ?? again)?.focus({ preventScroll: true });
  }

  function readingOf(name) {
    if (!readings.has(name)) readings.set(name, { step: null });
    return readings.get(name);
  }

  new ResizeObserver(() => { if (last && !element.hidden) drawRun(); }).observe(element);
  document.addEventListener("visibilitychange", () => { if (timer) look(); });
  return {
    element,
    enter(name) {
      if (name && name !== chosen) {
        chosen = name;
        stamp = "";
        pictures = {};
        last = null;
        readings.clear();
        one.replaceChildren();
      }
      clearInterval(timer);
      timer = setInterval(look, EVERY_MS);
      look();
    },
    leave() {
      clearInterval(timer);
      timer = null;
    },
  };
}

function promptCard(prompt, picture, open) {
  const [newest, ...older] = prompt.answers, key = `${prompt.id} ${prompt.prompt}`;
  const line = each => made("tr", {}, made("td", { className: "number soft" }, shown(each.step, 9)),
    made("td", {}, each.answer || "(nothing)", each.stopped === false ? made("span", { className: "soft" }, " …") : null));
  const body = made("div", {},
    prompt.prompt ? made("p", { className: "asked" }, prompt.prompt) : made("p", { className: "asked soft" }, "(no prompt: a caption)"),
    made("p", {}, newest.answer || "(nothing)", made("span", { className: "soft" }, `${newest.stopped === false ? " …" : ""} at step ${shown(newest.step, 9)}`)),
    prompt.expected?.length ? made("p", { className: "soft" }, `expected: ${prompt.expected.join(" · ")}`) : null);
  if (older.length) {
    const details = made("details", { open: open.has(key) }, made("summary", {}, "earlier"), made("table", {}, made("tbody", {}, ...older.map(line))));
    details.dataset.key = key;
    body.append(details);
  }
  return made("article", { className: "prompt", "aria-label": `Sample prompt ${prompt.prompt || prompt.id}` }, picture ? made("img", { src: picture, alt: "" }) : null, body);
}
