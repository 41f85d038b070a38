// What nodes say of themselves. ComfyUI's own text is taken away at the end of the run by newer
// frontends, and cut or run together by others.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodePath } from "./lib/reports.js";
import { NodeWords } from "./node_words.js";

const told = new WeakMap(); // words by node

export function listenToTexts() {
  api.addEventListener("fpreel.text", ({ detail }) => show(detail));
}

function show({ node: id, text }) {
  const node = nodePath(app.rootGraph ?? app.graph, id).at(-1);
  if (!node?.type.startsWith("FPReel")) return;
  if (!told.has(node)) told.set(node, new NodeWords(node, "fpreel_text", { class: "fpreel-said" }));
  told.get(node).show(text);
}
