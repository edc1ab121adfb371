// The third tab: the curves of both phases, and Eq. (3) worked out for one preference pair.

"use strict";

const training = (() => {

const { h, $, rebuild, state, update, number, percent, NAMES } = view;
const BETA = 0.1;                                                  // of Eq. (3)

// --- the curves ----------------------------------------------------------------------------------

function charts() {
  const { sft, pair } = view.data.curves;
  const route = (name) => ({ name: NAMES[name], x: sft.step, y: sft[`route_${name}`], color: name,
    dash: { math: null, code: "7 4", instruct: "2 4" }[name] });
  const mean = (values, from, to) => {
    const part = values.slice(Math.floor(from * values.length), Math.ceil(to * values.length));
    return number(part.reduce((x, y) => x + y, 0) / part.length);
  };
  const first_and_last = (values) => `${mean(values, 0, 0.1)} in the first tenth of the steps, ${mean(values, 0.9, 1)} in the last`;
  return [
    h("div", { class: "columns" },
      chart.lines({ id: "chart-sft", title: "Phase 1, Eq. (2): two losses.",
        text: `L_LM teaches the router to write (${first_and_last(sft.loss_lm)}); L_expert teaches it to choose, inside S only ` +
          `(${first_and_last(sft.loss_expert)}).`,
        lines: [{ name: "L_LM", x: sft.step, y: sft.loss_lm, color: "router" },
          { name: "L_expert", x: sft.step, y: sft.loss_expert, color: "math", dash: "7 4" }],
        x_label: "step", y_label: "loss per answer token" }),
      chart.lines({ id: "chart-route", title: "Phase 1: whom the router chooses inside S.",
        text: "The share of each expert among the tokens in S of a batch; it starts with no preference.",
        lines: engine.EXPERTS.map(route), x_label: "step", y_label: "share of the tokens in S", y_range: [0, 1] })),
    h("div", { class: "columns" },
      chart.lines({ id: "chart-cdpo", title: "Phase 2, Eq. (3): margin and bias.",
        text: `The margin is the router's own part (${first_and_last(pair.margin)}); the bias is the chosen experts' part, which the ` +
          "router cannot change by this loss.",
        lines: [{ name: "margin", x: pair.step, y: pair.margin, color: "router" },
          { name: "bias", x: pair.step, y: pair.bias, color: "math", dash: "7 4" }],
        x_label: "step", y_label: "margin and bias, as they enter Eq. (3)" }),
      chart.lines({ id: "chart-accuracy", title: "Phase 2: which answer is preferred.",
        text: "The share of pairs in which the chosen answer is ahead: by the router's margin, and by margin + bias.",
        lines: [{ name: "margin > 0", x: pair.step, y: pair.accuracy, color: "router" },
          { name: "margin + bias > 0", x: pair.step, y: pair.fused_accuracy, color: "code", dash: "7 4" }],
        x_label: "step", y_label: "share of the pairs", y_range: [0, 1] })),
  ];
}

// --- one preference pair -------------------------------------------------------------------------

const remembered = new Map();

/** The six log-probabilities of pair i, and Eq. (3): before phase 2 (theta = ref) and after it. */
function worked(i) {
  if (remembered.has(i)) return remembered.get(i);
  const { encoding, models } = view.toy, { prompt, chosen, rejected } = view.data.pairs[i];
  const experts = engine.EXPERTS.map((name) => models[name]), ids = encoding.encode_prompt(prompt);
  const answers = [chosen, rejected].map((text) => encoding.encode_answer(text));
  const of = (model) => answers.map((answer) => engine.sequence_logp(model, ids, answer));
  const routed = (router) => answers.map((answer) => engine.routed_logp(router, experts, ids, answer));
  const ref = of(models.router_sft.lm);
  const phase = (theta, expert) => ({ theta, ref, expert, ...engine.cdpo_loss(...theta, ...ref, ...expert, BETA) });
  const result = { before: phase(ref, routed(models.router_sft)), after: phase(of(models.router.lm), routed(models.router)) };
  remembered.set(i, result);
  return result;
}

/** A text in which what differs from another is marked. */
function compared(text, other) {
  let start = 0, end = 0;
  while (start < Math.min(text.length, other.length) && text[start] === other[start]) start++;
  while (end < Math.min(text.length, other.length) - start && text.at(-1 - end) === other.at(-1 - end)) end++;
  return h("pre", {}, text.slice(0, start), h("mark", {}, text.slice(start, text.length - end)), text.slice(text.length - end));
}

/** margin and bias as bars on one line of numbers, and their sum. */
function eq3_bars(name, { margin, bias, loss }, most) {
  const bar = (label, value, classes) => h("div", { class: "eq3-row" },
    h("span", { class: "eq3-name" }, label),
    h("span", { class: "eq3-track" }, h("span", { class: `eq3-bar ${classes}`,
      style: `left: ${50 + 50 * Math.min(0, value) / most}%; width: ${50 * Math.abs(value) / most}%` })),
    h("span", { class: "value" }, number(value, 3)));
  const pull = 1 / (1 + Math.exp(margin + bias));
  return h("div", { class: "eq3" },
    h("h4", {}, name),
    bar("margin (router)", margin, "router"),
    bar("bias (experts)", bias, "math striped"),
    bar("margin + bias", margin + bias, "plain"),
    h("p", {}, "loss = −log σ(", number(margin + bias, 3), ") = ", h("b", {}, number(loss, 3)), `; the pair pulls with ${percent(pull)} of its ` +
      "largest force."));
}

function pair() {
  const { prompt, chosen, rejected } = view.data.pairs[state.pair], { before, after } = worked(state.pair);
  const most = 1.05 * Math.max(...[before, after].flatMap(({ margin, bias }) => [margin, bias, margin + bias].map(Math.abs)), 0.1);
  const row = (label, [a, b], id) => h("tr", {}, h("th", { scope: "row" }, label),
    h("td", { id: `${id}-chosen` }, number(a, 3)), h("td", { id: `${id}-rejected` }, number(b, 3)), h("td", {}, number(a - b, 3)));
  const reads = after.bias < 0
    ? "The bias is negative: the routed experts prefer the rejected answer. The sum starts low, the loss is large, and the router is pushed hard to correct them."
    : "The bias is positive: the routed experts prefer the chosen answer already. The sum starts high, the loss is small, and the router is left almost alone.";
  return [
    h("dl", { class: "pair" },
      h("dt", {}, "prompt x"), h("dd", {}, h("pre", {}, prompt)),
      h("dt", {}, "chosen answer y_w"), h("dd", {}, compared(chosen, rejected)),
      h("dt", {}, "rejected answer y_l"), h("dd", {}, compared(rejected, chosen))),
    h("table", { class: "readout" },
      h("caption", {}, "Six log-probabilities, each summed over the tokens of an answer (after phase 2)"),
      h("thead", {}, h("tr", {}, ["log-probability under", "chosen", "rejected", "difference"].map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {},
        row(["π", h("sub", {}, "θ"), ": the router's language model"], after.theta, "theta"),
        row(["π", h("sub", {}, "ref"), ": the same as phase 1 left it, frozen"], after.ref, "ref"),
        row(["π", h("sub", {}, "expert"), ": at each token the expert that the router chooses"], after.expert, "expert"))),
    h("p", { class: "equation" }, "loss = −log σ( ", h("span", { class: "underline router" }, "β [difference of π",
      h("sub", {}, "θ"), " − difference of π", h("sub", {}, "ref"), "]"), " + ", h("span", { class: "underline math" }, "β [difference of π",
      h("sub", {}, "expert"), "]"), " ) ", h("span", { class: "number" }, "Eq. (3)")),
    h("p", { class: "small" }, `β = ${BETA}. The first part is the margin, the second the bias. No gradient flows through the bias: it only decides how ` +
      "hard a pair pulls at the router. σ is the logistic function; with a sum of 0 the loss is log 2 = 0.693."),
    h("div", { class: "columns" }, eq3_bars("Before phase 2 (π_θ = π_ref, so the margin is 0)", before, most), eq3_bars("After phase 2", after, most)),
    h("p", { id: "pair-text" }, reads),
  ];
}

// --- the tab -------------------------------------------------------------------------------------

function build() {
  $("panel-training").append(
    h("h2", {}, "How the router was trained"),
    h("p", {}, "The experts never change. ", h("b", {}, "Phase 1"), " shows the router right answers: it learns to write, and, inside S (where the experts " +
      "would write different tokens), to give weight to the expert that finds the right token likely. ", h("b", {}, "Phase 2"),
    " shows it pairs of a right and a wrong answer, the wrong one written by router and experts together after phase 1; it learns to correct what the experts " +
      "get wrong."),
    h("div", { id: "charts" }),
    h("h2", {}, "One preference pair"),
    h("div", { class: "field" }, h("label", { for: "pair" }, "Which pair"),
      h("select", { id: "pair", onchange: (event) => update({ pair: Number(event.target.value) }) },
        view.data.pairs.map(({ prompt }, i) => h("option", { value: i }, `${i + 1}: ${prompt.slice(0, 60)}`)))),
    h("div", { id: "pair-panel" }));
  view.renderers.push(render);
}

function render() {
  if (state.tab !== "training") return;
  if (!$("charts").children.length) rebuild($("charts"), charts());
  $("pair").value = state.pair;
  rebuild($("pair-panel"), pair());
}

return { build, worked };
})();
