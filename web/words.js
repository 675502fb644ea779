// What we write on the page, in the page's language: the host serves `locales/<language>/main.json` of every pack.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const PART = "spectralcache";
let languages = {};

/** Fetched once; extensions wait for it in their `setup`. */
export const ready = (async () => {
  try {
    const answer = await api.fetchApi("/i18n");
    languages = await answer.json();
  } catch (error) {
    console.warn("SpectralCache: no translations", error);
  }
})();

function lookup(language, path) {
  return path.reduce((part, key) => part?.[key], languages[language]?.[PART]);
}

function find(path) {
  const chosen = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
  return lookup(chosen, path) ?? lookup("en", path);
}

/** The sentence of this name, with {name} replaced by the values. */
export function say(name, values = {}) {
  const sentence = find([name]) ?? name;
  return sentence.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
}

/** A word that comes from the engine (a reason, a score, an action), translated where we know it. */
export function term(kind, word) {
  return find([kind, word]) ?? word;
}

/** A note of the engine: known by its words, whatever the numbers and names in it. */
export function note(text) {
  const found = [];
  const keep = (value) => (found.push(value), "#");
  const key = text.replace(/\(([^)]*)\)|\b\d+\b/g, (whole, inner) => (inner === undefined ? keep(whole) : `(${keep(inner)})`));
  return (find(["notes", key]) ?? key).replace(/#/g, () => found.shift() ?? "#");
}
