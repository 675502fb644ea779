// Cache Stats shows a wide picture: a node as narrow as its two inputs would make it unreadable.
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
