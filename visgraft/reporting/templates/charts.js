// Draw every chart of the page. Each is in window.charts by its id (chart-1, chart-2, ...), as the promise that
// Vega-Embed gives.
window.charts = {};
document.querySelectorAll(".plot").forEach((place, index) => {
  place.id = `chart-${index + 1}`;
  const spec = JSON.parse(place.nextElementSibling.textContent);
  window.charts[place.id] = vegaEmbed(place, spec, { actions: false, renderer: "svg" });
});
