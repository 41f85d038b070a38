// Edits of a timeline, and its value read and written.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import * as timeline from "../../js/lib/timeline.js";
import { isTimed, promptsBySection } from "../../js/lib/timestamps.js";

const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf-8"));
const A = { prompt: "a", image: "a.png", padding: 0, seed: 7, guidance: 8, lora_strength: 0.5 };
const B = { prompt: "b", seed: 9 };
const value = (...sections) => JSON.stringify({ version: 1, sections });

test("a value is read to the length of the video and written without plain sections behind", () => {
  assert.deepEqual(timeline.readTimeline(value(A), 3), [A, {}, {}]);
  assert.equal(timeline.writeTimeline([A, {}, {}]), value(A));
  assert.equal(timeline.writeTimeline([{}, B]), value({}, B));
});

test("nothing of its own is an empty value", () => {
  assert.equal(timeline.writeTimeline([{}, {}]), "");
  assert.deepEqual(timeline.readTimeline("", 2), [{}, {}]);
  assert.deepEqual(timeline.readTimeline(value({ seed: null }), 1), [{}]);
});

test("more sections than the video has are kept to be seen", () => {
  assert.deepEqual(timeline.readTimeline(value({}, B), 1), [{}, B]);
});

for (const { text, sections, refused } of golden.timelines) {
  test(`${refused ? "refused" : "read"} as in Python: ${text}`, () => {
    if (refused) assert.throws(() => timeline.readTimeline(text, 1), Error);
    else assert.deepEqual(timeline.readTimeline(text, 0), sections);
  });
}

test("more sections than Python takes are refused", () => {
  assert.throws(() => timeline.readTimeline(value(...Array(501).fill({})), 1), Error);
});

test("edits leave what they are given as it is", () => {
  const sections = [A, B];
  const before = structuredClone(sections);
  const { added, copied, merged, moved, removed, splitUp, withOwn } = timeline;
  for (const edit of [added, copied, merged, removed, splitUp]) edit(sections, 0);
  moved(sections, 0, 1);
  withOwn(sections, 0, "seed", 1).sections[0].prompt = "changed";
  copied(sections, 0).sections[1].prompt = "changed";
  assert.deepEqual(sections, before);
});

test("add, copy and remove", () => {
  assert.deepEqual(timeline.added([A, B], 0), { sections: [A, {}, B], selected: 1 });
  assert.deepEqual(timeline.copied([A, B], 1), { sections: [A, B, B], selected: 2 });
  assert.deepEqual(timeline.removed([A, B], 1), { sections: [A], selected: 0 });
  assert.deepEqual(timeline.removed([A, B], 0), { sections: [B], selected: 0 });
});

test("a split keeps the image where it stands, and a merge takes it back", () => {
  const { sections } = timeline.splitUp([A, B], 0);
  assert.deepEqual(sections, [A, { prompt: "a", guidance: 8, lora_strength: 0.5 }, B]);
  assert.deepEqual(timeline.merged(sections, 0).sections, [A, B]);
});

test("a merge joins prompts and prefers what comes first", () => {
  assert.deepEqual(timeline.merged([A, B], 0).sections, [{ ...A, prompt: "a b" }]);
  assert.deepEqual(timeline.merged([{}, B], 0).sections, [B]);
  assert.deepEqual(timeline.merged([{ prompt: "" }, {}], 0).sections, [{ prompt: "" }]);
});

test("a section moves within the video", () => {
  const sections = [{ seed: 0 }, { seed: 1 }, { seed: 2 }];
  const seeds = (from, to) => timeline.moved(sections, from, to).sections.map((s) => s.seed);
  assert.deepEqual(seeds(0, 2), [1, 2, 0]);
  assert.deepEqual(seeds(2, 0), [2, 0, 1]);
  assert.deepEqual(seeds(1, -5), [1, 0, 2]);
  assert.equal(timeline.moved(sections, 1, 9).selected, 2);
});

test("own values come and go", () => {
  assert.deepEqual(timeline.withOwn([{}], 0, "seed", 0).sections, [{ seed: 0 }]);
  assert.deepEqual(timeline.withOwn([B], 0, "seed", null).sections, [{ prompt: "b" }]);
  const texts = timeline.withTexts([A, B, {}], "prompt", ["x", null, ""]);
  assert.deepEqual(
    texts.map((s) => s.prompt),
    ["x", undefined, ""],
  );
  assert.deepEqual(
    [...timeline.textsOf(texts, "prompt")],
    [
      [0, "x"],
      [2, ""],
    ],
  );
});

test("numbers are kept within their limits", () => {
  assert.equal(timeline.readNumber("padding", " 3.6 "), 4);
  assert.equal(timeline.readNumber("padding", "-2"), 0);
  assert.equal(timeline.readNumber("guidance", "7.25"), 7.25);
  assert.equal(timeline.readNumber("guidance", "1e9"), 100);
  assert.equal(timeline.readNumber("lora_strength", "0.35"), 0.35);
  assert.equal(timeline.readNumber("lora_strength", "-1"), 0);
  assert.equal(timeline.readNumber("lora_strength", "11"), 10);
  assert.equal(timeline.readNumber("seed", "99999999999999999999"), Number.MAX_SAFE_INTEGER);
  for (const text of ["", " ", "abc", "1/2"]) assert.equal(timeline.readNumber("seed", text), null);
});

test("prompts with times are those of Python by section", () => {
  for (const { text, sections, window, prompts } of golden.timed) {
    assert.ok(isTimed(text) && isTimed(text), text);
    assert.deepEqual(promptsBySection(text, sections, window), prompts, text);
  }
  assert.ok(!isTimed("0:a cat;;;1:[a dog]"));
});
