// The first tab: an answer, token by token. Also what all tabs share: making elements, the state, the address.
//
// The state is one object. Every control changes it through `update`, which writes it into the address and
// shows it again; so an address and a click lead to the same view.

"use strict";

const view = (() => {

const { EXPERTS, METHODS } = engine;
const NAMES = { math: "math", code: "code", instruct: "instruction", router: "router" };
const MARKS = { math: "m", code: "c", instruct: "i", router: "r" };  // a second sign besides the colour
const METHOD_NAMES = {
  fusionroute: "FusionRoute: choose and add, after phase 2",
  sft_only: "after phase 1 only: choose and add",
  routing_only: "routing only: choose, add nothing",
  router: "the router alone",
  math: "the math expert alone",
  code: "the code expert alone",
  instruct: "the instruction expert alone",
};
const BENCHES = {
  "toy-gsm8k": "word problems (gsm8k)",
  "toy-math500": "algebra (math500)",
  "toy-mbpp": "functions from words (mbpp)",
  "toy-humaneval": "function bodies (humaneval)",
  "toy-ifeval": "formats (ifeval)",
  general: "one expert's content in another's form (general)",
};

// --- elements ------------------------------------------------------------------------------------

const SVG = new Set("svg g path line circle polygon polyline rect text tspan title".split(" "));

const present = (children) => children.flat(2).filter((child) => child || child === "" || child === 0);

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

/** Replace what a container holds; the focus stays on the element that has the same id afterwards. */
function rebuild(container, ...children) {
  const focused = container.contains(document.activeElement) ? document.activeElement.id : "";
  container.replaceChildren(...present(children));
  if (focused && $(focused) && document.activeElement !== $(focused)) $(focused).focus();
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

const number = (x, digits = 2) => x.toFixed(digits).replace("-", "−").replace(/^−(0\.?0*)$/, "$1");
const percent = (p) => p > 0.995 && p < 1 ? "> 99%" : p > 0 && p < 0.005 ? "< 1%" : `${Math.round(100 * p)}%`;
const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

// --- the state and the address -------------------------------------------------------------------

const START = {
  tab: "answer", tour: 0,
  prompt: "", method: "fusionroute", beside: "", written: Infinity, lane: 0, at: null, edits: [],
  experts: [[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.45, 0.45, 0.1]], target: [0.15, 0.2, 0.65], B: 0.5,
  coverage: 0.5, bound: 2, world: 1,
  pair: 0,
};
const TABS = { answer: "An answer, token by token", choosing: "Why choosing is not enough",
  training: "Training" };
const state = { ...START };
const renderers = [];                                              // one per tab and the tour
let toy = null, data = null;

const point_text = (p) => p.slice(0, 2).map((x) => x.toFixed(3)).join("_");

/** One edit as text: 5e1 (token 5: expert 1), 5s0.5 (scale 0.5), 5t300 (token 300); 5E1: and all after. */
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
    const value = Number(given.get(name));
    const fine = given.get(name) && value >= low && value <= high && (!whole || Number.isInteger(value));
    if (fine) found[name] = value;
  };
  const point = (text) => {
    const [a, b] = (text ?? "").split("_").map(Number), p = [a, b, Math.round((1 - a - b) * 1e3) / 1e3];
    return p.every((x) => x >= 0.001 && x <= 0.999) ? p : null;
  };
  if (given.get("tab") in TABS) found.tab = given.get("tab");
  found.prompt = given.get("prompt") ?? (data.examples.find((e) => e.skill === "triple") ?? data.examples[0]).prompt;
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
    return fine ? [{ at: Number(at), rest: kind !== kind.toLowerCase(), [name]: Number(value) }] : [];
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

// --- lanes: the answer, one beside it, and the answer without the reader's changes ------------------------

/** A lane is an answer being written: {key, decoding, error}. It is made anew when its key changes. */
const lanes = { main: null, beside: null, before: null };

function lane(name, method, edits) {
  const key = JSON.stringify([state.prompt, method]), old = lanes[name];
  if (old?.key !== key) {
    lanes[name] = { key, decoding: engine.start(toy, state.prompt, method, edits), edits: "" };
  }
  const lane = lanes[name], text = edits.map(edit_text).join();
  if (lane.edits !== text) {                                       // keep what the change leaves as it was
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
let turn = 0;                                                      // a newer turn stops an older one
let finished = Promise.resolve();                                  // settled when nothing is being written

/** Write what is missing, a little at a time, so that the page stays responsive. */
async function write(answers) {
  const mine = ++turn;
  let shown_at = performance.now();
  let tokens = 0, seconds = 0;                                     // without the first, which reads the prompt
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
  if (tokens > 9) speed = `Just now: ${Math.round(tokens / seconds)} tokens a second, with four models.`;
  show_answers(answers, false);
}
let speed = "";

/** The steps of a lane that are shown. */
const visible = (decoding) => decoding.steps.slice(0, state.written);

/** The number of the first token at which two answers differ; the shorter one's length if none does. */
function first_difference(a, b) {
  const n = Math.min(a.length, b.length);
  for (let t = 0; t < n; t++) if (a[t].token !== b[t].token) return t;
  return n;
}

/** Who wrote a token: an expert's name, or the router's where it writes alone. */
const writer = (decoding, step) => decoding.how.use_expert ? EXPERTS[step.pick] : "router";

/** The token that the panel below speaks of: the chosen one, else the first that was changed, else one in S. */
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
  parts.push(step.in_S ? `in S, written by ${NAMES[who]}` : "outside S, all experts agree");
  if (step.token !== step.expert_choice) parts.push(`changed by the router from ${shown(step.expert_choice)}`);
  if (step.edited) parts.push("you changed this step");
  return parts.join("; ");
}

/** The tokens of an answer as a list in which the arrow keys move. */
function token_list(name, label, decoding, steps, chosen, select, split = Infinity, dimmed = false) {
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
      "data-mark": step.in_S ? MARKS[who] : null, "data-was": changed ? shown(step.expert_choice) : null,
      onclick: () => select(t),
    }, h("span", { class: "text", "data-sign": sign }, broken ? "" : text));
    return broken ? [option, h("br"), h("span", { class: "indent" }, text.replaceAll("\n", ""))] : [option];
  });
  return h("div", {
    role: "listbox", id: name, class: "tokens", tabindex: "0", "aria-label": label,
    "aria-activedescendant": chosen === null ? null : `${name}-${chosen}`,
    onkeydown: (event) => {
      const to = { ArrowLeft: chosen - 1, ArrowUp: chosen - 1, ArrowRight: chosen + 1,
        ArrowDown: chosen + 1, Home: 0, End: steps.length - 1 }[event.key];
      if (to === undefined || chosen === null || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      select(Math.max(0, Math.min(steps.length - 1, to)));
    },
  }, options);
}

/** Counts of what the answer shows, one sample of each sign beside its meaning. */
function legend(decoding, steps) {
  const count = (test) => steps.filter(test).length;
  const writers = decoding.how.use_expert ? EXPERTS : ["router"];
  const rows = writers.map((who) => [
    h("span", { class: `token in-s ${who}`, "data-mark": MARKS[who] }, h("span", { class: "text" }, "abc")),
    ` in S, written by ${NAMES[who]}: `,
    h("b", {}, String(count((step) => step.in_S && writer(decoding, step) === who)))]);
  rows.push([h("span", { class: "token" }, h("span", { class: "text" }, "abc")),
    " outside S, all experts agree: ", h("b", {}, String(count((step) => !step.in_S)))]);
  rows.push([h("span", { class: "token changed", "data-was": "xyz" }, h("span", { class: "text" }, "abc")),
    " changed by the router (struck out: the chosen expert's token): ",
    h("b", {}, String(count((step) => step.token !== step.expert_choice)))]);
  return h("ul", { class: "legend" }, rows.map((row) => h("li", {}, row)));
}

function show_answers(answers, writing) {
  const main = visible(answers.main), beside = answers.beside && visible(answers.beside);
  const before = answers.before && visible(answers.before);
  const in_beside = state.lane === 1 && beside;
  const at = writing ? null : selected(in_beside ? beside : main);
  const select = (lane) => (t) => update({ at: t, lane });
  const other = beside ?? before;
  const split = other ? first_difference(main, other) : Infinity;
  const end = (decoding) => visible(decoding).length === engine.MAX_NEW
    ? h("p", { class: "small" }, `Stopped after ${engine.MAX_NEW} tokens.`) : null;

  rebuild($("answers"), [
    h("div", { class: beside ? "lanes two" : "lanes" },
      h("div", { class: "lane" },
        h("h3", {}, METHOD_NAMES[state.method], state.edits.length ? ", with your changes" : ""),
        token_list("tokens", "Answer", answers.main, main, in_beside ? null : at, select(0), split),
        end(answers.main), writing ? null : legend(answers.main, main)),
      beside && h("div", { class: "lane" },
        h("h3", {}, METHOD_NAMES[state.beside]),
        token_list("tokens-beside", "Answer beside it", answers.beside, beside, in_beside ? at : null,
          select(1), split),
        end(answers.beside), writing ? null : legend(answers.beside, beside)),
      before && h("div", { class: "lane before" },
        h("h3", {}, "Without your changes"),
        token_list("tokens-before", "Answer without your changes", answers.before, before, null, () => {},
          first_difference(main, before), true))),
    writing ? null : h("p", { class: "small", id: "verdict" }, verdict(main, beside, answers)),
  ]);
  $("back").disabled = !main.length;
  $("step").disabled = answers.main.done && main.length === answers.main.steps.length;
  $("status").textContent = writing ? "" :
    `${plural(main.length, "token")} shown. ${speed}`;
  if (!writing) show_token(in_beside ? answers.beside : answers.main, in_beside ? beside : main, at);
}

/** One line below the answers: where they differ, and an example's right answer. */
function verdict(main, beside, answers) {
  const parts = [];
  if (beside) {
    const t = first_difference(main, beside);
    parts.push(t < Math.min(main.length, beside.length)
      ? `The two answers differ from token ${t + 1} on (marked by a bar). `
      : main.length === beside.length ? "The two answers are the same. " : "");
  }
  const example = data.examples.find((e) => e.prompt === state.prompt);
  if (example && answers.main.done && state.written >= answers.main.steps.length) {
    const text = toy.encoding.pieces(main.map((step) => step.token)).join("");
    parts.push(text === example.answer ? "This is the right answer. "
      : h("span", {}, "A right answer would be: ", h("code", {}, example.answer)));
  }
  return parts;
}

// --- the chosen token ----------------------------------------------------------------------------

/** What happened at a token, in words. */
function story(decoding, step) {
  const { use_expert, only } = decoding.how, who = EXPERTS[step.pick], say = [];
  const b = (text) => h("b", {}, text);
  if (!use_expert) {
    say.push("The router writes alone here: it takes its own likeliest token, ", b(quoted(step.token)), ". ");
  } else if (only !== null) {
    say.push(`The ${NAMES[who]} expert writes alone. Its likeliest token is `, b(quoted(step.expert_choice)), ". ");
  } else {
    const asked = step.pick !== step.routed;
    say.push(asked ? `You chose the ${NAMES[who]} expert (the router's choice is ${NAMES[EXPERTS[step.routed]]}). `
      : `The router chooses the ${NAMES[who]} expert (routing weight ${percent(step.weights[step.pick])}). `,
    "This expert's own likeliest token is ", b(quoted(step.expert_choice)), ". ");
    if (step.scale === 0) say.push("The router adds nothing, so the expert's token is written. ");
    else if (step.token === step.expert_choice) say.push("With the router's log-probabilities added, it stays the best. ");
    else if (step.token === engine.argmax(step.logp)) {
      say.push("With the router's log-probabilities added, ", b(quoted(step.token)), " has the largest sum: ",
        "the router changed the token. ");
    }
  }
  if (step.token !== engine.argmax(step.logp)) {
    say.push(`You wrote ${quoted(step.token)} here; the largest sum is that of ${quoted(engine.argmax(step.logp))}. `);
  }
  say.push(step.in_S
    ? "The experts' own likeliest tokens are not all the same: this token is in the set S, so the choice of an expert matters here."
    : "All three experts have the same likeliest token: this token is outside the set S, and the choice of an expert hardly matters here.");
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

const DEPTH = 12;                                                  // the deepest log-probability that is drawn

/** Three rows of bars for the same ten tokens: expert, router, sum. A bar hangs from 0. */
function bars(decoding, step) {
  const { use_expert } = decoding.how, who = use_expert ? EXPERTS[step.pick] : "router";
  const ten = candidates(step), best = engine.argmax(step.logp);
  const expert = (id) => use_expert ? step.expert_logp[step.pick][id] : 0;
  const router = (id) => use_expert ? step.scale * step.router_logp[id] : step.router_logp[id];
  const piece = (value, classes) => h("span", {
    class: `piece ${classes}${-value > DEPTH ? " cut" : ""}`,
    style: `height: calc(var(--nat) * ${Math.min(-value, DEPTH).toFixed(3)})`,
  });
  const row = (title, deep, cell) => h("tbody", {},
    h("tr", { class: "title" }, h("th", { scope: "rowgroup", colspan: "10" }, title)),
    h("tr", { class: `bars ${deep}` }, ten.map((id) => h("td", { class: id === best ? "best" : null }, cell(id)))));
  const value = (x) => h("span", { class: "value" }, number(x, 1));
  const scale = !use_expert || step.scale === 1 ? "" : `${number(step.scale)} × `;
  return h("table", { class: "candidates" },
    h("caption", {}, "Ten candidates for this token. Each bar hangs down from 0, so ",
      h("b", {}, "a short bar is a likely token"), ". The third row is the first two, one below the other; ",
      "the shortest sum is written. Press a candidate to write it here instead."),
    h("thead", {}, h("tr", {}, ten.map((id) => h("th", { scope: "col", class: id === step.token ? "written" : null },
      h("button", { type: "button", id: `candidate-${id}`, class: "candidate", disabled: state.lane === 1,
        "aria-label": `Write ${shown(id)} here${id === step.token ? " (it is written now)" : ""}`,
        onclick: () => edit({ token: id }) }, h("span", {}, shown(id))))))),
    use_expert ? row([`log π`, h("sub", {}, "expert"), ` (${NAMES[who]})`], "", (id) =>
      [piece(expert(id), who), value(expert(id))]) : null,
    row([use_expert ? "+ " : "", scale, "log π", h("sub", {}, "θ"), " (router)"], "", (id) =>
      [piece(router(id), "router"), value(router(id))]),
    use_expert ? row("= sum, up to a constant", "deep", (id) =>
      [piece(expert(id), who), piece(router(id), "router"), value(step.logp[id]),
        id === best ? h("span", { class: "winner" }, "▲ largest") : null]) : null);
}

/** Who would say what: each expert with its routing weight and its own likeliest token. */
function opinions(decoding, step) {
  const { use_expert, only } = decoding.how, p = (logp, id) => Math.exp(logp[id]);
  const rows = EXPERTS.map((name, i) => {
    const picked = use_expert && i === step.pick, weight = engine.softmax(step.w)[i];
    return h("tr", { class: picked ? "picked" : null },
      h("th", { scope: "row" }, h("span", { class: `chip ${name}` }, MARKS[name]), ` ${NAMES[name]}`),
      h("td", {}, h("span", { class: "weight" }, h("span", { class: name, style: `width: ${100 * weight}%` })),
        ` ${percent(weight)}`),
      h("td", {}, h("code", {}, shown(step.choice[i])), ` (${percent(p(step.expert_logp[i], step.choice[i]))})`),
      h("td", {}, picked ? (only === null ? "chosen" : "writes") : use_expert ? h("button", {
        type: "button", id: `use-${name}`, disabled: state.lane === 1,
        "aria-label": `Use the ${NAMES[name]} expert at this token`,
        onclick: () => edit({ expert: i }) }, "use it") : ""));
  });
  const top = engine.argmax(step.router_logp);
  return h("table", { class: "opinions" },
    h("caption", {}, "What each model would write here by itself"),
    h("thead", {}, h("tr", {}, ["model", "routing weight", "its own token", "here"].map((text) =>
      h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows, h("tr", {},
      h("th", { scope: "row" }, h("span", { class: "chip router" }, MARKS.router), " router"),
      h("td", {}, "routes"),
      h("td", {}, h("code", {}, shown(top)), ` (${percent(p(step.router_logp, top))})`),
      h("td", {}, use_expert ? step.scale ? "adds" : "adds nothing" : "writes"))));
}

function show_token(decoding, steps, at) {
  const step = steps[at];
  $("token-panel").hidden = !step;
  if (!step) return;
  rebuild($("token-head"),
    h("h2", {}, `Token ${at + 1} of ${steps.length}: `, h("code", {}, shown(step.token))),
    story(decoding, step));
  rebuild($("token-bars"), bars(decoding, step));
  rebuild($("token-opinions"), opinions(decoding, step));
  const main = state.lane === 0, adds = decoding.how.use_expert;
  $("scale").disabled = !main || !adds;
  for (const value of ["0", "1", "2"]) $(`scale-${value}`).disabled = !main || !adds;
  $("rest").disabled = !main || !adds;
  if (document.activeElement !== $("scale")) $("scale").value = step.scale;
  $("scale-value").textContent = number(step.scale);
  rebuild($("edits"), state.edits.length ? [
    h("p", { class: "small" }, "Your changes (press one to take it back):"),
    h("ul", { class: "edits" }, state.edits.map((one, i) => h("li", {}, h("button", {
      type: "button", id: `undo-${i}`, onclick: () => {
        update({ edits: state.edits.filter((_, j) => j !== i) });
        if (!$(`undo-${i}`)) $("tokens").focus();
      } }, `token ${one.at + 1}${one.rest ? " and after" : ""}: `,
      one.expert !== undefined ? `${NAMES[EXPERTS[one.expert]]} expert`
        : one.scale !== undefined ? `scale ${number(one.scale)}` : quoted(one.token), " ✕")))),
  ] : []);
}

/** Change something at the chosen token: {expert}, {scale} or {token}. */
function edit(change) {
  const steps = visible(lanes.main.decoding), at = selected(steps), [kind] = Object.keys(change);
  const rest = kind !== "token" && $("rest").checked, step = steps[at];
  const others = state.edits.filter((one) => one[kind] === undefined || (rest ? one.at < at : one.at !== at));
  const unchanged = kind === "token" && others.every((one) => one.at !== at)
    && change.token === engine.argmax(step.logp);
  update({ at, edits: unchanged ? others : [...others, { at, rest, ...change }] });
}

// --- the tab -------------------------------------------------------------------------------------

/** Start over with other settings; the reader's changes belong to the old answer. */
function ask(changes) {
  update({ edits: [], at: null, lane: 0, written: Infinity, ...changes });
}

function build_answer() {
  const groups = Object.entries(BENCHES).map(([bench, label]) => h("optgroup", { label },
    data.examples.filter((e) => e.bench === bench).map((e) => h("option", {
      value: e.prompt }, e.skill + (e.covered === false ? " (uncovered: no expert has learned it)" : "")))));
  const methods = () => METHODS.map((name) => h("option", { value: name }, METHOD_NAMES[name]));
  const run = () => ask({ prompt: $("prompt").value });
  const step = (change) => {
    const now = lanes.main && $("prompt").value === state.prompt ? visible(lanes.main.decoding).length : 0;
    update({ prompt: $("prompt").value, at: null, lane: 0, written: Math.max(0, now + change),
      edits: $("prompt").value === state.prompt ? state.edits : [] });
  };
  $("panel-answer").append(
    h("form", { class: "ask", onsubmit: (event) => { event.preventDefault(); run(); } },
      h("div", { class: "field wide" },
        h("label", { for: "prompt" }, "Prompt ", h("span", { class: "small" }, "(Enter runs, Shift+Enter is a new line)")),
        h("textarea", { id: "prompt", rows: "3", spellcheck: "false", "aria-describedby": "error",
          onkeydown: (event) => {
            if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
            event.preventDefault();
            run();
          } }),
        h("p", { id: "error", class: "error", role: "alert" })),
      h("div", { class: "field" },
        h("label", { for: "example" }, "Examples"),
        h("select", { id: "example", onchange: (event) => {
          if (event.target.value) ask({ prompt: event.target.value });
        } }, h("option", { value: "" }, "(your own prompt)"), groups)),
      h("div", { class: "field" },
        h("label", { for: "method" }, "Who writes"),
        h("select", { id: "method", onchange: (event) => ask({ method: event.target.value }) }, methods())),
      h("div", { class: "field" },
        h("label", { for: "beside" }, "Beside it"),
        h("select", { id: "beside", onchange: (event) => update({ beside: event.target.value, lane: 0 }) },
          h("option", { value: "" }, "nothing"), methods())),
      h("div", { class: "buttons" },
        h("button", { type: "submit", id: "run", class: "primary" }, "Run"),
        h("button", { type: "button", id: "step", onclick: () => step(1) }, "Step"),
        h("button", { type: "button", id: "back", onclick: () => step(-1) }, "Step back"),
        h("button", { type: "button", id: "restart", onclick: () => step(-1e9) }, "From the start"))),
    h("h2", {}, "The answer"),
    h("div", { id: "answers" }),
    h("p", { class: "small", id: "status", role: "status" }),
    h("section", { id: "token-panel", "aria-label": "The chosen token", hidden: true },
      h("div", { id: "token-head" }),
      h("div", { id: "token-bars" }),
      h("div", { class: "columns" },
        h("div", { id: "token-opinions" }),
        h("fieldset", {},
          h("legend", {}, "Try it at this token"),
          h("label", { for: "scale" }, "Scale of the router's log-probabilities: ",
            h("output", { id: "scale-value", for: "scale" })),
          h("input", { type: "range", id: "scale", min: "0", max: "2", step: "0.05",
            oninput: (event) => edit({ scale: Number(event.target.value) }) }),
          h("div", { class: "buttons" }, ["off", "on", "double"].map((label, value) => h("button", {
            type: "button", id: `scale-${value}`, "aria-label": `Scale ${value}: ${label}`,
            onclick: () => { $("scale").value = value; edit({ scale: value }); } }, `${value}: ${label}`))),
          h("label", { class: "check" }, h("input", { type: "checkbox", id: "rest" }),
            " scale or expert: also for all tokens after it"),
          h("p", { class: "small" }, "The answer goes on from your change; the answer without it stays in view."),
          h("div", { id: "edits" })))));
}

let last_prompt = null;
function render_answer() {
  if (state.tab !== "answer") return;
  if (last_prompt !== state.prompt) $("prompt").value = last_prompt = state.prompt;
  $("example").value = data.examples.some((e) => e.prompt === state.prompt) ? state.prompt : "";
  $("method").value = state.method;
  $("beside").value = state.beside;
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
  Object.assign(state, read_address(location.hash));
  window.addEventListener("hashchange", () => {
    Object.assign(state, read_address(location.hash));
    render();
  });
}

return { h, $, SVG, rebuild, shown, quoted, number, percent, plural, state, START, TABS, NAMES, MARKS, renderers,
  update, ask, render, begin, selected, visible, lanes, address, read_address,
  get toy() { return toy; }, get data() { return data; }, get finished() { return finished; } };
})();
