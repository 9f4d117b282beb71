// Values of a chart under the pointer, or by the arrow keys; a part of it by dragging, or by + and -. Without this all is there
// but for them.
const LEFT = 54, RIGHT = 446, TOP = 12, BOTTOM = 218;  // of the plot, as charts.html has it
for (const svg of document.querySelectorAll("svg[data-series]")) {
  const series = JSON.parse(svg.dataset.series), cursor = svg.querySelector(".cursor"), box = svg.querySelector(".part");
  const values = svg.parentElement.querySelector("output");
  const places = [...new Set(series.flatMap(s => s.points.map(p => p[0])))].sort((a, b) => a - b);
  const near = (list, x, place) => list.reduce((a, b) => Math.abs(place(b) - x) < Math.abs(place(a) - x) ? b : a);
  const lines = [...svg.querySelectorAll("[points]")].map(e => [e, e.getAttribute("points").split(" ").map(p => p.split(",").map(Number))]);
  let at = places.length, from = LEFT, to = RIGHT, begun = null;
  const across = x => LEFT + (x - from) * (RIGHT - LEFT) / (to - from);
  const back = x => from + (x - LEFT) * (to - from) / (RIGHT - LEFT);
  const under = event => {
    const edge = svg.getBoundingClientRect(), x = (event.clientX - edge.left) * svg.viewBox.baseVal.width / edge.width;
    return Math.min(RIGHT, Math.max(LEFT, x));
  };
  const show = x => {
    const points = series.map(s => [s.name, near(s.points, x, p => p[0])]).filter(([, p]) => Math.abs(p[0] - x) < 4);
    at = places.indexOf(x);
    cursor.setAttribute("transform", `translate(${across(x)} 0)`);
    cursor.style.visibility = "visible";
    values.textContent = [points[0][1][2], ...points.map(([name, p]) => `${name} ${p[3]}`)].join(" · ");
  };
  const hide = () => {
    cursor.style.visibility = "hidden";
    values.textContent = to - from < RIGHT - LEFT ? "a part of it; double click, or - for the whole" : "";
  };
  const zoom = (a, b) => {  // what lies between these places fills the plot
    const ys = series.flatMap(s => s.points.filter(p => p[0] >= a && p[0] <= b).map(p => p[1]));
    if (ys.length < 2) return;
    [from, to] = [a, b];
    const whole = to - from >= RIGHT - LEFT, room = 0.06 * (Math.max(...ys) - Math.min(...ys)) || 5;
    const high = whole ? TOP : Math.min(...ys) - room, low = whole ? BOTTOM : Math.max(...ys) + room;
    const up = y => TOP + (y - high) * (BOTTOM - TOP) / (low - high);
    for (const [e, points] of lines) e.setAttribute("points", points.map(([x, y]) => `${across(x)},${up(y)}`).join(" "));
    for (const e of svg.querySelectorAll("[data-x], [data-y]")) {
      const x = "x" in e.dataset ? across(+e.dataset.x) : 0, y = "y" in e.dataset ? up(+e.dataset.y) : 0;
      e.setAttribute("transform", `translate(${x} ${y})`);
      const outside = "x" in e.dataset && (x < LEFT - 1 || x > RIGHT + 1) || "y" in e.dataset && (y < TOP - 1 || y > BOTTOM + 1);
      e.style.visibility = outside ? "hidden" : "";
    }
    hide();
  };
  const release = () => {
    begun = null;
    box.setAttribute("width", 0);
  };
  svg.tabIndex = 0;
  svg.addEventListener("pointerdown", event => { begun = under(event); });
  svg.addEventListener("pointermove", event => {
    show(near(places, back(under(event)), x => x));
    if (begun === null) return;
    box.setAttribute("x", Math.min(begun, under(event)));
    box.setAttribute("width", Math.abs(begun - under(event)));
  });
  svg.addEventListener("pointerup", event => {
    const [a, b] = [begun ?? LEFT, under(event)].sort((a, b) => a - b);
    if (begun !== null && b - a > 8) zoom(back(a), back(b));
    release();
  });
  svg.addEventListener("dblclick", () => zoom(LEFT, RIGHT));
  svg.addEventListener("pointerleave", () => { release(); hide(); });
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const moves = { ArrowLeft: at - 1, ArrowRight: at < places.length ? at + 1 : 0, Home: 0, End: places.length - 1 };
    const middle = places[at] ?? (from + to) / 2, quarter = (to - from) / 4;
    if (event.key === "+") zoom(Math.max(LEFT, middle - quarter), Math.min(RIGHT, middle + quarter));
    else if (event.key === "-" || event.key === "Escape") zoom(LEFT, RIGHT);
    else if (event.key in moves) show(places[Math.min(Math.max(moves[event.key], 0), places.length - 1)]);
    else return;
    event.preventDefault();
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details.data").forEach(part => part.open = true));
