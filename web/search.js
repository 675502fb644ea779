// Who searches for another pack's cache, or for speed, finds SpectralCache Auto before our other nodes that answer to the
// same word: the page ranks these by how much longer their names are than the word, and Auto is let off its longer name.
import { app } from "../../scripts/app.js";

const NAME = 0.1; // lower is better; among our nodes, length makes less of a difference than this

app.registerExtension({
  name: "spectralcache.search",
  addCustomNodeDefs(defs) {
    const auto = defs.SpectralCacheAutoApply;
    if (!auto) return;
    auto.postProcessSearchScores = function (scores) {
      const ranked = [...Object.getPrototypeOf(this).postProcessSearchScores.call(this, scores)];
      ranked[ranked.length - 1] -= NAME;
      return ranked;
    };
  },
});
