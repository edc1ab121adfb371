// The third tab: the curves of both phases, and Eq. (3) worked out for one preference pair.

"use strict";

const training = (() => {

const { h, $, rebuild, state, update, number, percent, NAMES } = view;
const BETA = 0.1;                                  // of Eq. (3)

// --- the curves ----------------------------------------------------------------------------------

const mean = (values) => values.reduce((x, y) => x + y, 0) / values.length;
const last = (values) => mean(values.slice(-Math.ceil(values.length / 10)));

/** How a curve begins and ends, in words. */
const first_and_last = (values) => `${number(last([...values].reverse()))} in the first tenth of the
  steps, ${number(last(values))} in the last`;

function charts() {
  const { sft, pair } = view.data.curves, sum = pair.margin.map((x, i) => x + pair.bias[i]);
  const line = (of, key, name, color, dash) => ({ name, color, dash, x: of.step, y: of[key] });
  const dashes = { math: null, code: "7 4", instruct: "2 4" };
  const of_sft = [
    chart.lines({
      id: "chart-sft", title: "Phase 1, Eq. (2): two losses.",
      text: `L_LM: the router learns to write. L_expert: it learns to pick, inside S only
        (${percent(mean(sft.informative))} of the tokens). It falls early and then scatters:
        ${first_and_last(sft.loss_expert)}.`,
      lines: [line(sft, "loss_lm", "L_LM", "router"),
        line(sft, "loss_expert", "L_expert", "math", "7 4")],
      x_label: "step", y_label: "loss per answer token",
    }),
    chart.lines({
      id: "chart-route", title: "Phase 1: which expert the router picks inside S.",
      text: `The share of each expert among a batch's tokens in S. At the start W = 0: all three
        weights are 1/3, and of equal weights the first expert's is taken. After one step the picks
        scatter. (A point of the curve is the mean over several steps.)`,
      lines: engine.EXPERTS.map((name) =>
        line(sft, `route_${name}`, NAMES[name], name, dashes[name])),
      x_label: "step", y_label: "share of the tokens in S", y_range: [0, 1],
    }),
  ];
  const of_pairs = [
    chart.lines({
      id: "chart-cdpo", title: "Phase 2, Eq. (3): margin and bias.",
      text: `The margin is the router's own part, the bias the picked experts' part. The rejected
        answers are the models' own mistakes. In the last tenth of the steps the margin is
        ${number(last(pair.margin))}, the sum ${number(last(sum))}: it is above 0 for
        ${percent(last(pair.fused_accuracy))} of the pairs.`,
      lines: [line(pair, "margin", "margin", "router"),
        line(pair, "bias", "bias", "math", "7 4"),
        { name: "margin + bias", color: "plain", dash: "2 4", x: pair.step, y: sum }],
      x_label: "step", y_label: "margin and bias, as they enter Eq. (3)",
    }),
    chart.lines({
      id: "chart-accuracy", title: "Phase 2: the shares of pairs above 0.",
      text: `The share of pairs whose margin is positive (${first_and_last(pair.accuracy)}): the
        router prefers the chosen answer more than it did after phase 1. And the share whose margin
        + bias is positive (${first_and_last(pair.fused_accuracy)}). The second share is the lower
        one because the rejected answers are the models' own mistakes: the bias starts at
        ${number(pair.bias[0])}, and the margin must first make up for it.`,
      lines: [line(pair, "accuracy", "margin > 0", "router"),
        line(pair, "fused_accuracy", "margin + bias > 0", "code", "7 4")],
      x_label: "step", y_label: "share of the pairs", y_range: [0, 1],
    }),
  ];
  return [0, 1].map((i) => h("div", { class: "columns" }, of_sft[i], of_pairs[i]));
}

// --- one preference pair -------------------------------------------------------------------------

const remembered = new Map();

/** Eq. (3) for pair i before phase 2 (theta = ref) and after it: [chosen, rejected] under each
 *  model, and what cdpo_loss gives. */
function worked(i) {
  if (remembered.has(i)) return remembered.get(i);
  const { encoding, models } = view.toy, { prompt, chosen, rejected } = view.data.pairs[i];
  const experts = engine.EXPERTS.map((name) => models[name]), ids = encoding.encode_prompt(prompt);
  const answers = [chosen, rejected].map((text) => encoding.encode_answer(text));
  const ref = answers.map((answer) => engine.sequence_logp(models.router_sft.lm, ids, answer));
  const phase = (router) => {
    const theta = answers.map((answer) => engine.sequence_logp(router.lm, ids, answer));
    const expert = answers.map((answer) => engine.routed_logp(router, experts, ids, answer));
    return { theta, ref, expert, ...engine.cdpo_loss(...theta, ...ref, ...expert, BETA) };
  };
  const result = { before: phase(models.router_sft), after: phase(models.router) };
  remembered.set(i, result);
  return result;
}

/** A text in which the words that differ from another text are marked. */
function compared(text, other) {
  const least = Math.min(text.length, other.length), letter = /[a-z0-9]/i;
  let start = 0, end = 0;
  while (start < least && text[start] === other[start]) start++;
  while (end < least - start && text.at(-1 - end) === other.at(-1 - end)) end++;
  while (start > 0 && letter.test(text[start - 1])) start--;       // whole words
  while (end > 0 && letter.test(text.at(-end))) end--;
  const last = text.length - end;
  return h("pre", {}, text.slice(0, start), h("mark", {}, text.slice(start, last)),
    text.slice(last));
}

/** margin, bias and their sum as bars on one line of numbers. most: the longest bar. */
function eq3_bars(name, { margin, bias, loss }, most) {
  const bar = (label, value, classes) => {
    const left = 50 + 50 * Math.min(0, value) / most, width = 50 * Math.abs(value) / most;
    return h("div", { class: "eq3-row" },
      h("span", { class: "eq3-name" }, label),
      h("span", { class: "eq3-track" }, h("span", { class: `eq3-bar ${classes}`,
        style: `left: ${left}%; width: ${width}%` })),
      h("span", { class: "value" }, number(value, 3)));
  };
  return h("div", { class: "eq3" },
    h("h3", {}, name),
    bar("margin (router)", margin, "router"),
    bar("bias (experts)", bias, "math striped"),
    bar("margin + bias", margin + bias, "plain"),
    h("p", {}, `loss = −log σ(${number(margin + bias, 3)}) = `, h("b", {}, number(loss, 3)),
      `; the pair pulls with ${percent(pull(margin + bias))} of its full force.`));
}

function pair() {
  const { prompt, chosen, rejected } = view.data.pairs[state.pair];
  const { before, after } = worked(state.pair), sub = (text) => h("sub", {}, text);
  const sizes = [before, after].flatMap(({ margin, bias }) => [margin, bias, margin + bias]);
  const most = 1.05 * Math.max(...sizes.map(Math.abs), 0.1);
  const row = (name, what, [a, b]) => h("tr", {},
    h("th", { scope: "row" }, "π", sub(name), `: ${what}`),
    [a, b, a - b].map((x) => h("td", {}, number(x, 3))));
  const why = (text) => h("span", { class: "small" }, ` (${text})`);
  const force = `${percent(pull(before.bias))} of its full force`;
  const term = (name, parts) => h("span", { class: `underline ${name}` }, parts);
  return [
    h("dl", { class: "pair" },
      h("dt", {}, "prompt x"), h("dd", {}, h("pre", {}, prompt)),
      h("dt", {}, "chosen answer y", sub("w"), why("w for win: the right one")),
      h("dd", {}, compared(chosen, rejected)),
      h("dt", {}, "rejected answer y", sub("l"), why("l for lose")),
      h("dd", {}, compared(rejected, chosen))),
    h("table", { class: "readout" },
      h("caption", {}, "Six log-probabilities, summed over an answer's tokens (after phase 2)"),
      view.head("log-probability under", "chosen", "rejected", "difference"),
      h("tbody", {},
        row("θ", "the router's language model", after.theta),
        row("ref", "the same as phase 1 left it, frozen", after.ref),
        row("expert", "at each token the expert that the router picks", after.expert))),
    h("p", { class: "equation" }, "loss = −log σ( ",
      term("router",
        ["β [difference of log π", sub("θ"), " − difference of log π", sub("ref"), "]"]),
      " + ", term("math", ["β [difference of log π", sub("expert"), "]"]), " ) ",
      h("span", { class: "number" }, "Eq. (3)")),
    h("p", { class: "small" }, `β = ${BETA}. σ is the sigmoid: the loss is small when
      the sum is large. The first part is the margin, the second the bias. Without the bias this is
      DPO. The margin grows when the router comes to prefer the chosen answer more than after
      phase 1.`),
    h("div", { class: "columns" },
      eq3_bars("Before phase 2: the margin is 0", before, most),
      eq3_bars("After phase 2", after, most)),
    h("p", { id: "pair-text" }, before.bias < 0
      ? `The bias is negative: the routed experts prefer the rejected answer. The sum starts below
        0, and the pair pulls with ${force}: the router must correct the experts here.`
      : `The bias is positive: the routed experts prefer the chosen answer already. The sum starts
        above 0, and the pair pulls with ${force}: there is less to correct here.`,
    after.margin + after.bias < 0
      ? ` After phase 2 margin + bias is still below 0 (${number(after.margin + after.bias)}): for
        this pair phase 2 did not succeed. The router moved in the right direction, by a margin of
        ${number(after.margin)}, but not far enough to outweigh the experts.`
      : ` After phase 2 margin + bias is above 0 (${number(after.margin + after.bias)}): the loss
        of this pair is below log 2.`),
  ];
}

// --- the bias, dragged ---------------------------------------------------------------------------

const BIASES = Array.from({ length: 161 }, (_, i) => (i - 80) / 10);

/** How hard a pair pulls at the router, 0 to 1: minus the derivative of the loss by the margin. */
const pull = (sum) => 1 / (1 + Math.exp(sum));

/** The loss of the pair and its pull, for any bias; the slider's is pointed out. */
function show_bias() {
  const { margin, bias: own } = worked(state.pair).after, bias = state.bias ?? own;
  const sum = margin + bias, loss = Math.log1p(Math.exp(-sum));
  if (document.activeElement !== $("bias") || state.bias === null) $("bias").value = bias;
  $("bias-value").textContent = number(bias);
  $("bias-own").disabled = state.bias === null;
  const enough = pull(sum) > 0.6 ? "does not make" : pull(sum) > 0.4 ? "just about makes" : "makes";
  rebuild($("bias-words"), h("p", { class: "lead" }, "The pair pulls at the router with ",
    h("b", { id: "pull" }, percent(pull(sum))), " of its full force. ", bias < 0
      ? `The experts prefer the rejected answer; the margin ${enough} up for it.`
      : "The experts prefer the chosen answer: there is less to correct."),
  h("p", { class: "small" }, `margin ${number(margin)} + bias ${number(bias)} = ${number(sum)};
    force = σ(−(margin + bias)), between 0 and 1; loss = −log σ(${number(sum)})
    = ${number(loss, 3)}`));
  rebuild($("bias-figure"), chart.lines({
    id: "chart-bias", title: "This pair, for any bias.", text: "Drag the bias through zero.",
    lines: [{ name: "force of the pair", color: "router", x: BIASES,
      y: BIASES.map((b) => pull(margin + b)) }],
    x_label: "bias", y_label: "share of the gradient's full force", y_range: [0, 1], mark: bias,
  }));
}

// --- the tab -------------------------------------------------------------------------------------

function build() {
  $("pair").append(...view.data.pairs.map(({ prompt }, i) =>
    h("option", { value: i }, `${i + 1}: ${prompt}`)));
  $("pair").addEventListener("change", (event) =>
    update({ pair: Number(event.target.value), bias: null }));
  $("bias-panel").append(h("div", { id: "bias-figure" }), h("div", {},
    h("div", { id: "bias-words" }),
    h("label", { for: "bias" }, view.term("bias", "Bias"), ": ",
      h("output", { id: "bias-value", for: "bias" })),
    h("input", { type: "range", id: "bias", min: "-8", max: "8", step: "0.05",
      oninput: (event) => update({ bias: Number(event.target.value) }) }),
    h("button", { type: "button", id: "bias-own", onclick: () => update({ bias: null }) },
      "the pair's own")));
  view.renderers.push(render);
}

function render() {
  if (state.tab !== "training") return;
  if (!$("charts").children.length) {
    const [two, more] = charts();
    rebuild($("charts"), two);
    $("more-charts").append(more);
  }
  $("pair").value = state.pair;
  show_bias();
  rebuild($("pair-panel"), pair());
}

return { build, worked };
})();
