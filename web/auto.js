// SpectralCache Auto is one dial: with a word, the number does not count and is drawn faint; whoever turns the number
// means the number. What the dial means for this graph's steps is on the node before the run.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { everyNode, stripOf } from "./live.js";
import { say } from "./words.js";

const AUTO = "SpectralCacheAutoApply";
const CUSTOM = "Custom";
const OFF = [2, 4]; // a node's mode: muted, bypassed
const FAINT = 0.4;
// the row of speedup: the first one, or, in newer pages, the one of that name
const CSS = `.lg-node-widgets:has(.spectralcache-strip[data-word]) :is(.lg-node-widgets > .lg-node-widget:first-child,
  .lg-node-widget[data-widget-name="speedup"]) { opacity: ${FAINT}; }`;

const named = (node, name) => node.widgets?.find((widget) => widget.name === name);

// the dial -----------------------------------------------------------------------------------------------------------

function makeDial(node) {
  const [speedup, quality] = [named(node, "speedup"), named(node, "quality")];
  if (!speedup || !quality) return;
  const turned = speedup.callback; // not called when a saved graph is loaded
  speedup.callback = function (...args) {
    const answer = turned?.apply(this, args);
    if (quality.value !== CUSTOM) quality.value = CUSTOM;
    refresh(node);
    return answer;
  };
  for (const widget of node.widgets) if (widget !== speedup) afterwards(widget, "callback", () => refresh(node));
  afterwards(node, "onConnectionsChange", () => refresh(node));
  const draw = speedup.drawWidget; // on the canvas; as an element, CSS does it
  if (!draw) return;
  speedup.drawWidget = function (context, options) {
    const alpha = context.globalAlpha;
    if (quality.value !== CUSTOM) context.globalAlpha = alpha * FAINT;
    draw.call(this, context, options);
    context.globalAlpha = alpha;
  };
}

function afterwards(object, method, then) {
  const before = object[method];
  object[method] = function (...args) {
    const answer = before?.apply(this, args);
    then();
    return answer;
  };
}

// the plan -----------------------------------------------------------------------------------------------------------

/** Every node that gets this node's model, through other nodes that pass a model on. */
function* followers(node, seen = new Set()) {
  for (const output of node.outputs ?? []) {
    if (output.type !== "MODEL" && output.type !== "GUIDER" && output.type !== "*") continue;
    for (const id of output.links ?? []) {
      const link = node.graph?.links?.get?.(id) ?? node.graph?.links?.[id];
      const next = link && node.graph.getNodeById(link.target_id);
      if (!next || seen.has(next)) continue;
      seen.add(next);
      if (!OFF.includes(next.mode)) yield next;
      yield* followers(next, seen);
    }
  }
}

/** What a number is, its own widget or the primitive that it is linked to; null where only the run can tell. */
function number(node, name) {
  const slot = node.inputs?.findIndex((input) => input.name === name) ?? -1;
  const source = slot < 0 ? null : node.getInputNode?.(slot);
  const value = Number((source ? source.widgets?.[0] : named(node, name))?.value);
  return Number.isFinite(value) ? value : null;
}

/** The steps that a node samples, or null. */
function stepsOf(node) {
  if (named(node, "steps")) {
    const steps = number(node, "steps");
    if (steps === null || !named(node, "start_at_step")) return steps;
    return Math.max(Math.min(number(node, "end_at_step") ?? steps, steps) - (number(node, "start_at_step") ?? 0), 0);
  }
  const slot = node.inputs?.findIndex((input) => input.type === "SIGMAS") ?? -1;
  const source = slot < 0 ? null : node.getInputNode?.(slot);
  return source ? stepsOf(source) : null;
}

const answers = new Map();

async function computed(values) {
  const query = new URLSearchParams(values).toString();
  if (!answers.has(query)) {
    const answer = await api.fetchApi(`/spectralcache/plan?${query}`);
    if (!answer.ok) return null; // not kept: it is asked again
    answers.set(query, (await answer.json()).computed);
  }
  return answers.get(query);
}

async function plan(node) {
  const values = Object.fromEntries(
    node.widgets.filter((widget) => widget.serialize !== false).map((widget) => [widget.name, widget.value]),
  );
  const all = [...new Set([...followers(node)].map(stepsOf).filter((steps) => steps))];
  const lines = [];
  for (const steps of all) {
    const count = await computed({ ...values, steps });
    if (count) lines.push(say(count < steps ? "plan" : "plan_all", { computed: count, steps }));
  }
  return [all[0] ?? 0, lines.join(", ")];
}

const asked = new WeakMap(); // node -> its newest question, since answers may come in another order

async function refresh(node) {
  const strip = stripOf(node);
  if (!strip || !node.graph) return;
  const question = {};
  asked.set(node, question);
  strip.element.toggleAttribute("data-word", named(node, "quality")?.value !== CUSTOM);
  const [steps, text] = await plan(node);
  if (asked.get(node) === question) strip.plan(steps, text ? say("next_run", { plan: text }) : say("no_sampler"));
}

let due = 0;

function refreshAll() {
  clearTimeout(due);
  due = setTimeout(() => {
    for (const node of everyNode()) if (node.comfyClass === AUTO) refresh(node);
  }, 50);
}

app.registerExtension({
  name: "spectralcache.auto",
  setup() {
    document.head.append(Object.assign(document.createElement("style"), { textContent: CSS }));
    api.addEventListener("graphChanged", refreshAll);
  },
  nodeCreated(node) {
    if (node.comfyClass !== AUTO) return;
    makeDial(node);
    refreshAll();
  },
  afterConfigureGraph: refreshAll,
});
