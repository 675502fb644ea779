// Cache Stats shows a wide picture: a node as narrow as its two inputs would make it unreadable.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const NODE = "SpectralCacheStats";
const SIZE = [480, 330];

app.registerExtension({
  name: "spectralcache.stats",
  nodeCreated(node) {
    if (node.comfyClass !== NODE) return;
    // A node that is being loaded gets its saved size after this, in configure().
    node.setSize([Math.max(node.size[0], SIZE[0]), Math.max(node.size[1], SIZE[1])]);
  },
});

// The Apply nodes' live text comes as ComfyUI's progress text, which knows a node's number and not its workflow: with
// another workflow or a subgraph in view, it is written on whatever node has that number there. So it is taken off again.
const APPLY = /^SpectralCache.*Apply$/;
const WORDS = /^\d+\/\d+ skipped|^nothing skipped|^stood down: /;

app.registerExtension({
  name: "spectralcache.live",
  setup() {
    const speaking = new Set(); // numbers of Apply nodes in the running prompt
    api.addEventListener("execution_start", () => speaking.clear());
    api.addEventListener("progress_text", ({ detail }) => {
      if (WORDS.test(detail.text)) speaking.add(detail.nodeId);
      if (!speaking.has(detail.nodeId)) return;
      const node = app.canvas?.graph?.getNodeById(String(detail.nodeId).split(":").at(-1));
      const at = node?.widgets?.findIndex((widget) => widget.type === "progressText") ?? -1;
      if (at < 0 || APPLY.test(node.comfyClass)) return;
      node.widgets[at].onRemove?.();
      node.widgets.splice(at, 1);
    });
  },
});
