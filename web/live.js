// The live strip on the Apply nodes and on Cache Stats. nodes/live.py sends what happens; the host sends a node's output.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { place, recall, remember } from "./memory.js";
import { fromTrace } from "./run.js";
import { Strip } from "./strip.js";
import { ready } from "./words.js";

const APPLY = /^SpectralCache.*Apply$/;
const PLANS = "SpectralCacheAutoApply"; // knows before the run how many steps it will compute
const STATS = "SpectralCacheStats";
const STATS_SIZE = [480, 360]; // its wide picture would be unreadable on a node as narrow as its two inputs
const WIDGET = "spectralcache_strip";
const strips = new WeakMap();
const present = new WeakSet(); // nodes that the page has been told of

/** The strip of a node of ours, or undefined. */
export function stripOf(node) {
  return strips.get(node);
}

function addStrip(node) {
  const strip = new Strip(node.comfyClass === PLANS);
  const widget = node.addDOMWidget(WIDGET, WIDGET, strip.element, {
    serialize: false,
    hideOnZoom: false,
    margin: 0,
    getMinHeight: () => strip.height,
    getMaxHeight: () => strip.height,
  });
  widget.serialize = false; // it is no value: saved graphs keep their order of values
  strips.set(node, strip);
  const added = node.onAdded;
  node.onAdded = function (...args) {
    present.add(this);
    return added?.apply(this, args);
  };
  strip.element.addEventListener("wheel", zoom);
  return strip;
}

/** On the canvas an element would stop the wheel from zooming; Nodes 2.0 see to it themselves. */
export function zoom(event) {
  if (!event.currentTarget.closest(".lg-node")) app.canvas?.processMouseWheel?.(event);
}

/** Every node of the workflow, in subgraphs too. */
export function everyNode() {
  const root = app.rootGraph ?? app.graph;
  return [root, ...(root?.subgraphs?.values() ?? [])].flatMap((graph) => graph?.nodes ?? []);
}

/** A node that replaces a missing one is put in its place without being added: its elements would stay out of sight. */
function adopt() {
  for (const node of everyNode()) if (strips.has(node) && !present.has(node)) node.onAdded?.(node.graph);
}

/** As Nodes 2.0 do by themselves: what few people need is folded away on the canvas too. */
function fold(node, strip) {
  const advanced = () => node.widgets.filter((widget) => widget.options?.advanced);
  const choice = node.widgets.some((widget) => widget.name.includes(".")); // brings other inputs with each option
  if (!choice && !advanced().length) return;
  const size = node.computeSize;
  node.computeSize = function (...args) {
    for (const widget of advanced()) widget.hidden = !node.showAdvanced;
    strip.named?.();
    const least = size.apply(this, args);
    if (LiteGraph.vueNodesMode) for (const widget of advanced()) widget.hidden = false; // Nodes 2.0 fold by themselves
    return least;
  };
  const show = (height = node.size[1]) => {
    node.setSize([node.size[0], Math.max(node.computeSize()[1], height)]);
    node.setDirtyCanvas(true, true);
  };
  strip.addFold(
    () => {
      node.showAdvanced = !node.showAdvanced;
      show(0);
    },
    () => node.showAdvanced,
    () => advanced().length > 0,
  );
  const configured = node.onConfigure;
  node.onConfigure = function (...args) {
    const answer = configured?.apply(this, args);
    show();
    return answer;
  };
  show();
}

/** The node that a number of the running prompt means, "7:4" being node 4 in the subgraph of node 7. */
function nodeOf(number) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(number).split(":")) {
    node = graph?.getNodeById(part) ?? graph?.getNodeById(Number(part)) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

/** Every Cache Stats whose model comes straight from this node. */
function watchers(node) {
  return (node.graph?.nodes ?? []).filter((other) => other.comfyClass === STATS && other.getInputNode?.(0) === node);
}

const running = new Map(); // run -> what is known of it

function told({ node: number, workflow, run: name, first, evaluations, ...figures }) {
  const known = running.get(name);
  const run = known ?? { evaluations: [] };
  const from = known && first <= run.evaluations.length ? first : 0;
  run.evaluations.splice(first, run.evaluations.length, ...evaluations);
  Object.assign(run, figures, { when: Date.now() });
  running.set(name, run);
  const ended = run.state !== "sampling";
  if (ended) running.delete(name);
  const here = !workflow || workflow === app.rootGraph?.id;
  const node = here ? nodeOf(number) : null;
  if (node && strips.has(node)) {
    for (const shown of [node, ...watchers(node)]) {
      const strip = strips.get(shown);
      if (strip.run !== run || ended) strip.show(run);
      else strip.update(from);
      if (ended) remember(workflow, place(shown), run);
    }
  } else if (ended && !here) remember(workflow, String(number), run);
}

app.registerExtension({
  name: "spectralcache.live",
  async setup() {
    await ready;
    api.addEventListener("spectralcache.run", ({ detail }) => told(detail));
    api.addEventListener("execution_start", () => running.clear());
    api.addEventListener("graphChanged", adopt);
  },
  nodeCreated(node) {
    if (!APPLY.test(node.comfyClass) && node.comfyClass !== STATS) return;
    fold(node, addStrip(node));
    const least = node.comfyClass === STATS ? STATS_SIZE : node.computeSize();
    // A node that is being loaded gets its saved size after this, in configure().
    node.setSize([Math.max(node.size[0], least[0]), Math.max(node.size[1], least[1])]);
    if (node.comfyClass !== STATS) return;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.call(this, output);
      const trace = JSON.parse(output?.trace?.[0] ?? "null");
      if (!trace) return;
      const run = trace.evaluations.length ? { ...fromTrace(trace), when: Date.now() } : null;
      strips.get(this)?.show(run);
      if (!run) return;
      remember(null, place(this), run);
      const source = strips.get(this.getInputNode?.(0)); // sampled before this page was open: the host had it still
      if (source && !source.run) {
        source.show(run);
        remember(null, place(this.getInputNode(0)), run);
      }
    };
  },
  afterConfigureGraph() {
    for (const node of everyNode()) strips.get(node)?.show(recall(node));
  },
});
