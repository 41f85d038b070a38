// Section arithmetic and specs against golden.json, which tests/test_timeline.py holds Python to.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import {
  nearestBucket,
  parsePaddings,
  planSections,
  secondsForSections,
  sectionsForSeconds,
  sizeForArea,
  videoFrames,
} from "../../js/lib/sections.js";
import { formatSpec, parseSpec, resolveSpec } from "../../js/lib/spec.js";

const golden = JSON.parse(readFileSync(new URL("golden.json", import.meta.url), "utf-8"));

for (const { mode, sections, window, paddings, loop, ...expected } of golden.plans) {
  test(`plan ${mode} ${sections} x ${window} ${paddings} ${loop ? "loop" : ""}`, () => {
    const given = paddings ? parsePaddings(paddings) : null;
    const plan = planSections({ mode, sections, window, paddings: given, loop });
    const made = plan
      .toSorted((a, b) => a.order - b.order)
      .map(({ order: _, ...section }) => section);
    assert.deepEqual(made, expected.made);
    const frames = videoFrames(sections, window, loop);
    assert.equal(frames, expected.frames);
    assert.ok(Math.abs(frames / 30 - expected.length) < 1e-5);
  });
}

test("lengths in seconds", () => {
  for (const { seconds, window, sections } of golden.seconds) {
    assert.equal(sectionsForSeconds(seconds, window), sections, `${seconds} s of ${window}`);
  }
});

test("seconds for a number of sections give that number again", () => {
  for (const window of [1, 5, 9, 18]) {
    for (let sections = 1; sections <= 60; sections += 1) {
      const seconds = secondsForSections(sections, window);
      assert.equal(sectionsForSeconds(seconds, window), sections, `${seconds} s of ${window}`);
    }
  }
});

test("paddings that are not numbers", () => {
  for (const text of ["", "1,", "a", "-1", "1.5", "1;2"]) assert.equal(parsePaddings(text), null);
});

for (const { text, sections, texts, error } of golden.specs) {
  test(`spec ${JSON.stringify(text)}`, () => {
    const read = () => resolveSpec(parseSpec(text, "prompts"), sections, "prompts");
    if (error) assert.throws(read, { message: error });
    else assert.deepEqual(read(), texts);
  });
}

test("specs as they are written", () => {
  for (const { texts, text } of golden.written) {
    assert.equal(formatSpec(new Map(texts)), text);
  }
});

test("a range that no video has is refused before it is counted", () => {
  assert.throws(() => parseSpec("0-999999999:a;;;0:b"), /999999999/);
});

test("sizes", () => {
  for (const { image, resolution, bucket, area } of golden.sizes) {
    assert.deepEqual(nearestBucket(...image), bucket);
    assert.deepEqual(sizeForArea(...image, resolution ** 2), area);
  }
});
