"""What the report's page adds to the plain one: its style, and the few lines that hide variants and turn the axes.

In: nothing; the page marks what belongs to a variant with `data-variant`, its number. Out: CSS and JavaScript as text.
Usage: `Page("...", style=STYLE, script=SCRIPT)`
"""

STYLE = """
.chips { display: grid; grid-template-columns: repeat(auto-fill, minmax(215px, 1fr)); gap: 8px; margin-bottom: 12px; }
.chip { display: flex; gap: 9px; align-items: center; text-align: left; font: inherit; color: inherit;
  padding: 6px 10px;
  border: 1px solid var(--line); border-radius: 9px; background: var(--back); cursor: pointer; line-height: 1.25;
  touch-action: manipulation; min-width: 0; }
.chip svg, .who svg { flex: none; } .chip span { min-width: 0; overflow-wrap: anywhere; font-size: 0.92rem; }
.chip small { display: block; color: var(--soft); font-size: 0.78rem; }
.chip[aria-pressed=false] { opacity: 0.45; } .chip[aria-pressed=false] b { text-decoration: line-through; }
.chip b { font-weight: 600; } .chip:focus-visible, .bar button:focus-visible { outline: 2px solid var(--accent); }
.bar { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center; font-size: 0.92rem; }
.bar label { cursor: pointer; display: inline-flex; gap: 5px; align-items: center; }
.bar fieldset { border: 0; padding: 0; margin: 0; display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: center; }
.bar input { accent-color: var(--accent); margin: 0; }
.bar button { font: inherit; font-size: 0.88rem; color: inherit; background: var(--back); padding: 3px 10px;
  border: 1px solid var(--line); border-radius: 7px; cursor: pointer; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 18px 22px; }
.panels figure { margin: 0; min-width: 0; } figcaption b { display: block; }
.panels .along { text-align: center; color: var(--soft); font-size: 0.8rem; margin: 0; }
.panels + p, .scroll + p { margin-top: 12px; }
.who { display: flex; gap: 8px; align-items: center; font-weight: 600; color: var(--text); }
table.wide { width: auto; min-width: 100%; } table.wide th[scope=row] { position: sticky; left: 0; z-index: 1;
  background: var(--card); color: var(--text); max-width: 240px; min-width: 136px; overflow-wrap: anywhere; }
table.wide td, table.wide th { padding-right: 9px; font-size: 0.9rem; }
table.wide :is(td, th):last-child { padding-right: 0; }
table.wide thead th { vertical-align: bottom; font-size: 0.8rem; line-height: 1.25; } abbr { text-decoration: none; }
td small, th small, .soft small { color: var(--soft); display: block; font-size: 0.76rem; white-space: nowrap; }
th small { font-weight: 400; }
td.number { white-space: nowrap; } td.best small { font-weight: 400; }
td.best { color: var(--good); font-weight: 650; } td.best::before { content: "★ "; }
.questions { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 500px), 1fr)); gap: 16px; }
.question { border: 1px solid var(--line); border-radius: 10px; background: var(--back); padding: 12px; min-width: 0; }
.question header { display: flex; gap: 12px; margin-bottom: 8px; } .question header > div { min-width: 0; }
.question img { width: 120px; height: 120px; object-fit: contain; background: #fff; border-radius: 6px; flex: none; }
.question .none { width: 120px; flex: none; font-size: 0.75rem; color: var(--soft); border: 1px dashed var(--line);
  border-radius: 6px; padding: 6px; overflow-wrap: anywhere; }
.question dl { margin: 0; font-size: 0.9rem; } .question dl > div { display: grid; gap: 2px 10px; padding: 4px 0;
  grid-template-columns: minmax(90px, 34%) 1fr; border-top: 1px solid var(--line); }
.question dt, .question dd { margin: 0; min-width: 0; overflow-wrap: anywhere; } .question dt { font-size: 0.85rem; }
.question dd p { margin: 0; } .question p { margin: 0 0 4px; } .question details { margin-top: 8px; font-size: 0.9rem; }
.question summary { cursor: pointer; color: var(--soft); } [hidden] { display: none !important; }
@media (max-width: 560px) { .chips { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 6px; }
  .chip { padding: 5px 7px; gap: 6px; } .chip svg { width: 18px; }
  .question img, .question .none { width: 88px; height: 88px; }
  .question .none { height: auto; } table.wide th[scope=row] { min-width: 124px; max-width: 140px; }
  table.wide .who { gap: 6px; font-size: 0.82rem; } table.wide .who svg { width: 18px; } }
"""

SCRIPT = """
(() => {
  const chips = [...document.querySelectorAll(".chip")];
  const names = chips.map(chip => chip.dataset.name);
  const pressed = chips.filter(chip => chip.getAttribute("aria-pressed") === "true");
  let shown = new Set(pressed.map(chip => chip.dataset.name));
  const set = async (signal, value) => {
    for (const chart of Object.values(window.charts ?? {})) {
      const view = (await chart).view;
      await view.signal(signal, value).runAsync();
    }
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
  };
  const show = next => {
    shown = next;
    chips.forEach(chip => chip.setAttribute("aria-pressed", shown.has(chip.dataset.name)));
    for (const element of document.querySelectorAll("[data-variant]"))
      element.hidden = !shown.has(names[Number(element.dataset.variant)]);
    for (const element of document.querySelectorAll("[data-any]"))
      element.hidden = !JSON.parse(element.dataset.any).some(number => shown.has(names[number]));
    set("shown", names.filter(name => shown.has(name)));
  };
  for (const chip of chips) {
    const name = chip.dataset.name;
    chip.addEventListener("click", event => {
      if (event.detail === 2) return show(new Set([name]));
      const next = new Set(shown);
      next.delete(name) || next.add(name);
      show(next);
    });
  }
  document.getElementById("show-all")?.addEventListener("click", () => show(new Set(names)));
  for (const radio of document.querySelectorAll("input[name=axis]"))
    radio.addEventListener("change", () => {
      for (const along of document.querySelectorAll(".along")) along.textContent = radio.dataset.words;
      set("axis", radio.value);
    });
  document.getElementById("raw")?.addEventListener("change", event => set("raw", event.target.checked));
  if (shown.size < names.length) show(shown);
})();
"""
