// Where the last run of a node is kept: in the graph itself, so that it is saved with the workflow, and in the browser,
// so that it is there after a reload. `config` is the place of a graph that is saved and is no change to it: a run must
// not make a workflow "unsaved", nor be a step of undo.
import { app } from "../../scripts/app.js";

const KEY = "spectralcache";
const MOST_GRAPHS = 24;
const MOST_EVALUATIONS = 600;

/** A node's number over the whole workflow: subgraphs number their nodes for themselves. */
function place(node) {
  const graph = node.graph;
  return !graph || graph === app.rootGraph ? String(node.id) : `${graph.id}:${node.id}`;
}

function stored() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

/** The newest run that is known of a node, or null. */
export function recall(node) {
  const graph = app.rootGraph;
  const saved = graph?.config?.[KEY]?.[place(node)];
  const local = stored()[graph?.id]?.[place(node)];
  if (!saved || !local) return saved ?? local ?? null;
  return local.when > saved.when ? local : saved;
}

/** Keeps a finished run; `workflow` is its graph's id, which may be out of view by now. */
export function remember(workflow, where, run) {
  const kept = { ...run, evaluations: run.evaluations.slice(0, MOST_EVALUATIONS) };
  const graph = app.rootGraph;
  if (graph && (!workflow || workflow === graph.id)) {
    graph.config = { ...graph.config, [KEY]: { ...graph.config?.[KEY], [where]: kept } };
  }
  const id = workflow ?? graph?.id;
  const { [id]: runs = {}, ...others } = stored();
  const newest = Object.entries(others).slice(1 - MOST_GRAPHS);
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...Object.fromEntries(newest), [id]: { ...runs, [where]: kept } }));
  } catch {
    localStorage.removeItem(KEY); // full: the graph still has it
  }
}

export { place };
