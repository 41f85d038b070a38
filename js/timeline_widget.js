// The section timeline of FPReelPlan: one STRING widget that shows, and edits, its sections.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { planSections, videoFrames } from "./lib/sections.js";
import * as edits from "./lib/timeline.js";
import { loadStyle } from "./dom.js";
import { loadMessages, t } from "./messages.js";
import { asOneStep, findWidget, imageUrl, readPlan, setSectionCount } from "./node_bridge.js";
import { TimelineView } from "./timeline_view.js";
import { servedSize, videoSize } from "./video_size.js";

const HEIGHT = 340;
const OTHERS = ["mode", "length", "seconds", "sections", "window", "paddings"];

/** For ComfyUI's getCustomWidgets. */
export function makeTimelineWidget(node, name, inputData) {
  const timeline = new TimelineState(node);
  const widget = node.addDOMWidget(name, "FPREEL_TIMELINE", timeline.view.element, {
    getValue: () => timeline.value,
    setValue: (value) => timeline.load(value),
    getMinHeight: () => HEIGHT,
    hideOnZoom: false,
  });
  timeline.load(inputData?.[1]?.default ?? "");
  timeline.watch();
  return { widget, minWidth: 420, minHeight: HEIGHT };
}

/** The sections of one node and the selected one; tells its view what to show. */
class TimelineState {
  constructor(node) {
    this.node = node;
    this.sections = [];
    this.selected = 0;
    this.broken = null;
    this.view = new TimelineView(this);
    loadStyle();
    loadMessages().then(() => this.refresh());
  }

  /** The widget's value; a text that is no timeline stays until it is corrected. */
  get value() {
    if (this.broken !== null) return this.broken;
    const { sections, countIsLinked } = readPlan(this.node);
    return edits.writeTimeline(countIsLinked ? this.sections : this.sections.slice(0, sections));
  }

  load(value) {
    try {
      this.sections = edits.readTimeline(String(value ?? ""), 0);
      this.broken = null;
    } catch (error) {
      console.warn("FramePack Reel: not a timeline:", error);
      this.sections = [];
      this.broken = String(value);
    }
    this.refresh();
  }

  /** Show what other widgets, links and pictures make of the plan. */
  watch() {
    const later = () => requestAnimationFrame(() => this.refresh());
    for (const name of ["onConfigure", "onConnectionsChange"]) chain(this.node, name, later);
    const onGraph = () => this.node.graph && this.refresh();
    api.addEventListener("graphChanged", onGraph);
    chain(this.node, "onRemoved", () => api.removeEventListener("graphChanged", onGraph));
    queueMicrotask(() => {
      for (const name of OTHERS) {
        const widget = findWidget(this.node, name);
        if (widget) chain(widget, "callback", later);
      }
    });
  }

  refresh() {
    const plan = readPlan(this.node);
    const count = plan.countIsLinked ? Math.max(1, this.sections.length) : plan.sections;
    this.sections = edits.resized(this.sections, Math.max(count, this.sections.length));
    this.selected = Math.min(this.selected, count - 1);
    const frames = videoFrames(count, plan.window);
    this.view.show({
      ...plan,
      count,
      frames,
      size: videoSize(this.node, (name) => servedSize(imageUrl(name), () => this.refresh())),
      planned: planSections({ ...plan, sections: count }),
      sections: this.sections.slice(0, count),
      kept: edits.lastOwn(this.sections) + 1 - count,
      selected: this.selected,
      problem: this.problem(plan, count),
    });
  }

  problem(plan, count) {
    if (this.broken !== null) return t("timeline.broken");
    if (plan.countIsLinked) return t("timeline.linked");
    if (plan.mode === "f1") {
      const padded = this.sections.slice(0, count).findIndex((s) => s.padding !== undefined);
      return padded < 0 ? null : t("timeline.f1Padding", { section: padded });
    }
    const { paddings } = plan;
    if (!paddings || paddings.length === count) return null;
    return t("timeline.paddings", { given: paddings.length, count });
  }

  select(index) {
    this.selected = Math.max(0, Math.min(index, this.view.shown.count - 1));
    this.refresh();
  }

  /** Change sections by a function of lib/timeline.js, as one step of undo. */
  edit(change, ...values) {
    const { count, sections } = this.view.shown;
    const result = change(sections, this.selected, ...values);
    if (result.sections.length > edits.MAX_SECTIONS) return;
    asOneStep(() => {
      this.broken = null;
      this.sections = result.sections;
      this.selected = result.selected;
      if (result.sections.length !== count) setSectionCount(this.node, result.sections.length);
    });
    app.canvas?.setDirty?.(true, true);
    this.refresh();
  }

  /** What is typed is kept at once; `edit` makes it a step of undo when the field is left. */
  type(name, value) {
    this.sections = edits.withOwn(this.sections, this.selected, name, value).sections;
  }

  startAfresh() {
    asOneStep(() => this.load(""));
  }
}

/** Call `after` behind a method or callback that may be there already. */
function chain(object, name, after) {
  const before = object[name];
  object[name] = function (...values) {
    const result = before?.apply(this, values);
    after();
    return result;
  };
}
