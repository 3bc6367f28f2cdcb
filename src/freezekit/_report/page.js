/* The page: one phase at a time, in the timeline, the tree, the reasons and the costs. */

const $ = (id) => document.getElementById(id);
const LAYERS_AT_ONCE = 200;
const NAMES_AT_ONCE = 200;
const PHASES_ON_PAPER = 7; // that have room for words

const ADDRESS_AFTER = 200; // ms without a further step; browsers refuse an address written too often

let current = 0;
let naming = 0;
let view = new View(0);
const tree = new Tree($("tree"), showWhy);

/* ---- the head and the plan ---- */

function drawHead() {
  $("model").textContent = data.model;
  const counts = [plural(M, "module"), plural(P, "parameter"), plural(data.rules.length, "rule"), plural(phases.length, "phase")];
  $("size").textContent = `${counts.join(", ")}. Made by freezekit.`;
  for (const warning of data.warnings)
    $("notes").append(element("p", { className: "warning" }, element("strong", {}, "Warning: "), warning));
  const silent = new Set(outcomes.silent);
  const names = [];
  for (let row = 0; row < P; row++) if (silent.has(parameters.outcomes[row])) names.push(pathOf(M + row));
  if (names.length) $("notes").append(nameList(`No rule mentions ${plural(names.length, "parameter")}`, names));
  if (!data.rules.length) $("rules").insertAdjacentElement("beforebegin", element("p", {}, "The plan has no rules."));
  data.rules.forEach((rule, at) => {
    const button = element("button", { type: "button", className: "rule" }, element("code", {}, rule));
    button.addEventListener("click", () => {
      resetFilters();
      $("rule").value = String(at + 1);
      narrow();
      $("rule").scrollIntoView({ block: "center" });
      $("rule").focus({ preventScroll: true });
    });
    button.title = "Show in the tree what this rule decides";
    $("rules").append(element("li", {}, button, element("span", { className: "said" })));
    $("rule").append(element("option", { value: String(at + 1) }, `${at + 1}: ${rule}`));
  });
}

/** A folded list of names, made where it is opened. */
function nameList(title, names) {
  const list = element("ul", { className: "names" });
  const made = element("details", {}, element("summary", {}, title), list);
  made.addEventListener("toggle", () => {
    if (list.firstChild) return;
    for (const name of names.slice(0, NAMES_AT_ONCE)) list.append(element("li", {}, element("bdi", {}, name)));
    if (names.length > NAMES_AT_ONCE) list.append(element("li", {}, `and ${counted(names.length - NAMES_AT_ONCE)} more`));
  });
  return made;
}

/** Says beside each rule for how many parameters it decides something in the phase. */
function drawRules() {
  const decides = new Array(data.rules.length + 1).fill(0);
  const loses = decides.slice();
  const sizes = new Array(outcomes.reasons.length).fill(0);
  for (let row = 0; row < P; row++) sizes[reasonOf(row, current)]++;
  outcomes.reasons.forEach(([, , , said], at) => {
    for (const rule of new Set(said.map(([, , by]) => by))) if (rule !== null) decides[rule] += sizes[at];
    for (const rule of new Set(said.flatMap(([, , , over]) => over))) loses[rule] += sizes[at];
  });
  $("rules").querySelectorAll(".said").forEach((place, at) => {
    const lost = loses[at + 1] ? `, overridden for ${counted(loses[at + 1])}` : "";
    place.textContent = ` decides something for ${plural(decides[at + 1], "parameter")}${lost}`;
  });
}

/* ---- the timeline ---- */

const scale = { low: Infinity, high: 0 };
for (const [, , low, high, factor] of data.cells)
  if (low !== null && factor === null) { scale.low = Math.min(scale.low, low); scale.high = Math.max(scale.high, high); }

/** Where a rate lies between the least (0) and the greatest (1), on a log scale. */
function place(rate) {
  if (!(scale.high > scale.low)) return 1;
  return Math.log(rate / scale.low) / Math.log(scale.high / scale.low);
}

const sign = data.rate.unit === "lr_mult" ? "×" : "";

function drawTimeline() {
  const some = scale.high > 0;
  $("unscaled").hidden = data.cells.every(([, , , , factor]) => factor === null);
  for (const note of data.order)
    $("order").append(element("p", {}, `Note: ${note}. "Backward stops here" stands by this order; FreezePlan(layers=...) gives another.`));
  const unit = data.rate.unit === "lr" ? "learning rate" : "multiplier of the base learning rate";
  $("least").hidden = !(scale.low < scale.high);
  $("most").hidden = !some;
  if (some) {
    $("least").lastChild.textContent = sign + short(scale.low);
    $("least").firstChild.style.setProperty("--rate", 0);
    $("most").lastChild.textContent = `${sign}${short(scale.high)} ${unit}${scale.low < scale.high ? ", log scale" : ""}`;
    $("most").firstChild.style.setProperty("--rate", 1);
  }
  const head = element("tr", {}, element("th", { scope: "col" }, "layer"), element("th", { scope: "col", className: "count" }, "parameters"));
  phases.forEach(({ text }, at) => {
    const button = element("button", { type: "button", tabIndex: -1 }, element("b", {}, String(at + 1)), text);
    button.addEventListener("click", () => go(at));
    head.append(element("th", { scope: "col" }, button));
  });
  head.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: current - 1, ArrowRight: current + 1, Home: 0, End: phases.length - 1 }[event.key];
    if (to === undefined || ofBrowser(event)) return;
    event.preventDefault();
    event.stopPropagation();
    go(to);
    focusColumn();
  });
  $("timeline").append(element("caption", {}, "What each layer does in each phase"), element("thead", {}, head), element("tbody", {}));
  $("timeline").addEventListener("click", (event) => {
    const cell = event.target.closest("td");
    if (!cell || cell.cellIndex < 2) return;
    go(cell.cellIndex - 2);
    focusColumn();
  });
  $("more").addEventListener("click", drawLayers);
  if (!data.layers.length) $("more").insertAdjacentElement("beforebegin", element("p", {}, "The model has no parameters."));
  $("timeline").classList.toggle("many", phases.length > PHASES_ON_PAPER);
  drawLayers();
}

/** Puts the focus on the head of the current column, where arrows step on. */
function focusColumn() {
  $("timeline").tHead.rows[0].cells[current + 2].firstChild.focus({ preventScroll: true });
}

/** Adds the next rows of the timeline. */
function drawLayers() {
  const body = $("timeline").tBodies[0];
  const from = body.rows.length;
  for (const layer of data.layers.slice(from, from + LAYERS_AT_ONCE)) body.append(layerRow(layer));
  const rest = data.layers.length - body.rows.length;
  $("more").hidden = !rest;
  $("more").textContent = `Show ${counted(Math.min(rest, LAYERS_AT_ONCE))} more of ${plural(data.layers.length, "row")}`;
}

/** The rates of a cell as text: learning rates, then multipliers. */
function ratesText([, , low, high, least, most]) {
  const said = [];
  if (low !== null) said.push(sign + between(low, high));
  if (least !== null) said.push(`×${between(least, most)}`);
  return said.join(", ");
}

function layerRow(layer) {
  const { count, first } = layer;
  const names = count > 1 ? `${layer.name} to ${layer.last} (${counted(count)} layers)` : layer.name || "(root)";
  const row = element("tr", {}, element("th", { scope: "row" }, breakable(names)), element("td", { className: "count" }, counted(layer.numel)));
  repeated(layer.cells).forEach((number, phase) => {
    const [state, live, low, high, factor] = data.cells[number];
    const rate = ratesText(data.cells[number]);
    const text = { frozen: "frozen", none: "-", partial: `partial ${rate}`, trainable: rate }[state];
    const cell = element("td", { className: `cell ${state}` }, element("span", {}, text));
    cell.title = `${names}: ${state}, ${counted(live)} of ${counted(layer.numel)} train${rate ? ` at ${rate}` : ""}`;
    if (factor !== null) cell.classList.add("unscaled");
    else if (low !== null) cell.style.setProperty("--rate", place(Math.sqrt(low * high)));
    const frontier = data.frontiers[phase];
    if (frontier !== null && frontier >= first && frontier < first + count) {
      cell.classList.add("stop");
      cell.append(element("small", {}, "backward stops here"));
    }
    if (phase === marked) cell.classList.add("now");
    row.append(cell);
  });
  return row;
}

/** A name that may go on in a new line after each dot. */
function breakable(name) {
  const made = element("bdi", {});
  for (const part of name.split(/(?<=\.)/u)) made.append(part, element("wbr", {}));
  return made;
}

let marked = -1;

/** Marks the column of the current phase. */
function markColumn() {
  const at = current + 2;
  for (const { cells } of $("timeline").rows) {
    if (marked >= 0) cells[marked + 2].classList.remove("now");
    cells[at].classList.add("now");
  }
  marked = current;
  const buttons = $("timeline").tHead.querySelectorAll("button");
  buttons.forEach((button, phase) => {
    button.tabIndex = phase === current ? 0 : -1;
    if (phase === current) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  });
  const box = $("timeline").parentElement;
  const cell = $("timeline").rows[0].cells[at];
  const fixed = $("timeline").rows[0].cells[0].offsetWidth;
  if (cell.offsetLeft - fixed < box.scrollLeft) box.scrollLeft = cell.offsetLeft - fixed;
  else if (cell.offsetLeft + cell.offsetWidth > box.scrollLeft + box.clientWidth)
    box.scrollLeft = cell.offsetLeft + cell.offsetWidth - box.clientWidth;
}

/* ---- the phase ---- */

function hashPhase() {
  const found = /^#phase=(\d+)$/.exec(location.hash);
  return found ? Number(found[1]) - 1 : 0;
}

/** Shows a phase; one that is not there gives the nearest. */
function show(phase) {
  const wanted = Math.min(Math.max(phase, 0), phases.length - 1);
  if (wanted !== current) {
    current = wanted;
    view = new View(current);
  }
  draw();
}

/** Goes to a phase, which the address names soon after. */
function go(phase) {
  show(phase);
  $("news").textContent = $("phase").textContent;
  clearTimeout(naming);
  naming = setTimeout(nameInAddress, ADDRESS_AFTER);
}

/** Writes the phase into the address, where the page may: not in a frame without an address. */
function nameInAddress() {
  if (hashPhase() === current) return;
  try {
    history.replaceState(null, "", `#phase=${current + 1}`);
  } catch {
    // The page shows the phase; only a link to it cannot be copied.
  }
}

function draw() {
  const { text } = phases[current];
  $("slider").value = String(current + 1);
  $("slider").setAttribute("aria-valuetext", `phase ${current + 1}, ${text}`);
  $("phase").textContent = phases.length > 1 ? `Phase ${current + 1} of ${phases.length}: ${text}` : text;
  // A button that is disabled loses the focus: these two stay reachable at the ends.
  $("previous").setAttribute("aria-disabled", String(current === 0));
  $("next").setAttribute("aria-disabled", String(current === phases.length - 1));
  const [live, all] = [view.live[0], numel[0]];
  const share = all ? (100 * live) / all : 0;
  $("line").textContent = `trainable params: ${counted(live)} || all params: ${counted(all)} || trainable%: ${share.toFixed(4)}`;
  markColumn();
  drawRules();
  filter();
  if (tree.selected >= 0) showWhy(tree.selected);
  for (const row of document.querySelectorAll("[data-phase]"))
    row.classList.toggle("now", row.dataset.phase === String(current));
}

/* ---- the filters ---- */

let filtered = "";

function resetFilters() {
  for (const id of ["query", "state", "rule"]) $(id).value = "";
  $("how").value = "decides";
  $("differs").checked = false;
}

/** Narrows the tree. A new filter opens what it finds; a new phase leaves the folding as it is. */
function filter() {
  const wanted = { query: $("query").value, state: $("state").value, rule: $("rule").value, how: $("how").value, differs: $("differs").checked };
  const fresh = filtered !== JSON.stringify(wanted);
  filtered = JSON.stringify(wanted);
  $("how").disabled = !wanted.rule;
  $("forms").hidden = !/[[\]@!]|^\s*re:/.test(wanted.query);
  if (!wanted.query.trim() && !wanted.state && !wanted.rule && !wanted.differs) {
    $("found").textContent = "";
    tree.show(view, null);
    return;
  }
  const { shown, counts } = select(view, wanted);
  tree.show(view, shown, fresh);
  const further = counts.aliases ? `, ${plural(counts.aliases, "further name")}` : "";
  $("found").textContent = `${counted(counts.parameters)} of ${plural(P, "parameter")}, ${counted(counts.modules)} of ${plural(M, "module")}${further}`;
}

/** Narrows the tree as the user says, and says aloud what is left. */
function narrow() {
  filter();
  $("news").textContent = $("found").textContent || "All modules and parameters";
}

/* ---- why ---- */

function showWhy(node) {
  const panel = $("why");
  panel.replaceChildren(element("h3", {}, element("bdi", {}, pathOf(node) || data.model)));
  if (isModule(node)) return describe(panel, node);
  const row = rowOf(node);
  panel.append(element("p", {}, tree.kind(node)));
  panel.append(reasonTable(saidOf(row, current)));
  const rate = view.rate(node);
  if (rate) panel.append(element("p", {}, `Learning rate in this phase: ${rate}${rate[0] === "×" ? " of the optimizer's" : ""}`));
  for (const group of changesOf(row))
    panel.append(element("p", { className: "mark" }, `≠ ${changeText(group)}`));
  if (alone.has(row)) panel.append(element("p", { className: "mark" }, "≠ only in this model"));
  const text = explanation(row);
  const copy = element("button", { type: "button", id: "copy" }, "Copy");
  const pre = element("pre", { tabIndex: 0 }, text);
  pre.setAttribute("aria-label", "In all phases");
  copy.addEventListener("click", () => copyText(copy, pre));
  panel.append(element("h4", {}, "In all phases ", copy), pre);
}

function reasonTable(said) {
  const table = element("table", { className: "reasons" }, element("caption", {}, `In this phase: ${phases[current].text}`));
  const titles = ["property", "value", "decided by"].map((title) => element("th", { scope: "col" }, title));
  table.append(element("thead", {}, element("tr", {}, ...titles)));
  const body = element("tbody", {});
  for (const [key, value, rule, over] of said) {
    const by = element("td", {}, because(rule, []));
    for (const number of over) by.append(element("div", { className: "said" }, `overrides ${ruleText(number)}`));
    body.append(element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, value), by));
  }
  table.append(body);
  return table;
}

/** What a module holds: counts, and which rules decide what trains in it. */
function describe(panel, module) {
  const state = STATES[view.state[module]];
  panel.append(element("p", {}, `${classOf(module)}, ${state === "none" ? "no parameters" : state}, ${view.mode(module)}`));
  panel.append(element("p", {}, `${counted(view.live[module])} of ${counted(numel[module])} elements train, in ${plural(tensors[module], "parameter")}.`));
  const by = new Map();
  for (const row of rowsBelow(module)) {
    const rule = saidOf(row, current)[0][2];
    by.set(rule, (by.get(rule) || 0) + 1);
  }
  const list = element("ul", {});
  for (const [rule, count] of [...by].sort(([a], [b]) => (a || 0) - (b || 0)))
    list.append(element("li", {}, `${plural(count, "parameter")}: ${because(rule, [])}`));
  if (by.size) panel.append(element("h4", {}, "What decides whether they train"), list);
  panel.append(element("p", { className: "hint" }, "Select a parameter to see why it is treated as it is."));
}

/** The parameters at or below a module: their rows are neighbours. */
function rowsBelow(module) {
  const inside = new Uint8Array(M);
  inside[module] = 1;
  for (let m = module + 1; m < M && parents[m] >= module; m++) inside[m] = inside[parents[m]];
  const found = [];
  for (let row = 0; row < P; row++) if (inside[parents[M + row]]) found.push(row);
  return found;
}

function copyText(button, pre) {
  getSelection().selectAllChildren(pre);
  let done = false;
  try {
    done = document.execCommand("copy"); // works from file:// without asking for a permission
  } catch {
    // The text is selected: the user can copy it.
  }
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

/* ---- the costs ---- */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

function bytes(count) {
  let power = 0;
  while (power < UNITS.length - 1 && count >= 1024 ** (power + 1)) power++;
  return power ? `${(count / 1024 ** power).toFixed(1)} ${UNITS[power]}` : `${count} B`;
}

function drawCost() {
  const { optimizer, notes, rows } = data.cost;
  const full = rows[rows.length - 1];
  $("optimizer").textContent = `Memory for weights, gradients and the state of ${optimizer} in each phase, beside full fine-tuning. Activations and buffers are not counted. ${notes.map((note) => `Note: ${note}.`).join(" ")}`;
  const titles = ["phase", "trainable", "weights", "gradients", "optimizer state", "total", "of full"];
  const body = element("tbody", {});
  for (const row of rows) {
    const [phase, trainable, ...sizes] = row;
    const total = sizes[sizes.length - 1];
    const share = full[5] ? total / full[5] : 1;
    const name = phase === null ? "full fine-tuning" : phases.length > 1 ? `${phase + 1}: ${phases[phase].text}` : phases[phase].text;
    const bar = element("td", { className: "share" }, element("span", { className: "bar" }), `${(100 * share).toFixed(1)} %`);
    bar.firstChild.style.setProperty("--share", share);
    const line = element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, counted(trainable)), ...sizes.map((each) => element("td", {}, bytes(each))), bar);
    if (phase !== null) line.dataset.phase = phase;
    body.append(line);
  }
  $("cost").append(element("thead", {}, element("tr", {}, ...titles.map((title) => element("th", { scope: "col" }, title)))), body);
}

/* ---- the difference ---- */

function changeText({ stalls, start, key, values: [before, after, differs] }) {
  const { unit } = data.diff;
  const rules = stalls === 1 ? "rule has" : "rules have";
  const once = stalls ? `once ${stalls} metric-driven ${rules} opened, ` : "";
  const when = unit ? `from ${unit} ${start}: ` : "";
  return `${once}${when}${key}: ${differs ? `${before} → ${after}` : `${before} in both`}`;
}

const changed = new Map();
const alone = new Set(data.diff ? unrun(data.diff.only[0]) : []);

/** The changes that concern a parameter. */
function changesOf(row) {
  if (data.diff && !changed.size)
    for (const group of data.diff.groups)
      for (const each of unrun(group.runs)) {
        if (!changed.has(each)) changed.set(each, []);
        changed.get(each).push(group);
      }
  return changed.get(row) || [];
}

function drawDifference() {
  const { diff } = data;
  $("differ").hidden = !diff;
  $("difference").hidden = !diff;
  if (!diff) return;
  const box = $("changes");
  const rules = element("ol", {}, ...diff.rules.map((rule) => element("li", {}, element("code", {}, rule))));
  box.append(element("details", {}, element("summary", {}, `The other plan has ${plural(diff.rules.length, "rule")}`), rules));
  const [before, after] = diff.only;
  const lists = diff.groups.map((group) => {
    const names = unrun(group.runs).map((row) => pathOf(M + row));
    const list = nameList(`${changeText(group)} for ${plural(names.length, "parameter")}`, names);
    list.dataset.phase = group.phase;
    return list;
  });
  if (before.length) lists.push(nameList(`only in this model: ${plural(unrun(before).length, "parameter")}`, unrun(before).map((row) => pathOf(M + row))));
  if (after.length) lists.push(nameList(`only in the other model: ${plural(after.length, "parameter")}`, after));
  box.append(...(lists.length ? lists : [element("p", {}, "No difference.")]));
}

/* ---- what the user does ---- */

/** Whether a key goes with one that makes it the browser's, as in Alt+Left for "back". */
const ofBrowser = (event) => event.altKey || event.ctrlKey || event.metaKey;

/** Whether left and right do something else where the focus is: move a cursor, a slider, a view. */
function usesArrows(place) {
  if (place.closest("input, select, #tree, pre")) return true;
  const box = place.closest(".scroll");
  return box !== null && box.scrollWidth > box.clientWidth;
}

function listen() {
  $("slider").max = String(phases.length);
  $("phases").classList.toggle("single", phases.length === 1);
  $("slider").addEventListener("input", () => go(Number($("slider").value) - 1));
  $("previous").addEventListener("click", () => go(current - 1));
  $("next").addEventListener("click", () => go(current + 1));
  addEventListener("hashchange", () => go(hashPhase()));
  addEventListener("keydown", (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key) || ofBrowser(event) || usesArrows(event.target)) return;
    event.preventDefault();
    go(current + (event.key === "ArrowLeft" ? -1 : 1));
  });
  for (const id of ["state", "rule", "how", "differs"]) $(id).addEventListener("change", narrow);
  $("query").addEventListener("input", narrow);
  $("clear").addEventListener("click", () => { resetFilters(); narrow(); });
  $("expand").addEventListener("click", () => tree.setAll(1));
  $("collapse").addEventListener("click", () => tree.setAll(0));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
  const label = () => { $("theme").textContent = isDark() ? "Light" : "Dark"; };
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();
}

drawHead();
drawTimeline();
drawCost();
drawDifference();
listen();
$("why").append(element("p", { className: "hint" }, "Select a parameter to see why it is treated as it is."));
show(hashPhase());
