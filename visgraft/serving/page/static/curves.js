// A chart of lines over steps, drawn as SVG in the width that it has.
import { made, shown, svg } from "./made.js";

const HEIGHT = 240, MARGIN = { left: 52, right: 12, top: 10, bottom: 26 };

// lines: [{ name, kind, points: [[x, y], ...] }]; is_loss: the scale is logarithmic
// reading: { step: where its values are read, or null }, kept by the caller from one drawing to the next
export function chart({ name, lines, is_loss }, width, reading) {
  const points = lines.flatMap(line => line.points).filter(([, y]) => !is_loss || y > 0);
  const said = lines.filter(line => line.kind !== "raw" && line.points.length)
    .map(line => `${line.name === name ? "" : line.name} ${shown(line.points.at(-1)[1])}`.trim());
  const figure = made("figure", { className: "card curve" }, made("figcaption", {}, made("b", {}, name), ` ${said.join(", ")}`));
  if (!points.length) return figure;
  const x = scale(points.map(point => point[0]), [MARGIN.left, width - MARGIN.right], { isLog: false, from: 0 });
  const y = scale(points.map(point => point[1]), [HEIGHT - MARGIN.bottom, MARGIN.top], { isLog: is_loss });
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", tabindex: 0,
    "aria-label": `${name} over steps, at step ${shown(Math.max(...points.map(point => point[0])), 9)}: ${said.join(", ")}` });
  for (const tick of y.ticks) drawing.append(
    svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y.at(tick), y2: y.at(tick) }),
    svg("text", { x: MARGIN.left - 7, y: y.at(tick) + 4, "text-anchor": "end" }, shown(tick, 3)));
  for (const tick of x.ticks) drawing.append(
    svg("text", { x: x.at(tick), y: HEIGHT - 8, "text-anchor": tick === x.ticks[0] ? "start" : tick === x.ticks.at(-1) ? "end" : "middle" }, shown(tick, 6)));
  for (const line of lines) {
    const kept = line.points.filter(([, value]) => !is_loss || value > 0);
    drawing.append(svg("polyline", { class: `line ${line.kind}`, points: kept.map(([at, value]) => `${x.at(at).toFixed(1)},${y.at(value).toFixed(1)}`).join(" ") }));
    const end = kept.at(-1);
    if (end && line.kind !== "raw") drawing.append(svg("circle", { class: `end ${line.kind}`, cx: x.at(end[0]), cy: y.at(end[1]), r: 3 }));
  }
  const legend = lines.length > 1 ? made("p", { className: "legend soft" }, ...lines.map(line => made("span", { className: `key ${line.kind}` }, line.name))) : null;
  const told = made("output", { className: "reading soft" });
  figure.append(drawing, ...(legend ? [legend] : []), told);
  const kept = lines.map(line => ({ ...line, points: line.points.filter(([, value]) => !is_loss || value > 0) }));
  readValues(drawing, { name, lines: kept, x, y, width, reading, told });
  return figure;
}

// Tell the values at the step that is pointed at, tapped, or reached with the arrow keys.
function readValues(drawing, { name, lines, x, y, width, reading, told }) {
  const steps = [...new Set(lines.flatMap(line => line.points.map(([at]) => at)))].sort((one, other) => one - other);
  const mark = svg("g", { class: "mark" });
  drawing.append(mark);
  drawing.dataset.key = name;

  function show(step) {
    reading.step = step;
    mark.replaceChildren();
    told.textContent = "";
    if (step === null) return;
    const found = lines.map(line => ({ line, point: line.points.findLast(([at]) => at <= step) })).filter(each => each.point);
    mark.append(svg("line", { x1: x.at(step), x2: x.at(step), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom }),
      ...found.map(({ line, point }) => svg("circle", { class: `end ${line.kind}`, cx: x.at(point[0]), cy: y.at(point[1]), r: 4 })));
    const values = found.map(({ line, point: [at, value] }) =>
      `${line.name === name ? "" : line.name} ${shown(value)}${at === step ? "" : ` (step ${shown(at, 9)})`}`.trim());
    told.textContent = `step ${shown(step, 9)}: ${values.join(", ")}`;
  }

  function point(event) {
    const { left, width: seen } = drawing.getBoundingClientRect();
    const at = (event.clientX - left) * width / seen;
    show(steps.reduce((near, step) => Math.abs(x.at(step) - at) < Math.abs(x.at(near) - at) ? step : near));
  }

  const MOVES = { ArrowLeft: place => place - 1, ArrowRight: place => place + 1, Home: () => 0, End: () => steps.length - 1 };
  drawing.addEventListener("pointermove", point);
  drawing.addEventListener("pointerdown", point);
  drawing.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") show(null); });
  drawing.addEventListener("keydown", event => {
    if (event.key === "Escape") show(null);
    if (!MOVES[event.key]) return;
    event.preventDefault();
    const now = reading.step === null ? steps.length : steps.findIndex(step => step >= reading.step);
    show(steps[Math.max(0, Math.min(steps.length - 1, MOVES[event.key](now)))]);
  });
  show(reading.step === null ? null : steps.findLast(step => step <= reading.step) ?? null);
}

function scale(values, [start, end], { isLog, from }) {
  let low = from ?? Math.min(...values), high = Math.max(...values);
  if (isLog) {
    if (high / low < 1.02) [low, high] = [low / 1.02, high * 1.02];
    const at = value => start + (end - start) * Math.log(value / low) / Math.log(high / low);
    return { at, ticks: logTicks(low, high) };
  }
  if (high - low < 1e-9) [low, high] = [low - 0.05, high + 0.05];
  return { at: value => start + (end - start) * (value - low) / (high - low), ticks: evenTicks(low, high) };
}

function evenTicks(low, high) {
  const raw = (high - low) / 5, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(each => each * size).find(each => each >= raw);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-9; tick += step) ticks.push(tick);
  return ticks;
}

function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1)
    for (const each of [1, 2, 5]) if (each * 10 ** power >= low && each * 10 ** power <= high) ticks.push(each * 10 ** power);
  return ticks.length > 2 ? ticks : evenTicks(low, high);
}
