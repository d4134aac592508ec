// One conversation with one model: questions and images at any turn, answers as they are written, token by token.
import { Failed, stream } from "./api.js";
import { asCurl, asPython } from "./code.js";
import { composer, questionArticle, userMessage } from "./composer.js";
import { made } from "./made.js";
import { settingsForm } from "./settings.js";
import { tokenView } from "./tokens.js";

const ENDS = { length: "cut at the longest answer that was asked for", stopped: "stopped" };

export function tryView(about, tell) {
  const turns = [];  // { question, answer }, as they were asked and said
  let running = null;
  const settings = settingsForm(about, { isTry: true });
  const log = made("div", { className: "log", role: "log", "aria-label": "Conversation" });
  const again = made("button", { type: "button", className: "chip again", hidden: true, onclick: begin }, "New conversation");
  const input = composer({ placeholder: "Ask about the image", onAsk: ask, onStop: () => running?.abort(), tell, limits: about.limits });
  const element = made("section", { className: "try bare", "aria-label": "Try" },
    made("div", { className: "talk" }, log, input.element),
    made("aside", { className: "card", "aria-label": "How to ask" }, settings.element, again));

  function begin() {
    running?.abort();
    turns.length = 0;
    log.replaceChildren();
    again.hidden = true;
    tell(null);
    input.focus();
  }

  // the body of a request for the answer to the last of some turns
  function bodyOf(asked) {
    const messages = asked.flatMap(({ question, answer }, place) =>
      [userMessage(question), ...(place < asked.length - 1 ? [{ role: "assistant", content: answer }] : [])]);
    if (settings.system) messages.unshift({ role: "system", content: settings.system });
    return { ...settings.read(), messages };
  }

  async function ask(question) {
    if (running) return;
    if (!question.text && !question.images.length) return tell(new Failed(0, "Write a question, or add an image first."));
    if (!settings.isValid) return;
    tell(null);
    const turn = { question, answer: "" };
    const body = bodyOf([...turns, turn]), said = answerArticle(about.models.length > 1 ? body.model : "");
    const asked = questionArticle(question);
    const names = [...turns, turn].flatMap(each => each.question.images.map(image => image.name));
    log.append(asked, said.element);
    said.element.scrollIntoView({ block: "nearest" });
    input.fill({ text: "", images: [] });
    input.isBusy = true;
    running = new AbortController();
    const own = running;
    try {
      const wanted = { ...body, stream: true, logprobs: true, top_logprobs: Math.min(5, about.limits.top_logprobs) };
      for await (const event of stream("/v1/chat/completions", { body: wanted, signal: own.signal })) {
        const isAtEnd = innerHeight + scrollY >= document.documentElement.scrollHeight - 60;
        said.take(event);
        if (isAtEnd) said.element.scrollIntoView({ block: "end" });
      }
      turn.answer = said.end("", body, names);
    } catch (error) {
      turn.answer = said.end(error.name === "AbortError" ? "stopped" : "failed", body, names);
      if (error.name !== "AbortError") tell(error);
      if (!turn.answer) {  // nothing was said: the question goes back to where it was written
        asked.remove();
        said.element.remove();
        if (running === own) input.fill(question);
      }
    }
    if (running !== own || !asked.isConnected) {
      if (running === own) done();
      return;
    }
    turns.push(turn);
    again.hidden = false;
    done();
  }

  function done() {
    running = null;
    input.isBusy = false;
    input.focus();
  }

  return { element, enter: () => input.focus() };
}

// What is said of one answer: its text as it grows, its tokens, and its request for others to make.
function answerArticle(model) {
  const text = made("p", { className: "text waiting" }), tokens = tokenView();
  const live = made("div", { "aria-live": "polite", "aria-busy": "true" }, text);
  const foot = made("div", { className: "row foot" });
  const element = made("article", { className: "said answer", "aria-label": model ? `Answer of ${model}` : "Answer" },
    model ? made("p", { className: "who soft" }, model) : null, live, tokens.element, foot);
  tokens.element.hidden = true;
  let finish = null;

  function toggle(event) {
    const isShown = tokens.element.hidden;
    tokens.element.hidden = !isShown;
    live.hidden = isShown;
    event.target.setAttribute("aria-pressed", isShown);
    element.scrollIntoView({ block: "nearest" });
  }

  return {
    element,
    take(event) {
      const choice = event.choices[0];
      if (!choice) return;
      if (choice.delta.content) text.classList.remove("waiting");
      text.append(choice.delta.content ?? "");
      for (const token of choice.logprobs?.content ?? []) tokens.add(token);
      finish = choice.finish_reason ?? finish;
    },
    // nothing more comes; gives what was said
    end(how, body, names) {
      live.setAttribute("aria-busy", "false");
      text.classList.remove("waiting");
      const said = text.textContent, end = ENDS[how || finish];
      if (!said && !how) text.append(made("span", { className: "soft" }, "(an empty answer)"));
      foot.replaceChildren(
        ...(tokens.isEmpty ? [] : [made("button", { type: "button", className: "chip", "aria-pressed": false, onclick: toggle }, "Probabilities")]),
        made("button", { type: "button", className: "chip", onclick: event => copy(event.target, said) }, "Copy"),
        ...[["curl", asCurl], ["Python", asPython]].map(([name, spell]) =>
          made("button", { type: "button", className: "chip", "aria-label": `The request as ${name}`, onclick: () => showCode(name, spell(body, names)) }, name)),
        ...(end ? [made("span", { className: "soft" }, end)] : []));
      return said;
    },
  };
}

async function copy(button, text) {
  const name = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {  // no such right: only pages of https and of this machine have it
    button.textContent = "Not allowed here: select it and copy";
  }
  setTimeout(() => { button.textContent = name; }, 2000);
}

function showCode(name, code) {
  const dialog = made("dialog", { "aria-label": `The request as ${name}` },
    made("h2", {}, name), made("pre", { tabIndex: 0, role: "region", "aria-label": "Code" }, made("code", {}, code)),
    made("div", { className: "row" },
      made("button", { type: "button", className: "main", onclick: event => copy(event.target, code) }, "Copy"),
      made("button", { type: "button", className: "chip", onclick: () => dialog.close() }, "Close")));
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
