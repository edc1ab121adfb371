// The guided tour: ten stops. A stop is a state of the page and a text. The texts are made from
// what the models write here, so that they are also true of a run of your own.

"use strict";

const tour = (() => {

const { h, $, rebuild, state, update, quoted, percent, number, START, NAMES } = view;
const { EXPERTS } = engine;

/** The first example of a benchmark with the sub-skill; another one where there is none. */
function example(bench, skill, covered) {
  const rows = view.data.examples.filter((e) => e.bench === bench && e.covered === covered);
  return rows.find((e) => e.skill === skill) ?? rows[0];
}

const easy = () => example("toy-gsm8k", "lose", true).prompt;
const hard = () => example("toy-gsm8k", "triple", false).prompt;

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

const text_of = (written) =>
  view.toy.encoding.pieces(written.map((step) => step.token)).join("");
const first = (list, test) => Math.max(0, list.findIndex(test));

/** The token at which the hard prompt is decided: the first in S that the router changes. */
const turning = () => first(steps(hard()), (step) =>
  step.in_S && step.token !== step.expert_choice);

const STOPS = [
  {
    title: "Four models, one answer",
    look: "answers",
    state: () => ({ prompt: easy() }),
    text: () => {
      const all = steps(easy()), inside = all.filter((step) => step.in_S).length;
      return `The answer below was written token by token; a token is a word, a digit or a sign. At
        ${all.length - inside} of its ${all.length} tokens the three experts agree: those are plain.
        At the other ${inside} they would have written different tokens: those have the colour and
        the letter of the expert that the router chose. Press a token, or use the arrow keys in the
        answer.`;
    },
  },
  {
    title: "Outside S: the choice does not matter",
    look: "token-opinions",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => !step.in_S) }),
    text: () => {
      const step = steps(easy())[first(steps(easy()), (one) => !one.in_S)];
      return `At this token all three experts would write ${quoted(step.choice[0])}. Whichever
        expert the router chooses, its token is the same. The table says what each model would write
        by itself. The tokens at which the experts differ form the set S. Only inside S is choosing
        an expert a real decision, and only there is it trained.`;
    },
  },
  {
    title: "Inside S: routing",
    look: "token-opinions",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => step.in_S) }),
    text: () => {
      const step = steps(easy())[first(steps(easy()), (one) => one.in_S)];
      const offers = EXPERTS.map((name, i) => `${NAMES[name]} ${quoted(step.choice[i])}`);
      return `Here the experts disagree: ${offers.join(", ")}. The router gives each expert a weight
        and takes the one with the largest: ${NAMES[EXPERTS[step.pick]]},
        ${percent(step.weights[step.pick])}. That is routing: at each token one expert is chosen,
        and the others are not asked. Press “use it” in another row to see what would have
        followed.`;
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
        ${text_of(written)} Right would be: ${right} Look at the chosen token: the experts offer
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
      return `The same prompt, now with Eq. (1). First row: what the ${NAMES[EXPERTS[step.pick]]}
        expert finds likely (short bars). Second row: the router. Third row: both, one below the
        other. The expert wanted ${quoted(step.expert_choice)}; the shortest sum is that of
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
        further down: from which scale on is ${quoted(step.token)} back?`;
    },
  },
  {
    title: "Phase 1 against phase 2",
    look: "answers",
    state: () => ({ prompt: hard(), beside: "sft_only", at: turning() }),
    text: () => {
      const same = text_of(steps(hard())) === text_of(steps(hard(), "sft_only"));
      return `Beside it is the router as phase 1 left it. It has learned to write and to choose,
        each by itself, but not that its logits will be added to an expert's. ${same
          ? "On this prompt both write the same."
          : "It is not sure enough to outvote the expert here."} Phase 2 shows it where the two
        together go wrong. Press the same token on both sides and compare the second rows of bars.`;
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
      return `Phase 2 compares a right and a wrong answer. Its loss has a second term, the bias: how
        much the chosen experts themselves prefer the right answer. Here it is ${number(bias)}
        before phase 2. ${bias < 0
          ? "It is negative: the experts prefer the wrong answer, so the pair pulls hard."
          : "It is positive: the experts know this already, so the pair hardly pulls."} The router
        spends its strength where the experts are wrong. This is the last stop: now ask something
        yourself.`;
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
  const height = `${$("tour").offsetHeight + 12}px`;
  document.documentElement.style.setProperty("--tour", height);
  view.finished.then(() => $(STOPS[n - 1].look)?.scrollIntoView({ block: "start" }));
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
    h("p", { id: "tour-text", "aria-live": "polite" }, stop.text()),
    h("div", { class: "buttons" },
      button("tour-next", "Next", n + 1, n === STOPS.length),
      button("tour-back", "Back", n - 1, n === 1),
      button("tour-end", "End the tour", 0)));
}

function build() {
  $("tour-start").addEventListener("click", () => {
    go(1);
    $("tour-next").focus();
  });
  view.renderers.push(render);
}

return { STOPS, go, build };
})();
