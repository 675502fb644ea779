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

/** A word that comes from the engine (a reason, a score, an action, a note), translated where we know it. */
export function term(kind, word) {
  return find([kind, word]) ?? word;
}
