// A box whose content is wider than it says so, and can be scrolled by keyboard; one that is not is left alone.
(() => {
  const hint = box => {
    const isWide = box.scrollWidth > box.clientWidth + 1, said = box.previousElementSibling;
    const isSaid = said?.classList.contains("scrolls") ?? false;
    if (isWide && !isSaid)
      box.insertAdjacentHTML("beforebegin", '<p class="scrolls" aria-hidden="true">scrolls sideways →</p>');
    if (!isWide && isSaid) said.remove();
    if (isWide) Object.entries({ tabindex: 0, role: "region", "aria-label": "scrolls sideways" })
      .forEach(([name, value]) => box.setAttribute(name, value));
    else ["tabindex", "role", "aria-label"].forEach(name => box.removeAttribute(name));
  };
  const observer = new ResizeObserver(found => found.forEach(each => hint(each.target.closest(".scroll"))));
  for (const box of document.querySelectorAll(".scroll")) {
    observer.observe(box);
    for (const inside of box.children) observer.observe(inside);
  }
})();
