// Prompts or images of all sections as one `;;;` text, to be copied out or pasted in; prompts with
// times, as other programs have them, can be pasted in too.
import { formatSpec, parseSpec, resolveSpec } from "./lib/spec.js";
import * as edits from "./lib/timeline.js";
import { isTimed, promptsBySection } from "./lib/timestamps.js";
import { fileField, h, setAttributes } from "./dom.js";
import { t } from "./messages.js";

export class TextPanel {
  constructor(view) {
    this.view = view;
    this.kind = h("select", { on: { change: () => this.open(view.shown) } });
    this.area = h("textarea", { spellcheck: "false" });
    this.error = h("div", { class: "fpreel-problem", role: "alert" });
    this.use = h("button", { type: "button", on: { click: () => this.apply() } });
    this.close = h("button", { type: "button", on: { click: () => view.toggleText(false) } });
    this.file = fileField(".zip", (file) => view.uploadShared(file));
    this.shared = h("button", { type: "button", on: { click: () => this.file.click() } });
    const buttons = [this.use, this.shared, this.file, this.close];
    const row = h("div", { class: "fpreel-fields" }, this.kind, ...buttons);
    this.element = h("div", { class: "fpreel-text", role: "group" }, this.area, this.error, row);
  }

  open({ sections }) {
    const kind = this.kind.value || "prompt";
    const options = ["prompt", "image"].map((k) =>
      h("option", { value: k }, t(`timeline.text_${k}`)),
    );
    this.kind.replaceChildren(...options);
    this.kind.value = kind;
    setAttributes(this.kind, { "aria-label": t("timeline.textKind") });
    setAttributes(this.element, { "aria-label": t("timeline.text") });
    setAttributes(this.area, {
      "aria-label": t("timeline.text"),
      placeholder: t("timeline.textHint"),
    });
    this.use.textContent = t("timeline.textUse");
    this.shared.textContent = t("timeline.openShared");
    setAttributes(this.shared, { title: t("timeline.openSharedTip") });
    this.close.textContent = t("timeline.textClose");
    this.error.textContent = "";
    this.area.value = formatSpec(edits.textsOf(sections, kind));
    this.area.focus({ preventScroll: true });
  }

  apply() {
    const { count, window } = this.view.shown;
    const kind = this.kind.value;
    const read = (text) => {
      if (!text.trim()) return Array(count).fill(null);
      if (kind === "prompt" && isTimed(text)) return promptsBySection(text, count, window);
      return resolveSpec(parseSpec(text, kind), count, kind);
    };
    try {
      const texts = read(this.area.value);
      this.view.state.edit((sections, selected) => ({
        sections: edits.withTexts(sections, kind, texts),
        selected,
      }));
      this.view.toggleText(false);
      this.view.say(t("timeline.textUsed"));
    } catch (error) {
      this.error.textContent = error.message;
    }
  }
}
