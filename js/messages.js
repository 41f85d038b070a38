// Words of the widgets, from locales/*/main.json by way of the server.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { clock } from "./lib/chart.js";

const SECTION = "fpreel";
let tables = null;
let loading = null;

/** Fetch the words; `t` returns keys until then. */
export function loadMessages() {
  loading ??= api
    .fetchApi("/i18n")
    .then((answer) => answer.json())
    .then((languages) => {
      const locale = app.extensionManager?.setting?.get("Comfy.Locale") ?? "en";
      tables = [locale, locale.split("-")[0], "en"].map((name) => languages[name]?.[SECTION] ?? {});
    })
    .catch((error) => console.error("FramePack Reel: no words for the widgets:", error));
  return loading;
}

/** The words of a key such as "timeline.add", with {names} in them replaced. */
export function t(key, values = {}) {
  const find = (table) => key.split(".").reduce((level, name) => level?.[name], table);
  const words = (tables ?? []).map(find).find((found) => typeof found === "string") ?? key;
  return words.replace(/\{(\w+)\}/g, (all, name) => values[name] ?? all);
}

/** A time in words: seconds, or from a minute on "1:15". */
export const duration = (seconds) =>
  clock(seconds) ?? t("timeline.mark", { second: Math.round(seconds) });
