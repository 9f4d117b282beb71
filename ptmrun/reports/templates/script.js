// Values of a chart under the pointer, or by the arrow keys; without this all is there but for them.
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series), cursor = svg.querySelector(".cursor");
  const values = svg.parentElement.querySelector("output");
  const places = [...new Set(series.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  const near = (list, x, place) => list.reduce((a, b) => Math.abs(place(b) - x) < Math.abs(place(a) - x) ? b : a);
  let at = places.length;
  const show = x => {
    const points = series.map(s => [s.name, near(s.points, x, p => p[0])]).filter(([, p]) => Math.abs(p[0] - x) < 4);
    at = places.indexOf(x);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.style.visibility = "visible";
    values.textContent = [points[0][1][2], ...points.map(([name, p]) => `${name} ${p[3]}`)].join(" · ");
  };
  const hide = () => {
    cursor.style.visibility = "hidden";
    values.textContent = "";
  };
  svg.tabIndex = 0;
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    show(near(places, (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width, x => x));
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at < places.length ? at + 1 : 0, Home: 0, End: places.length - 1 };
    if (!(event.key in moves)) return;
    event.preventDefault();
    show(places[Math.min(Math.max(moves[event.key], 0), places.length - 1)]);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.data").forEach(part => part.open = true));
