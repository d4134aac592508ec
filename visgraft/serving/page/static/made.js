// Elements out of names, settings and contents. Texts become text, never HTML.
//   made("button", { className: "chip", onclick: ask }, "Ask")
export function made(name, settings = {}, ...contents) {
  const [tag, space] = name.split("@");
  const element = space ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(settings)) {
    if (value === undefined || value === null) continue;
    if (space || key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...contents.filter(content => content !== null && content !== undefined));
  return element;
}

export const svg = (tag, settings, ...contents) => made(`${tag}@svg`, settings, ...contents);

// a number as a person reads it
export const shown = (value, digits = 4) =>
  value === null || value === undefined ? "–" : Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
export const percent = value => `${(100 * value).toFixed(value > 0.0995 || value === 0 ? 0 : 1)} %`;
export const since = seconds =>
  seconds < 90 ? `${Math.round(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
    : seconds < 129600 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
