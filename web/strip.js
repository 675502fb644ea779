// A run as a strip of cells, one an evaluation: what was computed, skipped or forced, by colour and by shape.
// Plain elements, so that it is the same on the canvas and as Nodes 2.0; colours lean towards the theme's text, so that
// they stand out on dark and on light.
import { details, look, summary } from "./run.js";
import { say } from "./words.js";

const MOST_CELLS = 168; // beyond it, a cell stands for several evaluations
const DENSE = 64; // from so many cells on they touch each other
const STYLE = `
.spectralcache-strip { --computed: color-mix(in srgb, #3d94d6 66%, var(--input-text, #ddd));
  --partial: color-mix(in srgb, #c65f9c 66%, var(--input-text, #ddd)); box-sizing: border-box; width: 100%; padding: 4px 10px; color: var(--input-text, #ddd);
  font: 12px/16px Inter, system-ui, sans-serif; user-select: none; overflow: hidden; }
.spectralcache-cells { display: flex; align-items: flex-end; gap: 2px; height: 24px; padding: 3px; border-radius: 4px;
  background: var(--comfy-input-bg, #2228); outline-offset: 1px; }
.spectralcache-cells:focus-visible { outline: 2px solid #3d94d6; }
.spectralcache-cells.dense { gap: 0; }
.spectralcache-cell { box-sizing: border-box; flex: 1 1 0; min-width: 0; max-width: 40px; height: 3px; opacity: .45;
  background: var(--descrip-text, #888); }
.spectralcache-cell[data-look] { opacity: 1; }
.spectralcache-cell[data-look="computed"], .spectralcache-cell[data-look="forced"] { height: 100%; background: var(--computed); }
.spectralcache-cell[data-look="forced"] { border-top: 5px solid var(--input-text, #ddd); }
.spectralcache-cell[data-look="skipped"] { height: 9px; background: none; border: 1.5px solid var(--descrip-text, #999); }
.spectralcache-cell[data-look="partial"] { height: 100%;
  background: repeating-linear-gradient(0deg, var(--partial) 0 3px, transparent 3px 5px); }
.spectralcache-cells.dense .spectralcache-cell[data-look="skipped"] { border-width: 1.5px 0; }
.spectralcache-cell.pointed { box-shadow: 0 0 0 1.5px var(--input-text, #ddd); z-index: 1; }
.spectralcache-line { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; height: 16px; margin-top: 4px; }
.spectralcache-line.next { margin-top: 0; opacity: .8; }
.spectralcache-fold { display: block; height: 20px; margin: 2px 0 0; padding: 0; border: 0; background: none; color: inherit;
  font: inherit; opacity: .75; cursor: pointer; }
.spectralcache-fold:hover, .spectralcache-fold:focus-visible { opacity: 1; text-decoration: underline; }
.spectralcache-fold[hidden], .lg-node .spectralcache-fold { display: none; }
.spectralcache-tip { position: fixed; z-index: 10000; max-width: 300px; padding: 6px 9px; border-radius: 6px;
  pointer-events: none; font: 12px/17px Inter, system-ui, sans-serif; color: var(--input-text, #ddd);
  background: var(--comfy-menu-bg, #222); border: 1px solid var(--border-color, #555); box-shadow: 0 2px 8px #0006; }
.spectralcache-tip div:first-child { font-weight: 600; }
.spectralcache-tip[hidden] { display: none; }
`;

let tip;

function shared() {
  if (tip?.isConnected) return;
  const style = document.createElement("style");
  style.textContent = STYLE;
  document.head.append(style);
  tip = made("div", "spectralcache-tip", document.body);
  tip.id = "spectralcache-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
}

function made(kind, name, parent) {
  const element = document.createElement(kind);
  element.className = name;
  parent?.append(element);
  return element;
}

export class Strip {
  /** `plans`: with a line for what the next run will do. */
  constructor(plans = false) {
    shared();
    this.plans = plans;
    this.run = null;
    this.steps = 0;
    this.pointed = -1;
    this.element = made("div", "spectralcache-strip");
    this.cells = made("div", "spectralcache-cells", this.element);
    this.line = made("div", "spectralcache-line", this.element);
    if (plans) this.next = made("div", "spectralcache-line next", this.element);
    this.cells.tabIndex = 0;
    this.cells.setAttribute("role", "img");
    this.cells.setAttribute("aria-describedby", tip.id);
    this.cells.addEventListener("pointermove", (event) => this.point(this.at(event.clientX)));
    this.cells.addEventListener("pointerleave", () => this.point(-1));
    this.cells.addEventListener("focus", () => this.cells.matches(":focus-visible") && this.point(0));
    this.cells.addEventListener("blur", () => this.point(-1));
    this.cells.addEventListener("keydown", (event) => this.turn(event));
    this.draw();
  }

  /** A button for the advanced inputs, where the page has none of its own: on the canvas. `isOf`: whether there are any. */
  addFold(turn, isOpen, isOf) {
    const button = made("button", "spectralcache-fold", this.element);
    const name = () => {
      const text = say(isOpen() ? "hide_advanced" : "show_advanced");
      if (button.textContent !== text) button.textContent = text;
      button.setAttribute("aria-expanded", String(Boolean(isOpen())));
      button.hidden = !isOf();
    };
    button.type = "button";
    button.addEventListener("click", () => (turn(), name()));
    this.named = name;
    this.folds = true;
    name();
  }

  /** Pixels that the strip needs on its node. */
  get height() {
    return 52 + (this.plans ? 16 : 0) + (this.folds ? 20 : 0);
  }

  /** How many steps the next run will have, and what it will do, where that is known. */
  plan(steps, text) {
    if (this.next) this.next.textContent = this.next.title = text;
    if (steps === this.steps) return;
    this.steps = steps;
    if (!this.run) this.draw();
  }

  /** A run, from its first evaluation on; null for none. */
  show(run) {
    this.run = run;
    this.draw();
  }

  /** The same run has gone on: only what is new is drawn. */
  update(from) {
    const count = this.run.evaluations.length;
    if (this.each !== this.share()) this.draw();
    else for (let cell = Math.floor(from / this.each); cell * this.each < count; cell += 1) this.paint(cell);
    this.write();
  }

  // drawing ------------------------------------------------------------------------------------------------------

  /** Evaluations that stand in one cell. */
  share() {
    return Math.ceil(Math.max(this.expected(), 1) / MOST_CELLS);
  }

  expected() {
    if (!this.run) return this.steps;
    const { evaluations, steps, state } = this.run;
    return state === "done" || state === "stood down" ? evaluations.length : Math.max(evaluations.length, steps);
  }

  draw() {
    this.each = this.share();
    this.point(-1);
    const count = Math.ceil(this.expected() / this.each);
    this.cells.replaceChildren(...Array.from({ length: count }, () => made("i", "spectralcache-cell")));
    this.cells.classList.toggle("dense", count > DENSE);
    if (this.run) for (let cell = 0; cell * this.each < this.run.evaluations.length; cell += 1) this.paint(cell);
    this.write();
  }

  paint(cell) {
    const element = this.cells.children[cell] ?? made("i", "spectralcache-cell", this.cells);
    const looks = this.group(cell).map((evaluation) => look(evaluation, this.run.steps));
    const most = ["forced", "partial", "computed", "skipped"].find((name) =>
      name === "forced" || name === "partial" ? looks.includes(name) : 2 * count(looks, name) >= looks.length,
    );
    element.dataset.look = most ?? "computed";
  }

  group(cell) {
    return this.run?.evaluations.slice(cell * this.each, (cell + 1) * this.each) ?? [];
  }

  write() {
    this.named?.();
    this.line.textContent = this.line.title = this.run ? summary(this.run) : say("no_run");
    this.cells.setAttribute("aria-label", this.line.textContent);
  }

  // pointing -----------------------------------------------------------------------------------------------------

  at(x) {
    const cells = [...this.cells.children];
    return cells.findLastIndex((cell) => cell.getBoundingClientRect().left <= x);
  }

  turn(event) {
    const last = this.cells.children.length - 1;
    const to = { ArrowLeft: this.pointed - 1, ArrowRight: this.pointed + 1, Home: 0, End: last }[event.key];
    if (to === undefined && event.key !== "Escape") return;
    event.preventDefault();
    event.stopPropagation();
    this.point(to === undefined ? -1 : Math.min(Math.max(to, 0), last));
  }

  point(cell) {
    const group = cell < 0 ? [] : this.group(cell);
    this.cells.children[this.pointed]?.classList.remove("pointed");
    this.pointed = group.length ? cell : -1;
    tip.hidden = !group.length;
    if (!group.length) return;
    const element = this.cells.children[cell];
    element.classList.add("pointed");
    const lines = group.length === 1 ? details(group[0], this.run.steps) : this.several(cell, group);
    tip.replaceChildren(...lines.map((text) => Object.assign(document.createElement("div"), { textContent: text })));
    const box = element.getBoundingClientRect();
    const left = Math.min(Math.max(box.left + box.width / 2 - tip.offsetWidth / 2, 4), innerWidth - tip.offsetWidth - 4);
    const above = this.cells.getBoundingClientRect().top - tip.offsetHeight - 8;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < 4 ? this.cells.getBoundingClientRect().bottom + 8 : above}px`;
  }

  several(cell, group) {
    const first = cell * this.each + 1;
    const skipped = count(group.map(([action]) => action), "skipped");
    return [say("cells", { first, last: first + group.length - 1 }), say("skipped_of", { skipped, done: group.length })];
  }
}

function count(list, wanted) {
  return list.filter((name) => name === wanted).length;
}
