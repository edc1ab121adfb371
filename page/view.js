// What all tabs share: elements, words that explain themselves, the state and its address.
//
// The state is one object. Every control changes it through `update`, which writes it into the
// address and shows it again; so an address and a click lead to the same view.

"use strict";

const view = (() => {

const { EXPERTS, METHODS } = engine;
const NAMES = { math: "math", code: "code", instruct: "instruction", router: "router" };
const MARKS = { math: "m", code: "c", instruct: "i", router: "r" };  // besides the colours
const METHOD_NAMES = {
  fusionroute: "FusionRoute",
  sft_only: "FusionRoute after phase 1",
  routing_only: "routing only",
  router: "router alone",
  math: "math alone",
  code: "code alone",
  instruct: "instruction alone",
};

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

/** The same as elements, the sign for a space paler than the text. */
const pretty = (id) => shown(id).split(/(␣+)/).map((part) =>
  part.startsWith("␣") ? h("span", { class: "space" }, part) : part);

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

/** The head of a table. */
const head = (...names) => h("thead", {}, h("tr", {}, names.map((name) =>
  h("th", { scope: "col" }, name))));

// --- words when asked ----------------------------------------------------------------------------

/** One sentence a term. A term is a button; it opens its sentence beside itself. */
const TERMS = {
  S: `S is the set of tokens at which the experts disagree: by themselves they would not all write
    the same one.`,
  changed: `The picked expert alone would have written another token (struck out above): the
    router's logits turned the sum.`,
  weight: `The router picks the expert with the largest weight (the width of its line); each expert
    was trained mainly on the tasks of its name, but any of them may be picked at any token.`,
  expert: `log π(token) is the logarithm of the probability that a model gives to a token, up to a
    constant its logit; bars begin at the least likely token shown, which has none.`,
  router: `The router is a language model too: it adds its own log-probabilities, and you can drag
    their weight from 0 to 2.`,
  sum: `The expert's and the router's bar, end to end: the longest is written; the sum is not
    normalised, but the constant c is the same for all tokens, so it changes no choice.`,
  phase: `In phase 1 the router learns to write and to pick; in phase 2 it learns, from pairs of
    answers, to correct what the experts get wrong.`,
  toy: `The toy knows sums, short Python functions and lists of words in a few wordings (*: no
    expert has learned this kind); to anything else it answers nonsense.`,
  speed: `The models are tiny and run here, in plain JavaScript; FusionRoute itself needs only the
    router and the picked expert, the other two experts run for this picture.`,
  choosing: `Choosing gives one of the experts' points, and nothing else.`,
  mixing: `A mixture of the experts lies in the triangle between them, never outside.`,
  adding: `Added logits multiply each token's probability by a factor of its own, and so leave that
    triangle: the larger they may be, the farther.`,
  distance: `Total variation: half the sum of the differences of the probabilities.`,
  coverage: `The share of the prefixes (beginnings of an answer) at which some expert favours the
    right token; at the others both favour the same wrong one.`,
  nobody: `The logits here are the best possible ones; at an uncovered prefix both experts are sure
    of the same wrong token, and limited logits must first undo that.`,
  bias: `The bias is how much the picked experts prefer the chosen answer; no gradient flows through
    it, it only decides how hard the pair pulls at the router.`,
};

/** A button that shows what TERMS says of a word. */
function term(name, ...children) {
  return h("button", { type: "button", class: "term", id: `term-${name}`,
    popovertarget: `about-${name}`,
    onclick: (event) => {
      const box = event.currentTarget.getBoundingClientRect(), about = $(`about-${name}`);
      const width = Math.min(320, innerWidth - 16), low = box.top < 150;  // else above the bars
      about.style.width = `${width}px`;
      about.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
      about.style.top = low ? `${box.bottom + 6}px` : "auto";
      about.style.bottom = low ? "auto" : `${innerHeight - box.top + 6}px`;
    } }, children);
}

// --- the state and the address -------------------------------------------------------------------

const START = {
  tab: "answer", tour: 0,
  prompt: "", method: "fusionroute", beside: "", written: Infinity, lane: 0, at: null, edits: [],
  experts: [[0.7, 0.2, 0.1], [0.1, 0.5, 0.4], [0.5, 0.1, 0.4]], target: [0.2, 0.2, 0.6], B: 0.5,
  coverage: 0.5, bound: 2, world: 1,
  pair: 0, bias: null,
};
const TABS = { answer: "Token by token", choosing: "Why add logits?", training: "Training" };
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
    pair: of.pair, bias: of.bias ?? "",
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
  within("bias", -8, 8);
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

/** Tabs and terms. What comes from the data is shown when there is data. */
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
  document.body.append(...Object.entries(TERMS).map(([name, text]) =>
    h("div", { id: `about-${name}`, class: "about", popover: true }, text)));
}

/** Scroll, at once, so that an element begins below the card of the tour. */
function scroll_to(element) {
  const height = `${$("tour").offsetHeight + 12}px`;
  document.documentElement.style.setProperty("--tour", height);
  element?.scrollIntoView({ block: "start" });
}

return {
  h, $, rebuild, head, shown, pretty, quoted, number, percent, term, NAMES, MARKS,
  METHOD_NAMES, START, TABS, edit_text, scroll_to, state, renderers, update, begin, render,
  address, read_address,
  get toy() { return toy; }, get data() { return data; },
};
})();
