// The second tab: why choosing among experts is not enough. A triangle of three tokens, and a small tree.

"use strict";

const choosing = (() => {

const { h, $, rebuild, state, update, number, percent } = view;
const COLORS = engine.EXPERTS;                                     // the colours of the three experts
const SHAPES = ["circle", "square", "diamond"];                    // and a second sign for each
const LEAST = 0.01;                                                // of a token's probability, when dragged

// --- the triangle --------------------------------------------------------------------------------

const CORNERS = [[220, 24], [24, 364], [416, 364]];                // of tokens A, B, C, in the picture

const to_picture = (p) => [0, 1].map((k) => p.reduce((sum, value, a) => sum + value * CORNERS[a][k], 0));
const path_of = (points) => points.map((p) => to_picture(p).map((x) => x.toFixed(1)).join(",")).join(" ");
const three = (p) => p.map((x) => number(x)).join(", ");

/** The distribution at a point of the picture, moved into the triangle, with three decimals. */
function from_picture([x, y]) {
  const [[ax, ay], [bx, by], [cx, cy]] = CORNERS;
  const area = (by - cy) * (ax - cx) + (cx - bx) * (ay - cy);
  const a = ((by - cy) * (x - cx) + (cx - bx) * (y - cy)) / area;
  const b = ((cy - ay) * (x - cx) + (ax - cx) * (y - cy)) / area;
  return tidy([a, b, 1 - a - b]);
}

/** The same as three decimals of at least LEAST that sum to 1. */
function tidy(p) {
  const positive = p.map((x) => Math.max(x, LEAST)), sum = positive.reduce((x, y) => x + y, 0);
  const rounded = positive.map((x) => Math.max(LEAST, Math.round(x / sum * 1e3) / 1e3));
  const largest = engine.argmax(rounded);
  rounded[largest] = Math.round((1 - rounded.reduce((x, y) => x + y, 0) + rounded[largest]) * 1e3) / 1e3;
  return rounded;
}

const handles = () => [...state.experts.map((p, i) => ({ id: `expert-${i + 1}`, name: `Expert ${i + 1}`, p, i })),
  { id: "target", name: "Target", p: state.target }];

function move(handle, p) {
  if (handle.i === undefined) update({ target: p });
  else update({ experts: state.experts.map((old, i) => i === handle.i ? p : old) });
}

/** A point that one can drag, or move with the arrow keys. */
function handle_element(handle) {
  const [x, y] = to_picture(handle.p), r = 9, shape = SHAPES[handle.i];
  const star = Array.from({ length: 10 }, (_, k) => {
    const angle = Math.PI * (k / 5 - 0.5), size = k % 2 ? 5 : 12;
    return `${x + size * Math.cos(angle)},${y + size * Math.sin(angle)}`;
  }).join(" ");
  const sign = shape === "circle" ? h("circle", { cx: x, cy: y, r })
    : shape === "square" ? h("rect", { x: x - r + 1, y: y - r + 1, width: 2 * r - 2, height: 2 * r - 2 })
    : shape === "diamond" ? h("polygon", { points: `${x},${y - r - 2} ${x + r + 2},${y} ${x},${y + r + 2} ${x - r - 2},${y}` })
    : h("polygon", { points: star });
  return h("g", {
    id: handle.id, class: `handle ${COLORS[handle.i] ?? "target"}`, tabindex: "0", role: "slider",
    "aria-label": `${handle.name}; arrow keys move it`, "aria-valuemin": 0, "aria-valuemax": 1,
    "aria-valuenow": handle.p[0], "aria-valuetext": `A ${handle.p[0]}, B ${handle.p[1]}, C ${handle.p[2]}`,
    onkeydown: (event) => {
      const size = event.shiftKey ? 30 : 6, [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0],
        ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [0, 0];
      if (!dx && !dy) return;
      event.preventDefault();
      move(handle, from_picture([x + size * dx, y + size * dy]));
    },
    onpointerdown: (event) => {
      event.preventDefault();
      dragged = handle.id;
      $(handle.id).focus();
    },
  }, h("circle", { class: "halo", cx: x, cy: y, r: 16 }), sign,
  h("text", { x: x + 14, y: y - 8 }, handle.i === undefined ? "target" : String(handle.i + 1)));
}

let dragged = null;

function drag(event) {
  const handle = handles().find((one) => one.id === dragged);
  if (!handle) return;
  const box = $("triangle").getBoundingClientRect();
  const scale = 440 / box.width;
  move(handle, from_picture([(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]));
}

function triangle() {
  const { experts, target, B } = state, found = theory.reach(experts, target, B);
  const nearest = Object.entries(found).filter(([, { distance }]) => distance > 0.002).map(([way, { point }]) => {
    const [x1, y1] = to_picture(point), [x2, y2] = to_picture(target);
    return h("line", { class: `gap ${way}`, x1, y1, x2, y2 });
  });
  return [
    h("polygon", { class: "simplex", points: path_of([[1, 0, 0], [0, 1, 0], [0, 0, 1]]) }),
    CORNERS.map(([x, y], a) => h("text", { class: "corner", x: x + [0, -6, 6][a], y: y + [-8, 20, 20][a],
      "text-anchor": "middle" }, "always " + "ABC"[a])),
    experts.map((p, i) => h("polygon", { class: `hexagon ${COLORS[i]}`, points: path_of(theory.reach_of_logits(p, B)) })),
    h("polygon", { class: "hull", points: path_of(experts) }),
    nearest,
    handles().map(handle_element),
  ];
}

function readout() {
  const { experts, target, B } = state, found = theory.reach(experts, target, B);
  const needed = experts.map((p) => theory.needed_bound(p, target));
  const best = needed.indexOf(Math.min(...needed));
  const rows = [["routing", "choosing: only the three points"], ["mixing", "mixing: the triangle between them"],
    ["logits", `adding logits of size at most ${number(B)}: the three outlined areas`]];
  return [
    h("table", { class: "readout" },
      h("caption", {}, "How near to the target (", h("code", {}, three(target)), ") each way comes"),
      h("thead", {}, h("tr", {}, ["way, and what it reaches", "nearest (A, B, C)", "distance left"].map((text) =>
        h("th", { scope: "col" }, text)))),
      h("tbody", {}, rows.map(([way, text]) => h("tr", {}, h("th", { scope: "row" }, h("span", { class: `swatch ${way}` }), " ", text),
        h("td", {}, h("code", {}, three(found[way].point))),
        h("td", {}, h("b", { id: `distance-${way}` }, number(found[way].distance, 3))))))),
    h("p", { class: "small" }, "Distance: total variation, half the sum of the differences of the probabilities. Added " +
      "logits reach the target exactly from a certain size on: ",
    needed.map((size, i) => [i ? ", " : "", `${number(size)} from expert ${i + 1}`, i === best ? " (least)" : ""]).flat(), "."),
  ];
}

// --- the tree ------------------------------------------------------------------------------------

const LEVELS = 3;                                                  // of the tree that are drawn
const GRID = Array.from({ length: 11 }, (_, i) => i / 10);         // coverages of the curves
const remembered = new Map();

/** theory.mean_loss, computed once for the same numbers. */
function mean_loss(coverage, B, nobody = false) {
  const key = [nobody ? 0 : coverage, B, nobody].join();           // without experts coverage is nothing
  if (!remembered.has(key)) remembered.set(key, theory.mean_loss(coverage, B, nobody));
  return remembered.get(key);
}

/** The first levels of one world. Solid: the right token; dashed: what an expert favours; broad: a choice. */
function tree() {
  const levels = theory.tree(state.world, state.coverage).slice(0, LEVELS), { A } = theory;
  const x = (t, s) => 520 * (s + 0.5) / A ** t, y = (t) => 28 + 78 * t;
  const parts = [];
  let at = 0, right = 0;
  for (const [t, level] of levels.entries()) {                     // follow an expert that knows, if one does
    const node = level[at], next = at * A + (node.covered ? node.right : node.wrong);
    parts.push(h("line", { class: "edge taken", x1: x(t, at), y1: y(t), x2: x(t + 1, next), y2: y(t + 1) - 4 }));
    right += Number(node.covered);
    at = next;
  }
  for (const [t, level] of levels.entries()) {
    for (const [s, node] of level.entries()) {
      for (let a = 0; a < A; a++) {
        const classes = ["edge", a === node.right && "right", node.tokens.includes(a) && "favoured"];
        parts.push(h("line", { class: classes.filter(Boolean).join(" "),
          x1: x(t, s), y1: y(t), x2: x(t + 1, s * A + a), y2: y(t + 1) - 4 }));
      }
    }
  }
  for (const [t, level] of levels.entries()) {
    for (const [s, node] of level.entries()) {
      parts.push(h("g", { class: `prefix ${node.covered ? COLORS[node.who] : "uncovered"}` },
        h("circle", { cx: x(t, s), cy: y(t), r: 11 }),
        h("text", { x: x(t, s), y: y(t) + 4.5, "text-anchor": "middle" }, node.covered ? String(node.who + 1) : "×")));
    }
  }
  const covered = levels.flat().filter((node) => node.covered).length, all = levels.flat().length;
  return { parts, text: `Drawn: the first ${LEVELS} of ${theory.T} tokens. Some expert knows the right token after ${covered} of ` +
    `these ${all} prefixes. Following that expert where there is one, and the wrong token elsewhere, gets ${right} of these ` +
    `${LEVELS} tokens right (the broad line).` };
}

function losses() {
  const { coverage, bound } = state;
  const rows = [["choosing an expert", mean_loss(coverage, 0), "loss-choosing"],
    [`choosing, and logits of size at most ${number(bound)} added`, mean_loss(coverage, bound), "loss-logits"],
    ["such logits alone, with no expert", mean_loss(coverage, bound, true), "loss-nobody"]];
  return h("table", { class: "readout" },
    h("caption", {}, `Tokens lost of ${theory.T}, when ${percent(coverage)} of the prefixes are covered (mean over ` +
      `${theory.SEEDS.length} trees)`),
    h("tbody", {}, rows.map(([text, value, id]) => h("tr", {}, h("th", { scope: "row" }, text),
      h("td", {}, h("b", { id }, number(value, 4)))))));
}

function curves() {
  const { coverage, bound } = state, y = (B, nobody) => GRID.map((c) => mean_loss(c, B, nobody));
  return chart.lines({ id: "coverage-chart", title: "Loss and coverage.",
    text: "To the right the experts know more. Choosing alone needs an expert that knows the right token everywhere.",
    lines: [{ name: "choosing", x: GRID, y: y(0), color: "code" },
      { name: `choosing, and logits up to ${number(bound)}`, x: GRID, y: y(bound), color: "router", dash: "7 4" },
      { name: "the same logits, no expert", x: GRID, y: y(bound, true), color: "plain", dash: "2 4" }],
    x_label: "share of the prefixes at which some expert knows the right token",
    y_label: `tokens lost of ${theory.T}`, y_range: [0, theory.T], mark: coverage, format: (x) => percent(x) });
}

// --- the tab -------------------------------------------------------------------------------------

function build() {
  const slider = (id, label, most, step) => h("div", { class: "field" },
    h("label", { for: id }, label, ": ", h("output", { id: `${id}-value`, for: id })),
    h("input", { type: "range", id, min: "0", max: String(most), step: String(step),
      oninput: (event) => update({ [id]: Number(event.target.value) }) }));
  $("panel-choosing").append(
    h("h2", {}, "One token: what can be reached"),
    h("p", {}, "Suppose there are only three tokens, A, B and C. What a model would write next is then a point of this " +
      "triangle: the nearer to a corner, the likelier its token. Each expert is a point, and the target is what should be " +
      "written. ", h("b", {}, "Choosing"), " gives one of the points; ", h("b", {}, "mixing"), " the experts gives the " +
      "triangle between them, never more. ", h("b", {}, "Added logits"), " multiply each probability by a factor, and so " +
      "leave that triangle: the larger they may be, the farther. With logits of any size, every target is reached, from every " +
      "expert. ", h("span", { class: "small" }, "Drag the points, or move to them with Tab and use the arrow keys.")),
    h("div", { class: "columns" },
      h("svg", { id: "triangle", viewBox: "0 0 440 400", role: "group",
        "aria-label": "Triangle of three tokens with three experts and a target",
        onpointermove: drag }),
      h("div", {}, slider("B", "B, the largest size of an added logit", 4, 0.05), h("div", { id: "readout" }))),
    h("h2", {}, "Many tokens: coverage"),
    h("p", {}, "Now an answer of six tokens. After each beginning of an answer (a ", h("b", {}, "prefix"), ", a circle below) one of " +
      "three tokens is right. At a ", h("b", {}, "covered"), " prefix one of two experts favours the right token (its number stands in the circle); " +
      "at an uncovered one (×) both favour the same wrong token. Every choice among the experts then loses. Lower the coverage and see."),
    h("div", { class: "columns" },
      h("figure", {},
        h("svg", { id: "tree", viewBox: "0 0 520 280", role: "img", "aria-describedby": "tree-text", "aria-label": "Tree of prefixes" }),
        h("p", { class: "small" }, h("span", { class: "edge-key right" }), " the right token ",
          h("span", { class: "edge-key favoured" }), " what an expert favours ", h("span", { class: "edge-key taken" }), " the choice of an expert that knows"),
        h("figcaption", { id: "tree-text", class: "small" })),
      h("div", {}, slider("coverage", "Coverage", 1, 0.05), slider("bound", "Largest size of an added logit", 6, 0.25),
        h("div", { class: "field" }, h("label", { for: "world" }, "Which tree is drawn"),
          h("select", { id: "world", onchange: (event) => update({ world: Number(event.target.value) }) },
            theory.SEEDS.map((seed) => h("option", { value: seed }, `tree ${seed}`)))),
        h("div", { id: "losses" }))),
    h("div", { id: "coverage-curves" }),
    h("p", { class: "small" }, "These numbers are those of theory/toy_mdp.py. The logits here are the best ones possible; training has to find them."));
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

return { build, tidy, from_picture, to_picture };
})();
