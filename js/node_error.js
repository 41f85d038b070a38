// What stopped a run, on the node that it stopped at: ComfyUI tells it in its panel alone.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { h, loadStyle } from "./dom.js";
import { nodePath } from "./lib/reports.js";
import { addElement } from "./node_bridge.js";

const [LETTER, LINE, AROUND, MOST_LINES] = [7, 17, 28, 8]; // pixels, with margins of the widget
const OURS = "FramePackError"; // whose message is a sentence for the user
let clear = () => {};

export function listenToErrors() {
  api.addEventListener("execution_error", ({ detail }) => show(detail));
  api.addEventListener("execution_start", () => clear());
}

function show({ node_id, node_type, exception_type, exception_message }) {
  clear();
  const path = nodePath(app.rootGraph ?? app.graph, node_id);
  if (!node_type.startsWith("FPReel") || path.at(-1)?.type !== node_type) return;
  loadStyle();
  const message = exception_message.trim();
  const words = exception_type === OURS ? message : `${exception_type}: ${message}`;
  // Also on the subgraphs that the node is in, which hide it.
  const removals = path.map((node) => add(node, words));
  clear = () => {
    for (const remove of removals) remove();
    clear = () => {};
  };
}

/** A widget that is never saved; returned is what takes it away again. */
function add(node, words) {
  const text = h("div", { class: "fpreel-problem fpreel-error", role: "alert" }, words);
  const element = h("div", { class: "fpreel" }, text);
  const [width, height] = node.size;
  const lines = Math.ceil((words.length * LETTER) / (width - 2 * AROUND));
  const own = AROUND + LINE * Math.min(lines, MOST_LINES);
  const widget = addElement(node, "fpreel_error", "FPREEL_ERROR", element, {
    serialize: false,
    getMinHeight: () => own,
    getMaxHeight: () => own,
  });
  widget.serialize = false;
  node.setSize([width, Math.max(height, node.computeSize()[1])]);
  app.canvas?.setDirty?.(true, true);
  return () => {
    if (!node.widgets?.includes(widget)) return;
    node.removeWidget(widget);
    node.setSize([node.size[0], Math.max(height, node.computeSize()[1])]);
  };
}
