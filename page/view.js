// The first tab: an answer, token by token. Also what all tabs share: elements, state, address.
//
// The state is one object. Every control changes it through `update`, which writes it into the
// address and shows it again; so an address and a click lead to the same view.

"use strict";

const view = (() => {

const { EXPERTS, METHODS } = engine;
const NAMES = { math: "math", code: "code", instruct: "instruction", router: "router" };
const MARKS = { math: "m", code: "c", instruct: "i", router: "r" };  // besides the colours
const METHOD_NAMES = {
  fusionroute: "FusionRoute (after phase 2)",
  sft_only: "after phase 1 only",
  routing_only: "routing only: nothing added",
  router: "the router alone",
  math: "the math expert alone",
  code: "the code expert alone",
  instruct: "the instruction expert alone",
};
const BENCHES = {                                  // group and short name in the menu
  "toy-gsm8k": ["Math", "word problem"],
  "toy-math500": ["Math", "algebra"],
  "toy-mbpp": ["Code", "whole function"],
  "toy-humaneval": ["Code", "function body"],
  "toy-ifeval": ["Format", "words"],
  general: ["Two experts' work in one answer", ""],
};
const GROUPS = [...new Set(Object.values(BENCHES).map(([group]) => group))];

// --- elements ------------------------------------------------------------------------------------

const SVG = new Set("svg g path line circle polygon polyline rect text tspan title".split(" "));

/** What is left of a list of children without null, false and the like. */
const present = (children) => children.flat(2).filter((x) => x || x === "" || x === 0);

/** An element. Attributes that start with "on" are listeners, true stands for an empty value. */
function h(tag, attributes = {}, ...children) {
  const svg = SVG.has(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...present(children));
  return element;
}

const $ = (id) => document.getElementById(id);

/** Replace what a container holds; the focus stays on the element with the same id, and nothing
 *  scrolls. */
function rebuild(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.id : "";
  container.replaceChildren(...present(children));
  if (focused && $(focused) && document.activeElement !== $(focused)) {
    $(focused).focus({ preventScroll: true });
  }
}

/** A token's text as it is shown outside of an answer: spaces and line breaks become visible. */
function shown(id) {
  const { encoding } = toy;
  if (id === encoding.END) return "end of answer";
  const text = encoding.decode([id]);
  if (text.includes("\ufffd")) return "byte " + encoding.bytes[id][0].toString(16).padStart(2, "0");
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵") || "empty";
}

/** The same in the middle of a sentence. */
const quoted = (id) => id === toy.encoding.END ? "the end of the answer" : `“${shown(id)}”`;

/** A number with a proper minus sign, and none before a zero. */
function number(x, digits = 2) {
  return x.toFixed(digits).replace("-", "−").replace(/^−(0\.?0*)$/, "$1");
}

function percent(p) {
  if (p > 0 && p < 0.005) return "< 1%";
  return p > 0.995 && p < 1 ? "> 99%" : `${Math.round(100 * p)}%`;
}

const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

/** The head of a table. */
const head = (...names) => h("thead", {}, h("tr", {}, names.map((name) =>
  h("th", { scope: "col" }, name))));

// --- the state and the address -------------------------------------------------------------------

const START = {
  tab: "answer", tour: 0,
  prompt: "", method: "fusionroute", beside: "", written: Infinity, lane: 0, at: null, edits: [],
  experts: [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.5, 0.1, 0.4]], target: [0.2, 0.2, 0.6], B: 0.5,
  coverage: 0.5, bound: 2, world: 1,
  pair: 0,
};
const TABS = { answer: "An answer, token by token", choosing: "Why choosing is not enough",
  training: "Training" };
const state = { ...START };
const renderers = [];                                              // one per tab and the tour
let toy = null, data = null;

const point_text = (p) => p.slice(0, 2).map((x) => x.toFixed(3)).join("_");

/** One edit as text: 5e1 (token 5: expert 1), 5s0.5 (scale 0.5), 5t300 (token 300). A capital
 *  letter: also for all tokens after it. */
function edit_text(edit) {
  const kind = ["expert", "scale", "token"].find((name) => edit[name] !== undefined);
  return `${edit.at}${edit.rest ? kind[0].toUpperCase() : kind[0]}${edit[kind]}`;
}

/** A state as text, by name; "" is what an address leaves out. */
function entries(of) {
  return {
    tab: of.tab, tour: of.tour || "", prompt: of.prompt, method: of.method, beside: of.beside,
    written: of.written === Infinity ? "" : of.written, at: of.at ?? "", lane: of.lane || "",
    edits: of.edits.map(edit_text).join(), experts: of.experts.map(point_text).join(),
    target: point_text(of.target), B: of.B, coverage: of.coverage, bound: of.bound, world: of.world,
    pair: of.pair,
  };
}

/** The address of the state: the prompt, and all that is not as at the start. */
function address() {
  const usual = entries(START);
  return "#" + new URLSearchParams(Object.entries(entries(state)).filter(([name, value]) =>
    name === "prompt" || String(value) !== String(usual[name])));
}

/** The state that an address means; what is missing or makes no sense is as at the start. */
function read_address(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, "")), found = { ...START };
  const within = (name, low, high, whole) => {
    const value = Number(given.get(name) || NaN);
    const fine = value >= low && value <= high && (!whole || Number.isInteger(value));
    if (fine) found[name] = value;
  };
  const point = (text) => {
    const [a, b] = (text ?? "").split("_").map(Number);
    const p = [a, b, Math.round((1 - a - b) * 1e3) / 1e3];
    return p.every((x) => x >= 0.001 && x <= 0.999) ? p : null;
  };
  if (given.get("tab") in TABS) found.tab = given.get("tab");
  const example = data.examples.find((e) => e.skill === "triple") ?? data.examples[0];
  found.prompt = engine.typed(given.get("prompt") ?? example.prompt);
  if (METHODS.includes(given.get("method"))) found.method = given.get("method");
  if (METHODS.includes(given.get("beside"))) found.beside = given.get("beside");
  within("tour", 0, 10, true);
  within("written", 0, engine.MAX_NEW, true);
  within("at", 0, engine.MAX_NEW - 1, true);
  within("lane", 0, 1, true);
  found.edits = (given.get("edits") ?? "").split(",").flatMap((text) => {
    const [, at, kind, value] = /^(\d{1,2})([estEST])(\d+(?:\.\d+)?)$/.exec(text) ?? [];
    const name = { e: "expert", s: "scale", t: "token" }[kind?.toLowerCase()];
    const most = { expert: EXPERTS.length - 1, scale: 2, token: toy.encoding.n_vocab - 1 }[name];
    const fine = name && value <= most && (name === "scale" || Number.isInteger(Number(value)));
    if (!fine) return [];
    return [{ at: Number(at), rest: kind !== kind.toLowerCase(), [name]: Number(value) }];
  });
  const experts = (given.get("experts") ?? "").split(",").map(point);
  if (experts.length === 3 && experts.every(Boolean)) found.experts = experts;
  found.target = point(given.get("target")) ?? START.target;
  within("B", 0, 4);
  within("coverage", 0, 1);
  within("bound", 0, 6);
  within("world", 1, theory.SEEDS.length, true);
  within("pair", 0, data.pairs.length - 1, true);
  return found;
}

/** Change the state, the address and the view. */
function update(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", address());
  render();
}

function render() {
  for (const tab of Object.keys(TABS)) {
    const active = tab === state.tab;
    $(`panel-${tab}`).hidden = !active;
    $(`tab-${tab}`).setAttribute("aria-selected", active);
    $(`tab-${tab}`).tabIndex = active ? 0 : -1;
  }
  for (const renderer of renderers) renderer();
}

// --- lanes: the answer, one beside it, and the answer without the reader's changes ---------------

/** A lane is an answer being written: {key, decoding, edits}. With another key it is made anew. */
const lanes = { main: null, beside: null, before: null };

function lane(name, method, edits) {
  const key = JSON.stringify([state.prompt, method]), old = lanes[name];
  if (old?.key !== key) {
    lanes[name] = { key, decoding: engine.start(toy, state.prompt, method, edits), edits: "" };
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

const still = window.matchMedia("(prefers-reduced-motion: reduce)");
let turn = 0;                                      // a newer turn stops an older one
let finished = Promise.resolve();                  // settled when nothing is being written
let speed = "";                                    // how fast the last answer was written

/** Write what is missing, a little at a time, so that the page stays responsive. */
async function write(answers) {
  const mine = ++turn;
  let shown_at = performance.now();
  let tokens = 0, seconds = 0;                     // without the first, which reads the prompt
  for (const decoding of Object.values(answers)) {
    while (!decoding.done && decoding.steps.length < state.written) {
      const begun = performance.now();
      decoding.step();
      if (decoding.steps.length > 1) {
        tokens += 1;
        seconds += (performance.now() - begun) / 1000;
      }
      if (performance.now() - shown_at > 30) {
        if (!still.matches) show_answers(answers, true);
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== turn) return;
        shown_at = performance.now();
      }
    }
  }
  const rate = Math.round(tokens / seconds);
  if (tokens > 9) speed = `Just now: ${rate} tokens a second, with four models.`;
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

/** The token that the panel below is about: the marked one; else the first changed one, or in S. */
function selected(steps) {
  if (!steps.length) return null;
  if (state.at !== null) return Math.min(state.at, steps.length - 1);
  if (state.written !== Infinity) return steps.length - 1;
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
  const texts = toy.encoding.pieces(steps.map((step) => step.token));
  const options = steps.flatMap((step, t) => {
    const end = step.token === toy.encoding.END, who = writer(decoding, step);
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

/** Counts of what the answer shows, with a sample of each sign. */
function legend(decoding, steps) {
  const writers = decoding.how.use_expert ? EXPERTS : ["router"];
  const row = (attributes, text, test) => h("li", {},
    h("span", attributes, h("span", { class: "text" }, "abc")), ` ${text}: `,
    h("b", {}, String(steps.filter(test).length)));
  return h("ul", { class: "legend" },
    writers.map((who) => row({ class: `token in-s ${who}`, "data-mark": MARKS[who] },
      `in S, ${NAMES[who]}${who === "router" ? " alone" : " picked"}`,
      (step) => step.in_S && writer(decoding, step) === who)),
    row({ class: "token" }, "outside S, all experts agree", (step) => !step.in_S),
    row({ class: "token changed", "data-was": "xyz" },
      "changed by the router (struck out: the picked expert's token)",
      (step) => step.token !== step.expert_choice));
}

/** The answers that the state asks for, side by side or one below the other. */
function show_answers(answers, writing) {
  const main = visible(answers.main), beside = answers.beside && visible(answers.beside);
  const before = answers.before && visible(answers.before);
  const in_beside = state.lane === 1 && Boolean(beside);
  const chosen = in_beside ? beside : main, at = writing ? null : selected(chosen);
  const split = beside ?? before ? first_difference(main, beside ?? before) : null;
  const column = (title, decoding, list, classes = "") => h("div", { class: `lane ${classes}` },
    h("h3", {}, title),
    token_list({ decoding, ...list }),
    list.steps.length === engine.MAX_NEW &&
      h("p", { class: "small" }, `Stopped after ${engine.MAX_NEW} tokens.`),
    !writing && !list.dimmed && legend(decoding, list.steps));
  rebuild($("answers"),
    h("div", { class: beside ? "lanes two" : "lanes" },
      column(METHOD_NAMES[state.method] + (before ? ", with your changes" : ""), answers.main, {
        name: "tokens", label: "Answer", steps: main, chosen: in_beside ? null : at, split,
        select: (t) => update({ at: t, lane: 0 }),
      }),
      beside && column(METHOD_NAMES[state.beside], answers.beside, {
        name: "tokens-beside", label: "Answer beside it", steps: beside, split,
        chosen: in_beside ? at : null, select: (t) => update({ at: t, lane: 1 }),
      }),
      before && column("Without your changes", answers.before, {
        name: "tokens-before", label: "Answer without your changes", steps: before, chosen: null,
        split: first_difference(main, before), dimmed: true, select: () => {},
      }, "before")),
    !writing && h("p", { class: "small", id: "verdict" }, verdict(main, beside, answers)));
  $("back").disabled = !main.length;
  $("step").disabled = answers.main.done && main.length === answers.main.steps.length;
  $("status").textContent = writing ? "" : `${plural(main.length, "token")} shown. ${speed}`;
  if (!writing) show_token(in_beside ? answers.beside : answers.main, chosen, at);
  changed_answer = writing || !before ? "" : text_of(main);
  for (const element of document.querySelectorAll(".changed-answer")) fill_changed(element);
}

/** The text of an answer. */
const text_of = (steps) => toy.encoding.pieces(steps.map((step) => step.token)).join("");

let changed_answer = "";                           // the text of an answer with changes

/** The changed answer once more, beside the controls that changed it: it may be out of view. */
function fill_changed(element) {
  rebuild(element, changed_answer && ["With your changes: ", h("code", {}, changed_answer)]);
}

/** One line below the answers: where they differ, and an example's right answer. */
function verdict(main, beside, answers) {
  const parts = [], t = beside && first_difference(main, beside);
  if (beside && t < Math.max(main.length, beside.length)) {
    parts.push(`The two answers differ from token ${t + 1} on (marked by a bar). `);
  } else if (beside) parts.push("The two answers are the same. ");
  const example = data.examples.find((e) => e.prompt === state.prompt);
  if (example && answers.main.done && main.length === answers.main.steps.length) {
    const text = text_of(main);
    const one = beside ? "The first" : "This";
    if (text === example.answer) parts.push(`${one} is the right answer.`);
    else parts.push("A right answer would be: ", h("code", {}, example.answer));
  }
  return parts;
}

// --- the marked token ----------------------------------------------------------------------------

/** What happened at a token, in words. */
function story(decoding, step) {
  const { use_expert, only } = decoding.how, expert = NAMES[EXPERTS[step.pick]];
  const token = (id) => h("b", {}, quoted(id)), best = engine.argmax(step.logp), say = [];
  if (!use_expert) {
    say.push("The router writes alone here: it takes its own likeliest token, ", token(best), ". ");
  } else if (only !== null && step.pick === only) {
    say.push(`The ${expert} expert writes alone. `);
  } else if (only === null && step.pick === step.routed) {
    say.push(`The router picks the ${expert} expert (routing weight
      ${percent(step.weights[step.pick])}). `);
  } else say.push(`You picked the ${expert} expert. `);
  if (use_expert) {
    say.push("This expert's own likeliest token is ", token(step.expert_choice), ". ");
    if (step.scale === 0) say.push("The router adds nothing, so this token has the largest sum. ");
    else if (best === step.expert_choice) {
      say.push("With the router's log-probabilities added, it still has the largest sum. ");
    } else {
      say.push("With the router's log-probabilities added, ", token(best), ` has the largest sum:
        the router changes the token. `);
    }
  }
  if (step.token !== best) say.push("You wrote ", token(step.token), " in its place. ");
  say.push(step.in_S
    ? `The experts' own likeliest tokens are not all the same: this token is in the set S, and it
      may matter which expert is picked.`
    : `All three experts have the same likeliest token: this token is outside the set S, and it
      hardly matters which expert is picked. To agree does not mean to be right: the router
      may still have to change the token.`);
  return h("p", { id: "story" }, say);
}

/** Ten tokens to compare: every model's favourite, then those with the largest sums. */
function candidates(step) {
  const favourites = [step.token, ...step.choice, engine.argmax(step.router_logp)];
  const order = Array.from(step.logp.keys()).sort((a, b) => step.logp[b] - step.logp[a]);
  const ten = new Set(favourites);
  for (const id of order) if (ten.size < 10) ten.add(id);
  return order.filter((id) => ten.has(id));
}

const DEPTH = 12;                                  // the deepest log-probability that is drawn

/** Three rows of bars for the same ten tokens: expert, router, sum. A bar hangs from 0. */
function bars(decoding, step) {
  const { use_expert } = decoding.how, who = use_expert ? EXPERTS[step.pick] : "router";
  const ten = candidates(step), best = engine.argmax(step.logp);
  const scale = use_expert ? step.scale : 1;
  const expert = (id) => use_expert ? step.expert_logp[step.pick][id] : 0;
  const router = (id) => scale * step.router_logp[id];
  const piece = (value, name) => h("span", {
    class: `piece ${name}${-value > DEPTH ? " cut" : ""}`,
    style: `height: calc(var(--nat) * ${Math.min(-value, DEPTH).toFixed(3)})`,
  });
  const value = (x) => h("span", { class: "value" }, number(x, 1));
  const winner = h("span", { class: "winner" }, "▲", h("span", { class: "word" }, " largest"));
  const row = (title, deep, cell) => h("tbody", {},
    h("tr", { class: "title" }, h("th", { scope: "rowgroup", colspan: "10" }, title)),
    h("tr", { class: `bars ${deep}` }, ten.map((id) =>
      h("td", { class: id === best && "best" }, cell(id)))));
  const button = (id) => h("button", {
    type: "button", id: `candidate-${id}`, class: "candidate", disabled: state.lane === 1,
    "aria-label": `Write ${shown(id)} here${id === step.token ? " (it is written now)" : ""}`,
    onclick: () => edit({ token: id }),
  }, h("span", {}, shown(id)));
  return h("table", { class: "candidates" },
    h("caption", {}, "Ten candidates for this token. Each bar hangs down from 0, so ",
      h("b", {}, "a short bar is a likely token"), `. The third row shows the first two, one below
      the other; the shortest sum, which is the largest number, is written. Press a candidate to
      write it here instead.`),
    h("thead", {}, h("tr", {}, ten.map((id) =>
      h("th", { scope: "col", class: id === step.token && "written" }, button(id))))),
    use_expert && row(["log π", h("sub", {}, "expert"), ` (${NAMES[who]})`], "", (id) =>
      [piece(expert(id), who), value(expert(id))]),
    row([use_expert && "+ ", scale !== 1 && `${number(scale)} × `, "log π", h("sub", {}, "θ"),
      " (router)"], "", (id) => [piece(router(id), "router"), value(router(id))]),
    use_expert && row("= sum, up to a constant", "deep", (id) =>
      [piece(expert(id), who), piece(router(id), "router"), value(step.logp[id]),
        id === best && winner]));
}

/** What each model would write by itself, and the routing weights. */
function opinions(decoding, step) {
  const { use_expert, only } = decoding.how, weights = engine.softmax(step.w);
  const name_of = (name) => h("th", { scope: "row" },
    h("span", { class: `chip ${name}` }, MARKS[name]), ` ${NAMES[name]}`);
  const says = (logp, id) => h("td", {},
    h("code", {}, shown(id)), ` (${percent(Math.exp(logp[id]))})`);
  const rows = EXPERTS.map((name, i) => {
    const picked = use_expert && i === step.pick;
    const use = h("button", {
      type: "button", id: `use-${name}`, disabled: state.lane === 1,
      "aria-label": `Use the ${NAMES[name]} expert at this token`,
      onclick: () => edit({ expert: i }),
    }, "use it");
    const bar = h("span", { class: name, style: `width: ${100 * weights[i]}%` });
    return h("tr", { class: picked && "picked" }, name_of(name),
      h("td", {}, h("span", { class: "weight" }, bar), ` ${percent(weights[i])}`),
      says(step.expert_logp[i], step.choice[i]),
      h("td", {}, picked ? (only === null ? "picked" : "writes") : use_expert && use));
  });
  const adds = step.scale ? "adds" : "adds nothing";
  return h("table", { class: "opinions" },
    h("caption", {}, `What each model would write here by itself, and how likely it finds that.
      FusionRoute needs only the router and the picked expert; the others run here only for this
      table.`),
    head("model", "routing weight", "its own token", "here"),
    h("tbody", {}, rows, h("tr", {}, name_of("router"), h("td", {}, "routes"),
      says(step.router_logp, engine.argmax(step.router_logp)),
      h("td", {}, use_expert ? adds : "writes"))));
}

/** The panel of the marked token. */
function show_token(decoding, steps, at) {
  const step = steps[at];
  $("token-panel").hidden = !step;
  if (!step) return;
  rebuild($("token-head"),
    h("h2", {}, `Token ${at + 1} of ${steps.length}: `, h("code", {}, shown(step.token))),
    story(decoding, step));
  rebuild($("token-bars"), bars(decoding, step));
  rebuild($("token-opinions"), opinions(decoding, step));
  for (const id of ["scale", "scale-0", "scale-1", "scale-2", "rest"]) {
    $(id).disabled = state.lane === 1 || !decoding.how.use_expert;
  }
  if (document.activeElement !== $("scale")) $("scale").value = step.scale;
  $("scale-value").textContent = number(step.scale);
  const undo = (i) => {
    update({ edits: state.edits.filter((_, j) => j !== i) });
    finished.then(() => $(`undo-${i}`) ?? $("tokens").focus());
  };
  const text = (one) => {
    if (one.expert !== undefined) return `${NAMES[EXPERTS[one.expert]]} expert`;
    return one.scale !== undefined ? `scale ${number(one.scale)}` : quoted(one.token);
  };
  rebuild($("edits"), state.edits.length > 0 && [
    h("p", { class: "small" }, "Your changes (press one to take it back):"),
    h("ul", { class: "edits" }, state.edits.map((one, i) => h("li", {},
      h("button", { type: "button", id: `undo-${i}`, onclick: () => undo(i) },
        `token ${one.at + 1}${one.rest ? " and after" : ""}: ${text(one)} ✕`)))),
  ]);
}

/** Scroll, at once, so that an element begins below the card of the tour. */
function scroll_to(element) {
  const height = `${$("tour").offsetHeight + 12}px`;
  document.documentElement.style.setProperty("--tour", height);
  element?.scrollIntoView({ block: "start" });
}

/** Change something at the marked token: {expert}, {scale} or {token}. */
function edit(change) {
  const steps = visible(lanes.main.decoding), at = selected(steps), [kind] = Object.keys(change);
  const rest = kind !== "token" && $("rest").checked, step = steps[at];
  const others = state.edits.filter((one) =>
    one[kind] === undefined || (rest ? one.at < at : one.at !== at));
  const unchanged = kind === "token" && others.every((one) => one.at !== at)
    && change.token === engine.argmax(step.logp);
  update({ at, edits: unchanged ? others : [...others, { at, rest, ...change }] });
  if (kind === "scale") return;                    // the slider must not move away under the hand
  finished.then(() => {
    const { top } = $("answers").getBoundingClientRect(), card = $("tour").getBoundingClientRect();
    if (top < Math.max(card.bottom, 0)) scroll_to($("answers"));
  });
}

// --- the tab -------------------------------------------------------------------------------------

/** Start over with other settings; the reader's changes belong to the old answer. */
function ask(changes) {
  update({ edits: [], at: null, lane: 0, written: Infinity, ...changes });
}

function build_answer() {
  const option = (value, text) => h("option", { value }, text);
  const skill = (e) => option(e.prompt, [BENCHES[e.bench][1], e.skill].filter(Boolean).join(": ")
    + (e.covered === false ? " (uncovered)" : ""));
  const groups = GROUPS.map((label) => h("optgroup", { label },
    data.examples.filter((e) => BENCHES[e.bench][0] === label).map(skill)));
  const methods = () => METHODS.map((name) => option(name, METHOD_NAMES[name]));
  const select = (id, label, onchange, ...options) => h("div", { class: "field" },
    h("label", { for: id }, label),
    h("select", { id, onchange: (event) => onchange(event.target.value) }, ...options));
  const button = (id, text, onclick, more = {}) =>
    h("button", { type: "button", id, onclick, ...more }, text);

  const typed = () => engine.typed($("prompt").value);
  const run = () => ask({ prompt: typed() });
  const step = (change) => {
    const prompt = typed(), same = prompt === state.prompt;
    const now = same && lanes.main ? visible(lanes.main.decoding).length : 0;
    update({ prompt, at: null, lane: 0, written: Math.max(0, now + change),
      edits: same ? state.edits : [] });
  };
  const form = h("form", { class: "ask",
    onsubmit: (event) => {
      event.preventDefault();
      run();
    },
  },
  h("div", { class: "field wide" },
    h("label", { for: "prompt" }, "Prompt ",
      h("span", { class: "small" }, "(Enter runs, Shift+Enter is a new line)")),
    h("textarea", { id: "prompt", rows: "4", spellcheck: "false", "aria-describedby": "error",
      onkeydown: (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        run();
      },
    }),
    h("p", { id: "error", class: "error", role: "alert" }),
    h("p", { id: "unseen", class: "small", role: "status" })),
  select("example", "Examples", (value) => value && ask({ prompt: value }),
    option("", "(your own prompt)"), groups),
  select("method", "Who writes", (value) => ask({ method: value }), methods()),
  select("beside", "Beside it", (value) => update({ beside: value, lane: 0 }),
    option("", "nothing"), methods()),
  h("div", { class: "buttons" },
    h("button", { type: "submit", id: "run", class: "primary" }, "Run"),
    button("step", "Step", () => step(1)),
    button("back", "Step back", () => step(-1)),
    button("restart", "From the start", () => step(-Infinity))),
  h("p", { class: "small wide" }, `The toy knows sums, short Python functions and lists of words, in
    a few wordings of its own. To anything else it answers nonsense, and the page cannot check the
    answer to a prompt of your own. “Uncovered” examples: no expert has learned this kind.`));

  const scales = ["off", "on", "double"].map((text, scale) => {
    const set = () => {
      $("scale").value = scale;
      edit({ scale });
    };
    return button(`scale-${scale}`, `${scale}: ${text}`, set,
      { "aria-label": `Scale ${scale}: ${text}` });
  });
  const experiments = h("fieldset", {},
    h("legend", {}, "Try it at this token"),
    h("label", { for: "scale" }, "Scale of the router's log-probabilities: ",
      h("output", { id: "scale-value", for: "scale" })),
    h("input", { type: "range", id: "scale", min: "0", max: "2", step: "0.05",
      oninput: (event) => edit({ scale: Number(event.target.value) }) }),
    h("div", { class: "buttons" }, scales),
    h("label", { class: "check" }, h("input", { type: "checkbox", id: "rest" }),
      " scale or expert: also for all tokens after it"),
    h("p", { class: "small" },
      "The answer goes on from your change; the answer without it stays in view."),
    h("p", { class: "changed-answer" }),
    h("div", { id: "edits" }));

  const answer = h("div", {},
    h("h2", {}, "The answer"),
    h("div", { id: "answers" }),
    h("p", { class: "small", id: "status", role: "status" }),
    h("p", { class: "small" }, "Coloured are the tokens in the set ", h("b", {}, "S"), `: there the
      experts by themselves would not all write the same token, and it may matter which one is
      picked. Plain tokens are outside S: there all of them agree. To agree does not mean to be
      right: the router may still have to change the token. (In training, S is the same set of the
      right answer's tokens.) In the tables “␣” stands for a space, “↵” for a new line.`));
  $("panel-answer").append(h("div", { class: "desk" }, form, answer),
    h("section", { id: "token-panel", "aria-label": "The marked token", hidden: true },
      h("div", { id: "token-head" }),
      h("div", { id: "token-bars" }),
      h("div", { class: "columns" }, h("div", { id: "token-opinions" }), experiments)));
}

let last_prompt = null;
function render_answer() {
  if (state.tab !== "answer") return;
  if (last_prompt !== state.prompt) $("prompt").value = last_prompt = state.prompt;
  $("example").value = data.examples.some((e) => e.prompt === state.prompt) ? state.prompt : "";
  $("method").value = state.method;
  $("beside").value = state.beside;
  const unseen = toy.encoding.unseen(state.prompt);
  $("unseen").textContent = unseen.length
    ? `The toy has never seen: ${unseen.join(", ")}. The answer may be nonsense.` : "";
  let answers;
  try {
    answers = wanted();
  } catch (error) {
    turn += 1;
    $("error").textContent = error.message;
    $("prompt").setAttribute("aria-invalid", "true");
    rebuild($("answers"));
    $("status").textContent = "";
    $("token-panel").hidden = true;
    return;
  }
  $("error").textContent = "";
  $("prompt").removeAttribute("aria-invalid");
  finished = write(answers);
}

/** Everything that is on the page: tabs, panels, the state in the address. */
function begin(given_toy, given_data) {
  toy = given_toy;
  data = given_data;
  const tabs = Object.keys(TABS);
  $("tabs").append(...tabs.map((tab, i) => h("button", {
    type: "button", role: "tab", id: `tab-${tab}`, "aria-controls": `panel-${tab}`,
    onclick: () => update({ tab }),
    onkeydown: (event) => {
      const to = { ArrowLeft: i - 1, ArrowRight: i + 1, Home: 0, End: tabs.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      const next = tabs[(to + tabs.length) % tabs.length];
      update({ tab: next });
      $(`tab-${next}`).focus();
    } }, TABS[tab])));
  build_answer();
  renderers.push(render_answer);
}

return {
  h, $, rebuild, head, shown, quoted, number, percent, plural, NAMES, MARKS,
  START, TABS, fill_changed, text_of, scroll_to, state, renderers, update, ask, render, begin,
  address, read_address,
  get toy() { return toy; }, get data() { return data; }, get finished() { return finished; },
};
})();
