// Two answers to each question of a conversation, blind: who is A is known to the server alone until the vote.
import { ask as request, Failed, stream } from "./api.js";
import { composer, questionArticle, userMessage } from "./composer.js";
import { made, percent } from "./made.js";
import { settingsForm } from "./settings.js";

const VOTES = { A: "A is better", B: "B is better", tie: "A tie", "both bad": "Both are bad" };

export function compareView(about, tell) {
  const forms = [settingsForm(about, { isTry: false }), settingsForm(about, { isTry: false })];
  if (about.models.length > 1) forms[1].choose(about.models[1]);
  const input = composer({ placeholder: "Ask both the same", onAsk: ask, onStop: () => running?.abort(), tell, limits: about.limits });
  const log = made("div", {}), vote = made("div", { className: "votes" }), tally = made("div", { className: "card" });
  const element = made("section", { className: "compare bare", "aria-label": "Compare" },
    made("div", { className: "card" },
      made("h2", {}, "Two answers, blind"),
      made("p", { className: "soft" }, "Both get your questions, and each goes on from its own answers; which is A and which is B is drawn anew for each conversation. You see the names when you have voted. A vote is kept on the server with the questions, all answers and a checksum of each image."),
      made("div", { className: "pair" }, ...forms.map((form, place) => {
        form.element.setAttribute("aria-label", place ? "The other" : "One");
        return form.element;
      }))),
    log, vote, input.element, tally);
  let turns = [];  // of the conversation that waits for a vote: { question, sides }
  let blindId = null, running = null;

  async function ask(question) {
    if (running || (!blindId && !forms.every(form => form.isValid))) return;
    if (!question.text && !question.images.length) return tell(new Failed(0, "Write a question, or add an image first."));
    tell(null);
    if (!blindId) begin();
    const turn = { question, sides: { A: sideArticle("A", turns.length), B: sideArticle("B", turns.length) } };
    const shown = [questionArticle(question), made("div", { className: "pair" }, turn.sides.A.element, turn.sides.B.element)];
    vote.replaceChildren();
    log.append(...shown);
    shown[0].scrollIntoView({ block: "nearest" });
    input.isBusy = true;
    running = new AbortController();
    try {
      const messages = [...turns, turn].map(each => userMessage(each.question));
      const body = blindId ? { blind_id: blindId, messages } : { contestants: forms.map(form => form.read()), messages };
      for await (const event of stream("/page/blind", { body, signal: running.signal })) {
        if (event.side) turn.sides[event.side].take(event);
        else blindId = event.blind_id;
      }
      turns.push(turn);
      input.fill({ text: "", images: [] });
    } catch (error) {
      for (const side of Object.values(turn.sides)) side.end();
      const isStopped = error.name === "AbortError";
      if (!isStopped) tell(error);
      if (isStopped && !blindId) vote.append(made("p", { className: "soft" }, "stopped: nothing to vote on"));
      else for (const each of shown) each.remove();
    }
    running = null;
    input.isBusy = false;
    for (const form of forms) form.isLocked = Boolean(blindId);
    if (blindId) drawVote();
  }

  function begin() {
    turns = [];
    blindId = null;
    log.replaceChildren();
    vote.replaceChildren();
    for (const form of forms) form.isLocked = false;
  }

  function drawVote() {
    const button = (className, words, onclick) => made("button", { type: "button", className, onclick }, words);
    const buttons = Object.entries(VOTES).map(([name, words]) => button(name.length === 1 ? "main" : "chip", words, () => give(name)));
    vote.replaceChildren(
      made("div", { className: "row", role: "group", "aria-label": "Your vote" }, ...buttons),
      made("p", { className: "soft" }, "Vote, or ask on: both go on from their own answers. ",
        button("chip", "Begin again without a vote", () => { begin(); input.focus(); })));
    buttons[0].focus();
  }

  async function give(name) {
    const buttons = vote.querySelectorAll("button");
    for (const button of buttons) button.disabled = true;
    try {
      const told = await request("/page/votes", { body: { blind_id: blindId, vote: name } });
      for (const { sides } of turns) for (const [side, model] of Object.entries(told.names)) sides[side].name(model);
      vote.replaceChildren(made("p", { role: "status" }, `Your vote: ${VOTES[name]}. A was ${told.names.A}; B was ${told.names.B}.`));
      drawTally(told.tally);
      blindId = null;
      for (const form of forms) form.isLocked = false;
      input.focus();
    } catch (error) {
      for (const button of buttons) button.disabled = false;
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

function sideArticle(side, number) {
  const text = made("p", { className: "text waiting" }), title = made("h3", {}, side);
  const label = number ? `Answer ${side}, turn ${number + 1}` : `Answer ${side}`;
  const live = made("div", { "aria-live": "polite", "aria-busy": "true" }, text);
  const end = () => {
    live.setAttribute("aria-busy", "false");
    text.classList.remove("waiting");
  };
  return {
    element: made("article", { className: "said answer side", "aria-label": label }, title, live),
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
