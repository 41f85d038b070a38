// Reports of runs, from the server to the nodes they are about.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { loadStyle } from "./dom.js";
import { caughtUp, nodePath, withNews } from "./lib/reports.js";
import { loadMessages } from "./messages.js";
import { addElement } from "./node_bridge.js";
import { SectionResult } from "./section_result.js";
import { TrainingChart } from "./training_chart.js";

const VIEWS = {
  "fpreel.section": { view: SectionResult, type: "FPReelSampler" },
  "fpreel.training": { view: TrainingChart, type: "FPReelTrainLora" },
};
const reports = new Map();
const views = new WeakMap(); // of nodes, by event

const rootGraph = () => app.rootGraph ?? app.graph;

export function listen() {
  for (const event of Object.keys(VIEWS)) {
    api.addEventListener(event, ({ detail }) => receive(detail));
  }
}

/** Show what runs of this workflow told before the page, or the graph, was there. */
export async function catchUp() {
  const types = Object.values(VIEWS).map(({ type }) => type);
  if (!hasNode(rootGraph(), types)) return;
  const answer = await api.fetchApi("/fpreel/live");
  if (!answer.ok) return;
  for (const report of await answer.json()) {
    const heard = reports.get(keyOf(report));
    reports.set(keyOf(report), heard ? caughtUp(report, heard) : report);
    show(report);
  }
}

function receive(message) {
  const key = keyOf(message);
  const report = withNews(reports.get(key), message);
  reports.set(key, report);
  show(report);
}

const keyOf = ({ event, workflow, node }) => `${event} ${workflow} ${node}`;

async function show(report) {
  const graph = rootGraph();
  if (!report.workflow || report.workflow !== graph?.id) return;
  const path = nodePath(graph, report.node);
  if (path.at(-1)?.type !== VIEWS[report.event].type) return;
  loadStyle();
  await loadMessages();
  // Also on the subgraphs that the node is in, which hide it.
  for (const node of path) viewOf(node, report.event).show(reports.get(keyOf(report)));
}

function viewOf(node, event) {
  if (!views.has(node)) views.set(node, new Map());
  const own = views.get(node);
  if (!own.has(event)) own.set(event, addView(node, event));
  return own.get(event);
}

/** A widget that is there only once it has something to show, and is never saved. */
function addView(node, event) {
  const { view: View } = VIEWS[event];
  const view = new View();
  const widget = addElement(node, `fpreel_live_${event}`, "FPREEL_LIVE", view.element, {
    serialize: false,
    getMinHeight: () => View.HEIGHT,
  });
  widget.serialize = false;
  const [, height] = node.computeSize();
  node.setSize([node.size[0], Math.max(node.size[1], height)]);
  app.canvas?.setDirty?.(true, true);
  return view;
}

function hasNode(graph, types) {
  return (graph?.nodes ?? []).some(
    (node) => types.includes(node.type) || hasNode(node.subgraph, types),
  );
}
