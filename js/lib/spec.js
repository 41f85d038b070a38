// Section specs, the `;;;` text: a port of framepack_core/parsing/section_spec.py, by the same
// golden.

const SEPARATOR = ";;;";
const ESCAPED = "\\;;;";
const EXCERPT = 24;
const LONGEST = 10000; // sections
// Python's idea of blanks and digits, so that both read every text alike.
const BLANK = "\\t-\\r\\x1c- \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const NUMBERS = new RegExp(`^[-+.,${BLANK}\\p{Nd}]*\\p{Nd}[-+.,${BLANK}\\p{Nd}]*$`, "u");
const SECTIONS = /^(-?\p{Nd}+)(?:-(-?\p{Nd}+))?$/u;
const LEFT = new RegExp(`^[${BLANK}]+`, "u");
const RIGHT = new RegExp(`[${BLANK}]+$`, "u");

export class SpecError extends Error {}

/** Texts by section as a Map, keys below 0 counted from the end; `name` is what errors call it. */
export function parseSpec(text, name = "sections") {
  const parts = split(text, name).map(([position, raw]) => readPart(raw, position, name));
  if (parts.length === 1 && !parts[0].hasSections) return new Map([[0, unescape(text)]]);
  for (const part of parts) {
    if (!part.raw)
      throw part.error(`an empty part; fill it, or take the '${SEPARATOR}' beside it out`);
  }
  const owners = new Map(parts.flatMap((part) => part.keys.map((key) => [key, part])));
  for (const part of parts) {
    if (![...owners.values()].includes(part)) {
      throw part.error(`later parts replace all of it; give section ${part.keys[0]} once`);
    }
  }
  return new Map([...owners].map(([key, part]) => [key, part.text]));
}

/** The text of every section in order of time. */
export function resolveSpec(texts, sections, name = "sections") {
  for (const key of texts.keys()) {
    if (key < -sections || key >= sections) {
      throw new SpecError(
        `${name}: there is no section ${key} in a video of ${sections}, which are 0 to ` +
          `${sections - 1} or -${sections} to -1; if ${key} is the beginning of prose, write 0: ` +
          "in front of it",
      );
    }
  }
  const fallback = defaultKey([...texts.keys()]);
  return Array.from({ length: sections }, (_, section) => {
    const key = [section - sections, section].find((k) => texts.has(k)) ?? fallback;
    return texts.get(key) ?? null;
  });
}

/** The spec of a Map of texts; reads back equal. */
export function formatSpec(texts) {
  if (texts.size === 1 && texts.has(0) && sectionsOf(texts.get(0)) === null) {
    return escape(texts.get(0));
  }
  return [...texts].map(([key, text]) => `${key}:${escape(text)}`).join(` ${SEPARATOR} `);
}

function defaultKey(keys) {
  if (keys.includes(0)) return 0;
  const positive = keys.filter((key) => key > 0);
  return Math.min(...(positive.length ? positive : keys));
}

function split(text, name) {
  const parts = [];
  let start = 0;
  for (const match of [...text.matchAll(/\\;;;|;;;/g), null]) {
    if (match?.[0] === ESCAPED) continue;
    const raw = text.slice(start, match ? match.index : undefined);
    parts.push([start + raw.length - raw.replace(LEFT, "").length, strip(raw)]);
    start = match ? match.index + SEPARATOR.length : text.length;
    if (match && text.startsWith(";", start) && !text.startsWith(SEPARATOR, start)) {
      const problem = `parts are separated by ${SEPARATOR}, and ${ESCAPED} is ${SEPARATOR} in a text`;
      throw error(name, text.slice(match.index), place(text, match.index), problem);
    }
  }
  return parts.map(([index, raw]) => [place(text, index), raw]);
}

function readPart(raw, position, name) {
  const fail = (problem) => error(name, raw, position, problem);
  const head = sectionsOf(raw);
  if (head === null)
    return { raw, hasSections: false, keys: [0], text: unescape(raw), error: fail };
  let keys;
  try {
    keys = readSections(head);
  } catch (problem) {
    throw fail(`${problem.message} (if it is prose, write 0: in front of it)`);
  }
  const text = unescape(strip(raw.slice(head.length + 1)));
  return { raw, hasSections: true, keys, text, error: fail };
}

/** What stands before the first colon of a part, if it looks like sections and not prose. */
function sectionsOf(raw) {
  const colon = raw.indexOf(":");
  const head = raw.slice(0, Math.max(colon, 0));
  return colon >= 0 && NUMBERS.test(head) ? head : null;
}

function readSections(text) {
  const stripped = strip(text);
  const match = SECTIONS.exec(stripped);
  if (!match) throw new Error(`${repr(stripped)} is not a section; use 0, -1 or 0-2`);
  const first = toNumber(match[1]);
  const last = match[2] === undefined ? first : toNumber(match[2]);
  if (first < 0 !== last < 0) {
    throw new Error(`${repr(match[0])} counts from both ends of the video; give two parts`);
  }
  if (last < first) throw new Error(`${repr(match[0])} runs backwards; write ${last}-${first}`);
  if (last - first > LONGEST) throw new Error(`${repr(match[0])} is longer than any video`);
  return Array.from({ length: last - first + 1 }, (_, i) => first + i);
}

/** Full-width digits, as Japanese and Chinese keyboards type them, are digits too. */
const toNumber = (digits) => Number(digits.normalize("NFKC")) || 0;

/** Python counts characters, JavaScript code units. */
const place = (text, index) => [...text.slice(0, index)].length + 1;

function error(name, raw, position, problem) {
  const characters = [...raw];
  const excerpt =
    characters.length <= EXCERPT ? raw : `${characters.slice(0, EXCERPT).join("")}...`;
  return new SpecError(`${name}: ${repr(excerpt)} at character ${position}: ${problem}`);
}

/** A text in quotes as Python shows it. */
function repr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  const shown = text
    .replace(/\\/g, "\\\\")
    .replace(/\n/g, "\\n")
    .replace(/\r/g, "\\r")
    .replace(/\t/g, "\\t");
  return quote + (quote === "'" ? shown.replace(/'/g, "\\'") : shown) + quote;
}

const strip = (text) => text.replace(LEFT, "").replace(RIGHT, "");
const escape = (text) => text.replaceAll(SEPARATOR, ESCAPED);
const unescape = (text) => text.replaceAll(ESCAPED, SEPARATOR);
