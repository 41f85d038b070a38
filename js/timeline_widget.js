// The section timeline of FPReelPlan: one STRING widget that shows, and edits, its sections.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { planSections, videoFrames } from "./lib/sections.js";
import * as edits from "./lib/timeline.js";
import { loadStyle } from "./dom.js";
import { loadMessages, t } from "./messages.js";
import { addElement, asOneStep, findWidget, hideField, imageUrl } from "./node_bridge.js";
import { PlanWidgets, plansOnOutside } from "./plan_widgets.js";
import { TimelineView } from "./timeline_view.js";
import { framePictures, servedSize, videoSize } from "./video_size.js";

const HEIGHT = 345;
const NARROW = 400; // pixels of a node whose fields wrap, which takes more height
const WRAPPED = 75;
const LINKED_HEIGHT = 24; // of the words in its place
const OUTSIDE = "fpreel_timeline"; // the view on the node of a subgraph
const OTHERS = ["mode", "length", "seconds", "sections", "window", "paddings", "loop"];

/** For ComfyUI's getCustomWidgets. */
export function makeTimelineWidget(node, name, inputData) {
  const timeline = new TimelineState(new PlanWidgets(node));
  const widget = addElement(node, name, "FPREEL_TIMELINE", timeline.view.element, {
    getValue: () => timeline.value,
    setValue: (value) => timeline.load(value),
    getMinHeight: () => (timeline.widgets.isLinked("timeline") ? LINKED_HEIGHT : heightOn(node)),
    getMaxHeight: () => (timeline.widgets.isLinked("timeline") ? LINKED_HEIGHT : undefined),
  });
  wordsWhereHidden(widget, () => timeline.widgets.isLinked("timeline") && t("timeline.linkedIn"));
  timeline.load(inputData?.[1]?.default ?? "");
  timeline.watch(node);
  return { widget, minWidth: 260, minHeight: HEIGHT };
}

const heightOn = (node) => HEIGHT + (node.size?.[0] < NARROW ? WRAPPED : 0);

/** Show the timelines of plans on the outside of their subgraphs, of all nodes of a graph. */
export function showOutside(graph) {
  for (const host of graph?.nodes ?? []) {
    if (!host.isSubgraphNode?.()) continue;
    showOutside(host.subgraph);
    const [plan] = plansOnOutside(host);
    if (plan && !findWidget(host, OUTSIDE)) addOutside(host, plan);
  }
}

function addOutside(host, plan) {
  const timeline = new TimelineState(new PlanWidgets(plan, host));
  const widget = addElement(host, OUTSIDE, "FPREEL_TIMELINE_VIEW", timeline.view.element, {
    serialize: false,
    getMinHeight: () => heightOn(host),
  });
  widget.serialize = false;
  timeline.watch(host);
  timeline.refresh();
  const [width, height] = host.computeSize();
  host.setSize([Math.max(host.size[0], width), Math.max(host.size[1], height)]);
}

/** The sections of one plan and the selected one; tells its view what to show. */
class TimelineState {
  constructor(widgets) {
    this.widgets = widgets;
    this.sections = [];
    this.selected = 0;
    this.broken = null;
    this.written = null; // the value on the outside, as it was last seen
    this.field = null; // which the value on the outside belongs to
    this.view = new TimelineView(this);
    loadStyle();
    loadMessages().then(() => this.refresh());
  }

  /** The widget's value; a text that is no timeline stays until it is corrected. */
  get value() {
    if (this.broken !== null) return this.broken;
    const { sections, countIsLinked } = this.widgets.read();
    return edits.writeTimeline(countIsLinked ? this.sections : this.sections.slice(0, sections));
  }

  load(value) {
    this.read(value);
    this.refresh();
  }

  read(value) {
    try {
      this.sections = edits.readTimeline(String(value ?? ""), 0);
      this.broken = null;
    } catch (error) {
      console.warn("FramePack Reel: not a timeline:", error);
      this.sections = [];
      this.broken = String(value);
    }
  }

  /** Show what other widgets, links and pictures make of the plan; node: the one it is shown on. */
  watch(node) {
    const later = () => requestAnimationFrame(() => this.refresh());
    for (const name of ["onConfigure", "onConnectionsChange"]) chain(node, name, later);
    const onGraph = () => node.graph && this.refresh();
    api.addEventListener("graphChanged", onGraph);
    chain(node, "onRemoved", () => api.removeEventListener("graphChanged", onGraph));
    queueMicrotask(() => {
      for (const name of OTHERS) {
        const widget = findWidget(this.widgets.plan, name);
        if (widget) chain(widget, "callback", later);
      }
    });
  }

  /** On the outside the value is another widget's, which undo and loading change too. */
  readOutside() {
    const place = this.widgets.place("timeline");
    // A row without a field. The frontend holds it weakly: let go, it is made anew and shows.
    this.field = place && findWidget(...place);
    if (this.field) hideField(this.field);
    const value = String(this.widgets.value("timeline", ""));
    if (value === this.written) return;
    this.written = value;
    this.read(value);
  }

  writeOutside() {
    if (!this.widgets.host) return;
    this.written = this.value;
    this.widgets.set("timeline", this.written);
  }

  refresh() {
    if (this.widgets.host) this.readOutside();
    const plan = this.widgets.read();
    const count = plan.countIsLinked ? Math.max(1, this.sections.length) : plan.sections;
    this.sections = edits.resized(this.sections, Math.max(count, this.sections.length));
    this.selected = Math.min(this.selected, count - 1);
    const frames = videoFrames(count, plan.window, plan.loop);
    this.view.show({
      ...plan,
      count,
      frames,
      size: videoSize(this.widgets.plan, (name) =>
        servedSize(imageUrl(name), () => this.refresh()),
      ),
      ...framePictures(this.widgets.plan),
      planned: planSections({ ...plan, sections: count }),
      sections: this.sections.slice(0, count),
      kept: edits.lastOwn(this.sections) + 1 - count,
      selected: this.selected,
      problem: this.problem(plan, count),
    });
  }

  problem(plan, count) {
    if (this.broken !== null) return t("timeline.broken");
    if (this.widgets.isLinked("timeline")) return t("timeline.linkedIn");
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
      if (result.sections.length !== count) this.widgets.setCount(result.sections.length);
      this.writeOutside();
    });
    app.canvas?.setDirty?.(true, true);
    this.refresh();
  }

  /** What is typed is kept at once; `edit` makes it a step of undo when the field is left. */
  type(name, value) {
    this.sections = edits.withOwn(this.sections, this.selected, name, value).sections;
    this.writeOutside();
  }

  startAfresh() {
    asOneStep(() => {
      this.load("");
      this.writeOutside();
    });
  }
}

/** ComfyUI hides the element of a widget that is linked: say in its place what became of it. */
function wordsWhereHidden(widget, words) {
  const { draw } = widget;
  widget.draw = function (ctx, node, width, y, ...rest) {
    draw?.call(this, ctx, node, width, y, ...rest);
    const line = words();
    if (!line) return;
    ctx.save();
    ctx.font = "12px sans-serif";
    ctx.textAlign = "left";
    ctx.fillStyle = LiteGraph.WIDGET_SECONDARY_TEXT_COLOR;
    ctx.fillText(line, 15, y + 24, width - 30);
    ctx.restore();
  };
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
