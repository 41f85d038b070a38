// The arithmetic of section plans: a port of framepack_core/sampling, held to tests/js/golden.json.

export const FPS = 30;
export const SIZE_STEP = 16;
export const MODES = ["framepack", "f1"];

const BUCKETS = [
  [416, 960],
  [448, 864],
  [480, 832],
  [512, 768],
  [544, 704],
  [576, 672],
  [608, 640],
  [640, 608],
  [672, 576],
  [704, 544],
  [768, 512],
  [832, 480],
  [864, 448],
  [960, 416],
];

/** Frames of a video of so many sections, with the start image, which a loop does not show. */
export const videoFrames = (sections, window, loop = false) =>
  startFrames(loop) + 4 * window * sections;

const startFrames = (loop) => (loop ? 0 : 1);

export function sectionsForSeconds(seconds, window) {
  return Math.max(1, roundHalfEven((seconds * FPS) / (4 * window)));
}

/** The length in seconds, to a tenth, that so many sections are planned for. */
export function secondsForSections(sections, window) {
  return Number(((sections * 4 * window) / FPS).toFixed(1));
}

/** As Python rounds: a half goes to the even neighbour. */
export function roundHalfEven(x) {
  const floor = Math.floor(x);
  if (x - floor !== 0.5) return Math.round(x);
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Distances to the start image in the order made. */
export function defaultPaddings(sections) {
  if (sections <= 4) return Array.from({ length: sections }, (_, i) => sections - 1 - i);
  return [3, ...Array(sections - 3).fill(2), 1, 0];
}

/** The numbers of "3,2,1,0", or null where it is something else. */
export function parsePaddings(text) {
  const numbers = text.split(",").map((number) => number.trim());
  return numbers.every((number) => /^\d+$/.test(number)) ? numbers.map(Number) : null;
}

/**
 * Sections of a plan in order of time: {index, order, first, last, padding}, frames counted from 0.
 * `order` is the place in the making, 0 first; padding is null with f1.
 */
export function planSections({ mode, sections, window, paddings = null, loop = false }) {
  const made = paddings ?? defaultPaddings(sections);
  return Array.from({ length: sections }, (_, index) => {
    const order = mode === "f1" ? index : sections - 1 - index;
    const first = startFrames(loop) + index * 4 * window;
    const padding = mode === "f1" ? null : (made[order] ?? null);
    return { index, order, first, last: first + 4 * window - 1, padding };
  });
}

/** [width, height] of FramePack's list nearest in shape; the later one of a tie. */
export function nearestBucket(width, height) {
  const error = ([h, w]) => Math.abs(height * w - width * h);
  const [h, w] = BUCKETS.reduceRight((best, size) => (error(size) < error(best) ? size : best));
  return [w, h];
}

/** [width, height] in steps of 16, of about that area, closest to the shape given. */
export function sizeForArea(width, height, area) {
  const aspect = width / height;
  const down = (length) => length - (length % SIZE_STEP);
  const middle = down(Math.floor(Math.sqrt(area * aspect)));
  const sizes = [-2, -1, 0, 1, 2]
    .map((i) => middle + SIZE_STEP * i)
    .filter((w) => w > 0)
    .map((w) => [w, down(Math.floor(area / w))])
    .filter(([, h]) => h > 0);
  const error = ([w, h]) => Math.abs(w / h - aspect);
  return sizes.reduce((best, size) => (error(size) < error(best) ? size : best));
}
