// The second tab: why choosing among experts is not enough. A triangle of three tokens, and a tree.

"use strict";

const choosing = (() => {

const { h, $, rebuild, state, update, number, percent, term } = view;
const COLORS = engine.EXPERTS;                     // the colours of the three experts,
const SHAPES = ["circle", "square", "diamond"];    // and a second sign for each
const LEAST = 0.01;                                // the least probability of a dragged point

// --- the triangle --------------------------------------------------------------------------------

const SIZE = 440;                                  // width of the picture
const CORNERS = [[220, 24], [24, 364], [416, 364]];  // of the tokens A, B, C in it

const join = (points) => points.map((point) => point.map((x) => x.toFixed(1)).join(",")).join(" ");
const polygon = (points, attributes) =>
  h("polygon", { points: join(points.map(to_picture)), ...attributes });
const three = (p) => p.map((x) => number(x)).join(", ");

/** Where a distribution (3) stands in the picture: [x, y]. */
function to_picture(p) {
  return [0, 1].map((k) => p.reduce((sum, value, a) => sum + value * CORNERS[a][k], 0));
}

/** The distribution at a point of the picture, moved into the triangle, with three decimals. */
function from_picture([x, y]) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  return tidy([a, b, 1 - a - b]);
}

/** p as three decimals, each at least LEAST, that sum to 1. */
function tidy(p) {
  const positive = p.map((x) => Math.max(x, LEAST)), sum = positive.reduce((x, y) => x + y, 0);
  const rounded = positive.map((x) => Math.max(LEAST, Math.round(x / sum * 1e3) / 1e3));
  const missing = 1 - rounded.reduce((x, y) => x + y, 0), largest = engine.argmax(rounded);
  rounded[largest] = Math.round((rounded[largest] + missing) * 1e3) / 1e3;
  return rounded;
}

/** What can be moved: the experts, which have a number i, and the target, which has none. */
function handles() {
  const experts = state.experts.map((p, i) => (
    { id: `expert-${i + 1}`, name: `Expert ${i + 1}`, sign: String(i + 1), p, i }));
  return [...experts, { id: "target", name: "Target", sign: "target", p: state.target }];
}

function move(handle, p) {
  if (handle.i === undefined) update({ target: p });
  else update({ experts: state.experts.map((old, i) => i === handle.i ? p : old) });
}

/** The sign of a handle at [x, y]: circle, square, diamond, or a star for the target. */
function sign(shape, [x, y]) {
  const r = 9, star = Array.from({ length: 10 }, (_, k) => {
    const angle = Math.PI * (k / 5 - 0.5), size = k % 2 ? 5 : 12;
    return [x + size * Math.cos(angle), y + size * Math.sin(angle)];
  });
  const diamond = [[x, y - r - 2], [x + r + 2, y], [x, y + r + 2], [x - r - 2, y]];
  if (shape === "circle") return h("circle", { cx: x, cy: y, r });
  if (shape === "square") return h("rect", { x: x - 8, y: y - 8, width: 16, height: 16 });
  return h("polygon", { points: join(shape === "diamond" ? diamond : star) });
}

let dragged = null;                                // the id of the handle under the pointer

/** A point that one can drag, or move with the arrow keys. */
function handle_element(handle) {
  const [x, y] = to_picture(handle.p), [a, b, c] = handle.p;
  return h("g", {
    id: handle.id, class: `handle ${COLORS[handle.i] ?? "target"}`, tabindex: "0", role: "slider",
    "aria-label": `${handle.name}; the arrow keys move it`, "aria-valuemin": 0, "aria-valuemax": 1,
    "aria-valuenow": a, "aria-valuetext": `A ${a}, B ${b}, C ${c}`,
    onkeydown: (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
      if (!steps[event.key]) return;
      event.preventDefault();
      const size = event.shiftKey ? 30 : 6, [dx, dy] = steps[event.key];
      move(handle, from_picture([x + size * dx, y + size * dy]));
    },
    onpointerdown: (event) => {
      event.preventDefault();
      dragged = handle.id;
      $(handle.id).focus();
    },
  }, h("circle", { class: "halo", cx: x, cy: y, r: 16 }), sign(SHAPES[handle.i], [x, y]),
  h("text", { x: x + 14, y: y - 8 }, handle.sign));
}

function drag(event) {
  const handle = handles().find((one) => one.id === dragged);
  if (!handle) return;
  const box = $("triangle").getBoundingClientRect(), scale = SIZE / box.width;
  const at = [event.clientX - box.left, event.clientY - box.top].map((x) => x * scale);
  move(handle, from_picture(at));
}

function triangle() {
  const { experts, target, B } = state, [x2, y2] = to_picture(target);
  const gaps = Object.entries(theory.reach(experts, target, B)).map(([way, found]) => {
    const [x1, y1] = to_picture(found.point);
    return found.distance > 0.002 && h("line", { class: `gap ${way}`, x1, y1, x2, y2 });
  });
  const names = CORNERS.map(([x, y], a) => {
    const [dx, dy, anchor] = [[0, -8, "middle"], [-20, 20, "start"], [20, 20, "end"]][a];
    const place = { x: x + dx, y: y + dy, "text-anchor": anchor };
    return h("text", { class: "corner", ...place }, `always ${"ABC"[a]}`);
  });
  return [
    polygon([[1, 0, 0], [0, 1, 0], [0, 0, 1]], { class: "simplex" }),
    names,
    experts.map((p, i) =>
      polygon(theory.reach_of_logits(p, B), { class: `hexagon ${COLORS[i]}` })),
    polygon(experts, { class: "hull" }),
    gaps,
    handles().map(handle_element),
  ];
}

function readout() {
  const { experts, target, B } = state, found = theory.reach(experts, target, B);
  const ways = {
    routing: term("choosing", "choosing"),
    mixing: term("mixing", "mixing"),
    logits: term("adding", "adding logits"),
  };
  const rows = Object.entries(ways).map(([way, text]) => h("tr", {},
    h("th", { scope: "row" }, h("span", { class: `swatch ${way}` }), " ", text),
    h("td", {}, h("code", {}, three(found[way].point))),
    h("td", {}, h("b", { id: `distance-${way}` }, number(found[way].distance, 3)))));
  const needed = experts.map((p, i) =>
    `${number(theory.needed_bound(p, target))} from expert ${i + 1}`);
  return [
    h("table", { class: "readout" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "how near to ★ by"),
        h("th", { scope: "col" }, "A, B, C"),
        h("th", { scope: "col" }, term("distance", "distance")))),
      h("tbody", {}, rows)),
    h("p", { class: "small" },
      `Added logits reach the star from this size on: ${needed.join(", ")}.`),
  ];
}

// --- the tree ------------------------------------------------------------------------------------

const LEVELS = 3;                                  // of the tree that are drawn
const GRID = Array.from({ length: 11 }, (_, i) => i / 10);  // coverages of the curves
const remembered = new Map();

/** theory.mean_loss, computed once for the same numbers. Without experts coverage is nothing. */
function mean_loss(coverage, B, nobody = false) {
  const key = [nobody ? 0 : coverage, B, nobody].join();
  if (!remembered.has(key)) remembered.set(key, theory.mean_loss(coverage, B, nobody));
  return remembered.get(key);
}

/** The first levels of one world. Solid: the right token; dashed: what an expert favours; broad:
 *  what following an expert that knows gives. */
function tree() {
  const levels = theory.tree(state.world, state.coverage).slice(0, LEVELS), { A } = theory;
  const x = (t, s) => 520 * (s + 0.5) / A ** t, y = (t) => 28 + 78 * t;
  const edge = (t, s, a, classes) => h("line", { class: `edge ${classes}`,
    x1: x(t, s), y1: y(t), x2: x(t + 1, s * A + a), y2: y(t + 1) - 4 });
  const path = [], edges = [], circles = [], lost = [];
  let at = 0, right = 0;
  for (const [t, level] of levels.entries()) {
    const token = level[at].covered ? level[at].right : level[at].wrong;
    const sure = level[at].covered;
    path.push(edge(t, at, token, sure ? "taken" : "taken lost"));
    if (!sure) {
      lost.push(h("text", { class: "lost", y: (y(t) + y(t + 1)) / 2,
        x: (x(t, at) + x(t + 1, at * A + token)) / 2 + 10 }, "lost"));
    }
    right += Number(level[at].covered);
    at = at * A + token;
    for (const [s, node] of level.entries()) {
      for (let a = 0; a < A; a++) {
        const classes = [a === node.right && "right", node.tokens.includes(a) && "favoured"];
        edges.push(edge(t, s, a, classes.filter(Boolean).join(" ")));
      }
      const place = { x: x(t, s), y: y(t) + 4.5, "text-anchor": "middle" };
      circles.push(h("g", { class: `prefix ${node.covered ? COLORS[node.who] : "uncovered"}` },
        h("circle", { cx: x(t, s), cy: y(t), r: 11 }),
        h("text", place, node.covered ? String(node.who + 1) : "×")));
    }
  }
  const all = levels.flat(), covered = all.filter((node) => node.covered).length;
  return { parts: [path, edges, circles, lost], text: `The first ${LEVELS} of ${theory.T} tokens.
    Some expert knows the right token after ${covered} of these ${all.length} prefixes. Choosing
    well gets ${right} of these ${LEVELS} tokens right (the broad line).` };
}

function losses() {
  const { coverage, bound } = state;
  const rows = [
    ["choosing", "choosing an expert", mean_loss(coverage, 0)],
    ["logits", `choosing, and logits up to ${number(bound)}`, mean_loss(coverage, bound)],
    ["nobody", term("nobody", "the same logits, no expert"), mean_loss(coverage, bound, true)],
  ];
  const [, [, , fused], [, , nobody]] = rows, lost = (value) => number(value, 3);
  return [
    h("table", { class: "readout" },
      h("caption", {}, `Tokens lost of ${theory.T} (mean over ${theory.SEEDS.length} trees)`),
      h("tbody", {}, rows.map(([id, text, value]) => h("tr", {}, h("th", { scope: "row" }, text),
        h("td", {}, h("b", { id: `loss-${id}` }, lost(value))))))),
    h("p", { class: "small" }, nobody < fused && `The last line is lower: these logits know the
      right token, and experts that are sure of a wrong one stand in their way. A router that is
      trained knows less. `, `Experts help where they know: at coverage 100% logits of this size
      lose ${lost(mean_loss(1, bound))} with experts, ${lost(nobody)} without.`),
  ];
}

function curves() {
  const { coverage, bound } = state;
  const line = (name, color, dash, B, nobody) =>
    ({ name, color, dash, x: GRID, y: GRID.map((c) => mean_loss(c, B, nobody)) });
  return chart.lines({
    id: "coverage-chart", title: "Loss and coverage.",
    text: `To the right the experts know more. Choosing alone needs an expert that knows the right
      token everywhere. The logits of the other lines are those of a router that knows it.`,
    lines: [line("choosing", "code", null, 0),
      line(`choosing, and logits up to ${number(bound)}`, "router", "7 4", bound),
      line("the same logits, no expert", "plain", "2 4", bound, true)],
    x_label: "share of the prefixes at which some expert knows the right token",
    y_label: `tokens lost of ${theory.T}`,
    y_range: [0, theory.T], mark: coverage, format: percent,
  });
}

// --- the tab -------------------------------------------------------------------------------------

function build() {
  const slider = (id, label, max, step) => h("div", { class: "field" },
    h("label", { for: id }, label, ": ", h("output", { id: `${id}-value`, for: id })),
    h("input", { type: "range", id, min: "0", max, step,
      oninput: (event) => update({ [id]: Number(event.target.value) }) }));
  $("one-token").append(
    h("svg", { id: "triangle", viewBox: `0 0 ${SIZE} 400`, role: "group", onpointermove: drag,
      "aria-label": "Triangle of three tokens with three experts and a target" }),
    h("div", {},
      h("p", { class: "lead" }, "What a model finds likely is a point; a corner is certain. ",
        h("b", {}, "The star is what should be written."), " Drag the points, and drag B."),
      slider("B", "B, the largest size of an added logit", 4, 0.05),
      h("div", { id: "readout" })));
  const keys = { right: "the right token", favoured: "what an expert favours (black: it is right)",
    taken: "choosing well", lost: "lost: no expert knows" };
  $("many-tokens").append(
    h("figure", {},
      h("svg", { id: "tree", viewBox: "0 0 520 280", role: "img",
        "aria-label": "Tree of prefixes", "aria-describedby": "tree-text" }),
      h("ul", { class: "legend" }, Object.entries(keys).map(([name, text]) =>
        h("li", {}, h("span", { class: `edge-key ${name}` }), ` ${text}`)),
      h("li", {}, "1, 2: the expert that knows; ×: none")),
      h("figcaption", { id: "tree-text", class: "small" })),
    h("div", {}, slider("coverage", term("coverage", "Coverage"), 1, 0.05),
      slider("bound", "Largest size of an added logit", 6, 0.25),
      h("div", { class: "field" }, h("label", { for: "world" }, "Which tree is drawn"),
        h("select", { id: "world",
          onchange: (event) => update({ world: Number(event.target.value) }),
        }, theory.SEEDS.map((seed) => h("option", { value: seed }, `tree ${seed}`)))),
      h("div", { id: "losses" })));
  window.addEventListener("pointerup", () => { dragged = null; });
  view.renderers.push(render);
}

function render() {
  if (state.tab !== "choosing") return;
  for (const id of ["B", "coverage", "bound", "world"]) $(id).value = state[id];
  $("B-value").textContent = number(state.B);
  $("coverage-value").textContent = percent(state.coverage);
  $("bound-value").textContent = number(state.bound);
  rebuild($("triangle"), triangle());
  rebuild($("readout"), readout());
  const { parts, text } = tree();
  rebuild($("tree"), parts);
  $("tree-text").textContent = text;
  rebuild($("losses"), losses());
  rebuild($("coverage-curves"), curves());
}

return { build };
})();
