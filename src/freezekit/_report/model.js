"use strict";
/* The data of the report: the nodes of the model in columns, and what holds for them in a phase.
   Nodes are numbered: modules, then parameters, then further names of tied parameters. */

const data = JSON.parse(document.getElementById("data").textContent);
const { modules, parameters, outcomes, phases, texts } = data;
const M = modules.names.length;
const P = parameters.names.length;
const TOTAL = M + P + parameters.aliases.length;
const NONE = 0, FROZEN = 1, PARTIAL = 2, TRAINABLE = 3;
const STATES = ["none", "frozen", "partial", "trainable"];

const isModule = (node) => node < M;
const isAlias = (node) => node >= M + P;
/** The row of the parameter that a parameter or further name stands for. */
const rowOf = (node) => (isAlias(node) ? parameters.aliases[node - M - P][2] : node - M);

const parents = new Int32Array(TOTAL);
parents.set(modules.parents);
parents.set(parameters.owners, M);
parameters.aliases.forEach(([owner], at) => { parents[M + P + at] = owner; });

/** The children of module m are children[starts[m]] to children[starts[m + 1] - 1]:
    its parameters, further names, then its modules. */
const starts = new Int32Array(M + 1);
const children = new Int32Array(TOTAL);
{
  for (let node = 0; node < TOTAL; node++) if (parents[node] >= 0) starts[parents[node] + 1]++;
  for (let m = 0; m < M; m++) starts[m + 1] += starts[m];
  const next = starts.slice();
  for (let node = M; node < TOTAL; node++) children[next[parents[node]]++] = node;
  for (let node = 1; node < M; node++) children[next[parents[node]]++] = node;
}

const depths = new Int32Array(TOTAL);
for (let node = 1; node < TOTAL; node++) depths[node] = depths[parents[node]] + 1;

function nameOf(node) {
  if (isModule(node)) return node ? texts[modules.names[node]] : data.model;
  return texts[isAlias(node) ? parameters.aliases[node - M - P][1] : parameters.names[node - M]];
}

const paths = [""];
/** The dotted path of a node, "" for the root. */
function pathOf(node) {
  if (paths[node] === undefined) {
    const above = pathOf(parents[node]);
    paths[node] = above ? `${above}.${nameOf(node)}` : nameOf(node);
  }
  return paths[node];
}

const classOf = (module) => texts[modules.classes[module]];
const shapeOf = (row) => parameters.shape[parameters.shapes[row]];
const sizes = parameters.shape.map((shape) => (shape ? shape.reduce((a, b) => a * b, 1) : 0));

/** Adds what stands at each module to all modules above it. */
function rollUp(column) {
  for (let m = M - 1; m > 0; m--) column[parents[m]] += column[m];
  return column;
}

const numel = new Float64Array(TOTAL);
const tensors = new Int32Array(M);
for (let row = 0; row < P; row++) {
  numel[M + row] = sizes[parameters.shapes[row]];
  numel[parents[M + row]] += numel[M + row];
  tensors[parents[M + row]]++;
}
rollUp(numel);
rollUp(tensors);

/** For each module, the last further name that stands in it; see `tied_to` of a module's row. */
const tied = new Int32Array(M).fill(-1);
parameters.aliases.forEach(([owner, , row]) => { if (!tensors[owner]) tied[owner] = row; });

const namesOf = new Map();
parameters.aliases.forEach(([, , row], at) => {
  if (!namesOf.has(row)) namesOf.set(row, []);
  namesOf.get(row).push(M + P + at);
});

/** The number of the reasons for a parameter in a phase. */
const reasonOf = (row, phase) => outcomes.phases[parameters.outcomes[row]][phase];
/** For each property its value, the deciding rule and those that it overrode. */
const saidOf = (row, phase) => outcomes.reasons[reasonOf(row, phase)][3];

const held = (module, phase) => modules.held[modules.modes[module]][phase] === "1";

/** The learning rate under some reasons: in units of the base where that is not known. */
const rates = outcomes.reasons.map(([, lr, mult]) => {
  if (lr !== null) return { value: lr, known: true };
  const factor = mult === null ? 1 : mult;
  if (data.rate.unit === "lr_mult" || data.rate.base === null) return { value: factor, known: false };
  return { value: data.rate.base * factor, known: true };
});

/** What holds in one phase: columns over all nodes. */
class View {
  constructor(phase) {
    this.phase = phase;
    this.state = new Uint8Array(TOTAL);
    this.live = new Float64Array(TOTAL);
    this.lows = [new Float64Array(TOTAL).fill(Infinity), new Float64Array(TOTAL).fill(Infinity)];
    this.highs = [new Float64Array(TOTAL), new Float64Array(TOTAL)];
    const partly = new Map(phases[phase].partly);
    const open = new Int32Array(M);
    const cut = new Int32Array(M);
    for (let row = 0; row < P; row++) {
      const node = M + row;
      const reason = reasonOf(row, phase);
      const trains = outcomes.reasons[reason][0];
      this.state[node] = !trains ? FROZEN : partly.has(row) ? PARTIAL : TRAINABLE;
      if (partly.has(row)) cut[parents[node]]++;
      if (!trains) continue;
      this.live[node] = partly.has(row) ? partly.get(row) : numel[node];
      this.live[parents[node]] += this.live[node];
      open[parents[node]]++;
      this.widen(node, Number(rates[reason].known), rates[reason].value, rates[reason].value);
    }
    rollUp(open);
    rollUp(cut);
    rollUp(this.live);
    for (let node = M + P - 1; node > 0; node--)
      for (const known of [0, 1])
        this.widen(parents[node], known, this.lows[known][node], this.highs[known][node]);
    for (let m = 0; m < M; m++)
      if (tensors[m])
        this.state[m] = !open[m] ? FROZEN : cut[m] || open[m] < tensors[m] ? PARTIAL : TRAINABLE;
      else if (tied[m] >= 0) this.state[m] = this.state[M + tied[m]];
    for (let node = M + P; node < TOTAL; node++) this.state[node] = this.state[M + rowOf(node)];
  }

  widen(node, known, low, high) {
    this.lows[known][node] = Math.min(this.lows[known][node], low);
    this.highs[known][node] = Math.max(this.highs[known][node], high);
  }

  /** The learning rates of what trains at or below a node, as text. */
  rate(node) {
    const at = isAlias(node) ? M + rowOf(node) : node;
    const said = [];
    for (const known of [1, 0]) {
      const [low, high] = [this.lows[known][at], this.highs[known][at]];
      if (low <= high) said.push((known ? "" : "×") + between(low, high));
    }
    return said.join(", ");
  }

  mode(module) {
    return held(module, this.phase) ? "eval (held)" : "train";
  }
}

const grouped = new Intl.NumberFormat("en-US");
const counted = (count) => grouped.format(count);
const plural = (count, noun) => `${counted(count)} ${noun}${count === 1 ? "" : "s"}`;

function short(value) {
  const rounded = Number(value.toPrecision(4));
  return rounded < 1e-3 ? rounded.toExponential() : String(rounded);
}

const between = (low, high) => (short(low) === short(high) ? short(low) : `${short(low)}–${short(high)}`);

const escaped = (text) => text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");

/** One segment of a pattern as a regular expression: * ? {a,b} {0..3}. */
function segment(text) {
  const tokens = text.match(/\{[^}]*\}|[^]/gu);
  return tokens.map((token) => {
    if (token === "*") return "[^.]*";
    if (token === "?") return "[^.]";
    if (token.length < 2 || token[0] !== "{") return escaped(token);
    const range = /^\{(\d+)\.\.(\d+)\}$/.exec(token);
    const span = range ? range[2] - range[1] + 1 : 0;
    const either = span > 0 && span <= 10000
      ? Array.from({ length: span }, (_, at) => String(Number(range[1]) + at))
      : token.slice(1, -1).split(",").map((each) => escaped(each).replaceAll("\\*", "[^.]*").replaceAll("\\?", "[^.]"));
    return `(?:${either.join("|")})`;
  }).join("");
}

/** Whether a path holds a text, or matches a pattern or lies below what does. */
function matcher(query) {
  const text = query.trim();
  if (!/[*?{]/.test(text)) {
    const lower = text.toLowerCase();
    return (path) => path.toLowerCase().includes(lower);
  }
  const segments = text.match(/(?:\{[^}]*\}|[^.])+/gu) || [];
  const body = segments.map((each) => (each === "**" ? "(?:[^.]+\\.)*" : `${segment(each)}\\.`));
  const pattern = new RegExp(`^${body.join("")}`, "u");
  return (path) => pattern.test(path ? `${path}.` : "");
}

/** The numbers that runs stand for: first and last of each, flat. */
function unrun(runs) {
  const numbers = [];
  for (let at = 0; at < runs.length; at += 2)
    for (let number = runs[at]; number <= runs[at + 1]; number++) numbers.push(number);
  return numbers;
}

/** The numbers that repetitions stand for: how often and which, flat. */
function repeated(runs) {
  const numbers = [];
  for (let at = 0; at < runs.length; at += 2)
    for (let times = runs[at]; times > 0; times--) numbers.push(runs[at + 1]);
  return numbers;
}

/** Which nodes a filter lets through: itself, and `shown` with all that is above them. */
function select(view, filter) {
  const onPath = filter.query.trim() ? matcher(filter.query) : null;
  const state = STATES.indexOf(filter.state);
  const rule = Number(filter.rule);
  const ruled = outcomes.reasons.map(([, , , said]) =>
    said.some(([, , by, over]) => (filter.how === "decides" ? by === rule : over.includes(rule))));
  const different = filter.differs ? differing(view.phase) : null;
  const shown = new Uint8Array(TOTAL);
  const counts = { modules: 0, parameters: 0, aliases: 0 };
  for (let node = TOTAL - 1; node >= 0; node--) {
    const leaf = !isModule(node);
    let hit = state < 0 || view.state[node] === state;
    if (hit && rule) hit = leaf && ruled[reasonOf(rowOf(node), view.phase)];
    if (hit && different) hit = leaf && different[rowOf(node)] === 1;
    if (hit && onPath) hit = onPath(pathOf(node));
    if (hit) {
      counts[isAlias(node) ? "aliases" : leaf ? "parameters" : "modules"]++;
      shown[node] = 1;
    }
    if (shown[node] && node) shown[parents[node]] = 1;
  }
  return { shown, counts };
}

const differences = [];
/** For each parameter, 1 where the other plan treats it differently in a phase. */
function differing(phase) {
  if (!differences[phase]) {
    const flags = new Uint8Array(P);
    if (data.diff) for (const row of unrun(data.diff.phases[phase])) flags[row] = 1;
    differences[phase] = flags;
  }
  return differences[phase];
}

/** Why a parameter is treated as it is, in the words of `resolved.explain(name)`. */
function explanation(row) {
  const shape = shapeOf(row);
  const also = (namesOf.get(row) || []).map(pathOf);
  let head = `${pathOf(M + row)} ${shape ? `[${shape.join(", ")}]` : "lazy"}`;
  if (also.length) head += `, tied: also ${also.join(", ")}`;
  const lines = [head];
  const stretches = outcomes.stretches[parameters.outcomes[row]];
  for (const [first, text] of stretches) {
    if (stretches.length > 1) lines.push(`  ${outcomes.spans[text]}`);
    const said = saidOf(row, first).map(([key, value, ...why]) => [`${key} = ${value}`, ...why]);
    const width = Math.max(...said.map(([each]) => [...each].length));
    for (const [each, rule, over] of said)
      lines.push(`  ${each}${" ".repeat(width - [...each].length)}   ${because(rule, over)}`);
  }
  return lines.join("\n");
}

const ruleText = (number) => `rule ${number}, ${data.rules[number - 1]}`;

function because(rule, over) {
  if (rule === null) return "no rule says; its own flag or dtype";
  return ruleText(rule) + (over.length ? `; overrides ${over.map(ruleText).join(", ")}` : "");
}
