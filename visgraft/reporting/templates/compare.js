// Hide and show variants everywhere on the page, and turn the axes of its charts.
(() => {
  const chips = [...document.querySelectorAll(".chip")];
  const names = chips.map(chip => chip.dataset.name);
  const pressed = chips.filter(chip => chip.getAttribute("aria-pressed") === "true");
  let shown = new Set(pressed.map(chip => chip.dataset.name));

  const set = async (signal, value) => {
    for (const chart of Object.values(window.charts)) {
      const view = (await chart).view;
      await view.signal(signal, value).runAsync();
    }
    document.body.dataset.drawn = Number(document.body.dataset.drawn ?? 0) + 1;
  };

  const show = next => {
    shown = next;
    const isShown = number => shown.has(names[Number(number)]);
    chips.forEach(chip => chip.setAttribute("aria-pressed", shown.has(chip.dataset.name)));
    for (const element of document.querySelectorAll("[data-variant]"))
      element.hidden = !isShown(element.dataset.variant);
    for (const element of document.querySelectorAll("[data-any]"))
      element.hidden = !element.dataset.any.split(" ").some(isShown);
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
  document.getElementById("show-all").addEventListener("click", () => show(new Set(names)));
  for (const radio of document.querySelectorAll("input[name=axis]"))
    radio.addEventListener("change", () => {
      for (const along of document.querySelectorAll(".along")) along.textContent = radio.dataset.words;
      set("axis", radio.value);
    });
  document.getElementById("raw").addEventListener("change", event => set("raw", event.target.checked));
  if (shown.size < names.length) show(shown);
})();
