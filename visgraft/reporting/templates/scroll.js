// A box whose content is wider than it says so, and can be scrolled by keyboard; one that is not is left alone.
(() => {
  const hint = box => {
    const isWide = box.scrollWidth > box.clientWidth + 1, said = box.previousElementSibling;
    const isSaid = said?.classList.contains("scrolls") ?? false;
    if (isWide && !isSaid)
      box.insertAdjacentHTML("beforebegin", '<p class="scrolls" aria-hidden="true">scrolls sideways →</p>');
    if (!isWide && isSaid) said.remove();
    if (isWide) Object.entries({ tabindex: 0, role: "group", "aria-label": "scrolls sideways" })
      .forEach(([name, value]) => box.setAttribute(name, value));
    else ["tabindex", "role", "aria-label"].forEach(name => box.removeAttribute(name));
  };
  // in the next frame: what it adds changes the sizes that are being told
  const observer = new ResizeObserver(found => requestAnimationFrame(() =>
    new Set(found.map(each => each.target.closest(".scroll"))).forEach(hint)));
  for (const box of document.querySelectorAll(".scroll")) {
    observer.observe(box);
    for (const inside of box.children) observer.observe(inside);
  }
})();
