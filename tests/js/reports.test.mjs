// What pages make of the messages of runs.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as reports from "../../js/lib/reports.js";

const message = (news) => ({ event: "fpreel.section", run: "a", node: "3", ...news });
const done = (section, seconds = 2, stored = false) => ({ section, seconds, stored, clip: null });

test("messages add up, and another run starts afresh", () => {
  const first = reports.withNews(undefined, message({ sections: 3, done: [done(2)] }));
  const second = reports.withNews(first, message({ step: 4, done: [done(1)] }));
  assert.equal(second.sections, 3);
  assert.equal(second.step, 4);
  assert.deepEqual(
    second.done.map(({ section }) => section),
    [2, 1],
  );
  assert.deepEqual(reports.withNews(second, message({ step: 5 })).done.length, 2);
  const other = { ...message({ step: 1 }), run: "b" };
  assert.deepEqual(reports.withNews(second, other), other);
});

test("what was heard while the server was asked is neither lost nor there twice", () => {
  const kept = message({ step: 4, done: [done(2), done(1)] });
  const heard = message({ step: 5, done: [done(1), done(0)] });
  const report = reports.caughtUp(kept, heard);
  assert.equal(report.step, 5);
  assert.deepEqual(
    report.done.map(({ section }) => section),
    [2, 1, 0],
  );
  const newer = { ...message({ step: 1 }), run: "b" };
  assert.deepEqual(reports.caughtUp(kept, newer), newer);
});

test("states of sections in order of time", () => {
  const report = message({
    sections: 4,
    state: "sampling",
    section: 1,
    done: [done(3, 0, true), done(2)],
  });
  assert.deepEqual(reports.sectionStates(report), ["open", "current", "done", "stored"]);
});

test("clips follow time, not the making", () => {
  const clip = { filename: "x" };
  const report = message({ done: [{ ...done(2), clip }, done(1), { ...done(0), clip }] });
  assert.deepEqual(
    reports.clipsOf(report).map(({ section }) => section),
    [0, 2],
  );
});

test("nodes are found in subgraphs, whatever type their ids have", () => {
  const inner = { id: 3 };
  const graph = { nodes: [{ id: "12", subgraph: { nodes: [inner] } }, { id: 5 }] };
  assert.deepEqual(reports.nodePath(graph, "12:3"), [graph.nodes[0], inner]);
  assert.deepEqual(reports.nodePath(graph, "5"), [graph.nodes[1]]);
  assert.deepEqual(reports.nodePath(graph, "12:4"), []);
  assert.deepEqual(reports.nodePath(graph, "5:3"), []);
});
