// Who searches for another pack's cache, or for speed, finds SpectralCache Auto first: the page ranks what matches by the
// length of names, so the other nodes leave these words to it, and those that the page takes for them: in its search two
// letters of eight may differ, so that "seacache" answers to "teacache" as well. They are found by their own names, and
// Cache Method by "method" too.
import { app } from "../../scripts/app.js";

const AUTO = "SpectralCacheAutoApply";
const APPLY = /^SpectralCache.*Apply$/;
const LIKE = 0.3; // the share of letters that may differ
const NAMED = /.cache|cache.|taylorseer/; // another pack's name, not a plain word

/** In how many letters a word differs from the part of a text that is most like it. */
function differing(word, text) {
  const row = Array.from({ length: word.length + 1 }, (_, i) => i);
  let least = word.length;
  for (const letter of text) {
    let diagonal = 0;
    for (let i = 1; i <= word.length; i += 1) {
      const before = row[i];
      row[i] = Math.min(before + 1, row[i - 1] + 1, diagonal + (word[i - 1] === letter ? 0 : 1));
      diagonal = before;
    }
    least = Math.min(least, row[word.length]);
  }
  return least;
}

app.registerExtension({
  name: "spectralcache.search",
  addCustomNodeDefs(defs) {
    const auto = defs[AUTO];
    if (!auto?.search_aliases) return;
    const taken = auto.search_aliases;
    const names = taken.filter((word) => NAMED.test(word));
    const isTaken = (word) =>
      taken.includes(word) || names.some((name) => differing(name, word.toLowerCase()) <= LIKE * name.length);
    const left = new Set();
    for (const [id, def] of Object.entries(defs)) {
      if (id === AUTO || !APPLY.test(id)) continue;
      for (const word of def.search_aliases?.filter(isTaken) ?? []) left.add(word);
      def.search_aliases = def.search_aliases?.filter((word) => !isTaken(word));
    }
    auto.search_aliases = [...new Set([...taken, ...left])];
  },
});
