// A timeline's value and its edits: sections in, sections out, no DOM.
//
// A section is an object with only what it has of its own: prompt, image, padding, seed, guidance,
// lora_strength. Every edit returns {sections, selected}; what it was given stays as it is.

export const LIMITS = {
  padding: { min: 0, max: 1000, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
  guidance: { min: 0, max: 100, step: 0.1 },
  lora_strength: { min: 0, max: 10, step: 0.05 },
};
export const MAX_SECTIONS = 500;
const TEXTS = { prompt: 10000, image: 1000 };

/** The sections of a widget's value, at least `count`; throws where it is not a timeline. */
export function readTimeline(value, count) {
  const sections = value.trim() ? checked(JSON.parse(value)) : [];
  return resized(sections, Math.max(count, sections.length));
}

/** The widget's value: empty where no section has anything. */
export function writeTimeline(sections) {
  const last = lastOwn(sections);
  return last < 0 ? "" : JSON.stringify({ version: 1, sections: sections.slice(0, last + 1) });
}

/** The last section that has something of its own; -1 where there is none. */
export const lastOwn = (sections) => sections.findLastIndex((s) => Object.keys(s).length);

/** The first `count` sections, with plain ones behind them. */
export function resized(sections, count) {
  return Array.from({ length: count }, (_, i) => sections[i] ?? {});
}

/** A section has a value of its own, or where it is null, no more. */
export function withOwn(sections, selected, name, value) {
  const { [name]: _, ...rest } = sections[selected];
  const section = value === null ? rest : { ...rest, [name]: value };
  return { sections: sections.with(selected, section), selected };
}

/** What a table of another origin gives a section, without empty values. */
export const ownOf = (table) =>
  Object.fromEntries(Object.entries(table).filter(([, value]) => value));

export function added(sections, selected) {
  return { sections: sections.toSpliced(selected + 1, 0, {}), selected: selected + 1 };
}

export function copied(sections, selected) {
  const copy = { ...sections[selected] };
  return { sections: sections.toSpliced(selected + 1, 0, copy), selected: selected + 1 };
}

/** Two sections of one prompt; image, padding and seed stay with the first. */
export function splitUp(sections, selected) {
  const { image: _image, padding: _padding, seed: _seed, ...second } = sections[selected];
  return { sections: sections.toSpliced(selected + 1, 0, second), selected };
}

/** A section and the next in one: both prompts, of the rest what the first has, else the next. */
export function merged(sections, selected) {
  const [first, second] = [sections[selected], sections[selected + 1]];
  const one = { ...second, ...first };
  const prompts = [...new Set([first.prompt, second.prompt].filter(Boolean))];
  if (prompts.length) one.prompt = prompts.join(" ");
  return { sections: sections.toSpliced(selected, 2, one), selected };
}

export function removed(sections, selected) {
  const left = sections.toSpliced(selected, 1);
  return { sections: left, selected: Math.min(selected, left.length - 1) };
}

/** A section moves to another place in time. */
export function moved(sections, from, to) {
  const target = Math.max(0, Math.min(to, sections.length - 1));
  return {
    sections: sections.toSpliced(from, 1).toSpliced(target, 0, sections[from]),
    selected: target,
  };
}

/** Every section gets its text of a list, by name; null takes its own away. */
export function withTexts(sections, name, texts) {
  return texts.reduce((all, text, i) => withOwn(all, i, name, text).sections, sections);
}

/** The texts that sections have, by section. */
export function textsOf(sections, name) {
  return new Map(sections.map((s, i) => [i, s[name]]).filter(([, text]) => text !== undefined));
}

/** The number of a field's text, kept within its limits; null of an empty one. */
export function readNumber(name, text) {
  const number = Number(text);
  if (text.trim() === "" || !Number.isFinite(number)) return null;
  const { min, max, step } = LIMITS[name];
  const bounded = Math.max(min, Math.min(max, number));
  return step === 1 ? Math.round(bounded) : bounded;
}

function checked(timeline) {
  const { version = 1, sections = [], ...rest } = asTable(timeline, "it");
  if (version !== 1) throw new Error(`version ${version}`);
  if (!Array.isArray(sections)) throw new Error("sections");
  if (sections.length > MAX_SECTIONS) throw new Error(`${sections.length} sections`);
  for (const name of Object.keys(rest)) throw new Error(name);
  return sections.map((section, i) => checkedSection(asTable(section, `sections.${i}`), i));
}

function checkedSection(section, index) {
  const own = Object.entries(section).filter(([, value]) => value !== null);
  for (const [name, value] of own) {
    if (!isValid(name, value)) throw new Error(`sections.${index}.${name}`);
  }
  return Object.fromEntries(own);
}

function isValid(name, value) {
  if (name in TEXTS) {
    return typeof value === "string" && value.length <= TEXTS[name] && (name !== "image" || value);
  }
  if (!(name in LIMITS) || typeof value !== "number") return false;
  const { min, max, step } = LIMITS[name];
  return value >= min && value <= max && (step !== 1 || Number.isInteger(value));
}

function asTable(value, place) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(place);
  return value;
}
