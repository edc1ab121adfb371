// The first tab: a prompt and its answer, token by token, and other answers beside it.

"use strict";

const answer = (() => {

const { h, $, rebuild, shown, quoted, number, term, state, update, edit_text, NAMES, MARKS,
  METHOD_NAMES } = view;
const { EXPERTS, METHODS } = engine;
const ALONE = [...EXPERTS, "router"];
const BENCHES = {                                  // group and short name in the menu
  general: ["Two experts' work in one answer", ""],
  "toy-gsm8k": ["Math", "word problem"],
  "toy-math500": ["Math", "algebra"],
  "toy-mbpp": ["Code", "whole function"],
  "toy-humaneval": ["Code", "function body"],
  "toy-ifeval": ["Format", "words"],
};
const GROUPS = [...new Set(Object.values(BENCHES).map(([group]) => group))];

const toy = () => view.toy;

// --- lanes: the answer, one beside it, and the answer without the reader's changes ---------------

/** A lane is an answer being written: {key, decoding, edits}. With another key it is made anew. */
const lanes = { main: null, beside: null, before: null };

function lane(name, method, edits) {
  const key = JSON.stringify([state.prompt, method]), old = lanes[name];
  if (old?.key !== key) {
    lanes[name] = { key, decoding: engine.start(toy(), state.prompt, method, edits), edits: "" };
  }
  const lane = lanes[name], text = edits.map(edit_text).join();
  if (lane.edits !== text) {                       // what the edits leave as it was is kept
    lane.decoding.edit(edits);
    lane.edits = text;
  }
  return lane.decoding;
}

/** The answers that the state asks for, by name; only as many tokens as are shown are computed. */
function wanted() {
  const found = { main: lane("main", state.method, state.edits) };
  if (state.beside) found.beside = lane("beside", state.beside, []);
  if (state.edits.length) found.before = lane("before", state.method, []);
  return found;
}

/** The example that is asked, if it is one; and what each model alone answers to it. */
const example = () => view.data.examples.find((e) => e.prompt === state.prompt);
const alone = () => example() ? ALONE.map((name) => lane(name, name, [])) : [];

const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let turn = 0;                                      // a newer turn stops an older one
let finished = Promise.resolve();                  // settled when nothing is being written
let speed = "";                                    // how fast the last answer was written

/** Write what is missing, a little at a time, so that the page stays responsive: the answers that
 *  are shown, then those of each model alone. */
async function write(answers) {
  const mine = ++turn;
  let shown_at = performance.now();
  let tokens = 0, seconds = 0;                     // without the first, which reads the prompt
  const single = alone();
  for (const decoding of [...Object.values(answers), ...single]) {
    const aside = single.includes(decoding);
    if (decoding === single[0]) show_answers(answers, false);
    while (!decoding.done && (aside || decoding.steps.length < state.written)) {
      const begun = performance.now();
      decoding.step();
      if (decoding.steps.length > 1) {
        tokens += 1;
        seconds += (performance.now() - begun) / 1000;
      }
      if (performance.now() - shown_at > 30) {
        if (!aside && !still.matches) show_answers(answers, true);
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== turn) return;
        shown_at = performance.now();
      }
    }
  }
  const rate = Math.round(tokens / seconds);
  if (tokens > 9) speed = `${rate} tokens a second`;
  show_answers(answers, false);
}

/** The steps of a lane that are shown. */
const visible = (decoding) => decoding.steps.slice(0, state.written);

/** The first token at which two answers differ; the length of the shorter if none does. */
function first_difference(a, b) {
  const n = Math.min(a.length, b.length);
  for (let t = 0; t < n; t++) if (a[t].token !== b[t].token) return t;
  return n;
}

/** Who wrote a token: an expert's name, or the router's where it writes alone. */
const writer = (decoding, step) => decoding.how.use_expert ? EXPERTS[step.pick] : "router";

/** The token that the picture is about: the marked one; else where two answers part, else the first
 *  changed one, else the first in S. part: where two answers part, or null. */
function selected(steps, part) {
  if (!steps.length) return null;
  if (state.at !== null) return Math.min(state.at, steps.length - 1);
  if (state.written !== Infinity) return steps.length - 1;
  if (part !== null && part < steps.length) return part;
  const changed = steps.findIndex((step) => step.token !== step.expert_choice);
  const in_S = steps.findIndex((step) => step.in_S);
  return changed >= 0 ? changed : Math.max(in_S, 0);
}

// --- showing an answer ---------------------------------------------------------------------------

/** What a screen reader says of a token. */
function describe(decoding, step, t) {
  const who = writer(decoding, step);
  const parts = [`${t + 1}: ${shown(step.token)}`];
  parts.push(step.in_S ? `in S, ${NAMES[who]}` : "outside S, all experts agree");
  const was = shown(step.expert_choice);
  if (step.token !== step.expert_choice) parts.push(`changed by the router from ${was}`);
  if (step.edited) parts.push("you changed this step");
  return parts.join("; ");
}

/** The tokens of an answer as a list in which the arrow keys move. */
function token_list({ name, label, decoding, steps, chosen, select, split, dimmed }) {
  const texts = toy().encoding.pieces(steps.map((step) => step.token));
  const options = steps.flatMap((step, t) => {
    const end = step.token === toy().encoding.END, who = writer(decoding, step);
    const changed = step.token !== step.expert_choice;
    const text = end ? "" : texts[t], broken = text.includes("\n");
    const sign = end ? "end" : broken ? "↵" : text ? null : "·";    // shown, but not copied
    const classes = ["token", step.in_S && `in-s ${who}`, changed && "changed",
      step.edited && "edited", t === split && "split", dimmed && t < split && "dimmed"];
    const option = h("span", {
      role: "option", id: `${name}-${t}`, class: classes.filter(Boolean).join(" "),
      "aria-selected": String(t === chosen), "aria-label": describe(decoding, step, t),
      "data-mark": step.in_S && MARKS[who],
      "data-was": changed && shown(step.expert_choice),
      onclick: () => select(t),
    }, h("span", { class: "text", "data-sign": sign }, broken ? "" : text));
    const indent = h("span", { class: "indent" }, text.replaceAll("\n", ""));
    return broken ? [option, h("br"), indent] : [option];
  });
  return h("div", {
    role: "listbox", id: name, class: "tokens", tabindex: "0", "aria-label": label,
    "aria-activedescendant": chosen === null ? null : `${name}-${chosen}`,
    onkeydown: (event) => {
      const to = { ArrowLeft: chosen - 1, ArrowUp: chosen - 1, ArrowRight: chosen + 1,
        ArrowDown: chosen + 1, Home: 0, End: steps.length - 1 }[event.key];
      const other = event.ctrlKey || event.altKey || event.metaKey;
      if (to === undefined || chosen === null || other) return;
      event.preventDefault();
      select(Math.max(0, Math.min(steps.length - 1, to)));
    },
  }, options);
}

/** The answers that the state asks for, one below the other. */
function show_answers(answers, writing) {
  const main = visible(answers.main), beside = answers.beside && visible(answers.beside);
  const before = answers.before && visible(answers.before);
  const in_beside = state.lane === 1 && Boolean(beside);
  const split = beside ?? before ? first_difference(main, beside ?? before) : null;
  const same = before && first_difference(main, before) === Math.max(main.length, before.length);
  const chosen = in_beside ? beside : main, at = writing ? null : selected(chosen, split);
  const close = () => update({ beside: "", lane: 0, at: null });
  const column = (title, decoding, list) => h("div", { class: "lane" },
    title && h("h3", {}, title, decoding === answers.beside && h("button", { type: "button",
      id: "close", "aria-label": "Close this answer", onclick: close }, "✕")),
    token_list({ decoding, ...list }),
    list.steps.length === engine.MAX_NEW &&
      h("p", { class: "small" }, `Stopped after ${engine.MAX_NEW} tokens.`));
  const alone = !beside && !before && state.method === "fusionroute";
  rebuild($("answers"),
    column(alone ? null : METHOD_NAMES[state.method] + (before ? ", with your changes" : ""),
      answers.main, {
        name: "tokens", label: "Answer", steps: main, chosen: in_beside ? null : at, split,
        select: (t) => update({ at: t, lane: 0 }),
      }),
    beside && column(METHOD_NAMES[state.beside], answers.beside, {
      name: "tokens-beside", label: "Answer beside it", steps: beside, split,
      chosen: in_beside ? at : null, select: (t) => update({ at: t, lane: 1 }), dimmed: true,
    }),
    before && !same && column("before your changes", answers.before, {
      name: "tokens-before", label: "Answer without your changes", steps: before, chosen: null,
      split: first_difference(main, before), dimmed: true, select: () => {},
    }));
  rebuild($("facts"), !writing && facts(main, beside, answers),
    same && !writing && h("span", {}, "your changes leave the answer as it was"));
  $("back").disabled = state.written === Infinity ? at === 0 : main.length < 2;
  $("step").disabled = answers.main.done && main.length === answers.main.steps.length
    && (state.written !== Infinity || at === chosen.length - 1);
  $("status").textContent = writing ? "" : speed;
  if (!writing) stage.show(in_beside ? answers.beside : answers.main, chosen, at, in_beside);
  show_edits();
}

/** The text of an answer. */
const text_of = (steps) => toy().encoding.pieces(steps.map((step) => step.token)).join("");

/** What a model alone answers to an example, in short: a button that shows it below the answer. */
function in_short(name) {
  const text = text_of(lane(name, name, []).steps), right = text === example().answer;
  const result = /The answer is (.+?)\./.exec(text)?.[1] ?? "";
  const pressed = state.beside === name, beside = pressed ? "" : name;
  return h("button", { type: "button", id: `alone-${name}`, "aria-pressed": `${pressed}`,
    "aria-label": `${METHOD_NAMES[name]}: ${result} ${right ? "right" : "wrong"}`,
    onclick: () => update({ beside, lane: 0, at: null }),
  }, h("span", { class: `chip ${name}` }, MARKS[name]),
  h("span", { class: "name" }, ` ${NAMES[name]}`), ` ${result} ${right ? "✓" : "✗"}`);
}

/** Below the answers: whether an example's is right, counts, and where two of them part. */
function facts(main, beside, answers) {
  const item = (...children) => h("span", {}, children), parts = [];
  const whole = answers.main.done && main.length === answers.main.steps.length;
  if (example() && whole) {
    const { answer } = example(), right = text_of(main) === answer;
    parts.push(item(right ? h("b", { class: "right" }, "✓ right")
      : [h("b", { class: "wrong" }, "✗ wrong"), ", right is: ", h("code", {}, answer)]));
  }
  const count = (test) => h("b", {}, String(main.filter(test).length));
  parts.push(item(term("S", "in S"), " ", count((step) => step.in_S)),
    item(term("changed", "changed"), " ", count((step) => step.token !== step.expert_choice)),
    item("tokens ", h("b", {}, String(main.length))));
  const t = beside && first_difference(main, beside);
  if (beside && t < Math.max(main.length, beside.length)) {
    parts.push(item(`the two differ from token ${t + 1} on`));
  } else if (beside) parts.push(item("the two are the same"));
  if (example() && whole && alone().every((one) => one.done)) {
    parts.push(item("alone:", ALONE.map(in_short)));
  }
  return parts;
}

/** The reader's changes, each a button that takes it back. */
function show_edits() {
  const undo = (i) => {
    update({ edits: state.edits.filter((_, j) => j !== i) });
    finished.then(() => $(`undo-${i}`) ?? $("tokens").focus());
  };
  const text = (one) => {
    if (one.expert !== undefined) return `${NAMES[EXPERTS[one.expert]]} expert`;
    return one.scale !== undefined ? `router × ${number(one.scale)}` : quoted(one.token);
  };
  rebuild($("edits"), state.edits.map((one, i) => h("button", {
    type: "button", id: `undo-${i}`, title: "take it back", onclick: () => undo(i) },
  `token ${one.at + 1}${one.rest ? " and after" : ""}: ${text(one)} ✕`)));
}

/** Change something at the marked token: {expert}, {scale} or {token}. */
function edit(change) {
  const steps = visible(lanes.main.decoding), at = marked(), [kind] = Object.keys(change);
  const rest = kind !== "token" && $("rest").checked, step = steps[at];
  const others = state.edits.filter((one) =>
    one[kind] === undefined || (rest ? one.at < at : one.at !== at));
  const unchanged = others.every((one) => one.at !== at) && !others.some((one) => one.rest) && !rest
    && (kind === "token" ? change.token === engine.argmax(step.logp)
      : kind === "expert" ? change.expert === step.routed
        : change.scale === 1 && lanes.main.decoding.how.use_router);
  const place = (id) => $(id).getBoundingClientRect(), { top } = place("bars");
  update({ at, lane: 0, edits: unchanged ? others : [...others, { at, rest, ...change }] });
  finished.then(() => {
    const hidden = state.tour && kind !== "scale" && place("answers").top < place("tour").bottom;
    if (hidden) view.scroll_to($("answer-card"));
    else scrollBy(0, place("bars").top - top);     // what the hand is on stays under it
  });
}

// --- the tab -------------------------------------------------------------------------------------

/** Start over with other settings; the reader's changes belong to the old answer. */
function ask(changes) {
  stop();
  update({ edits: [], at: null, lane: 0, written: Infinity, ...changes });
}

/** The number of the token that is marked. */
function marked() {
  const main = visible(lanes.main.decoding), other = lanes[state.beside ? "beside" : "before"];
  const part = state.beside || state.edits.length
    ? first_difference(main, visible(other.decoding)) : null;
  return selected(state.lane ? visible(lanes.beside.decoding) : main, part);
}

/** To the next token, or back. An answer that is being written grows or shrinks. */
function step(change) {
  const prompt = engine.typed($("prompt").value), main = lanes.main;
  if (prompt !== state.prompt) return ask({ prompt, written: 1 });
  const n = visible(main.decoding).length;
  if (state.written === Infinity) return update({ at: Math.max(0, marked() + change) });
  update({ at: null, lane: 0, written: Math.max(0, n + change) });
}

let player = null;                                 // the timer, while the answer is played

function stop() {
  clearInterval(player);
  player = null;
  $("play").textContent = "Play";
}

/** Go through the answer by itself, a token a second. */
function play() {
  if (player) return stop();
  if (state.at === null && state.written === Infinity || $("step").disabled) {
    update({ at: 0, written: Infinity });          // nobody chose a token: from the first one
  }
  player = setInterval(() => state.tab === "answer" && !$("step").disabled ? step(1) : stop(), 900);
  $("play").textContent = "Pause";
}

function build() {
  const option = (value, text) => h("option", { value }, text);
  const skill = (e) => option(e.prompt, [BENCHES[e.bench][1], e.skill].filter(Boolean).join(": ")
    + (e.covered === false ? " *" : ""));
  const groups = GROUPS.map((label) => h("optgroup", { label },
    view.data.examples.filter((e) => BENCHES[e.bench][0] === label).map(skill)));
  const methods = () => METHODS.map((name) => option(name, METHOD_NAMES[name]));
  const select = (id, label, onchange, ...options) => h("div", { class: "field" },
    h("label", { for: id }, label),
    h("select", { id, onchange: (event) => onchange(event.target.value) }, ...options));
  const button = (id, text, onclick, more = {}) =>
    h("button", { type: "button", id, onclick, ...more }, text);
  const sign = (id, text, label, onclick) => button(id, text, onclick, { "aria-label": label });
  const run = () => ask({ prompt: engine.typed($("prompt").value) });
  const phase = (n, method, other) => button(`phase-${n}`, String(n), () =>
    ask({ method, beside: state.method === method ? state.beside : other }),
  { "aria-label": `Router after phase ${n}` });

  $("panel-answer").append(
    h("form", { class: "ask",
      onsubmit: (event) => {
        event.preventDefault();
        run();
      },
    },
    h("div", { class: "field prompt" },
      h("label", { for: "prompt" }, "Prompt"),
      h("textarea", { id: "prompt", rows: "2", spellcheck: "false", "aria-describedby": "error",
        onkeydown: (event) => {
          if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
          event.preventDefault();
          run();
        },
      }),
      h("p", { id: "error", class: "error", role: "alert" }),
      h("p", { id: "unseen", class: "small", role: "status" })),
    select("example", term("toy", "Examples"), (value) => value && ask({ prompt: value }),
      option("", "(your own prompt)"), groups),
    h("button", { type: "submit", id: "run", class: "primary" }, "Run")),
    h("div", { class: "card", id: "answer-card" },
      h("div", { class: "card-head" },
        h("h2", {}, "Answer"),
        h("div", { class: "switch", role: "group", "aria-label": "Router after phase" },
          term("phase", "phase"), phase(1, "sft_only", "fusionroute"),
          phase(2, "fusionroute", "sft_only")),
        h("div", { class: "buttons" },
          sign("restart", "|◀", "From the start", () => {
            stop();
            update({ at: null, lane: 0, written: 1 });
          }),
          sign("back", "◀", "Step back", () => step(-1)),
          sign("step", "Token ▶", "Next token", () => step(1)),
          button("play", "Play", play))),
      h("div", { id: "answers" }),
      h("div", { id: "facts" }),
      h("div", { id: "edits" })),
    stage.build(edit),
    h("div", { class: "settings" },
      select("method", "Who writes", (value) => ask({ method: value, beside: state.beside }),
        methods()),
      select("beside", "Compare with", (value) => update({ beside: value, lane: 0, at: null }),
        option("", "nothing"), methods()),
      h("label", { class: "check" }, h("input", { type: "checkbox", id: "rest" }),
        " next expert or weight: also for later tokens"),
      h("p", { class: "small" }, h("span", { id: "status", role: "status" }), " ",
        term("speed", "why so fast?"))));
  view.renderers.push(render);
}

let last_prompt = null;
function render() {
  if (state.tab !== "answer") return;
  if (last_prompt !== state.prompt) $("prompt").value = last_prompt = state.prompt;
  const { examples } = view.data;
  $("example").value = examples.some((e) => e.prompt === state.prompt) ? state.prompt : "";
  $("method").value = state.method;
  $("beside").value = state.beside;
  $("phase-1").setAttribute("aria-pressed", state.method === "sft_only");
  $("phase-2").setAttribute("aria-pressed", state.method === "fusionroute");
  let answers;
  try {
    answers = wanted();
  } catch (error) {
    turn += 1;
    $("error").textContent = error.message;
    $("prompt").setAttribute("aria-invalid", "true");
    for (const id of ["unseen", "answers", "facts", "edits"]) rebuild($(id));
    $("token-panel").hidden = true;
    return;
  }
  const unseen = toy().encoding.unseen(state.prompt);
  $("unseen").textContent = unseen.length
    ? `The toy has never seen: ${unseen.join(", ")}. The answer may be nonsense.` : example() ? ""
      : "Not one of the examples: the toy knows few wordings, and nothing checks this answer.";
  $("error").textContent = "";
  $("prompt").removeAttribute("aria-invalid");
  finished = write(answers);
}

return { build, text_of, get finished() { return finished; } };
})();
