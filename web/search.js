// Who searches for another pack's cache, or for speed, finds SpectralCache Auto first: the page ranks what matches by the
// length of names, so the other nodes leave these words to it. They are found by their own names.
import { app } from "../../scripts/app.js";

const AUTO = "SpectralCacheAutoApply";
const APPLY = /^SpectralCache.*Apply$/;

app.registerExtension({
  name: "spectralcache.search",
  addCustomNodeDefs(defs) {
    const taken = new Set(defs[AUTO]?.search_aliases ?? []);
    for (const [id, def] of Object.entries(defs)) {
      if (id !== AUTO && APPLY.test(id)) def.search_aliases = def.search_aliases?.filter((word) => !taken.has(word));
    }
  },
});
