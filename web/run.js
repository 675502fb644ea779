// One run as the page keeps it: {run, when, method, state, steps, done, skipped, partial, faster, estimate, notes,
// evaluations}, an evaluation being [action, step, stage, sigma, reason, {score: [value, limit]}] (nodes/live.py).
import { note, say, term } from "./words.js";

/** A run from a trace, version 1, as Cache Stats gives it. */
export function fromTrace(trace) {
  const evaluations = trace.evaluations.map((e) => {
    const names = [...new Set([...Object.keys(e.scores), ...Object.keys(e.limits)])];
    const scores = Object.fromEntries(names.map((name) => [name, [e.scores[name] ?? null, e.limits[name] ?? null]]));
    return [e.action, e.step, e.stage, e.sigma, e.reason, scores];
  });
  const estimates = trace.evaluations.filter((e) => e.action !== "computed" && !e.derived).map((e) => e.scores.estimate);
  const known = estimates.filter((value) => Number.isFinite(value));
  return {
    method: trace.method,
    state: trace.state,
    steps: trace.steps,
    done: evaluations.length,
    skipped: trace.skipped,
    partial: trace.partial,
    faster: trace.speedup.wall ?? trace.speedup.evaluations ?? 1,
    estimate: known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null,
    notes: trace.notes,
    evaluations,
  };
}

/** How an evaluation is drawn: computed, skipped, partial or forced (the first and the last step). */
export function look(evaluation, steps) {
  const [action, step] = evaluation;
  return action === "computed" && (step === 0 || step === steps - 1) ? "forced" : action;
}

/** The run in one line. */
export function summary(run) {
  const parts = [];
  if (run.skipped + run.partial || run.state === "sampling") {
    parts.push(say("skipped_of", { skipped: run.skipped, done: run.done }));
    if (run.partial) parts.push(say("in_part", { partial: run.partial }));
    if (run.skipped + run.partial) parts.push(say("faster", { faster: (run.faster ?? 1).toFixed(1) }));
    if (run.estimate !== null) parts.push(say("estimate", { percent: (100 * run.estimate).toFixed(1) }));
  }
  if (run.state === "stood down") parts.push(say("stood_down", { why: note(run.notes.at(-1) ?? "") }));
  else if (run.state === "done" && !parts.length) parts.push(nothingSkipped(run));
  else if (run.state !== "done" && run.state !== "sampling") parts.push(term("states", run.state));
  return parts.join(" · ");
}

function nothingSkipped(run) {
  const counts = {};
  for (const [, , , , reason] of run.evaluations) {
    if (reason !== "first step" && reason !== "last step") counts[reason] = (counts[reason] ?? 0) + 1;
  }
  const [commonest] = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  return commonest ? say("nothing_skipped_why", { why: term("reasons", commonest[0]) }) : say("nothing_skipped");
}

const figures = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));

/** What a cell says when it is pointed at: lines, the first one the heading. */
export function details(evaluation, steps) {
  const [action, step, stage, sigma, reason, scores] = evaluation;
  const lines = [
    say("cell", { step: stage ? `${step + 1}.${stage}` : step + 1, action: term("actions", look(evaluation, steps)) }),
    say("sigma", { sigma: figures(sigma) }),
  ];
  for (const [name, [score, limit]] of Object.entries(scores)) {
    const values = { name: term("scores", name), score: figures(score), limit: figures(limit) };
    if (score !== null) lines.push(say(limit === null ? "score" : "score_limit", values));
    else if (limit !== null) lines.push(say("limit", values));
  }
  return [...lines, term("reasons", reason)];
}
