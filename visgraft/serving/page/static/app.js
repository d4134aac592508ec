// The page: which view is shown, and what it may show.
import { ask, Failed, key } from "./api.js";
import { compareView } from "./compare.js";
import { evaluationsView } from "./evaluations.js";
import { made } from "./made.js";
import { runsView } from "./runs.js";
import { tryView } from "./try.js";

const VIEWS = {
  try: { name: "Try", make: tryView },
  compare: { name: "Compare", make: compareView },
  runs: { name: "Runs", make: runsView },
  evaluations: { name: "Evaluations", make: evaluationsView },
};
const problem = document.getElementById("problem"), keyForm = document.getElementById("key");
const place = document.getElementById("view"), nav = document.querySelector("nav");
const opened = new Map();  // each view is made once, so that a conversation stays
let about = null;

export function tell(error) {
  problem.textContent = error ? error.message : "";
  problem.hidden = !error;
  if (error instanceof Failed && error.status === 401) {
    keyForm.hidden = false;
    keyForm.elements.key.focus();
  } else if (error && !(error instanceof Failed)) console.error(error);
}

function show() {
  if (!about) return;
  const [wanted, ...rest] = location.hash.slice(1).split("/");
  const name = names().includes(wanted) ? wanted : "try";
  for (const view of opened.values()) view.element.hidden = true;
  if (!opened.has(name)) {
    const view = VIEWS[name].make(about, tell);
    opened.set(name, view);
    place.append(view.element);
  }
  const view = opened.get(name);
  view.element.hidden = false;
  for (const [other, each] of opened) if (other !== name) each.leave?.();
  view.enter?.(rest.map(decodeURIComponent).join("/"));
  document.title = `${VIEWS[name].name} · visgraft`;
  for (const link of nav.children) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

const names = () => Object.keys(VIEWS).filter(name => about.views[name] ?? true);

async function start() {
  try {
    about = await ask("/page/about");
  } catch (error) {
    return tell(error);
  }
  tell(null);
  keyForm.hidden = true;
  nav.replaceChildren(...names().map(name => made("a", { href: `#${name}` }, VIEWS[name].name)));
  nav.hidden = names().length < 2;
  show();
}

keyForm.addEventListener("submit", event => {
  event.preventDefault();
  key.set(keyForm.elements.key.value.trim());
  keyForm.elements.key.value = "";
  if (about) {
    tell(null);
    keyForm.hidden = true;
  } else start();
});
addEventListener("hashchange", show);
start();
