// Two answers to one question, blind: who is A is known to the server alone until the vote.
import { ask as request, Failed, stream } from "./api.js";
import { composer, questionArticle, userMessage } from "./composer.js";
import { made, percent } from "./made.js";
import { settingsForm } from "./settings.js";

const VOTES = { A: "A is better", B: "B is better", tie: "A tie", "both bad": "Both are bad" };

export function compareView(about, tell) {
  const forms = [settingsForm(about, { isTry: false }), settingsForm(about, { isTry: false })];
  if (about.models.length > 1) forms[1].choose(about.models[1]);
  const input = composer({ placeholder: "Ask both the same", onAsk: ask, onStop: () => running?.abort(), tell, limits: about.limits });
  const duel = made("div", {}), tally = made("div", { className: "card" });
  const element = made("section", { className: "compare bare", "aria-label": "Compare" },
    made("div", { className: "card" },
      made("h2", {}, "Two answers, blind"),
      made("p", { className: "soft" }, "Both get your question; which is A and which is B is drawn anew for each. You see the names when you have voted. A vote is kept on the server with the question, both answers and a checksum of the image."),
      made("div", { className: "pair" }, ...forms.map((form, place) => {
        form.element.setAttribute("aria-label", place ? "The other" : "One");
        return form.element;
      }))),
    input.element, duel, tally);
  let running = null;

  async function ask(question) {
    if (running || !forms.every(form => form.isValid)) return;
    if (!question.text && !question.images.length) return tell(new Failed(0, "Write a question, or add an image first."));
    tell(null);
    const sides = { A: sideArticle("A"), B: sideArticle("B") };
    const vote = made("div", { className: "row votes", role: "group", "aria-label": "Your vote" });
    duel.replaceChildren(questionArticle(question), made("div", { className: "pair" }, sides.A.element, sides.B.element), vote);
    input.isBusy = true;
    running = new AbortController();
    try {
      const body = { contestants: forms.map(form => form.read()), messages: [userMessage(question)] };
      for await (const event of stream("/page/blind", { body, signal: running.signal })) {
        if (event.side) sides[event.side].take(event);
        else vote.append(...Object.entries(VOTES).map(([name, words]) =>
          made("button", { type: "button", className: name.length === 1 ? "main" : "chip", onclick: () => give(event.blind_id, name, { vote, sides }) }, words)));
      }
      vote.querySelector("button")?.focus();
      input.fill({ text: "", images: [] });
    } catch (error) {
      for (const side of Object.values(sides)) side.end();
      if (error.name !== "AbortError") {
        tell(error);
        duel.replaceChildren();
      } else vote.append(made("span", { className: "soft" }, "stopped: nothing to vote on"));
    }
    running = null;
    input.isBusy = false;
  }

  async function give(blind_id, vote, shown) {
    for (const button of shown.vote.children) button.disabled = true;
    try {
      const told = await request("/page/votes", { body: { blind_id, vote } });
      for (const [side, name] of Object.entries(told.names)) shown.sides[side].name(name);
      shown.vote.replaceChildren(made("p", { role: "status" }, `Your vote: ${VOTES[vote]}. A was ${told.names.A}; B was ${told.names.B}.`));
      drawTally(told.tally);
      input.focus();
    } catch (error) {
      for (const button of shown.vote.children) button.disabled = false;
      tell(error);
    }
  }

  function drawTally(pairs) {
    tally.replaceChildren(made("h2", {}, "Votes so far"), ...(pairs.length ? pairs.map(tallyTable) : [made("p", { className: "soft" }, "None yet.")]));
  }

  return {
    element,
    enter() {
      input.focus();
      request("/page/votes").then(drawTally).catch(tell);
    },
  };
}

function sideArticle(side) {
  const text = made("p", { className: "text waiting" }), title = made("h3", {}, side);
  const live = made("div", { "aria-live": "polite", "aria-busy": "true" }, text);
  const end = () => {
    live.setAttribute("aria-busy", "false");
    text.classList.remove("waiting");
  };
  return {
    element: made("article", { className: "said answer side", "aria-label": `Answer ${side}` }, title, live),
    end,
    name: name => title.append(made("span", { className: "soft" }, ` ${name}`)),
    take(event) {
      if (event.text) text.classList.remove("waiting");
      text.append(event.text ?? "");
      if (!event.finish) return;
      if (!text.textContent) text.append(made("span", { className: "soft" }, "(an empty answer)"));
      end();
    },
  };
}

function tallyTable(pair) {
  const [first, second] = pair.wins, decided = first + second;
  const ties = `${pair.ties === 1 ? "1 tie" : `${pair.ties} ties`}, ${pair.both_bad} both bad`;
  const words = decided
    ? `${pair.first} was better in ${percent(pair.share)} of ${decided} decided ${decided === 1 ? "vote" : "votes"} (95 % interval ${percent(pair.low)} to ${percent(pair.high)}); besides ${ties}.`
    : `No vote chose one of the two; ${ties}.`;
  const cell = value => made("td", { className: "number" }, String(value));
  return made("div", { className: "tally" },
    made("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": `Votes on ${pair.first} and ${pair.second}` },
      made("table", {},
        made("thead", {}, made("tr", {}, ...[pair.first, pair.second, "tie", "both bad"].map(name => made("th", { scope: "col", className: "number" }, name)))),
        made("tbody", {}, made("tr", {}, cell(first), cell(second), cell(pair.ties), cell(pair.both_bad))))),
    made("p", { className: "soft" }, words));
}
