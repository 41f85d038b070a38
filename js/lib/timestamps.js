// Prompts with times in front: a port of framepack_core/parsing/timestamps.py, by the same golden.
import { FPS, roundHalfEven } from "./sections.js";

const SECONDS = "\\s*(\\d+(?:\\.\\d+)?)s\\s*";
const TIMED = new RegExp(`\\[${SECONDS}(?:-${SECONDS})?:\\s*(.*?)\\s*\\]`, "gs");

/** Whether a text has prompts with times, as `[0s: a cat sleeps] [2.5s: it wakes up]`. */
export const isTimed = (text) => text.search(TIMED) >= 0;

/** The prompts of a text in the order of their starts; an end of null is until the next one. */
function timedPrompts(text) {
  const found = [...text.matchAll(TIMED)].map(([, start, end, prompt]) => ({
    start: Number(start),
    end: end === undefined ? null : Number(end),
    prompt,
  }));
  const before = text.slice(0, text.search(TIMED)).trim();
  const first = Math.min(...found.map(({ start }) => start));
  if (before) found.push({ start: 0, end: first, prompt: before });
  return found
    .filter(({ start, end }) => end === null || end > start)
    .toSorted((a, b) => a.start - b.start);
}

/** The prompt of each section of 4 x window frames; times are taken to the nearest joins. */
export function promptsBySection(text, sections, window) {
  const seconds = (4 * window) / FPS;
  const place = (time) => roundHalfEven(time / seconds);
  const timed = timedPrompts(text);
  const starts = [...timed.map(({ start }) => place(start)), sections];
  const prompts = Array(sections).fill("");
  timed.forEach(({ end, prompt }, index) => {
    const last = end === null ? starts[index + 1] : place(end);
    for (let i = starts[index]; i < Math.min(Math.max(last, starts[index] + 1), sections); i++)
      prompts[i] ||= prompt;
  });
  let latest = timed[0]?.prompt ?? "";
  return prompts.map((prompt) => (latest = prompt || latest));
}
