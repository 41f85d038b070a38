// Numbers of charts: scales, marks, smoothing, thinning; no DOM.

/** Round marks between two numbers, at most `most` + 1 of them. */
export function ticks(low, high, most) {
  if (!(high > low) || most < 1) return [low];
  const step = niceStep((high - low) / most);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, i) => tidy((first + i) * step));
}

/** The smallest of 1, 2, 5 times a power of ten that is not below a number. */
export function niceStep(number) {
  const power = 10 ** Math.floor(Math.log10(number));
  return tidy([1, 2, 5, 10].find((factor) => factor * power >= number * (1 - 1e-9)) * power);
}

/** Without the dust of binary fractions. */
const tidy = (number) => Number(number.toPrecision(12));

/** An exponential mean without the pull of its start; `weight` of the past, 0 to below 1. */
export function smooth(values, weight) {
  let mean = 0;
  return values.map((value, i) => {
    mean = weight * mean + (1 - weight) * value;
    return mean / (1 - weight ** (i + 1));
  });
}

/** Points [x, y] of a range of x, with one beyond each end, so that lines reach the edges. */
export function within(points, low, high) {
  const first = points.findIndex(([x]) => x >= low);
  if (first < 0) return points.slice(-1);
  const after = points.findIndex(([x]) => x > high);
  return points.slice(Math.max(0, first - 1), after < 0 ? undefined : after + 1);
}

/** About `most` points at most: of every run the lowest and the highest, so no peak is lost. */
export function thinned(points, most) {
  if (points.length <= most) return points;
  const size = Math.ceil((points.length * 2) / most);
  const kept = [];
  for (let start = 0; start < points.length; start += size) {
    const run = points.slice(start, start + size);
    const low = run.reduce((a, b) => (b[1] < a[1] ? b : a));
    const high = run.reduce((a, b) => (b[1] > a[1] ? b : a));
    kept.push(...(low === high ? [low] : low[0] < high[0] ? [low, high] : [high, low]));
  }
  return kept;
}

/** [lowest, highest] of the numbers with some room around; the finite ones count. */
export function extent(values, room = 0.05) {
  const finite = values.filter(Number.isFinite);
  if (!finite.length) return [0, 1];
  const low = finite.reduce((a, b) => Math.min(a, b));
  const high = finite.reduce((a, b) => Math.max(a, b));
  const margin = (high - low) * room || Math.abs(high) * room || 1;
  return [low - margin, high + margin];
}

/** A function from numbers of [low, high] to [from, to]. */
export function scale([low, high], [from, to]) {
  const factor = (to - from) / (high - low || 1);
  return (number) => from + (number - low) * factor;
}

/** A range zoomed by a factor around one of its numbers, kept within the whole. */
export function zoomed([low, high], whole, around, factor) {
  const width = Math.min((high - low) * factor, whole[1] - whole[0]);
  const share = (around - low) / (high - low || 1);
  const start = Math.max(whole[0], Math.min(around - share * width, whole[1] - width));
  return [start, start + width];
}

/** Seconds as 45 s, 3:05 or 1:02:03. */
export function clock(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return null;
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const shown = parts[0] ? parts : parts.slice(1);
  return shown.map((part, i) => (i ? String(part).padStart(2, "0") : part)).join(":");
}
