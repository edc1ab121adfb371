// The marked token as a picture of Eq. (1): three experts with their routing weights as lines, and
// three columns of bars for the same candidates, expert + router = sum.
//
// The elements stay from token to token and only their lengths change, so that the bars move.

"use strict";

const stage = (() => {

const { h, $, rebuild, pretty, shown, number, percent, term, state, NAMES, MARKS } = view;
const { EXPERTS, argmax } = engine;
const ROWS = 8;                                    // candidates that are shown
const SUM_WIDTH = 1.6;                             // of the sum's column, in widths of the others
const LEAST = 4;                                   // a column is at least so many nats wide

const sub = (text) => h("sub", {}, text);

/** What happened at a token, in two sentences. */
function story(decoding, step) {
  const { use_expert, only } = decoding.how, expert = NAMES[EXPERTS[step.pick]];
  const best = argmax(step.logp), say = [];
  const token = (id) => id === view.toy.encoding.END ? "to end the answer"
    : h("code", {}, pretty(id));
  if (!use_expert) say.push("The router writes alone. Its likeliest token is ", token(best), ". ");
  else {
    if (!step.in_S) say.push("All three experts want ");
    else if (only !== null && step.pick === only) say.push(`The ${expert} expert wants `);
    else {
      const who = step.pick === step.routed ? "The router picks" : "You picked";
      say.push(`${who} the ${expert} expert: it wants `);
    }
    say.push(token(step.expert_choice), ". ");
    if (step.scale === 0) say.push("The router adds nothing. ");
    else if (best === step.expert_choice) say.push("With the router's logits it still wins. ");
    else say.push("With the router's logits ", token(best), " wins. ");
  }
  if (step.token !== best) say.push("You wrote ", token(step.token), " in its place. ");
  return say;
}

/** The tokens to compare: every model's favourite, then those with the largest sums. Their order
 *  does not depend on the reader's scale, so that the rows stay under the hand. */
function candidates(step) {
  const base = engine.fuse(step.router_logp, step.expert_logp[step.pick]);
  const favourites = [step.token, argmax(step.logp), ...step.choice, argmax(step.router_logp)];
  const order = Array.from(base.keys()).sort((a, b) => base[b] - base[a]);
  const few = new Set(favourites);
  for (const id of order) if (few.size < ROWS) few.add(id);
  return order.filter((id) => few.has(id));
}

/** What the columns show: per candidate {id, expert, router, sum, length of each part}, and unit,
 *  the number of nats that are as long as a column is wide. Each column's bars are counted from its
 *  least likely candidate: Eq. (1) holds up to a constant. */
function columns(decoding, step) {
  const ids = candidates(step), { use_expert } = decoding.how, { scale } = step;
  const expert = (id) => use_expert ? step.expert_logp[step.pick][id] : 0;
  const router = (id) => (use_expert ? scale : 1) * step.router_logp[id];
  const above = (value) => {
    const least = Math.min(...ids.map(value));
    return (id) => value(id) - least;
  };
  const long = { expert: above(expert), router: above(router) };
  const rows = ids.map((id) => ({ id, expert: expert(id), router: router(id), sum: step.logp[id],
    lengths: { expert: long.expert(id), router: long.router(id) } }));
  const unit = Math.max(LEAST, ...rows.map(({ lengths: { expert, router } }) =>
    Math.max(expert, router, (expert + router) / SUM_WIDTH)));
  return { rows, unit };
}

/** The experts: {weight, its own token, how likely}; the picked one is pressed. */
function show_experts(decoding, step, fixed) {
  const { use_expert } = decoding.how;
  for (const [i, name] of EXPERTS.entries()) {
    const picked = use_expert && i === step.pick, own = step.choice[i];
    const button = $(`use-${name}`), weight = step.weights[i];
    button.disabled = fixed || !use_expert;
    button.setAttribute("aria-pressed", picked);
    button.setAttribute("aria-label", `${NAMES[name]} expert: routing weight ${percent(weight)},
      wants ${shown(own)}. ${picked ? "Picked" : "Pick it"}`);
    rebuild(button, h("span", { class: "who" }, h("span", { class: `chip ${name}` }, MARKS[name]),
      h("b", {}, NAMES[name]), h("span", { class: "share" }, percent(weight))),
    h("span", { class: "own" }, h("span", { class: "wants" }, "wants "), pretty(own)));
    for (const wire of document.querySelectorAll(`.wire.${name}`)) {
      wire.classList.toggle("picked", picked);
      wire.style.setProperty("--weight", weight.toFixed(4));
    }
  }
}

function show_bars(decoding, step, fixed) {
  const { use_expert } = decoding.how, who = use_expert ? EXPERTS[step.pick] : "router";
  const { rows, unit } = columns(decoding, step);
  const best = (name) => Math.max(...rows.map((row) => row[name]));
  const top = { expert: best("expert"), router: best("router"), sum: best("sum") };
  const off = !use_expert ? "expert" : step.scale === 0 ? "router" : null;  // adds nothing
  $("bars").className = `bars ${who}`;
  $("expert-name").textContent = use_expert ? NAMES[who] : "no expert";
  for (const [k, row] of rows.entries()) {
    const line = $(`row-${k}`), button = $(`candidate-${k}`), written = row.id === step.token;
    line.classList.toggle("written", written);
    button.dataset.id = row.id;
    button.disabled = fixed;
    button.setAttribute("aria-label",
      `Write ${shown(row.id)} here${written ? " (it is written now)" : ""}`);
    rebuild(button, pretty(row.id));
    for (const name of ["expert", "router", "sum"]) {
      const cell = $(`cell-${name}-${k}`), parts = name === "sum" ? ["expert", "router"] : [name];
      const drawn = parts.some((part) => row.lengths[part] > 0);
      cell.classList.toggle("best", drawn && row[name] === top[name]);
      cell.querySelector(".value").textContent = off === name ? "–" : number(row[name], 1);
      for (const part of parts) {
        cell.querySelector(`.${part}-part`).style.setProperty("--long",
          (row.lengths[part] / unit).toFixed(4));
      }
    }
  }
}

/** Show one token of an answer. fixed: it is of an answer that cannot be changed. */
function show(decoding, steps, at, fixed) {
  const step = steps[at];
  $("token-panel").hidden = !step;
  if (!step) return;
  rebuild($("token-head"),
    h("h2", {}, `Token ${at + 1} of ${steps.length}`),
    h("p", { id: "story" }, story(decoding, step)));
  show_experts(decoding, step, fixed);
  show_bars(decoding, step, fixed);
  $("scale").disabled = fixed || !decoding.how.use_expert;
  if (document.activeElement !== $("scale") || state.edits.length === 0) {
    $("scale").value = step.scale;
  }
  $("scale-value").textContent = `× ${number(step.scale)}`;
}

/** Lines from the experts to the expert's column: from the left, or on a phone from above. */
function wires() {
  const line = (name, d) => h("path", { class: `wire ${name}`, d });
  const picture = (kind, box, path) => h("svg", { class: `wires ${kind}`, viewBox: box,
    preserveAspectRatio: "none", "aria-hidden": "true" },
  EXPERTS.map((name, i) => line(name, path(i))));
  return [
    picture("beside", "0 0 60 60", (i) => `M0,${10 + 20 * i} C36,${10 + 20 * i} 24,30 60,30`),
    picture("above", "0 0 60 20", (i) => `M${10 + 20 * i},0 C${10 + 20 * i},12 20,8 20,20`),
  ];
}

/** The panel of the marked token; `edit` is called with what the reader changes there. */
function build(edit) {
  const experts = EXPERTS.map((name, expert) => h("button", {
    type: "button", id: `use-${name}`, class: `expert ${name}`, onclick: () => edit({ expert }) }));
  const slider = h("input", { type: "range", id: "scale", min: "0", max: "2", step: "0.05",
    "aria-label": "Weight of the router's log-probabilities",
    oninput: (event) => edit({ scale: Number(event.target.value) }) });
  const title = (sign, name, text, ...more) => h("th", { scope: "col" },
    h("span", { class: "formula" }, sign && h("span", { class: "sign" }, sign),
      term(name, "log π", sub(text)), name === "sum" && " + c"),
    h("span", { class: "under" }, more));
  const piece = (part) => h("span", { class: `piece ${part}-part` });
  const cell = (name, k, ...parts) => h("td", { id: `cell-${name}-${k}` },
    h("span", { class: "line" }, parts.map(piece), h("span", { class: "value" })));
  const row = (k) => h("tr", { id: `row-${k}` },
    h("th", { scope: "row" }, h("button", {
      type: "button", id: `candidate-${k}`, class: "candidate",
      onclick: (event) => edit({ token: Number(event.currentTarget.dataset.id) }),
    })),
    cell("expert", k, "expert"), cell("router", k, "router"), cell("sum", k, "expert", "router"));
  return h("section", { id: "token-panel", "aria-label": "The marked token", hidden: true },
    h("div", { id: "token-head" }),
    h("div", { class: "stage" },
      h("div", { id: "token-opinions", class: "experts" },
        h("p", { class: "label" }, term("weight", "Routing weights"),
          h("span", { class: "word" }, ": press to pick")), experts),
      wires(),
      h("div", { id: "token-bars", class: "frame" }, h("table", { id: "bars", class: "bars" },
        h("thead", {}, h("tr", {}, h("td", {}, h("span", { class: "word" }, "press to write")),
          title(null, "expert", "expert", h("b", { id: "expert-name" })),
          title("+", "router", "θ", h("b", { class: "router" }, "router"),
            h("output", { id: "scale-value", for: "scale" }), slider),
          title("=", "sum", "final", "longest is written"))),
        h("tbody", {}, Array.from({ length: ROWS }, (_, k) => row(k)))))));
}

return { ROWS, build, show };
})();
