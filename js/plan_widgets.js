// The widgets of a FPReelPlan, wherever they are set: on it, or on the outside of its subgraph.
import { MODES, parsePaddings, sectionsForSeconds, secondsForSections } from "./lib/sections.js";
import { MAX_SECTIONS } from "./lib/timeline.js";
import { setWidget, slotOf, widgetValue } from "./node_bridge.js";

const FROM_OUTSIDE = -10; // the id of a subgraph's inputs

export class PlanWidgets {
  /** host: the node of the subgraph that the plan is in, where its outside is meant. */
  constructor(plan, host = null) {
    this.plan = plan;
    this.host = host;
  }

  /** [node, name] of the widget that says a value; null where it comes by a link. */
  place(name) {
    const slot = slotOf(this.plan, name);
    if (slot < 0 || !this.plan.isInputConnected(slot)) return [this.plan, name];
    const outer = this.host ? outerSlot(this.plan, slot, this.host) : -1;
    if (outer < 0 || this.host.isInputConnected(outer)) return null;
    return [this.host, this.host.inputs[outer].name];
  }

  isLinked(name) {
    return this.place(name) === null;
  }

  value(name, fallback) {
    const place = this.place(name);
    return place ? widgetValue(...place, fallback) : fallback;
  }

  set(name, value) {
    const place = this.place(name);
    if (place) setWidget(...place, value);
  }

  /**
   * What the widgets say: {mode, window, sections, paddings, loop, countIsLinked}.
   * `sections` is of use only where it does not come by a link; `paddings` is null where there are
   * none, or no list.
   */
  read() {
    const window = Number(this.value("window", 9));
    const bySeconds = this.isInSeconds();
    const countIsLinked = ["window", "length", bySeconds ? "seconds" : "sections"].some((name) =>
      this.isLinked(name),
    );
    const number = Number(this.value(bySeconds ? "seconds" : "sections", 1));
    const sections = bySeconds ? sectionsForSeconds(number, window) : number;
    const paddings = String(this.value("paddings", "")).trim();
    const mode = this.value("mode", MODES[0]);
    return {
      mode: MODES.includes(mode) ? mode : MODES[0],
      window,
      sections: Math.max(1, Math.min(sections, MAX_SECTIONS)),
      paddings: paddings ? parsePaddings(paddings) : null,
      loop: this.value("loop", false) === true,
      countIsLinked,
    };
  }

  isInSeconds() {
    return this.value("length", "seconds") === "seconds";
  }

  /** Make the video so many sections long. */
  setCount(count) {
    if (this.host && this.isInSeconds()) {
      // The outside has only the seconds.
      this.set("seconds", secondsForSections(count, Number(this.value("window", 9))));
      return;
    }
    this.set("length", "sections");
    this.set("sections", count);
  }
}

/** Plans within a subgraph whose timeline is on its outside. */
export function plansOnOutside(host) {
  const plans = (host.subgraph?.nodes ?? []).filter((node) => node.type === "FPReelPlan");
  return plans.filter((plan) => {
    const slot = slotOf(plan, "timeline");
    return slot >= 0 && plan.isInputConnected(slot) && outerSlot(plan, slot, host) >= 0;
  });
}

/** The input of a subgraph's node that an input of a node within is linked to, or -1. */
function outerSlot(inner, slot, host) {
  const link = inner.getInputLink(slot);
  if (Number(link?.origin_id) !== FROM_OUTSIDE) return -1;
  const name = host.subgraph?.inputs?.[link.origin_slot]?.name;
  return host.inputs.findIndex((input) => input.name === name);
}
