// Put the nearest word on each square of #words-view, and beside the picture all that is near the chosen token.
(() => {
  const view = document.getElementById("words-view"), data = JSON.parse(view.querySelector(".data").textContent);
  const cells = [...view.querySelectorAll("[data-token]")], detail = view.querySelector(".detail");
  let chosen = data.leading < data.tokens.length ? data.leading : 0;
  const made = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });

  function show() {
    const by = `by_${view.querySelector("input[name=measure]:checked").value}`;
    view.classList.toggle("bare", !view.querySelector("input[name=shown]").checked);
    for (const button of cells) {
      const index = Number(button.dataset.token);
      (button.querySelector("b") ?? button).textContent = data.tokens[index][by][0].text;
      button.setAttribute("aria-pressed", index === chosen);
    }
    const token = data.tokens[chosen], table = document.createElement("table"), head = table.insertRow();
    for (const name of ["nearest", "dot product", "cosine"]) head.append(made("th", name));
    for (const word of token[by]) {
      const row = table.insertRow();
      row.append(made("td", word.text), made("td", word.dot.toFixed(2)), made("td", word.cosine.toFixed(3)));
    }
    for (const number of table.querySelectorAll("tr > :nth-child(n+2)")) number.className = "number";
    const [row, column] = token.place ?? [];
    const place = token.place ? `Row ${row + 1}, column ${column + 1}` : `Token ${chosen + 1}, in front`;
    detail.replaceChildren(made("h3", place), made("p", `length ${token.norm.toFixed(2)}`), table);
  }

  for (const button of cells)
    button.addEventListener("click", () => {
      chosen = Number(button.dataset.token);
      show();
    });
  for (const input of view.querySelectorAll("input")) input.addEventListener("change", show);
  show();
})();
