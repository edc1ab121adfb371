// A line chart. The lines differ in colour and in dashes; a legend names them.

"use strict";

const chart = (() => {

const { h } = view;
const WIDTH = 520, HEIGHT = 230, LEFT = 46, RIGHT = 24, TOP = 12, BOTTOM = 38;

/** About n round numbers from low to high. */
function ticks(low, high, n = 5) {
  const raw = (high - low) / n, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw);
  const first = Math.ceil(low / step - 1e-9) * step;
  const count = Math.floor((high - first) / step + 1e-9) + 1;
  return Array.from({ length: count }, (_, i) => first + i * step);
}

const short = (x) => String(Math.round(x * 1e6) / 1e6).replace("-", "−");

/** lines: [{name, x, y, color, dash}]. x_label, y_label: what the axes say. mark: an x to point
 *  out. text: what is to be seen, for the caption and for screen readers. Returns a figure. */
function lines({ id, title, text, lines, x_label, y_label, y_range, mark, format = short }) {
  const xs = lines.flatMap((line) => line.x), ys = lines.flatMap((line) => line.y);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const [y0, y1] = y_range ?? [Math.min(0, ...ys), Math.max(...ys)];
  const px = (x) => LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
  const axis = [
    ...ticks(y0, y1, 4).map((y) => h("g", {},
      h("line", { class: y === 0 ? "zero" : "grid",
        x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }),
      h("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, short(y)))),
    ...ticks(x0, x1).map((x) => h("text", {
      x: px(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, format(x))),
    h("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, x_label),
  ];
  const paths = lines.map((line) => h("path", {
    class: `line ${line.color}`, "stroke-dasharray": line.dash ?? null,
    d: "M" + line.x.map((x, i) => `${px(x).toFixed(1)},${py(line.y[i]).toFixed(1)}`).join("L"),
  }));
  const at = px(Math.max(x0, Math.min(x1, mark)));
  const pointer = mark === undefined ? [] : [
    h("line", { class: "pointer", x1: at, x2: at, y1: TOP, y2: HEIGHT - BOTTOM })];
  return h("figure", { id, class: "chart" },
    h("figcaption", {}, h("b", {}, title), " ", h("span", { class: "small" }, text)),
    h("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}. ${text}` },
      axis, pointer, paths),
    h("ul", { class: "legend" }, lines.map((line) => h("li", {},
      h("svg", { viewBox: "0 0 34 10", class: "key", "aria-hidden": "true" },
        h("line", { class: `line ${line.color}`, x1: 0, x2: 34, y1: 5, y2: 5,
          "stroke-dasharray": line.dash ?? null })),
      ` ${line.name}`))),
    h("p", { class: "small axis" }, `Upwards: ${y_label}.`));
}

return { lines, ticks };
})();
