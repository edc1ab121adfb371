// The guided tour: ten stops. A stop is a state of the page and a text. The texts are made from
// what the models write here, so that they are also true of a run of your own.

"use strict";

const tour = (() => {

const { h, $, rebuild, state, update, quoted, percent, number, START, NAMES } = view;
const { EXPERTS } = engine, { text_of } = answer;  // a text has at most 40 words: it is read aloud

/** The first example of a benchmark with the sub-skill; another one where there is none. */
function example(bench, skill, covered) {
  const rows = view.data.examples.filter((e) => e.bench === bench && e.covered === covered);
  return rows.find((e) => e.skill === skill) ?? rows[0];
}

const easy = () => example("toy-gsm8k", "lose", true).prompt;
const hard = () => example("toy-gsm8k", "triple", false).prompt;

const both = () => view.data.examples.find((e) => e.skill === "only the sum is right");

const remembered = new Map();

/** All steps of an answer. */
function steps(prompt, method = "fusionroute") {
  const key = JSON.stringify([prompt, method]);
  if (!remembered.has(key)) {
    const decoding = engine.start(view.toy, prompt, method);
    while (!decoding.done) decoding.step();
    remembered.set(key, decoding.steps);
  }
  return remembered.get(key);
}

const first = (list, test) => Math.max(0, list.findIndex(test));

/** The token at which the hard prompt is decided: the first in S that the router changes. */
const turning = () => first(steps(hard()), (step) =>
  step.in_S && step.token !== step.expert_choice);

/** Where the first use of another expert would change an answer: {at, other}, a number of a token
 *  in S and of an expert. A token that the math expert writes, if there is one. */
function fork() {
  const all = steps(easy(), "routing_only"), sure = (step) => EXPERTS[step.pick] === "math";
  const found = all.findIndex((step) => step.in_S && sure(step));
  const at = found >= 0 ? found : first(all, (step) => step.in_S), step = all[at];
  return { at, other: first(step.choice, (token) => token !== step.token) };
}

/** The first token of an answer that the router changes although all experts agree, or any. */
const changed = (all) => {
  const alone = all.findIndex((step) => !step.in_S && step.token !== step.expert_choice);
  return alone >= 0 ? alone : first(all, (step) => step.token !== step.expert_choice);
};

/** The token at which the answers of the two phases part on the hard prompt. */
const parting = () => first(steps(hard()), (step, t) =>
  step.token !== steps(hard(), "sft_only")[t]?.token);

const STOPS = [
  {
    title: "Three experts and a router; outside S the experts agree",
    look: "answer-card",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => !step.in_S) }),
    text: () => {
      const all = steps(easy()), inside = all.filter((step) => step.in_S).length;
      const at = first(all, (step) => !step.in_S);
      return `The answer is written token by token. At ${inside} of ${all.length} tokens the experts
        disagree: these form the set S and have the picked expert's colour. At the marked token
        ${at + 1} all three want ${quoted(all[at].choice[0])}. Press other tokens.`;
    },
  },
  {
    title: "Inside S: routing",
    look: "token-opinions",
    state: () => ({ prompt: easy(), method: "routing_only", at: fork().at }),
    text: () => {
      const { at, other } = fork(), step = steps(easy(), "routing_only")[at];
      const offers = EXPERTS.map((name, i) => `${NAMES[name]} ${quoted(step.choice[i])}`);
      return `Here the router only picks. At token ${at + 1} the experts want ${offers.join(", ")}.
        The largest weight decides: ${NAMES[EXPERTS[step.pick]]},
        ${percent(step.weights[step.pick])}. Press the ${NAMES[EXPERTS[other]]} expert: it writes
        ${quoted(step.choice[other])}, and the rest follows from it.`;
    },
  },
  {
    title: "Where choosing fails",
    look: "answer-card",
    state: () => ({ prompt: hard(), method: "routing_only", at: turning() }),
    text: () => {
      const written = steps(hard(), "routing_only");
      const step = written[Math.min(turning(), written.length - 1)];
      const offers = [...new Set(step.choice)].map(quoted).join(" or ");
      return `No expert has ever seen this kind of problem. At the marked token they offer
        ${offers}. Choosing can only give one of these. If none is right, even the best choice
        fails. The right answer stands below.`;
    },
  },
  {
    title: "Adding logits",
    look: "token-bars",
    state: () => ({ prompt: hard(), at: turning() }),
    text: () => {
      const step = steps(hard())[turning()];
      return `The same prompt, now with Eq. (1): the expert's bar and the router's, end to end. The
        ${NAMES[EXPERTS[step.pick]]} expert wanted ${quoted(step.expert_choice)}; the longest sum is
        ${quoted(step.token)}. So the router can write a token that no expert would choose.`;
    },
  },
  {
    title: "Take the addition away",
    look: "token-bars",
    state: () => ({ prompt: hard(), at: turning(),
      edits: [{ at: turning(), rest: false, scale: 0 }] }),
    text: () => {
      const step = steps(hard())[turning()];
      return `At this one token the router's weight is 0. The expert's
        ${quoted(step.expert_choice)} is written, and the rest follows from it. Move the router's
        slider to the right: from which weight on is ${quoted(step.token)} back?`;
    },
  },
  {
    title: "Why have experts at all? Only the sum is right",
    look: "answer-card",
    state: () => ({ prompt: both().prompt, beside: "router",
      at: changed(steps(both().prompt)) }),
    text: () => {
      const { prompt, answer: right } = both(), all = steps(prompt);
      const at = changed(all), step = all[at];
      const say = (method) => {
        const text = text_of(steps(prompt, method));
        if (text === right) return "right";
        return right.startsWith(text) ? "right, but ends too early" : "wrong";
      };
      return `Math alone: ${say("math")}. Router alone: ${say("router")}. FusionRoute:
        ${say("fusionroute")}. At token ${at + 1} the router changes
        ${quoted(step.expert_choice)} to ${quoted(step.token)}. Press the first digit at which the
        two answers differ: whose bar decides there?`;
    },
  },
  {
    title: "Phase 1 against phase 2",
    look: "answer-card",
    state: () => ({ prompt: hard(), beside: "sft_only", at: parting() }),
    text: () => {
      const before = steps(hard(), "sft_only"), after = steps(hard()), t = parting();
      const { token, pick } = after[t], other = before[t]?.token;
      if (text_of(before) === text_of(after) || other === undefined) {
        return "Below is the router as phase 1 left it. On this prompt both write the same.";
      }
      const lead = (logp) => number(logp[token] - logp[other]), expert = after[t].expert_logp[pick];
      return `Below is the router as phase 1 left it. The two answers part at token ${t + 1}.
        Expert: ${quoted(other)} leads by ${number(expert[other] - expert[token])}. Router:
        ${quoted(token)} leads by ${lead(before[t].router_logp)} (phase 1),
        ${lead(after[t].router_logp)} (phase 2). The larger lead wins.`;
    },
  },
  {
    title: "Why: points, the triangle between them, and beyond",
    look: "one-token",
    state: () => ({ tab: "choosing", B: 0.5 }),
    text: () => `Choosing reaches three points; mixing, the triangle between them. The star is what
      should be written. Raise B, the size of added logits: the outlined areas grow. Then drag the
      star to an expert: there choosing is enough.`,
  },
  {
    title: "Coverage",
    look: "many-tokens",
    state: () => ({ tab: "choosing", coverage: 0.9, bound: 4 }),
    text: () => `At 90% of the prefixes some expert knows the right token. Lower the coverage:
      choosing loses more and more, these added logits little. But they know the right token: alone
      they lose even less. A trained router knows less.`,
  },
  {
    title: "How it learned to correct: the bias",
    look: "bias-panel",
    state: () => ({ tab: "training" }),
    text: () => {
      const { bias } = training.worked(0).after;
      return `Phase 2 compares a right answer with a wrong one. The bias is how much the picked
        experts prefer the right one: here ${number(bias)}. Drag it through zero: the larger it is,
        the less the pair pulls at the router.`;
    },
  },
];

/** To stop n; 0 ends the tour. */
function go(n) {
  if (!n) {
    update({ tour: 0 });
    return $("tour-start").focus();
  }
  update({ ...START, prompt: state.prompt, tour: n, ...STOPS[n - 1].state() });
  $("tour").scrollTop = 0;                         // the card may be too small for the last text
  answer.finished.then(() => {                     // with the answer, where there is room for both
    const look = $(STOPS[n - 1].look);
    view.scroll_to(state.tab === "answer" ? $("answer-card") : look);
    if (look.getBoundingClientRect().top > innerHeight - 120) view.scroll_to(look);
  });
}

function render() {
  const n = state.tour, stop = STOPS[n - 1];
  $("tour").hidden = !n;
  for (const { look } of STOPS) $(look)?.classList.toggle("look", look === stop?.look);
  if (!n) return rebuild($("tour"));
  const button = (id, text, to, disabled) =>
    h("button", { type: "button", id, disabled, onclick: () => go(to) }, text);
  rebuild($("tour"),
    h("h2", { id: "tour-title" },
      h("span", { class: "small" }, `Stop ${n} of ${STOPS.length} `), stop.title),
    state.tab === "answer" && h("p", { id: "tour-prompt" }, h("code", {}, state.prompt)),
    h("p", { id: "tour-text", "aria-live": "polite" }, stop.text()),
    h("div", { class: "buttons" },
      button("tour-next", "Next", n + 1, n === STOPS.length),
      button("tour-back", "Back", n - 1, n === 1),
      button("tour-end", "End the tour", 0)));
}

function build() {
  $("tour-start").addEventListener("click", () => {
    go(1);
    $("tour-next").focus({ preventScroll: true });
  });
  view.renderers.push(render);
}

return { STOPS, go, build };
})();
