// How a model is asked: a form, and what it says in OpenAI's words. Nothing given: nothing is sent.
import { made } from "./made.js";

const field = (label, input, hint) => made("label", {}, made("span", {}, label), input, hint ? made("small", { className: "soft" }, hint) : null);
const number = (name, label, settings, hint) =>
  field(label, made("input", { type: "number", name, step: "any", autocomplete: "off", ...settings }), hint);

export function settingsForm(about, { isTry }) {
  const select = made("select", { name: "model" }, ...about.models.map(model => made("option", { value: model }, model)));
  const { new_tokens, default_new_tokens, stops } = about.limits;
  const fields = [
    number("max_tokens", "Longest answer", { min: 1, max: new_tokens, step: 1, placeholder: default_new_tokens }, `tokens, up to ${new_tokens.toLocaleString("en")}`),
    number("temperature", "Temperature", { min: 0, max: 2, placeholder: "0" }, "0: the likeliest token, always"),
    number("top_p", "Top p", { min: 0, max: 1, placeholder: "1" }),
    number("seed", "Seed", { step: 1, placeholder: "any" }),
    number("presence_penalty", "Presence penalty", { min: -2, max: 2, placeholder: "0" }),
    number("frequency_penalty", "Frequency penalty", { min: -2, max: 2, placeholder: "0" }),
    field("Stop at", made("textarea", { name: "stop", rows: 2, spellcheck: false }), `texts, one a line, up to ${stops}`),
  ];
  if (isTry) fields.push(field("Instruction", made("textarea", { name: "system", rows: 2 }), "in front of the whole conversation"));
  const more = made("details", {}, made("summary", {}, "Settings"), made("div", { className: "fields" }, ...fields));
  const form = made("form", { className: "settings", noValidate: false }, field("Model", select), more);
  form.addEventListener("submit", event => event.preventDefault());

  const text = name => form.elements[name]?.value ?? "";
  return {
    element: form,
    get isValid() {
      if (!form.checkValidity()) more.open = true;
      return form.reportValidity();
    },
    get system() {
      return text("system").trim();
    },
    // a conversation that is on is asked as it was begun
    set isLocked(isLocked) {
      for (const input of form.elements) input.disabled = isLocked;
    },
    choose: model => (select.value = model),
    // the parameters of a request
    read() {
      const asked = { model: select.value };
      for (const name of ["max_tokens", "temperature", "top_p", "seed", "presence_penalty", "frequency_penalty"])
        if (text(name) !== "") asked[name] = Number(text(name));
      const stop = text("stop").split("\n").filter(Boolean);
      if (stop.length) asked.stop = stop;
      return asked;
    },
  };
}
