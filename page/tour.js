// The guided tour: ten stops. A stop is a state of the page and a text; the texts are made from what the models
// write here, so that they are also true of a run of one's own.

"use strict";

const tour = (() => {

const { h, $, rebuild, state, update, quoted, percent, plural, START, NAMES } = view;

/** The first example of a benchmark with the sub-skill; another of the benchmark where there is none. */
function example(bench, skill, covered) {
  const of_bench = view.data.examples.filter((e) => e.bench === bench && e.covered === covered);
  return of_bench.find((e) => e.skill === skill) ?? of_bench[0];
}

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

const text_of = (written) => view.toy.encoding.pieces(written.map((step) => step.token)).join("");
const first = (list, test) => Math.max(0, list.findIndex(test));
const changed = (step) => step.token !== step.expert_choice;
const easy = () => example("toy-gsm8k", "lose", true).prompt;
const hard = () => example("toy-gsm8k", "triple", false).prompt;
const turning = () => first(steps(hard()), (step) => step.in_S && changed(step));

const STOPS = [
  {
    title: "Four models, one answer",
    look: "answers",
    state: () => ({ prompt: easy() }),
    text: () => {
      const all = steps(easy()), inside = all.filter((step) => step.in_S).length;
      return `The answer below came token by token; a token is a word, a digit or a sign. Of its ${all.length} tokens, the three experts ` +
        `agree on ${all.length - inside}: those are plain. On the other ${inside} they would have written different tokens: those have the colour and ` +
        "the letter of the expert that the router chose. Press a token, or use the arrow keys in the answer.";
    },
  },
  {
    title: "Outside S: the choice does not matter",
    look: "token-opinions",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => !step.in_S) }),
    text: () => {
      const step = steps(easy()).find((one) => !one.in_S);
      return `At this token all three experts would write ${quoted(step.token)}. Whomever the router chooses, the token is the same. The table says ` +
        "what each model would write by itself. The tokens at which the experts differ form the set S; only inside S is choosing an expert a real " +
        "decision, and only there is it trained.";
    },
  },
  {
    title: "Inside S: routing",
    look: "token-opinions",
    state: () => ({ prompt: easy(), at: first(steps(easy()), (step) => step.in_S) }),
    text: () => {
      const step = steps(easy()).find((one) => one.in_S) ?? steps(easy())[0], name = NAMES[engine.EXPERTS[step.pick]];
      return `Here the experts disagree: ${engine.EXPERTS.map((e, i) => `${NAMES[e]} ${quoted(step.choice[i])}`).join(", ")}. The router gives each a ` +
        `weight and takes the largest: ${name}, ${percent(step.weights[step.pick])}. That is routing: at each token one expert is chosen, the others ` +
        "are not asked. Press “use it” in another row to see what would have followed.";
    },
  },
  {
    title: "Where choosing fails",
    look: "answers",
    state: () => ({ prompt: hard(), method: "routing_only", at: first(steps(hard(), "routing_only"),
      (step, t) => t >= turning()) }),
    text: () => {
      const step = steps(hard(), "routing_only")[turning()];
      const right = view.data.examples.find((e) => e.prompt === hard()).answer;
      return `No expert has ever seen this kind of problem. Routing alone writes: ${text_of(steps(hard(), "routing_only"))} Right would be: ${right} ` +
        (step ? `Look at the chosen token: the experts offer ${[...new Set(step.choice)].map(quoted).join(", ")}. Choosing can only give one of these; if none ` +
        "is right, no router helps, however good it is." : "");
    },
  },
  {
    title: "Adding logits",
    look: "token-bars",
    state: () => ({ prompt: hard(), at: turning() }),
    text: () => {
      const step = steps(hard())[turning()];
      return `The same prompt, now with Eq. (1). First row: what the ${NAMES[engine.EXPERTS[step.pick]]} expert finds likely (short bars). Second row: the router. ` +
        `Third row: both, one below the other. The expert wanted ${quoted(step.expert_choice)}; the shortest sum is that of ${quoted(step.token)}. So the router can write ` +
        "a token that no expert would choose, and still uses what the expert knows about all the others.";
    },
  },
  {
    title: "Take the addition away",
    look: "answers",
    state: () => ({ prompt: hard(), at: turning(), edits: [{ at: turning(), rest: false, scale: 0 }] }),
    text: () => {
      const step = steps(hard())[turning()];
      return `At this one token the router's log-probabilities are multiplied by 0. The expert's ${quoted(step.expert_choice)} is written, and everything after it follows ` +
        "from it, right or wrong. Below stands the answer without the change; the bar marks the first difference. Move the slider: from which scale on is the " +
        "right token back?";
    },
  },
  {
    title: "Phase 1 against phase 2",
    look: "answers",
    state: () => ({ prompt: hard(), beside: "sft_only", at: turning() }),
    text: () => {
      const same = text_of(steps(hard())) === text_of(steps(hard(), "sft_only"));
      return "Beside it is the router as phase 1 left it: it has learned to write and to choose, each for itself, but never that its logits will be added to an expert's. " +
        (same ? "On this prompt both write the same. " : "It is not sure enough to outvote the expert here. ") +
        "Phase 2 shows it where the two together go wrong. Press the same token on both sides and compare the second rows.";
    },
  },
  {
    title: "Why: points, their triangle, and beyond",
    look: "triangle",
    state: () => ({ tab: "choosing", B: 0.5 }),
    text: () => "One token, three possible ones. Choosing reaches three points, mixing the experts reaches the triangle between them. The star is what should be written: it lies outside. " +
      "Raise B, the size that added logits may have: the outlined areas grow until they hold the star. Then drag the star to where an expert is: there choosing is enough.",
  },
  {
    title: "Coverage",
    look: "losses",
    state: () => ({ tab: "choosing", coverage: 0.9, bound: 4 }),
    text: () => "An answer is many tokens, and one wrong token can spoil the rest. The experts cover 90% of the prefixes here. That sounds good, but choosing still loses tokens, and the loss grows fast as coverage falls. " +
      "Logits that are large enough lose almost nothing. Large ones need a router that knows much by itself: the third line of the table shows what it would do with no expert at all.",
  },
  {
    title: "How it learned to correct: the bias",
    look: "pair-panel",
    state: () => ({ tab: "training" }),
    text: () => {
      const { before } = training.worked(0);
      return "Phase 2 compares a right and a wrong answer. The loss has a second term, the bias: how much the chosen experts themselves prefer the right answer. Here it is " +
        `${view.number(before.bias)} before phase 2. ` + (before.bias < 0
          ? "It is negative: the experts prefer the wrong answer, so the pair pulls hard at the router. "
          : "It is positive: the experts know this already, so the pair hardly pulls. ") +
        "The router spends its strength where the experts are wrong. End of the tour: now ask something yourself.";
    },
  },
];

function go(n) {
  const tour_state = n ? { ...START, tour: n, ...STOPS[n - 1].state() } : { tour: 0 };
  update(n ? { prompt: state.prompt, ...tour_state, prompt: tour_state.prompt || state.prompt } : tour_state);
  if (!n) return $("tour-start").focus();
  const section = $("tour");
  document.documentElement.style.setProperty("--tour", `${section.offsetHeight + 12}px`);
  view.finished.then(() => $(STOPS[n - 1].look)?.scrollIntoView({ block: "start" }));
}

function render() {
  const n = state.tour, stop = STOPS[n - 1];
  $("tour").hidden = !n;
  for (const { look } of STOPS) $(look)?.classList.toggle("look", look === stop?.look);
  if (!n) return rebuild($("tour"));
  rebuild($("tour"),
    h("h2", { id: "tour-title" }, h("span", { class: "small" }, `Stop ${n} of ${STOPS.length} `), stop.title),
    h("p", { id: "tour-text", "aria-live": "polite" }, stop.text()),
    h("div", { class: "buttons" },
      h("button", { type: "button", id: "tour-next", class: "primary", disabled: n === STOPS.length, onclick: () => go(n + 1) }, "Next"),
      h("button", { type: "button", id: "tour-back", disabled: n === 1, onclick: () => go(n - 1) }, "Back"),
      h("button", { type: "button", id: "tour-end", onclick: () => go(0) }, "End the tour")));
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
