// The numbers of the tab "Why choosing is not enough". It never touches the page, so that
// it also runs in node.
//
// First the tree: theory/toy_mdp.py line by line (tests/page/ compares the two). Then the triangle:
// what is within reach for distributions over three tokens.

"use strict";

const theory = (() => {

// --- theory/toy_mdp.py ---------------------------------------------------------------------------

const A = 3, T = 6, LEAK = 0.02;
const SEEDS = Array.from({ length: 20 }, (_, i) => i + 1);

/** Numbers in (0, 1): x <- 48271 x mod 2147483647, from 12345 seed. */
function* draws(seed) {
  let x = 12345 * seed;
  for (;;) {
    x = 48271 * x % 2147483647;
    yield x / 2147483647;
  }
}

/** A world, level by level: for each prefix its right token, and each expert's probabilities. */
function tree(seed, coverage, leak = LEAK, length = T) {
  const draw = draws(seed), levels = [];
  const tokens_of = Array.from({ length: A }, (_, a) => a);
  const favouring = tokens_of.map((a) => tokens_of.map((b) => a === b ? 1 - leak : leak / (A - 1)));
  for (let t = 0; t < length; t++) {
    levels.push(Array.from({ length: A ** t }, () => {
      const u = draw.next().value, v = draw.next().value;
      const w = draw.next().value, z = draw.next().value;
      const right = Math.floor(A * v), wrong = (right + Math.floor(1 + (A - 1) * w)) % A;
      const covered = u < coverage, who = z >= 0.5 ? 1 : 0;        // who: knows, if one does
      const tokens = [0, 1].map((i) => covered && i === who ? right : wrong);
      return { right, wrong, covered, who, tokens, experts: tokens.map((a) => favouring[a]) };
    }));
  }
  return levels;
}

/** V* - V of the best expert and the best logits |l| <= B at each prefix; B = 0: choosing alone. */
function loss(levels, B, experts_of = (node) => node.experts) {
  let V = new Array(A ** levels.length).fill(0);
  const low = Math.exp(-2 * B);
  for (const level of [...levels].reverse()) {
    V = level.map((node, s) => {
      const Q = V.slice(s * A, (s + 1) * A);
      Q[node.right] += 1;
      let best = -Infinity;
      for (const pi of experts_of(node)) {
        for (const least of Q) {                                   // raise what is as good as this
          let sum = 0, value = 0;
          for (let a = 0; a < A; a++) {
            const p = pi[a] * (Q[a] >= least ? 1 : low);
            sum += p;
            value += p * Q[a];
          }
          best = Math.max(best, value / sum);
        }
      }
      return best;
    });
  }
  return Math.max(0, levels.length - V[0]);
}

/** loss averaged over the worlds. nobody: one uniform distribution in place of the two experts. */
function mean_loss(coverage, B, nobody = false) {
  const uniform = [new Array(A).fill(1 / A)];
  const experts_of = nobody ? () => uniform : undefined;
  const losses = SEEDS.map((seed) => loss(tree(seed, coverage), B, experts_of));
  return losses.reduce((sum, x) => sum + x, 0) / losses.length;
}

// --- three tokens: a distribution is a point of a triangle ---------------------------------------

/** Total variation distance: the largest difference in the probability of any event. */
function distance(p, q) {
  return p.reduce((sum, value, a) => sum + Math.abs(value - q[a]), 0) / 2;
}

/** The corners of what logits |l| <= B make of p, p e^l / Z: each token is raised or lowered. */
function reach_of_logits(p, B) {
  const signs = [[1, -1, -1], [1, 1, -1], [-1, 1, -1], [-1, 1, 1], [-1, -1, 1], [1, -1, 1]];
  return signs.map((sign) => {
    const raised = p.map((value, a) => value * Math.exp((sign[a] - 1) * B));
    const sum = raised.reduce((x, y) => x + y, 0);
    return raised.map((value) => value / sum);
  });
}

/** The smallest B with which logits |l| <= B turn p into target: half the range of log target/p. */
function needed_bound(p, target) {
  const logits = target.map((value, a) => Math.log(value / p[a]));
  return (Math.max(...logits) - Math.min(...logits)) / 2;
}

/** Whether a point lies in a convex polygon of distributions, its corners in order. */
function inside(polygon, point) {
  const sides = polygon.map((p, i) => {
    const q = polygon[(i + 1) % polygon.length];
    return (q[0] - p[0]) * (point[1] - p[1]) - (q[1] - p[1]) * (point[0] - p[0]);
  });
  const flat = polygon.every((p) => distance(p, polygon[0]) < 1e-12);
  return !flat && (sides.every((x) => x >= -1e-12) || sides.every((x) => x <= 1e-12));
}

/** The point of the segment p q that is nearest to target: the distance is linear between kinks. */
function nearest_on_segment(p, q, target) {
  const kinks = p.map((value, a) => (target[a] - value) / (q[a] - value));
  return [0, 1, ...kinks.filter((s) => s > 0 && s < 1)]
    .map((s) => p.map((value, a) => value + s * (q[a] - value)))
    .reduce((best, point) => distance(point, target) < distance(best, target) ? point : best);
}

/** The point of a convex polygon (or, with two corners, a segment) that is nearest to target. */
function nearest(polygon, target) {
  if (inside(polygon, target)) return target;
  return polygon.map((p, i) => nearest_on_segment(p, polygon[(i + 1) % polygon.length], target))
    .reduce((best, point) => distance(point, target) < distance(best, target) ? point : best);
}

/** How near to target each way comes, {routing, mixing, logits}: its point and the distance. */
function reach(experts, target, B) {
  const closest = (points) => points.reduce((best, point) =>
    distance(point, target) < distance(best, target) ? point : best);
  const result = {
    routing: closest(experts),
    mixing: nearest(experts, target),
    logits: closest(experts.map((p) => nearest(reach_of_logits(p, B), target))),
  };
  return Object.fromEntries(Object.entries(result).map(([way, point]) =>
    [way, { point, distance: distance(point, target) }]));
}

return { A, T, LEAK, SEEDS, draws, tree, loss, mean_loss, distance, reach_of_logits, needed_bound,
  inside, nearest, reach };
})();

if (typeof module !== "undefined") module.exports = theory;
