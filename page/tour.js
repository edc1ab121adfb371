// The guided tour: ten stops. A stop is a state of the page and a text. The texts are made from
// what the models write here, so that they are also true of a run of your own.

"use strict";

const tour = (() => {

const { h, $, rebuild, state, update, quoted, percent, number, START, NAMES } = view;
const { EXPERTS } = engine, { text_of } = answer;

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
    title: "Four models, one answer; outside S they agree",
    look: "answers",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => !step.in_S) }),
    text: () => {
      const all = steps(easy()), inside = all.filter((step) => step.in_S).length;
      const at = first(all, (step) => !step.in_S);
      return `The answer below was written token by token; a token is a word, a digit or a sign. The
        tokens at which the experts would have written different ones form the set S: ${inside} of
        ${all.length}. They have the colour and the letter of the expert that the router picked. The
        others are plain: there all three experts agree, as at the marked token ${at + 1}, which all
        would write as ${quoted(all[at].choice[0])}. To agree does not mean to be right; stop 6
        shows such a token. Press a token, or use the arrow keys in the answer.`;
    },
  },
  {
    title: "Inside S: routing",
    look: "token-opinions",
    state: () => ({ prompt: easy(), method: "routing_only", at: fork().at }),
    text: () => {
      const { at, other } = fork(), step = steps(easy(), "routing_only")[at];
      const offers = EXPERTS.map((name, i) => `${NAMES[name]} ${quoted(step.choice[i])}`);
      return `Here the method is “routing only”: the router picks and adds nothing. At token
        ${at + 1} the experts disagree: ${offers.join(", ")}. The router gives each expert a weight
        and takes the one with the largest: ${NAMES[EXPERTS[step.pick]]},
        ${percent(step.weights[step.pick])}. That is routing: at each token one expert is picked.
        The others are run here only for the display. Press the
        ${NAMES[EXPERTS[other]]} expert: it writes ${quoted(step.choice[other])}, and the rest of
        the answer follows from it.`;
    },
  },
  {
    title: "Where choosing fails",
    look: "answers",
    state: () => ({ prompt: hard(), method: "routing_only", at: turning() }),
    text: () => {
      const written = steps(hard(), "routing_only");
      const step = written[Math.min(turning(), written.length - 1)];
      const offers = [...new Set(step.choice)].map(quoted).join(", ");
      const right = view.data.examples.find((e) => e.prompt === hard()).answer;
      return `No expert has ever seen this kind of problem. Routing alone writes:
        ${text_of(written)} Right would be: ${right} Look at the marked token: the experts offer
        ${offers}. Choosing can only give one of these. If none is right, no router helps, however
        good it is.`;
    },
  },
  {
    title: "Adding logits",
    look: "token-bars",
    state: () => ({ prompt: hard(), at: turning() }),
    text: () => {
      const step = steps(hard())[turning()];
      return `The same prompt, now with Eq. (1). First column: what the ${NAMES[EXPERTS[step.pick]]}
        expert finds likely (long bars). Second column: the router. Third column: both, end to
        end. The expert wanted ${quoted(step.expert_choice)}; the longest sum is that of
        ${quoted(step.token)}. So the router can write a token that no expert would choose, and
        still uses what the expert knows about all the others.`;
    },
  },
  {
    title: "Take the addition away",
    look: "answers",
    state: () => ({ prompt: hard(), at: turning(),
      edits: [{ at: turning(), rest: false, scale: 0 }] }),
    text: () => {
      const step = steps(hard())[turning()];
      return `At this one token the router's log-probabilities are multiplied by 0. The expert's
        ${quoted(step.expert_choice)} is written, and everything after it follows from it. Below it
        stands the answer without the change; the bar marks the first difference. Move the slider
        above the router's bars to the right: from which weight on is
        ${quoted(step.token)} back?`;
    },
  },
  {
    title: "Why have experts at all? Only the sum is right",
    look: "answers",
    state: () => ({ prompt: both().prompt, beside: "router",
      at: changed(steps(both().prompt)) }),
    text: () => {
      const { prompt, answer: right } = both(), all = steps(prompt);
      const at = changed(all), step = all[at];
      const say = (method) => {
        const text = text_of(steps(prompt, method));
        return `“${text.replaceAll("\n", " ↵ ")}” (${text === right ? "right" : "wrong"})`;
      };
      return `The prompt asks for a sum and then for the word “done”. The math expert alone:
        ${say("math")}. ${right.startsWith(text_of(steps(prompt, "math")))
          ? "It calculates right and stops too early: it never learned to add such a word." : ""}
        The router alone: ${say("router")}. FusionRoute: ${say("fusionroute")}. At token ${at + 1}
        ${step.in_S ? "the picked expert wanted" : "all three experts agree on"}
        ${quoted(step.expert_choice)}, and the router changes it to ${quoted(step.token)}. Press the
        first digit at which the two answers differ: there the expert outvotes the router.`;
    },
  },
  {
    title: "Phase 1 against phase 2",
    look: "answers",
    state: () => ({ prompt: hard(), beside: "sft_only", at: parting() }),
    text: () => {
      const before = steps(hard(), "sft_only"), after = steps(hard()), t = parting();
      const { token } = after[t], other = before[t]?.token;
      const same = text_of(before) === text_of(after) || other === undefined;
      const two = (step) => `${number(step.router_logp[token])} for ${quoted(token)} and
        ${number(step.router_logp[other])} for ${quoted(other)}, a lead of
        ${number(step.router_logp[token] - step.router_logp[other])}`;
      const expert = after[t].expert_logp[after[t].pick];
      return `Beside it is the router as phase 1 left it. It has learned to write and to pick, each
        by itself, but not that its logits will be added to an expert's. ${same
          ? "On this prompt both write the same."
          : `They part at token ${t + 1}. There the router's log-probabilities are ${two(before[t])}
        after phase 1, and ${two(after[t])} after phase 2. The ${NAMES[EXPERTS[after[t].pick]]}
        expert's lead for ${quoted(other)} is ${number(expert[other] - expert[token])}; the larger
        lead wins.`}
        Phase 2 shows the router where the two together go wrong. Press token ${t + 1} on both sides
        and compare the router's bars.`;
    },
  },
  {
    title: "Why: points, the triangle between them, and beyond",
    look: "triangle",
    state: () => ({ tab: "choosing", B: 0.5 }),
    text: () => `One token, three possible ones. Choosing reaches three points, mixing the experts
      reaches the triangle between them. The star is what should be written: it lies outside. Raise
      B, the size that added logits may have: the outlined areas grow until they hold the star. Then
      drag the star to where an expert is: there choosing is enough.`,
  },
  {
    title: "Coverage",
    look: "losses",
    state: () => ({ tab: "choosing", coverage: 0.9, bound: 4 }),
    text: () => `An answer has many tokens, and at each of them some expert must know the right one.
      Here that is so after 90% of the prefixes. It sounds good, but choosing still loses tokens,
      and more and more as coverage falls. Added logits that are large enough lose almost nothing.
      But such logits need a router that knows much by itself: the third line of the table is what
      it would lose with no expert at all.`,
  },
  {
    title: "How it learned to correct: the bias",
    look: "pair-panel",
    state: () => ({ tab: "training" }),
    text: () => {
      const { bias } = training.worked(0).before;
      return `Phase 2 compares a chosen answer (y_w, w for win: the right one) with a rejected one
        (y_l, l for lose). Its loss has a second term, the bias: how much the picked experts
        themselves prefer the chosen answer. Here it is ${number(bias)}
        before phase 2. ${bias < 0
          ? "It is negative: the experts prefer the rejected answer, so the pair pulls hard."
          : "It is positive: the experts know this already, so the pair hardly pulls."} The router
        spends its strength where the experts are wrong. This is the last stop: go
        back to the first tab, “${view.TABS.answer}”, and ask something yourself.`;
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
  answer.finished.then(() => view.scroll_to($(STOPS[n - 1].look)));
}

function render() {
  const n = state.tour, stop = STOPS[n - 1];
  $("tour").hidden = !n;
  for (const { look } of STOPS) $(look)?.classList.toggle("look", look === stop?.look);
  if (!n) return rebuild($("tour"));
  const changed = h("p", { class: "changed-answer" });
  if (state.tab === "answer") answer.fill_changed(changed);
  const button = (id, text, to, disabled) =>
    h("button", { type: "button", id, disabled, onclick: () => go(to) }, text);
  rebuild($("tour"),
    h("h2", { id: "tour-title" },
      h("span", { class: "small" }, `Stop ${n} of ${STOPS.length} `), stop.title),
    h("p", { id: "tour-text", "aria-live": "polite" }, stop.text()),
    changed,
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
