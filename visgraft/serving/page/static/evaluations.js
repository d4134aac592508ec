// Evaluations: their scores, and a link to the report of each, which holds every answer and its own filters.
import { ask } from "./api.js";
import { made, shown } from "./made.js";

export function evaluationsView(about, tell) {
  const list = made("div", {});
  const element = made("section", { "aria-label": "Evaluations" }, made("h2", {}, "Evaluations"), list);

  function card(evaluation) {
    const scores = Object.keys(evaluation.models[0]?.scores ?? {});
    const cell = ([value, low, high]) => made("td", { className: "number" }, shown(value),
      low === null || low === undefined ? null : made("small", { className: "soft" }, `${shown(low, 3)} to ${shown(high, 3)}`));
    const table = scores.length ? made("div", { className: "scroll", tabIndex: 0, role: "group", "aria-label": `Scores of ${evaluation.name}` }, made("table", {},
      made("thead", {}, made("tr", {}, made("th", { scope: "col" }, "model"), ...scores.map(name => made("th", { scope: "col", className: "number" }, name)))),
      made("tbody", {}, ...evaluation.models.map(model => made("tr", {}, made("th", { scope: "row" }, model.name), ...scores.map(name => cell(model.scores[name] ?? [null]))))))) : null;
    const report = evaluation.report
      ? made("p", {}, made("a", { href: evaluation.report, target: "_blank", rel: "noopener" }, "Every answer, with filters", made("span", { className: "hidden-text" }, ` of ${evaluation.name}, opens a new tab`)))
      : made("p", { className: "soft" }, "Its report is not written yet.");
    return made("article", { className: "evaluation", "aria-label": evaluation.name }, made("h3", {}, evaluation.name),
      evaluation.problem ? made("p", { className: "bad" }, evaluation.problem) : null, table, report);
  }

  return {
    element,
    async enter() {
      try {
        const found = await ask("/page/evaluations");
        list.replaceChildren(...(found.length ? found.map(card) : [made("p", { className: "soft" }, "None is in this folder yet; `visgraft evaluate` makes one.")]));
      } catch (error) {
        tell(error);
      }
    },
  };
}
