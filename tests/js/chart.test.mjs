// Scales, marks and smoothing of charts, by hand-worked numbers.
import assert from "node:assert/strict";
import { test } from "node:test";

import * as chart from "../../js/lib/chart.js";

const close = (actual, expected) =>
  actual.forEach((number, i) => assert.ok(Math.abs(number - expected[i]) < 1e-9, `${actual}`));

test("marks are round and within the range", () => {
  assert.deepEqual(chart.ticks(0, 4.83, 8), [0, 1, 2, 3, 4]);
  assert.deepEqual(chart.ticks(0.012, 0.047, 4), [0.02, 0.03, 0.04]);
  assert.deepEqual(chart.ticks(0, 2.4, 8), [0, 0.5, 1, 1.5, 2]);
  assert.deepEqual(chart.ticks(-1, 1, 2), [-1, 0, 1]);
  assert.deepEqual(chart.ticks(3, 3, 4), [3]);
});

test("steps are 1, 2 or 5 times a power of ten", () => {
  assert.deepEqual([0.3, 1, 1.1, 2.1, 5.01, 70].map(chart.niceStep), [0.5, 1, 2, 5, 10, 100]);
});

test("smoothing has no pull towards zero at the start", () => {
  close(chart.smooth([4, 4, 4], 0.9), [4, 4, 4]);
  close(chart.smooth([1, 3], 0.5), [1, 7 / 3]);
  close(chart.smooth([1, 2], 0), [1, 2]);
  assert.deepEqual(chart.smooth([], 0.9), []);
});

test("a range has its neighbours, so that lines reach the edges", () => {
  const points = [
    [1, 0],
    [2, 0],
    [3, 0],
    [4, 0],
  ];
  assert.deepEqual(chart.within(points, 2, 3), points);
  assert.deepEqual(chart.within(points, 3, 9), points.slice(1));
  assert.deepEqual(chart.within(points, 8, 9), [[4, 0]]);
  assert.deepEqual(chart.within([], 0, 1), []);
});

test("thinning keeps peaks and order", () => {
  const points = Array.from({ length: 10000 }, (_, i) => [i, i === 5003 ? 9 : Math.sin(i)]);
  const kept = chart.thinned(points, 200);
  assert.ok(kept.length <= 202);
  assert.ok(kept.some(([x, y]) => x === 5003 && y === 9));
  assert.ok(kept.every(([x], i) => i === 0 || x > kept[i - 1][0]));
  assert.deepEqual(chart.thinned([[0, 1]], 2), [[0, 1]]);
});

test("extents have room and survive flat, empty and broken data", () => {
  close(chart.extent([0, 10]), [-0.5, 10.5]);
  close(chart.extent([2, 2]), [1.9, 2.1]);
  assert.deepEqual(chart.extent([]), [0, 1]);
  close(chart.extent([NaN, Infinity, 0, 1]), [-0.05, 1.05]);
});

test("scales map ends to ends", () => {
  const y = chart.scale([0, 2], [100, 0]);
  assert.deepEqual([0, 1, 2].map(y), [100, 50, 0]);
  assert.equal(chart.scale([1, 1], [0, 10])(1), 0);
});

test("zoom keeps the point under the mouse and stays within the whole", () => {
  close(chart.zoomed([0, 100], [0, 100], 50, 0.5), [25, 75]);
  close(chart.zoomed([0, 100], [0, 100], 0, 0.5), [0, 50]);
  close(chart.zoomed([40, 60], [0, 100], 60, 2), [20, 60]);
  close(chart.zoomed([0, 50], [0, 100], 50, 4), [0, 100]);
});

test("times from a minute on", () => {
  assert.deepEqual([59, 59.6, 61, 3723].map(chart.clock), [null, "1:00", "1:01", "1:02:03"]);
});
