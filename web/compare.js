// Cache Compare: the full picture over the cached one, with an edge to move. Plain elements: the same on the canvas and
// as Nodes 2.0.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { zoom } from "./live.js";
import { ready, say } from "./words.js";

const NODE = "SpectralCacheCompare";
const WIDGET = "spectralcache_compare";
const SIZE = [420, 470];
const LEAST = 220;
const STYLE = `
.spectralcache-compare { box-sizing: border-box; display: flex; flex-direction: column; gap: 4px; width: 100%; height: 100%;
  min-height: ${LEAST}px; padding: 4px 10px; color: var(--input-text, #ddd); font: 12px/16px Inter, system-ui, sans-serif; }
.spectralcache-view { position: relative; flex: 1 1 0; min-height: 0; border-radius: 4px; overflow: hidden; cursor: ew-resize;
  background: var(--comfy-input-bg, #2228); touch-action: none; user-select: none; }
.spectralcache-view:focus-visible { outline: 2px solid #3d94d6; outline-offset: -2px; }
.spectralcache-frame { position: absolute; inset: 0; margin: auto; }
.spectralcache-frame img { position: absolute; inset: 0; width: 100%; height: 100%; }
.spectralcache-edge { position: absolute; top: 0; bottom: 0; width: 0; border-left: 2px solid #fff; box-shadow: 0 0 3px #000; }
.spectralcache-edge::after { content: "◂▸"; position: absolute; top: 50%; left: -1px; transform: translate(-50%, -50%);
  padding: 2px 4px; border-radius: 9px; background: #fff; color: #111; font: 10px/12px system-ui, sans-serif; white-space: nowrap; }
.spectralcache-name { position: absolute; top: 6px; padding: 1px 6px; border-radius: 4px; background: #000a; color: #fff; }
.spectralcache-name.full { left: 6px; } .spectralcache-name.cached { right: 6px; }
.spectralcache-empty { position: absolute; inset: 0; display: grid; place-items: center; padding: 12px; text-align: center;
  color: var(--descrip-text, #999); cursor: default; }
.spectralcache-bar { display: flex; align-items: center; gap: 6px; min-height: 22px; }
.spectralcache-bar button { padding: 2px 8px; border: 1px solid var(--border-color, #555); border-radius: 4px; cursor: pointer;
  background: var(--comfy-input-bg, #222); color: inherit; font: inherit; }
.spectralcache-bar button[aria-pressed="true"] { background: #3d94d6; border-color: #3d94d6; color: #fff; }
.spectralcache-bar .which { flex: 1; text-align: center; }
.spectralcache-report { max-height: 64px; overflow: auto; white-space: pre-wrap; user-select: text; cursor: text; }
.spectralcache-compare [hidden] { display: none; }
`;

function made(kind, name, parent, text = "") {
  const element = Object.assign(document.createElement(kind), { className: name, textContent: text });
  parent?.append(element);
  return element;
}

const address = (file) => api.apiURL(`/view?${new URLSearchParams(file)}`);

class Slider {
  constructor() {
    if (!document.getElementById(WIDGET)) {
      document.head.append(Object.assign(document.createElement("style"), { id: WIDGET, textContent: STYLE }));
    }
    this.pictures = null;
    this.which = 0;
    this.place = 50;
    this.element = made("div", "spectralcache-compare");
    this.view = made("div", "spectralcache-view", this.element);
    this.frame = made("div", "spectralcache-frame", this.view);
    this.cached = made("img", "", this.frame);
    this.full = made("img", "", this.frame);
    this.heat = made("img", "", this.frame);
    this.edge = made("div", "spectralcache-edge", this.frame);
    this.names = ["full", "cached"].map((name) => made("div", `spectralcache-name ${name}`, this.frame));
    this.empty = made("div", "spectralcache-empty", this.view);
    this.bar = made("div", "spectralcache-bar", this.element);
    this.mapButton = this.button(() => this.toggleMap());
    this.label = made("span", "which", this.bar);
    this.steps = [this.button(() => this.turn(-1), "‹"), this.button(() => this.turn(1), "›")];
    this.report = made("div", "spectralcache-report", this.element);
    this.view.tabIndex = 0;
    this.view.setAttribute("role", "slider");
    for (const image of [this.full, this.cached, this.heat]) image.draggable = false;
    this.full.addEventListener("load", () => this.fit());
    this.view.addEventListener("pointermove", (event) => this.follow(event));
    this.view.addEventListener("pointerdown", (event) => this.follow(event));
    this.view.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.fit()).observe(this.view);
    this.show(null);
  }

  button(then, text = "") {
    const button = made("button", "", this.bar, text);
    button.type = "button";
    button.addEventListener("click", then);
    return button;
  }

  /** {full, cached, difference: [file], report: [text]} as the node sends it; null for none. */
  show(output) {
    this.pictures = output?.full?.length ? output : null;
    this.which = 0;
    this.heat.hidden = true;
    this.report.textContent = output?.report?.[0] ?? "";
    this.draw();
  }

  draw() {
    const count = this.pictures?.full.length ?? 0;
    this.names[0].textContent = say("full");
    this.names[1].textContent = say("cached");
    this.mapButton.textContent = say("heat_map");
    this.empty.textContent = say("nothing_to_compare");
    this.label.textContent = count > 1 ? say("picture_of", { which: this.which + 1, count }) : "";
    this.empty.hidden = count > 0;
    this.frame.hidden = this.bar.hidden = this.report.hidden = !count;
    for (const button of this.steps) button.hidden = count < 2;
    if (count) {
      for (const [name, image] of Object.entries({ full: this.full, cached: this.cached, difference: this.heat })) {
        image.src = address(this.pictures[name][this.which]);
        image.alt = say(name === "difference" ? "heat_map" : name);
      }
    }
    for (const name of this.names) name.hidden = !count || !this.heat.hidden;
    this.edge.hidden = !this.heat.hidden;
    this.mapButton.setAttribute("aria-pressed", String(!this.heat.hidden));
    this.view.setAttribute("aria-label", say("slider"));
    this.move(this.place);
    this.fit();
  }

  /** The pictures as large as fits, in their own proportions; out of sight until these are known. */
  fit() {
    const { naturalWidth: width, naturalHeight: height } = this.full;
    const { clientWidth, clientHeight } = this.view; // before any scaling of the canvas
    const known = width > 0 && clientWidth > 0;
    this.frame.style.visibility = known ? "visible" : "hidden";
    if (!known) return;
    const scale = Math.min(clientWidth / width, clientHeight / height);
    Object.assign(this.frame.style, { width: `${width * scale}px`, height: `${height * scale}px` });
  }

  move(place) {
    this.place = Math.min(Math.max(place, 0), 100);
    this.full.style.clipPath = `inset(0 ${100 - this.place}% 0 0)`;
    this.edge.style.left = `${this.place}%`;
    this.view.setAttribute("aria-valuenow", String(Math.round(this.place)));
  }

  follow(event) {
    const box = this.frame.getBoundingClientRect();
    if (this.pictures && box.width) this.move((100 * (event.clientX - box.left)) / box.width);
  }

  key(event) {
    const to = { ArrowLeft: this.place - 2, ArrowRight: this.place + 2, Home: 0, End: 100 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.move(to);
  }

  turn(by) {
    const count = this.pictures.full.length;
    this.which = (this.which + by + count) % count;
    this.draw();
  }

  toggleMap() {
    this.heat.hidden = !this.heat.hidden;
    this.draw();
  }
}

app.registerExtension({
  name: "spectralcache.compare",
  setup: () => ready,
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    const slider = new Slider();
    const widget = node.addDOMWidget(WIDGET, WIDGET, slider.element, {
      serialize: false,
      hideOnZoom: false,
      margin: 0,
      getMinHeight: () => LEAST,
    });
    widget.serialize = false;
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      slider.show(output);
    };
    slider.element.addEventListener("wheel", (event) => {
      if (!slider.report.contains(event.target)) zoom(event);
    });
  },
});
