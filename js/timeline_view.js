// What the section timeline looks like and how it is used; knows no node.
import { FPS } from "./lib/sections.js";
import { ticks } from "./lib/chart.js";
import * as edits from "./lib/timeline.js";
import { h, setAttributes, stop } from "./dom.js";
import { t } from "./messages.js";
import { imageUrl, uploadImage, uploadSections } from "./node_bridge.js";
import { SectionEditor } from "./section_editor.js";
import { TextPanel } from "./text_panel.js";

const DRAGGED = "application/x-fpreel-section";
const MARK = 60; // pixels between two marks of the ruler, at least
const SECTION = 44; // pixels of a section, at least, as in the style sheet
const LAST = 0.94; // of the ruler; words of a mark behind it would not fit
const TOOLS = ["add", "copy", "split", "merge", "remove", "earlier", "later", "text"];
const SYMBOLS = { earlier: "◀", later: "▶" };
const KEYS = {
  Insert: "add",
  "+": "add",
  Delete: "remove",
  Backspace: "remove",
  c: "copy",
  s: "split",
  m: "merge",
};
const seconds = (frame) => (frame / FPS).toFixed(2);
const isShared = (file) => file.name.toLowerCase().endsWith(".zip");

export class TimelineView {
  /** state: has select, edit, type and startAfresh. */
  constructor(state) {
    this.state = state;
    this.shown = null;
    this.words = false;
    this.summary = h("div", { class: "fpreel-summary" });
    this.problem = h("div", { class: "fpreel-problem", role: "alert" });
    this.ruler = h("div", { class: "fpreel-ruler", "aria-hidden": "true" });
    this.strip = h("div", {
      class: "fpreel-strip",
      role: "listbox",
      "aria-orientation": "horizontal",
      on: { keydown: (event) => this.onKey(event) },
    });
    this.start = h("div", { class: "fpreel-end", role: "img" });
    this.end = h("div", { class: "fpreel-end", role: "img" });
    new ResizeObserver(() => this.shown && this.showRuler()).observe(this.ruler);
    this.options = [];
    const time = h("div", { class: "fpreel-time" }, this.ruler, this.strip);
    const film = h("div", { class: "fpreel-film" }, this.start, time, this.end);
    this.order = h("div", { class: "fpreel-order" });
    this.buttons = Object.fromEntries(TOOLS.map((name) => [name, this.newTool(name)]));
    const buttons = Object.values(this.buttons);
    this.tools = h("div", { class: "fpreel-tools", role: "toolbar" }, ...buttons);
    this.news = h("div", { class: "fpreel-news", role: "status" });
    this.told = h("div", { class: "fpreel-told", role: "status" });
    this.editor = new SectionEditor(this);
    this.text = new TextPanel(this);
    this.element = h(
      "div",
      {
        class: "fpreel fpreel-timeline",
        role: "group",
        on: {
          dragover: (event) => event.preventDefault(),
          dragend: () => this.markDrop(null),
          drop: (event) => {
            stop(event);
            this.markDrop(null);
            this.takeShared(event);
          },
          keydown: (event) => leaveUndoToComfyUI(event),
          wheel: (event) => this.onWheel(event),
        },
      },
      this.summary,
      this.problem,
      this.told,
      h("div", { class: "fpreel-scroll" }, film),
      this.order,
      this.tools,
      this.editor.element,
      this.text.element,
      this.news,
    );
  }

  /** plan: what TimelineState.refresh makes of the node. */
  show(plan) {
    this.shown = plan;
    setAttributes(this.element, { "aria-label": t("timeline.title") });
    this.summary.textContent = this.summaryText();
    this.showProblem();
    this.showRuler();
    this.showStrip();
    this.showTools();
    this.showEnds();
    this.order.textContent = `${t(`timeline.order.${plan.mode}`)} · ${t("timeline.hint")}`;
    this.editor.show(plan);
  }

  summaryText() {
    const { count, frames, size, kept } = this.shown;
    const parts = [
      count === 1 ? t("timeline.oneSection") : t("timeline.sections", { count }),
      t("timeline.frames", { frames }),
      t("timeline.seconds", { seconds: seconds(frames) }),
      size ? `${size[0]}×${size[1]}` : t("timeline.startSize"),
    ];
    if (kept > 0) parts.push(t("timeline.kept", { count: kept }));
    return parts.join(" · ");
  }

  showProblem() {
    const { problem } = this.shown;
    if (this.problem.dataset.text === (problem ?? "")) return;
    this.problem.dataset.text = problem ?? "";
    this.problem.replaceChildren(problem ?? "");
    if (problem === t("timeline.broken")) {
      const afresh = () => this.state.startAfresh();
      this.problem.append(
        h("button", { type: "button", on: { click: afresh } }, t("timeline.afresh")),
      );
    }
  }

  showRuler() {
    const { frames, count } = this.shown;
    const width = Math.max(this.ruler.clientWidth, count * SECTION);
    const last = frames - 1;
    const seconds = ticks(0, last / FPS, Math.max(1, Math.floor(width / MARK)));
    const marks = seconds
      .filter((second) => (second * FPS) / last <= LAST)
      .map((second) => {
        const mark = h("span", {}, t("timeline.mark", { second }));
        mark.style.left = `${((second * FPS) / last) * 100}%`;
        return mark;
      });
    this.ruler.replaceChildren(...marks);
  }

  /** The pictures that the video begins and ends with, at the ends of the strip. */
  showEnds() {
    const { start, end, hasEnd } = this.shown;
    for (const [element, name, words] of [
      [this.start, start, t("timeline.start")],
      [this.end, end, t("timeline.end")],
    ]) {
      element.style.backgroundImage = name ? `url("${imageUrl(name)}")` : "";
      element.classList.toggle("fpreel-has-image", Boolean(name));
      setAttributes(element, { title: words, "aria-label": words });
    }
    this.end.hidden = !hasEnd;
  }

  /** Elements stay while they are needed: one that is replaced under the mouse gets no click. */
  showStrip() {
    const { planned, sections, selected } = this.shown;
    setAttributes(this.strip, { "aria-label": t("timeline.strip") });
    while (this.options.length < planned.length) this.options.push(this.newOption());
    const unused = this.options.splice(planned.length);
    const hadFocus = unused.some((option) => option === document.activeElement);
    for (const option of unused) option.remove();
    for (const place of planned) this.showOption(place, sections[place.index]);
    if (hadFocus || this.options.includes(document.activeElement)) this.focusSelected();
    this.scrollToSelected(this.options[selected]);
  }

  scrollToSelected(option) {
    const scroll = this.strip.parentElement;
    const hidden =
      option.offsetLeft < scroll.scrollLeft ||
      option.offsetLeft + option.offsetWidth > scroll.scrollLeft + scroll.clientWidth;
    if (hidden)
      scroll.scrollLeft = option.offsetLeft - (scroll.clientWidth - option.offsetWidth) / 2;
  }

  focusSelected() {
    this.options[this.shown.selected].focus({ preventScroll: true });
  }

  newOption() {
    const index = this.options.length;
    const parts = ["number", "made", "words", "range"].map((part) =>
      h("span", { class: `fpreel-${part}` }),
    );
    const option = h(
      "div",
      {
        role: "option",
        class: "fpreel-section",
        draggable: "true",
        on: {
          click: () => this.pick(index),
          dragstart: (event) => this.onDragStart(event, index),
          dragover: (event) => this.onDragOver(event, option),
          dragleave: () => this.markDrop(null),
          drop: (event) => this.onDrop(event, index),
        },
      },
      ...parts,
    );
    this.strip.append(option);
    return option;
  }

  showOption(place, own) {
    const { count, selected } = this.shown;
    const option = this.options[place.index];
    const name = t("timeline.name", { section: place.index });
    const made = t("timeline.made", { order: place.order + 1, count });
    const frames = t("timeline.range", place);
    const span = t("timeline.span", { first: seconds(place.first), last: seconds(place.last) });
    const details = ownWords(own);
    setAttributes(option, {
      tabindex: place.index === selected ? "0" : "-1",
      "aria-selected": String(place.index === selected),
      "aria-label": [name, frames, span, made, ...details].join(", "),
      title: [name, `${frames} (${span})`, made, ...details].join("\n"),
    });
    const words = [place.index, made, own.prompt ?? "", `${place.first}–${place.last}`];
    words.forEach((text, i) => (option.children[i].textContent = text));
    option.children[1].dataset.short = `${place.order + 1}/${count}`;
    option.style.backgroundImage = own.image ? `url("${imageUrl(own.image)}")` : "";
    option.classList.toggle("fpreel-has-image", Boolean(own.image));
  }

  newTool(name) {
    const use = () => this.buttons[name].ariaDisabled === "true" || this.act(name);
    return h("button", { type: "button", "data-tool": name, on: { click: use } });
  }

  showTools() {
    const { count, selected, countIsLinked } = this.shown;
    const off = {
      add: countIsLinked,
      copy: countIsLinked,
      split: countIsLinked,
      merge: countIsLinked || selected === count - 1,
      remove: countIsLinked || count === 1,
      earlier: selected === 0,
      later: selected === count - 1,
    };
    setAttributes(this.tools, { "aria-label": t("timeline.tools") });
    for (const [name, button] of Object.entries(this.buttons)) {
      button.textContent = SYMBOLS[name] ?? t(`timeline.${name}Short`);
      setAttributes(button, {
        title: t(`timeline.${name}Tip`),
        "aria-label": name in SYMBOLS ? t(`timeline.${name}`) : null,
        "aria-disabled": off[name] ? "true" : null,
        "aria-pressed": name === "text" ? String(this.words) : null,
      });
    }
  }

  pick(index) {
    this.state.select(index);
    this.focusSelected();
  }

  /** One of TOOLS, by button or key. */
  act(name) {
    const { selected, count } = this.shown;
    const actions = {
      add: () => this.state.edit(edits.added),
      copy: () => this.state.edit(edits.copied),
      split: () => this.state.edit(edits.splitUp),
      merge: () => selected < count - 1 && this.state.edit(edits.merged),
      remove: () => count > 1 && this.state.edit(edits.removed),
      earlier: () => this.state.edit(edits.moved, selected - 1),
      later: () => this.state.edit(edits.moved, selected + 1),
      text: () => this.toggleText(),
    };
    actions[name]();
    if (name !== "text") this.say(t(`timeline.${name}Done`, { section: selected }));
  }

  say(words) {
    this.news.textContent = words;
  }

  /** Say something to be seen too, until it is clicked away or the next thing is said so. */
  note(words) {
    const close = { type: "button", on: { click: () => this.told.replaceChildren() } };
    this.told.replaceChildren(words, h("button", close, t("timeline.textClose")));
  }

  toggleText(open = !this.words) {
    this.words = open;
    this.element.classList.toggle("fpreel-text-open", open);
    if (open) this.text.open(this.shown);
    this.showTools();
  }

  onKey(event) {
    const { selected, count, countIsLinked } = this.shown;
    if (event.ctrlKey || event.metaKey) return;
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const place = { Home: 0, End: count - 1 }[event.key] ?? (step && selected + step);
    const tool = event.altKey ? null : KEYS[event.key];
    if (step && event.altKey) this.act(step < 0 ? "earlier" : "later");
    else if (place !== undefined) this.state.select(place);
    else if (event.key === "Enter" || event.key === "F2") this.editor.prompt.focus();
    else if (tool) countIsLinked || this.act(tool);
    else return;
    stop(event);
  }

  onWheel(event) {
    const over = event.target.closest(".fpreel-scroll, textarea");
    if (!over || over.scrollWidth <= over.clientWidth === over.scrollHeight <= over.clientHeight)
      return;
    event.stopPropagation();
  }

  onDragStart(event, index) {
    event.stopPropagation();
    event.dataTransfer.setData(DRAGGED, String(index));
    event.dataTransfer.effectAllowed = "move";
  }

  onDragOver(event, option) {
    event.preventDefault();
    this.markDrop(option);
  }

  /** Show where a picture or section would go that is dragged over the timeline. */
  markDrop(target) {
    for (const option of this.options) option.classList.toggle("fpreel-drop", option === target);
  }

  onDrop(event, index) {
    stop(event);
    this.markDrop(null);
    const from = event.dataTransfer.getData(DRAGGED);
    const image = [...event.dataTransfer.files].find((file) => file.type.startsWith("image/"));
    if (from !== "") {
      this.state.select(Number(from));
      this.state.edit(edits.moved, index);
    } else if (image) {
      this.state.select(index);
      this.upload(image);
    } else {
      this.takeShared(event);
    }
  }

  /** Take over the sections of a zip that was dropped, if there is one. */
  takeShared(event) {
    const file = [...event.dataTransfer.files].find(isShared);
    if (file) this.uploadShared(file);
  }

  /** Put the sections of a zip of another program in the place of all that there are. */
  async uploadShared(file) {
    const { mode, count, countIsLinked } = this.shown;
    try {
      const found = await uploadSections(file, { mode, count, fixed: countIsLinked });
      const { sections } = found;
      if (countIsLinked && sections.length > count)
        throw new Error(t("timeline.sharedLonger", { needed: sections.length, count }));
      this.state.edit(() => ({ sections: sections.map(edits.ownOf), selected: 0 }));
      this.toggleText(false);
      this.note(sharedWords(file.name, found));
    } catch (error) {
      this.note(t("timeline.uploadFailed", { name: file.name, reason: error.message }));
    }
  }

  /** Put a picture into the input folder and give it to the selected section. */
  async upload(file) {
    try {
      const name = await uploadImage(file);
      this.state.edit(edits.withOwn, "image", name);
      this.say(t("timeline.uploaded", { name }));
    } catch (error) {
      this.say(t("timeline.uploadFailed", { name: file.name, reason: error.message }));
    }
  }
}

/** What became of a zip, and what of it has no place on a timeline. */
function sharedWords(name, { sections, start, end, seed, lost }) {
  const words = [t("timeline.shared", { name, count: sections.length })];
  if (start) words.push(t("timeline.sharedStart", { name: start }));
  if (end) words.push(t("timeline.sharedEnd", { name: end }));
  if (seed) words.push(t("timeline.sharedSeed", { seed }));
  if (lost.length) words.push(t("timeline.sharedLost", { names: lost.join(", ") }));
  return words.join(" ");
}

/** What a section has of its own, for a screen reader and a tooltip. */
function ownWords(own) {
  const names = ["prompt", "image", ...Object.keys(edits.LIMITS)];
  return names
    .filter((name) => own[name] !== undefined)
    .map((name) => `${t(`timeline.${name}`)}: ${own[name]}`);
}

/** Outside of a field the browser's own undo would take back what was typed in another one. */
function leaveUndoToComfyUI(event) {
  const isUndo = (event.ctrlKey || event.metaKey) && ["z", "y"].includes(event.key.toLowerCase());
  if (isUndo && !event.target.matches("input, textarea")) event.preventDefault();
}
