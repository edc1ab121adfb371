// node engine_check.js DATA.json NAME ARGUMENT.json: calls one of these functions, prints JSON.

"use strict";

const fs = require("fs");
const path = require("path");
const engine = require(path.join(__dirname, "../../page/engine.js"));
const theory = require(path.join(__dirname, "../../page/theory.js"));

const read = (file) => JSON.parse(fs.readFileSync(file, "utf8"));
const data = read(process.argv[2]);
const encoding = new engine.Encoding(data.words);
let loaded = null;
const toy = () => loaded ??= engine.load(data);
const finish = (decoding) => {
  while (!decoding.done) decoding.step();
  return decoding;
};
const message = (job) => {
  try {
    job();
    return null;
  } catch (error) {
    return error.message;
  }
};

const calls = {
  /** texts -> the token ids of each. */
  encode: (texts) => texts.map((text) => encoding.encode_ordinary(text)),

  /** prompts -> what the toy has never seen in each. */
  unseen: (prompts) => prompts.map((prompt) => encoding.unseen(prompt)),

  /** lists of token ids -> the texts of their tokens. */
  pieces: (lists) => lists.map((ids) => encoding.pieces(ids)),

  /** {model, ids}: logits of all positions, read in pieces of 1, 2, 3, ... tokens; and w of a router. */
  logits: (jobs) => jobs.map(({ model: name, ids }) => {
    const model = toy().models[name], cache = (model.lm ?? model).new_cache(), logits = [], w = [];
    for (let start = 0, size = 1; start < ids.length; start += size, size += 1) {
      const some = ids.slice(start, start + size);
      const found = model.forward(some, cache, some.length);
      logits.push(...found.logits);
      if (found.w) w.push(...found.w);
    }
    return { logits, w };
  }),

  /** [prompt, method] -> tokens, picks, S; only the router and the picked expert run, as in decode.py. */
  two_models: (jobs) => jobs.map(([prompt, method]) => {
    const decoding = engine.start(toy(), prompt, method);
    decoding.how.everyone = false;
    finish(decoding);
    return { tokens: decoding.tokens, picks: decoding.steps.map((step) => step.pick) };
  }),

  /** [prompt, method] -> what window.fusionroute.answer gives. */
  answer: (jobs) => jobs.map(([prompt, method]) =>
    engine.records(toy().encoding, finish(engine.start(toy(), prompt, method)), prompt, method)),

  /** {prompt, method, edits}: the tokens of an answer with the edits from the start, and of one that
   *  is written without them first. */
  edits: (jobs) => jobs.map(({ prompt, method = "fusionroute", edits }) => {
    const fresh = finish(engine.start(toy(), prompt, method, edits));
    const changed = finish(engine.start(toy(), prompt, method));
    changed.edit(edits);
    finish(changed);
    const back = finish(engine.start(toy(), prompt, method, edits));
    back.edit([]);
    finish(back);
    return { fresh: fresh.tokens, changed: changed.tokens, back: back.tokens,
      plain: finish(engine.start(toy(), prompt, method)).tokens };
  }),

  /** prompts -> the message with which each is refused. */
  refusals: (prompts) => prompts.map((prompt) => message(() => engine.start(toy(), prompt))),

  /** The messages that damaged data gives. */
  damaged: () => {
    const broken = (change) => {
      const copy = JSON.parse(JSON.stringify(data));
      change(copy);
      return message(() => engine.load(copy));
    };
    const { base64 } = data.models.code;
    const other = base64[1000] === "A" ? "B" : "A";
    return {
      bit: broken((d) => { d.models.code.base64 = base64.slice(0, 1000) + other + base64.slice(1001); }),
      short: broken((d) => { d.models.code.base64 = base64.slice(0, -400); }),
      foreign: broken((d) => { d.models.code.base64 = "?" + base64.slice(1); }),
      missing: broken((d) => { delete d.models.router; }),
      words: broken((d) => { d.words.pop(); }),
    };
  },

  /** {prompt, chosen, rejected} -> the six log-probabilities and Eq. (3), as the page computes them. */
  pairs: (pairs) => pairs.map(({ prompt, chosen, rejected }) => {
    const { encoding, models } = toy(), ids = encoding.encode_prompt(prompt);
    const experts = engine.EXPERTS.map((name) => models[name]);
    const answers = [chosen, rejected].map((text) => encoding.encode_answer(text));
    const of = (model) => answers.map((answer) => engine.sequence_logp(model, ids, answer));
    const theta = of(models.router.lm), ref = of(models.router_sft.lm);
    const expert = answers.map((answer) => engine.routed_logp(models.router, experts, ids, answer));
    return { theta, ref, expert, ...engine.cdpo_loss(...theta, ...ref, ...expert, 0.1) };
  }),

  /** [coverage, B, nobody] -> theory.mean_loss; B null: of any size. */
  mean_loss: (jobs) => jobs.map(([coverage, B, nobody]) =>
    theory.mean_loss(coverage, B ?? Infinity, nobody)),

  /** [seed, coverage] -> the right tokens and the experts of each level, as theory/toy_mdp.py has them. */
  tree: (jobs) => jobs.map(([seed, coverage]) => theory.tree(seed, coverage).map((level) => ({
    right: level.map((node) => node.right),
    experts: [0, 1].map((i) => level.map((node) => node.experts[i])),
  }))),

  reach: (jobs) => jobs.map(({ experts, target, B }) => ({
    ...theory.reach(experts, target, B),
    needed: experts.map((p) => theory.needed_bound(p, target)),
    corners: experts.map((p) => theory.reach_of_logits(p, B)),
  })),
};

process.stdout.write(JSON.stringify(calls[process.argv[3]](read(process.argv[4]))));
