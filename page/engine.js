// The trained toy in plain JavaScript: tokenizer, GPT with a cache, router, decoding, losses.
//
// It reads like toy_experts/tokenizer.py, model.py, fusionroute.py and decode.py, and has their
// names. It never touches the page, so that it also runs in node (tests/page/ compares it with
// PyTorch). A matrix is a Float32Array, row after row. Sums are kept in double precision.
//
// Shapes: T tokens read now, S tokens that a token can see, V vocabulary, d width, H query heads,
// K key/value heads, hd head size, n experts.

"use strict";

const engine = (() => {

// --- weights -------------------------------------------------------------------------------------

/** A half-precision number, given by its 16 bits. */
function half(bits) {
  const exponent = (bits >> 10) & 31, fraction = bits & 1023, sign = bits >> 15 ? -1 : 1;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** A GPT's tensors in the order in which page/__main__.py writes them: [name, rows, columns]. */
function tensors(c, n_experts = 0) {
  const list = [["embed.weight", c.vocab_size, c.d_model]];
  for (let layer = 0; layer < c.n_layer; layer++) {
    list.push(...[
      ["attn_norm", 1, c.d_model],
      ["wq", c.n_head * c.head_dim, c.d_model],
      ["wk", c.n_kv_head * c.head_dim, c.d_model],
      ["wv", c.n_kv_head * c.head_dim, c.d_model],
      ["wo", c.d_model, c.n_head * c.head_dim],
      ["ff_norm", 1, c.d_model],
      ["w_gate", c.d_ff, c.d_model],
      ["w_up", c.d_ff, c.d_model],
      ["w_down", c.d_model, c.d_ff],
    ].map(([name, rows, columns]) => [`blocks.${layer}.${name}.weight`, rows, columns]));
  }
  list.push(["norm.weight", 1, c.d_model]);
  if (n_experts) list.push(["W.weight", n_experts, c.d_model]);
  return list;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, i) => {
  for (let k = 0; k < 8; k++) i = i & 1 ? 0xedb88320 ^ (i >>> 1) : i >>> 1;
  return i >>> 0;
});

/** The checksum that zlib.crc32 gives in Python. */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

/** {name: Float32Array} from {base64, crc}: half-precision numbers, low byte first. Throws. */
function read_tensors(name, stored, list) {
  const damaged = (why) => new Error(`the weights of ${name} are damaged (${why}): ` +
    "build the page anew with: python -m page");
  let text;
  try {
    text = atob(stored.base64);
  } catch {
    throw damaged("they are not base64");
  }
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const size = list.reduce((sum, [, rows, columns]) => sum + rows * columns, 0);
  if (bytes.length !== 2 * size) throw damaged(`${bytes.length} bytes, not ${2 * size}`);
  if (crc32(bytes) !== stored.crc) throw damaged("their checksum is wrong");
  const values = new Float32Array(size);
  for (let i = 0; i < size; i++) values[i] = HALF[bytes[2 * i] | (bytes[2 * i + 1] << 8)];
  const weights = {};
  let start = 0;
  for (const [tensor, rows, columns] of list) {
    weights[tensor] = values.subarray(start, start + rows * columns);
    start += rows * columns;
  }
  return weights;
}

const HALF = Float32Array.from({ length: 65536 }, (_, bits) => half(bits));

// --- toy_experts/tokenizer.py --------------------------------------------------------------------

// The pattern of tokenizer.py. Rust's \s is Unicode's White_Space and its \d any decimal digit;
// JavaScript's \s also has U+FEFF and lacks U+0085, and its \d is 0 to 9 only.
const SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const PATTERN = new RegExp(
  String.raw`\n *| (?:\*\*|\/\/|[<>=!]=|[\-+*\/%=<>]) (?=\p{Nd})| ?\p{L}+|\p{Nd}|` +
  ` ?[^${SPACE}\\p{L}\\p{Nd}]+| +|[${SPACE}]`, "gu");

const utf8 = new TextEncoder();

class Encoding {
  /** words: the lines of vocab.txt. Token ids: the 256 bytes, the words, three marks. */
  constructor(words) {
    this.bytes = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
    this.ranks = new Map(this.bytes.map((piece, rank) => [this.key(piece), rank]));
    for (const word of words) {
      const piece = utf8.encode(word);
      if (this.ranks.has(this.key(piece))) continue;
      this.ranks.set(this.key(piece), this.bytes.length);
      this.bytes.push(piece);
    }
    this.longest = Math.max(...this.bytes.map((piece) => piece.length));
    this.USER = this.bytes.length;
    this.ASSISTANT = this.USER + 1;
    this.END = this.USER + 2;
    for (const mark of ["<|user|>", "<|assistant|>", "<|end|>"]) this.bytes.push(utf8.encode(mark));
    this.n_vocab = this.bytes.length;
  }

  /** Bytes as a string that a Map can look up. */
  key(bytes) {
    return String.fromCharCode(...bytes);
  }

  /** Token ids of a text; <|user|> and the like are plain text here. */
  encode_ordinary(text) {
    const ids = [];
    // A lone half of a surrogate pair is no character: decode.py reads it as "?".
    for (const [piece] of text.replace(/\p{Cs}/gu, "?").matchAll(PATTERN)) {
      ids.push(...this.encode_piece(utf8.encode(piece)));
    }
    return ids;
  }

  /** Byte-pair encoding: join the neighbours that are the earliest token, until none are one. */
  encode_piece(bytes) {
    if (bytes.length <= this.longest && this.ranks.has(this.key(bytes))) {
      return [this.ranks.get(this.key(bytes))];
    }
    const parts = Array.from(bytes, (byte) => String.fromCharCode(byte));
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + parts[i + 1]);
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.map((part) => this.ranks.get(part));
  }

  encode_prompt(prompt) {
    return [this.USER, ...this.encode_ordinary(prompt), this.ASSISTANT];
  }

  encode_answer(answer) {
    return [...this.encode_ordinary(answer), this.END];
  }

  /** What no training text has, as a user may type it: numbers of three digits, foreign words. */
  unseen(prompt) {
    const known = (text) => this.encode_ordinary(text).length === 1;
    const words = (prompt.match(/\p{L}+/gu) ?? []).filter((w) => !known(w) && !known(" " + w));
    return [...new Set([...prompt.match(/\p{Nd}{3,}/gu) ?? [], ...words])];
  }

  /** The text of token ids that stand by themselves. */
  decode(ids) {
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(
      Uint8Array.from(ids.flatMap((id) => [...this.bytes[id]])));
  }

  /** The text of each token of an answer: "" for the first part of a character, whose last part
   *  brings all of it, and for the end token. */
  pieces(ids) {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return ids.map((id, i) => {
      const last = id === this.END || i + 1 === ids.length || ids[i + 1] === this.END;
      return decoder.decode(id === this.END ? new Uint8Array() : this.bytes[id], { stream: !last });
    });
  }
}

// --- model.py ------------------------------------------------------------------------------------

/** Keys and values of the tokens that a model has read. Lower `length` to take tokens back. */
class Cache {
  constructor(config) {
    const size = config.n_kv_head * config.max_len * config.head_dim;
    const buffers = () => Array.from({ length: config.n_layer }, () => new Float32Array(size));
    this.k = buffers();                                            // per layer (K, max_len, hd)
    this.v = buffers();                                            // per layer (K, max_len, hd)
    this.length = 0;
  }
}

/** cos and sin of the rotations, (max_len, hd / 2): position p turns pair i by p theta^(-2i/hd). */
function rope_table(config) {
  const half_dim = config.head_dim / 2;
  const cos = new Float32Array(config.max_len * half_dim), sin = new Float32Array(cos.length);
  for (let p = 0; p < config.max_len; p++) {
    for (let i = 0; i < half_dim; i++) {
      const angle = p / config.rope_theta ** (2 * i / config.head_dim);
      cos[p * half_dim + i] = Math.cos(angle);
      sin[p * half_dim + i] = Math.sin(angle);
    }
  }
  return { cos, sin };
}

/** x W' for x (T, d) and W (N, d), N at least 4 -> (T, N). Four rows of W and two tokens at a time:
 *  each number that is loaded is used more than once, which is twice as fast. */
function linear(x, W, T, d) {
  const N = W.length / d, out = new Float32Array(T * N);
  for (let r = 0; r < N; r += 4) {
    const row = Math.min(r, N - 4);                                // at the end, some rows twice
    const i = row * d, j = i + d, k = j + d, l = k + d;
    let t = 0;
    for (; t + 1 < T; t += 2) {
      const p = t * d, q = p + d, at = t * N + row, at2 = at + N;
      let a = 0, b = 0, c = 0, e = 0, a2 = 0, b2 = 0, c2 = 0, e2 = 0;
      for (let m = 0; m < d; m++) {
        const u = x[p + m], v = x[q + m];
        let w = W[i + m];
        a += w * u;
        a2 += w * v;
        w = W[j + m];
        b += w * u;
        b2 += w * v;
        w = W[k + m];
        c += w * u;
        c2 += w * v;
        w = W[l + m];
        e += w * u;
        e2 += w * v;
      }
      out[at] = a;
      out[at + 1] = b;
      out[at + 2] = c;
      out[at + 3] = e;
      out[at2] = a2;
      out[at2 + 1] = b2;
      out[at2 + 2] = c2;
      out[at2 + 3] = e2;
    }
    for (; t < T; t++) {                                           // a single token
      const p = t * d, at = t * N + row;
      let a = 0, b = 0, c = 0, e = 0;
      for (let m = 0; m < d; m++) {
        const u = x[p + m];
        a += W[i + m] * u;
        b += W[j + m] * u;
        c += W[k + m] * u;
        e += W[l + m] * u;
      }
      out[at] = a;
      out[at + 1] = b;
      out[at + 2] = c;
      out[at + 3] = e;
    }
  }
  return out;
}

/** Each row of x (T, d) divided by its root mean square, times the weights (d). */
function rms_norm(x, weight, T, eps) {
  const d = weight.length, out = new Float32Array(T * d);
  for (let t = 0; t < T; t++) {
    let sum = 0;
    for (let i = t * d; i < (t + 1) * d; i++) sum += x[i] * x[i];
    const scale = 1 / Math.sqrt(sum / d + eps);
    for (let i = 0; i < d; i++) out[t * d + i] = x[t * d + i] * scale * weight[i];
  }
  return out;
}

/** Turn x (T, heads, hd) in place by the angles of the positions start, start + 1, ... */
function rotate(x, { cos, sin }, start, T, heads, hd) {
  const pairs = hd / 2;
  for (let t = 0; t < T; t++) {
    for (let h = 0; h < heads; h++) {
      const at = (t * heads + h) * hd, angle = (start + t) * pairs;
      for (let i = 0; i < pairs; i++) {
        const a = x[at + i], b = x[at + pairs + i], c = cos[angle + i], s = sin[angle + i];
        x[at + i] = a * c - b * s;
        x[at + pairs + i] = b * c + a * s;
      }
    }
  }
}

/** softmax(q k' / sqrt(hd)) v with grouped queries; token t sees all that was read up to itself.
 *  q (T, H, hd); k, v: one layer of the cache, (K, max_len, hd) -> (T, H, hd). */
function attention(q, k, v, start, T, config) {
  const { n_head: H, n_kv_head: K, head_dim: hd, max_len } = config;
  const out = new Float32Array(T * H * hd), scores = new Float64Array(start + T);
  for (let t = 0; t < T; t++) {
    const S = start + t + 1;
    for (let h = 0; h < H; h++) {
      const query = (t * H + h) * hd, group = Math.floor(h * K / H) * max_len * hd;
      let max = -Infinity, sum = 0;
      for (let s = 0; s < S; s++) {
        let score = 0;
        for (let i = 0; i < hd; i++) score += q[query + i] * k[group + s * hd + i];
        scores[s] = score / Math.sqrt(hd);
        if (scores[s] > max) max = scores[s];
      }
      for (let s = 0; s < S; s++) sum += scores[s] = Math.exp(scores[s] - max);
      for (let s = 0; s < S; s++) {
        const share = scores[s] / sum;
        for (let i = 0; i < hd; i++) out[query + i] += share * v[group + s * hd + i];
      }
    }
  }
  return out;
}

/** x += y. */
function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
}

/** silu(gate) * up, where silu(z) = z / (1 + e^-z). */
function swiglu(gate, up) {
  const out = new Float32Array(gate.length);
  for (let i = 0; i < gate.length; i++) out[i] = gate[i] / (1 + Math.exp(-gate[i])) * up[i];
  return out;
}

class GPT {
  constructor(config, weights) {
    this.config = config;
    this.embed = weights["embed.weight"];                          // (V, d), also the output layer
    this.norm = weights["norm.weight"];                            // (d)
    this.blocks = Array.from({ length: config.n_layer }, (_, layer) => {
      const of = (name) => weights[`blocks.${layer}.${name}.weight`];
      return {
        attn_norm: of("attn_norm"), wq: of("wq"), wk: of("wk"), wv: of("wv"), wo: of("wo"),
        ff_norm: of("ff_norm"), w_gate: of("w_gate"), w_up: of("w_up"), w_down: of("w_down"),
      };
    });
    this.rope = rope_table(config);
  }

  new_cache() {
    return new Cache(this.config);
  }

  attend(block, x, cache, layer, T) {
    const { d_model: d, n_head: H, n_kv_head: K, head_dim: hd, max_len } = this.config;
    const start = cache.length;
    const q = linear(x, block.wq, T, d);                           // (T, H, hd)
    const k = linear(x, block.wk, T, d);                           // (T, K, hd)
    const v = linear(x, block.wv, T, d);                           // (T, K, hd)
    rotate(q, this.rope, start, T, H, hd);
    rotate(k, this.rope, start, T, K, hd);
    for (let t = 0; t < T; t++) {                                  // into the cache
      for (let g = 0; g < K; g++) {
        const from = (t * K + g) * hd, to = (g * max_len + start + t) * hd;
        cache.k[layer].set(k.subarray(from, from + hd), to);
        cache.v[layer].set(v.subarray(from, from + hd), to);
      }
    }
    const y = attention(q, cache.k[layer], cache.v[layer], start, T, this.config);  // (T, H, hd)
    return linear(y, block.wo, T, H * hd);                         // (T, d)
  }

  feed_forward(block, x, T) {
    const { d_model: d, d_ff } = this.config;
    const gate = linear(x, block.w_gate, T, d);                    // (T, d_ff)
    const up = linear(x, block.w_up, T, d);                        // (T, d_ff)
    return linear(swiglu(gate, up), block.w_down, T, d_ff);        // (T, d)
  }

  /** Read the token ids after those in the cache. Returns the next-token logits and the final
   *  hidden states of the last `outputs` tokens: {logits (outputs, V), hidden (outputs, d)}. */
  forward(ids, cache, outputs = 1) {
    const { d_model: d, max_len, norm_eps } = this.config, T = ids.length;
    if (cache.length + T > max_len) {
      throw new Error(`${cache.length + T} tokens, but the model reads at most ${max_len}`);
    }
    const x = new Float32Array(T * d);                             // (T, d)
    ids.forEach((id, t) => x.set(this.embed.subarray(id * d, (id + 1) * d), t * d));
    this.blocks.forEach((block, layer) => {
      add(x, this.attend(block, rms_norm(x, block.attn_norm, T, norm_eps), cache, layer, T));
      add(x, this.feed_forward(block, rms_norm(x, block.ff_norm, T, norm_eps), T));
    });
    cache.length += T;
    const hidden = rms_norm(x.subarray((T - outputs) * d), this.norm, outputs, norm_eps);
    return { logits: linear(hidden, this.embed, outputs, d), hidden };
  }
}

// --- fusionroute.py ------------------------------------------------------------------------------

class Router {
  /** A language model and one linear layer W (n, d) from its final hidden state to n weights. */
  constructor(lm, W) {
    this.lm = lm;
    this.W = W;
  }

  forward(ids, cache, outputs = 1) {
    const { logits, hidden } = this.lm.forward(ids, cache, outputs);  // (outputs, V), (outputs, d)
    const d = this.lm.config.d_model, n = this.W.length / d;
    const w = Float32Array.from({ length: outputs * n }, (_, index) => {
      const at = Math.floor(index / n) * d, row = index % n * d;
      let sum = 0;
      for (let i = 0; i < d; i++) sum += this.W[row + i] * hidden[at + i];
      return sum;
    });
    return { logits, w };                                          // (outputs, V), (outputs, n)
  }
}

/** The place of the largest number; the first of equal ones, as in PyTorch. */
function argmax(x) {
  let best = 0;
  for (let i = 1; i < x.length; i++) if (x[i] > x[best]) best = i;
  return best;
}

function log_softmax(x) {
  const max = x[argmax(x)];
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += Math.exp(x[i] - max);
  const log_sum = max + Math.log(sum);
  return Float32Array.from(x, (value) => value - log_sum);
}

function softmax(x) {
  return log_softmax(x).map(Math.exp);
}

/** Eq. (1): log pi_final = log pi_theta + log pi_expert, up to a constant. scale: of log pi_theta,
 *  1 in the paper; 0 leaves the expert alone. */
function fuse(router_logp, expert_logp, scale = 1) {
  return router_logp.map((value, token) => scale * value + expert_logp[token]);
}

/** Whether a position is in the set S: the experts' own argmax tokens are not all the same. */
function informative(choice) {
  return choice.some((token) => token !== choice[0]);
}

/** log pi(y_t) of each token of an answer, from a model's logits at its places, (|y|, V). */
function token_logp(logits, answer) {
  const V = logits.length / answer.length;
  return answer.map((token, t) => log_softmax(logits.subarray(t * V, (t + 1) * V))[token]);
}

const total = (x) => x.reduce((sum, value) => sum + value, 0);

/** log pi(y | x): the log-probabilities of the answer's tokens after the prompt's, summed. */
function sequence_logp(model, prompt, answer) {
  const ids = [...prompt, ...answer].slice(0, -1);
  return total(token_logp(model.forward(ids, model.new_cache(), answer.length).logits, answer));
}

/** log pi_expert(y | x): at each token that of the expert which the router picks there. */
function routed_logp(router, experts, prompt, answer) {
  const ids = [...prompt, ...answer].slice(0, -1), n = experts.length;
  const { w } = router.forward(ids, router.lm.new_cache(), answer.length);      // (|y|, n)
  const logp = experts.map((expert) =>                                          // n times (|y|)
    token_logp(expert.forward(ids, expert.new_cache(), answer.length).logits, answer));
  return total(answer.map((_, t) => logp[argmax(w.subarray(t * n, (t + 1) * n))][t]));
}

/** Eq. (3), from six sequence log-probabilities:
 *  -log sigmoid( beta [log pi_theta/pi_ref (y_w) - log pi_theta/pi_ref (y_l)] + bias ),
 *  bias = beta [log pi_expert(y_w) - log pi_expert(y_l)], which gets no gradient. */
function cdpo_loss(theta_w, theta_l, ref_w, ref_l, expert_w, expert_l, beta) {
  const reward_chosen = beta * (theta_w - ref_w), reward_rejected = beta * (theta_l - ref_l);
  const bias = beta * (expert_w - expert_l), margin = reward_chosen - reward_rejected;
  const loss = Math.log1p(Math.exp(-(margin + bias)));
  return { reward_chosen, reward_rejected, margin, bias, loss };
}

// --- decode.py -----------------------------------------------------------------------------------

const EXPERTS = ["math", "code", "instruct"];                      // the order of W's rows
const METHODS = ["fusionroute", "routing_only", "sft_only", "router", ...EXPERTS];
const MAX_NEW = 96;                                                // longest answer, in tokens

/** A prompt as the toy reads it: the two characters \n stand for a line break. */
const typed = (prompt) => prompt.replaceAll("\\n", "\n");

/** Token ids of a user's prompt. An Error when it is empty or leaves no room for an answer. */
function encode(encoding, prompt, max_len) {
  if (new RegExp(`^[${SPACE}\\x1c-\\x1f]*$`, "u").test(prompt)) {
    throw new Error('the prompt is empty: write a question, such as "What is 38 mod 5?"');
  }
  prompt = prompt.replace(/^ +| +$/g, "");
  const most = max_len - MAX_NEW;
  // Before a text of megabytes is encoded: no token is longer than encoding.longest bytes.
  const many = prompt.length > 8 * encoding.longest * most;
  const ids = many ? [] : encoding.encode_prompt(prompt);
  if (many || ids.length > most) {
    throw new Error(`the prompt has ${many ? `more than ${8 * most}` : ids.length} tokens, ` +
      `and must have at most ${most}`);
  }
  return ids;
}

/** What Decoding does for a method by name. */
function options(method) {
  return {
    fusionroute: { phase: "router" },
    sft_only: { phase: "router_sft" },
    routing_only: { phase: "router", use_router: false },
    router: { phase: "router", use_expert: false },
  }[method] ?? { phase: "router", use_router: false, only: EXPERTS.indexOf(method) };
}

/** One answer, written token by token: decode of decode.py.
 *
 *  decode.py runs the router and the one expert that it picks. Here all experts read along, because
 *  the page shows what each of them would have said; the token depends on two of the models only.
 *  With everyone = false, two run, as in decode.py; an expert that was not picked reads later what
 *  it missed.
 *
 *  edits: what a reader changed, [{at, rest, expert, scale, token}]: at the token number `at` (and,
 *  with rest, at all tokens after it) another expert, another scale of the router's
 *  log-probabilities, or another token. */
class Decoding {
  constructor(router, experts, prompt, end, max_new, how = {}, edits = []) {
    Object.assign(this, { router, experts, prompt, end, max_new, edits });
    this.how = { use_router: true, use_expert: true, only: null, everyone: true, ...how };
    this.router_cache = router.lm.new_cache();
    this.caches = experts.map((expert) => expert.new_cache());
    this.steps = [];
  }

  get tokens() {
    return this.steps.map((step) => step.token);
  }

  get done() {
    const { steps, max_new, end } = this;
    return steps.length === max_new || (steps.length > 0 && steps.at(-1).token === end);
  }

  /** What the text after the prompt and the steps so far makes all four models say. */
  read() {
    const text = [...this.prompt, ...this.tokens];
    const unread = (cache) => text.slice(cache.length);
    const { logits, w } = this.router.forward(unread(this.router_cache), this.router_cache);
    const pick = this.how.only ?? argmax(w), expert_logp = [], choice = [];
    for (const [i, expert] of this.experts.entries()) {
      if (!this.how.everyone && i !== pick) continue;
      const said = expert.forward(unread(this.caches[i]), this.caches[i]).logits;    // (V)
      expert_logp[i] = log_softmax(said);                          // n times (V)
      choice[i] = argmax(said);                                    // n token ids
    }
    return { router_logp: log_softmax(logits), expert_logp, w, choice,
      in_S: this.how.everyone ? informative(choice) : null };
  }

  /** What the edits ask for at token t: {expert, scale, token}, each undefined where nothing. */
  edited(t) {
    const active = this.edits.filter((edit) => edit.at === t || (edit.rest && edit.at < t));
    const last = (name) => active.findLast((edit) => edit[name] !== undefined)?.[name];
    return { expert: last("expert"), scale: last("scale"), token: last("token") };
  }

  /** The step that what was read leads to: pick, weights, sum of Eq. (1), token. */
  decide(said, t) {
    const { use_router, use_expert, only } = this.how, edit = this.edited(t);
    const routed = only ?? argmax(said.w);                         // I* = argmax_i w_i
    const pick = edit.expert ?? routed;
    const scale = use_expert ? edit.scale ?? (use_router ? 1 : 0) : 1;
    const own = use_expert ? said.expert_logp[pick] : said.router_logp;             // (V)
    const logp = use_expert ? fuse(said.router_logp, own, scale) : own;             // (V), Eq. (1)
    const wanted = use_expert ? said.choice[pick] : argmax(own);
    const token = edit.token ?? argmax(logp);
    const edited = [edit.expert, edit.scale, edit.token].some((value) => value !== undefined);
    return { ...said, routed, pick, weights: softmax(said.w), scale, logp, expert_choice: wanted,
      token, edited };
  }

  /** Write one more token. Returns its step. */
  step() {
    const step = this.decide(this.read(), this.steps.length);
    this.steps.push(step);
    return step;
  }

  /** Take other edits. What was written before the first token that they change stays. */
  edit(edits) {
    this.edits = edits;
    const steps = this.steps;
    this.steps = [];
    for (const [t, old] of steps.entries()) {
      const step = this.decide(old, t);                            // what was read is as it was
      this.steps.push(step);
      if (step.token !== old.token) break;
    }
    for (const cache of [this.router_cache, ...this.caches]) {     // take back what follows
      cache.length = Math.min(cache.length, this.prompt.length + this.steps.length - 1);
    }
  }
}

/** The objects that decode.py --json prints: one per token, then one with the answer. */
function records(encoding, decoding, prompt, method) {
  const { tokens } = decoding, ended = tokens.at(-1) === encoding.END;
  const texts = encoding.pieces(tokens);
  const round = (x) => Math.round(x * 1e4) / 1e4;
  const objects = decoding.steps.map((step, i) => ({
    token: texts[i],
    id: step.token,
    expert: method === "router" ? "router" : EXPERTS[step.pick],
    weights: method === "router" || EXPERTS.includes(method) ? {}
      : Object.fromEntries(EXPERTS.map((name, j) => [name, round(step.weights[j])])),
    expert_choice: encoding.decode([step.expert_choice]),
    changed: step.token !== step.expert_choice,
    in_S: step.in_S,
  }));
  const end = ended ? objects.pop() : null;
  const answer = encoding.decode(ended ? tokens.slice(0, -1) : tokens);
  return [...objects, { answer, prompt: typed(prompt), method, end }];
}

/** All that the page needs of its data: the tokenizer and five models, by name. Throws an Error. */
function load(data) {
  const config = data.config, encoding = new Encoding(data.words), models = {};
  if (encoding.n_vocab !== config.vocab_size) {
    throw new Error(`the vocabulary has ${encoding.n_vocab} tokens and the models ` +
      `${config.vocab_size}: build the page anew with: python -m page`);
  }
  for (const name of [...EXPERTS, "router_sft", "router"]) {
    if (!data.models?.[name]) throw new Error(`the page has no weights of ${name}`);
    const n_experts = EXPERTS.includes(name) ? 0 : EXPERTS.length;
    const weights = read_tensors(name, data.models[name], tensors(config, n_experts));
    const model = new GPT(config, weights);
    models[name] = n_experts ? new Router(model, weights["W.weight"]) : model;
  }
  return { encoding, models, config };
}

/** A Decoding of a prompt by a method's name. toy: what load returned. Throws an Error. */
function start(toy, prompt, method = "fusionroute", edits = []) {
  if (!METHODS.includes(method)) {
    throw new Error(`the method is ${JSON.stringify(method)}, and must be one of ` +
      METHODS.join(", "));
  }
  const ids = encode(toy.encoding, typed(prompt), toy.config.max_len);
  const { phase, ...how } = options(method);
  const experts = EXPERTS.map((name) => toy.models[name]);
  return new Decoding(toy.models[phase], experts, ids, toy.encoding.END, MAX_NEW, how, edits);
}

return {
  half, tensors, crc32, Encoding, Cache, rope_table, linear, rms_norm, attention, GPT, Router,
  argmax, log_softmax, softmax, fuse, informative, sequence_logp, routed_logp, cdpo_loss,
  EXPERTS, METHODS, MAX_NEW, typed, encode, options, Decoding, records, load, start,
};
})();

if (typeof module !== "undefined") module.exports = engine;
