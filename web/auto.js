// SpectralCache Auto: the number counts only with quality Custom, so whoever turns it means that.
import { app } from "../../scripts/app.js";

app.registerExtension({
  name: "spectralcache.auto",
  nodeCreated(node) {
    if (node.comfyClass !== "SpectralCacheAutoApply") return;
    const named = (name) => node.widgets?.find((widget) => widget.name === name);
    const speedup = named("speedup");
    const quality = named("quality");
    if (!speedup || !quality) return;
    const turned = speedup.callback; // not called when a saved graph is loaded
    speedup.callback = function (...args) {
      const answer = turned?.apply(this, args);
      if (quality.value !== "Custom") quality.value = "Custom";
      return answer;
    };
  },
});
