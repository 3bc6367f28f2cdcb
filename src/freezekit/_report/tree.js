/* The tree of modules and parameters. Only the lines in view are in the document. */

const OVERSCAN = 30;
const PRINTED = 2000;

class Tree {
  /** `onSelect(node)` is called where a node is chosen. */
  constructor(root, onSelect) {
    this.root = root;
    this.onSelect = onSelect;
    this.open = new Uint8Array(M);
    this.shown = null;
    this.kept = null;
    this.active = 0;
    this.selected = -1;
    this.lines = new Map();
    this.all = false;
    this.space = document.createElement("div");
    this.space.className = "space";
    this.space.setAttribute("role", "presentation");
    root.append(this.space);
    root.addEventListener("scroll", () => requestAnimationFrame(() => this.draw()), { passive: true });
    root.addEventListener("keydown", (event) => this.press(event));
    root.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.draw()).observe(root);
    addEventListener("beforeprint", () => { this.all = true; this.draw(); });
    addEventListener("afterprint", () => { this.all = false; this.draw(); });
    this.openFew();
  }

  /** Opens the levels that fit on a screen, at least one. */
  openFew() {
    for (let depth = 0, lines = 1; depth < 6; depth++) {
      let more = 0;
      for (let m = 0; m < M; m++) if (depths[m] === depth) more += starts[m + 1] - starts[m];
      if (depth && lines + more > 40) return;
      for (let m = 0; m < M; m++) if (depths[m] === depth) this.open[m] = 1;
      lines += more;
    }
  }

  /** Shows a phase, and only the nodes that a filter lets through; null: all. A fresh filter opens
      all that it lets through, else only what was not there before. */
  show(view, shown, fresh) {
    this.view = view;
    if (shown && fresh) {
      if (!this.kept) this.kept = this.open.slice();
      this.open = shown.slice(0, M);
    } else if (shown) {
      for (let m = 0; m < M; m++) if (shown[m] && !this.shown[m]) this.open[m] = 1;
    } else if (!shown && this.kept) {
      this.open = this.kept;
      this.kept = null;
    }
    this.shown = shown;
    this.list();
  }

  setAll(value) {
    this.open.fill(value);
    this.open[0] = 1;
    this.list();
  }

  below(module) {
    const found = children.subarray(starts[module], starts[module + 1]);
    return this.shown ? found.filter((node) => this.shown[node]) : found;
  }

  /** The height of a line, which depends on the width of the window. */
  height() {
    return parseFloat(getComputedStyle(this.root).getPropertyValue("--line")) || 28;
  }

  /** Finds the visible nodes, in order, with the place of each among its siblings. */
  list() {
    this.visible = [];
    this.places = [];
    if (!this.shown || this.shown[0]) {
      const waiting = [[0, 1, 1]];
      while (waiting.length) {
        const [node, place, size] = waiting.pop();
        this.visible.push(node);
        this.places.push([place, size]);
        if (!isModule(node) || !this.open[node]) continue;
        const found = this.below(node);
        for (let at = found.length - 1; at >= 0; at--) waiting.push([found[at], at + 1, found.length]);
      }
    }
    this.index = new Map(this.visible.map((node, at) => [node, at]));
    while (this.visible.length && !this.index.has(this.active) && this.active > 0)
      this.active = parents[this.active];
    this.draw(true);
  }

  /** Puts the lines in view into the document; `refresh` writes those there anew. */
  draw(refresh = false) {
    if (!this.visible) return;
    const height = this.height();
    this.space.style.height = `${this.visible.length * height}px`;
    let first = Math.max(0, Math.floor(this.root.scrollTop / height) - OVERSCAN);
    let end = Math.min(this.visible.length, Math.ceil((this.root.scrollTop + this.root.clientHeight) / height) + OVERSCAN);
    if (this.all) [first, end] = [0, Math.min(this.visible.length, PRINTED)];
    const wanted = [];
    for (let at = first; at < end; at++) wanted.push(at);
    const active = this.index.get(this.active);
    if (active !== undefined && active < first) wanted.unshift(active);
    if (active !== undefined && active >= end) wanted.push(active);
    const nodes = new Set(wanted.map((at) => this.visible[at]));
    for (const [node, line] of this.lines)
      if (!nodes.has(node)) { line.remove(); this.lines.delete(node); }
    let before = this.space.firstChild;
    for (const at of wanted) {
      const node = this.visible[at];
      let line = this.lines.get(node);
      if (!line) {
        line = document.createElement("div");
        line.node = node;
        this.lines.set(node, line);
        this.fill(line, at);
      } else if (refresh) this.fill(line, at);
      line.style.top = `${at * height}px`;
      line.tabIndex = node === this.active ? 0 : -1;
      line.setAttribute("aria-selected", String(node === this.selected));
      if (line === before) before = before.nextSibling;
      else this.space.insertBefore(line, before);
    }
    this.space.dataset.rest = this.all && end < this.visible.length ? `and ${counted(this.visible.length - end)} more lines` : "";
  }

  fill(line, at) {
    const { node } = line;
    const module = isModule(node);
    const state = STATES[this.view.state[node]];
    const [place, size] = this.places[at];
    line.className = `row ${module ? "module" : "leaf"}`;
    line.setAttribute("role", "treeitem");
    line.removeAttribute("aria-expanded");
    line.setAttribute("aria-level", depths[node] + 1);
    line.setAttribute("aria-posinset", place);
    line.setAttribute("aria-setsize", size);
    if (module && this.below(node).length) line.setAttribute("aria-expanded", String(this.open[node] === 1));
    const differs = !module && differing(this.view.phase)[rowOf(node)];
    const name = element("span", { className: "name" }, element("span", { className: "twisty" }), element("bdi", {}, nameOf(node)));
    line.style.setProperty("--depth", depths[node]);
    name.title = pathOf(node) || nameOf(node);
    if (differs) name.append(element("span", { className: "mark", role: "img", ariaLabel: "differs from the other plan" }, " ≠"));
    line.replaceChildren(
      name,
      element("span", { className: "class", title: this.kind(node) }, this.kind(node)),
      element("span", { className: "count" }, isAlias(node) ? "" : counted(numel[node])),
      element("span", { className: "live" }, isAlias(node) ? "" : counted(this.view.live[node])),
      element("span", { className: `state ${state}` }, state === "none" ? "-" : state),
      element("span", { className: "mode" }, module ? this.view.mode(node) : ""),
      element("span", { className: "rate", title: this.view.rate(node) }, this.view.rate(node)),
    );
  }

  /** Class of a module; shape and dtype of a parameter; whose further name it is. */
  kind(node) {
    if (isModule(node)) return classOf(node);
    const row = rowOf(node);
    if (isAlias(node)) return `tied to ${pathOf(M + row)}`;
    const shape = shapeOf(row);
    const also = namesOf.has(row) ? `, tied: also ${namesOf.get(row).map(pathOf).join(", ")}` : "";
    return `${shape ? `[${shape.join(", ")}]` : "lazy"} ${texts[parameters.dtypes[row]]}${also}`;
  }

  /** Makes a node the one that Tab reaches, in view and in focus. */
  focus(node) {
    this.active = node;
    const height = this.height();
    const top = this.index.get(node) * height;
    if (top < this.root.scrollTop) this.root.scrollTop = top;
    else if (top + height > this.root.scrollTop + this.root.clientHeight)
      this.root.scrollTop = top + height - this.root.clientHeight;
    this.draw();
    this.lines.get(node).focus({ preventScroll: true });
  }

  toggle(node) {
    this.open[node] = 1 - this.open[node];
    this.list();
    this.focus(node);
  }

  select(node) {
    this.selected = node;
    this.draw();
    this.onSelect(node);
  }

  click(event) {
    const line = event.target.closest(".row");
    if (!line) return;
    const { node } = line;
    this.focus(node);
    if (isModule(node) && event.target.closest(".name")) this.toggle(node);
    this.select(node);
  }

  press(event) {
    if (event.altKey || event.ctrlKey || event.metaKey || !this.visible.length) return;
    const { active } = this;
    const at = this.index.get(active);
    const folder = isModule(active) && starts[active] < starts[active + 1];
    const page = Math.max(1, Math.floor(this.root.clientHeight / this.height()) - 1);
    const last = this.visible.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last, PageDown: at + page, PageUp: at - page }[event.key];
    if (to !== undefined) this.focus(this.visible[Math.min(Math.max(to, 0), last)]);
    else if (event.key === "ArrowRight" && folder) {
      if (!this.open[active]) this.toggle(active);
      else if (at < last && depths[this.visible[at + 1]] > depths[active]) this.focus(this.visible[at + 1]);
    } else if (event.key === "ArrowLeft") {
      if (folder && this.open[active]) this.toggle(active);
      else if (active > 0) this.focus(parents[active]);
    } else if (event.key === "Enter" || event.key === " ") {
      if (event.key === "Enter" && folder) this.toggle(active);
      this.select(active);
    } else if (event.key !== "ArrowRight") return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/** An element with properties and children; text stays text. */
function element(tag, properties, ...content) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
}
