// An answer's tokens with their probabilities: shaded by how unsure they were; pointing, tapping or arrow keys show
// what else could have come.
import { made, percent } from "./made.js";

const STEPS = [0.9, 0.7, 0.5, 0.25];  // below each a shade more

export function tokenView() {
  const tokens = made("div", { className: "tokens", role: "group", "aria-label": "Tokens of the answer; arrow keys step" });
  const detail = made("div", { className: "detail", "aria-live": "polite" });
  const decoder = new TextDecoder();
  let chosen = null;

  function choose(button, told) {
    chosen?.classList.remove("chosen");
    chosen?.setAttribute("tabindex", -1);
    chosen = button;
    button.classList.add("chosen");
    button.setAttribute("tabindex", 0);
    const rows = [told, ...told.top_logprobs.filter(other => other.token !== told.token)];
    const body = made("tbody", {}, ...rows.map(each => made("tr", { className: each === told ? "chosen" : "" },
      made("td", {}, made("code", {}, quoted(each.token))), made("td", { className: "number" }, percent(Math.exp(each.logprob))),
      made("td", { className: "bar" }, bar(Math.exp(each.logprob))))));
    detail.replaceChildren(made("table", {}, made("caption", {}, `${quoted(told.token)} came with ${percent(Math.exp(told.logprob))}`), body));
  }

  tokens.addEventListener("keydown", event => {
    const buttons = [...tokens.querySelectorAll("button")], at = buttons.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: buttons.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    buttons[Math.max(0, Math.min(buttons.length - 1, to))].focus();
  });

  return {
    element: made("div", { className: "token-view" }, tokens, detail),
    get isEmpty() {
      return !tokens.children.length;
    },
    add(told) {
      // a letter may be spread over several tokens: the last of them shows it
      const text = decoder.decode(new Uint8Array(told.bytes ?? []), { stream: true });
      const first = !tokens.children.length, probability = Math.exp(told.logprob);
      const shade = STEPS.filter(step => probability < step).length;
      const button = made("button", { type: "button", className: `token shade-${shade}`, tabIndex: first ? 0 : -1,
        "aria-label": `${quoted(told.token)}, ${percent(probability)}` }, (first ? text.trimStart() : text).replaceAll("\n", "↵") || "·");
      for (const kind of ["mouseenter", "focus", "click"]) button.addEventListener(kind, () => {
        choose(button, told);
        if (kind !== "mouseenter") detail.scrollIntoView({ block: "nearest" });
      });
      tokens.append(button, ...(text.includes("\n") ? [made("br")] : []));
    },
  };
}

const quoted = text => `“${text.replaceAll("\n", "↵")}”`;

function bar(share) {
  const meter = made("span", { "aria-hidden": "true" });
  meter.style.width = `${Math.max(1, 100 * share)}%`;
  return meter;
}
