// List the answers that the controls of #answers-view ask for, some at a time as the page is scrolled; keys step.
(() => {
  const view = document.getElementById("answers-view"), list = view.querySelector("ol");
  const data = JSON.parse(view.querySelector(".data").textContent), step = 40;
  const blocks = [...view.querySelectorAll(".pictures")], opened = new Map();
  const control = name => view.querySelector(`[name=${name}]`);
  const made = (tag, className, text = "") => Object.assign(document.createElement(tag), { className, textContent: text });
  let found = [], shown = 0, at = -1;

  // pictures lie in blocks, which are read when the first of them is seen
  function picture(index) {
    if (index < 0) return null;
    const number = Math.floor(index / data.block);
    if (!opened.has(number)) opened.set(number, JSON.parse(blocks[number].textContent));
    return opened.get(number)[index % data.block];
  }

  const chosen = () => ({ model: Number(control("model")?.value ?? 0), score: Number(control("score").value) });
  const value = (item, model, score) => item.said[model]?.values[score];

  function choose() {
    const { model, score } = chosen(), limit = data.right[score], most = control("most");
    const words = control("answer").value.trim().toLowerCase(), kind = control("kind")?.value;
    const order = control("order").value, top = most.value === "" ? Infinity : Number(most.value);
    found = data.items.filter(item => {
      const said = item.said[model];
      if (!said || said.values[score] > top || (kind && item.kind !== kind)) return false;
      if (words && !said.answer.toLowerCase().includes(words)) return false;
      if (control("wrong").checked && said.values[score] >= limit) return false;
      if (control("differ")?.checked && new Set(item.said.map(each => each?.answer)).size < 2) return false;
      return !control("unmoved")?.checked || said.unmoved === true;
    });
    if (order !== "given") {
      const sign = (order === "worst" ? 1 : -1) * (data.lower_is_better[score] ? -1 : 1);
      found = found.map((item, place) => [item, place]);
      found.sort(([a, i], [b, j]) => sign * (value(a, model, score) - value(b, model, score)) || i - j);
      found = found.map(([item]) => item);
    }
    view.querySelector(".count").textContent =
      `${found.length.toLocaleString("en")} of ${data.items.length.toLocaleString("en")} questions`;
    list.replaceChildren();
    shown = 0;
    at = -1;
    more();
  }

  function card(item) {
    const { model, score } = chosen(), entry = made("li", ""), address = picture(item.picture);
    entry.tabIndex = -1;
    if (address) {
      entry.append(Object.assign(made("img", ""), { src: address, alt: item.prompt || "the image", loading: "lazy" }));
    } else entry.append(made("div", "none", "no image"));
    const body = made("div", "");
    body.append(made("p", "prompt", item.prompt || "(a caption)"));
    const table = document.createElement("table");
    item.said.forEach((said, number) => {
      if (!said) return;
      const row = table.insertRow(), right = said.values[score] >= data.right[score];
      if (data.models.length > 1 && number === model) row.className = "chosen";
      row.append(made("td", "", data.models.length > 1 ? data.models[number] : "answer"));
      row.append(made("td", right ? "good" : "bad", said.answer || said.none || "(nothing)"));
      row.append(made("td", "value", said.values[score].toFixed(2).replace(/\.00$/, "")));
      for (const [name, text] of [["without the image", said.blind], ["with another image", said.other]]) {
        if (text === undefined || (data.models.length > 1 && number !== model)) continue;
        const control = table.insertRow();
        control.append(made("td", "", name), made("td", "soft", text || "(nothing)"), made("td", "value"));
      }
    });
    body.append(table, made("p", "references", `accepted: ${item.references.join(" · ")}`));
    body.append(made("p", "id", [item.id, item.kind].filter(Boolean).join(" · ")));
    entry.append(body);
    return entry;
  }

  function more() {
    list.append(...found.slice(shown, shown + step).map(card));
    shown = Math.min(found.length, shown + step);
  }

  function go(by) {
    at = Math.max(0, Math.min(found.length - 1, at + by));
    while (at >= shown && shown < found.length) more();
    list.children[at]?.focus();
    list.children[at]?.scrollIntoView({ block: "nearest" });
  }

  const end = made("div", "");
  list.after(end);
  new IntersectionObserver(seen => { if (seen[0].isIntersecting && shown < found.length) more(); }, { rootMargin: "800px" })
    .observe(end);
  list.addEventListener("focusin", event => { at = [...list.children].indexOf(event.target.closest("li")); });
  document.addEventListener("keydown", event => {
    const isTyping = event.target.matches?.("select, input:not([type=checkbox])");
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
    const inside = list.contains(document.activeElement);
    if (event.key === "j" || (inside && event.key === "ArrowDown")) go(1);
    else if (event.key === "k" || (inside && event.key === "ArrowUp")) go(-1);
    else if (event.key === "w") control("wrong").click();
    else return;
    event.preventDefault();
  });
  for (const input of view.querySelectorAll(".controls :is(input, select)")) input.addEventListener("input", choose);
  choose();
})();
