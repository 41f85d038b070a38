// What stopped a run, on the node that it stopped at: ComfyUI tells it in its panel alone.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodePath } from "./lib/reports.js";
import { NodeWords } from "./node_words.js";

const OURS = "FramePackError"; // whose message is a sentence for the user
let shown = [];

export function listenToErrors() {
  api.addEventListener("execution_error", ({ detail }) => show(detail));
  api.addEventListener("execution_start", () => clear());
}

function clear() {
  for (const words of shown) words.remove();
  shown = [];
}

function show({ node_id, node_type, exception_type, exception_message }) {
  clear();
  const path = nodePath(app.rootGraph ?? app.graph, node_id);
  if (!node_type.startsWith("FPReel") || path.at(-1)?.type !== node_type) return;
  const message = exception_message.trim();
  // Also on the subgraphs that the node is in, which hide it.
  shown = path.map((node) => {
    const attributes = { class: "fpreel-problem fpreel-error", role: "alert" };
    const words = new NodeWords(node, "fpreel_error", attributes);
    words.show(exception_type === OURS ? message : `${exception_type}: ${message}`);
    return words;
  });
}
