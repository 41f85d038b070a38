// Reports of runs: the sum of their messages, as nodes/comfyui/live.py keeps it too; no DOM.

const GATHERED = { "fpreel.section": ["done"], "fpreel.training": ["losses", "samples"] };

/** A report with the news of a message; one of another run starts afresh. */
export function withNews(report, message) {
  if (report?.run !== message.run) return message;
  const sum = { ...report, ...message };
  for (const name of GATHERED[message.event] ?? []) {
    sum[name] = [...(report[name] ?? []), ...(message[name] ?? [])];
  }
  return sum;
}

/** What the server has kept, with the messages that came while it was asked: each part once. */
export function caughtUp(kept, heard) {
  const report = withNews(kept, heard);
  if (kept?.run !== heard.run) return report;
  for (const name of GATHERED[heard.event] ?? []) {
    const parts = new Map(report[name].map((part) => [JSON.stringify(part), part]));
    report[name] = [...parts.values()];
  }
  return report;
}

/** Clips of the finished sections in order of time. */
export function clipsOf(report) {
  return (report.done ?? [])
    .filter((section) => section.clip)
    .toSorted((a, b) => a.section - b.section);
}

/** How many sections the run makes, which may be fewer than the whole video has. */
export const plannedOf = ({ planned, sections }) => planned ?? sections;

/** What is known of each section in order of time: "done", "stored", "current" or "open". */
export function sectionStates(report) {
  const states = Array(report.sections).fill("open");
  if (report.state === "sampling" && report.section !== undefined)
    states[report.section] = "current";
  for (const { section, stored } of report.done ?? []) states[section] = stored ? "stored" : "done";
  return states;
}

/** The nodes that a server's id such as "12" or "12:3" means, from outside to inside, or none. */
export function nodePath(graph, id) {
  const [first, ...rest] = String(id).split(":");
  const node = (graph?.nodes ?? []).find((candidate) => String(candidate.id) === first);
  if (!node || !rest.length) return node ? [node] : [];
  const inner = nodePath(node.subgraph, rest.join(":"));
  return inner.length ? [node, ...inner] : [];
}
