// The fields of the section that is selected on a timeline.
import * as edits from "./lib/timeline.js";
import { fileField, h, setAttributes, stop } from "./dom.js";
import { t } from "./messages.js";
import { inputImages } from "./node_bridge.js";

export class SectionEditor {
  constructor(view) {
    this.view = view;
    const { state } = view;
    this.title = h("div", { class: "fpreel-title" });
    this.prompt = h("textarea", {
      class: "fpreel-prompt",
      rows: 3,
      spellcheck: "false",
      on: {
        input: () => state.type("prompt", this.prompt.value || null),
        change: () => state.edit(edits.withOwn, "prompt", this.prompt.value || null),
        keydown: (event) => this.onKey(event),
      },
    });
    this.image = h("select", {
      on: {
        focus: () => this.listImages(),
        change: () => state.edit(edits.withOwn, "image", this.image.value || null),
      },
    });
    this.file = fileField("image/*", (file) => view.upload(file));
    this.upload = h("button", { type: "button", on: { click: () => this.file.click() } });
    this.dice = h("button", { type: "button", on: { click: () => this.roll() } }, "⚄");
    this.numbers = Object.fromEntries(
      Object.entries(edits.LIMITS).map(([name, limits]) => [name, this.numberField(name, limits)]),
    );
    this.labels = {};
    const row = h("div", { class: "fpreel-fields" }, ...this.fields());
    this.element = h(
      "div",
      { class: "fpreel-editor", role: "group" },
      this.title,
      this.prompt,
      row,
    );
  }

  numberField(name, limits) {
    const commit = () =>
      this.view.state.edit(edits.withOwn, name, edits.readNumber(name, field.value));
    const field = h("input", { type: "number", ...limits, on: { change: commit } });
    return field;
  }

  fields() {
    const label = (name, ...controls) => {
      this.labels[name] = h("span", {});
      return h("label", { class: `fpreel-field fpreel-${name}` }, this.labels[name], ...controls);
    };
    const number = ([name, field]) =>
      name === "seed"
        ? h("div", { class: "fpreel-pair" }, label(name, field), this.dice)
        : label(name, field);
    return [
      h(
        "div",
        { class: "fpreel-pair fpreel-image-pair" },
        label("image", this.image),
        this.upload,
        this.file,
      ),
      ...Object.entries(this.numbers).map(number),
    ];
  }

  show({ sections, selected, planned, mode, count }) {
    const own = sections[selected];
    const place = planned[selected];
    const name = t("timeline.name", { section: selected });
    this.title.textContent = `${name} · ${t("timeline.range", place)}`;
    setAttributes(this.element, { "aria-label": name });
    setAttributes(this.prompt, {
      "aria-label": t("timeline.prompt"),
      placeholder: t(own.prompt === "" ? "timeline.promptEmpty" : "timeline.promptOfRun"),
    });
    for (const [field, label] of Object.entries(this.labels))
      label.textContent = t(`timeline.${field}`);
    this.upload.textContent = t("timeline.upload");
    setAttributes(this.dice, { title: t("timeline.roll"), "aria-label": t("timeline.roll") });
    setValue(this.prompt, own.prompt ?? "");
    for (const [field, input] of Object.entries(this.numbers)) {
      setValue(input, own[field] ?? "");
      setAttributes(input, { placeholder: t("timeline.ofRun") });
    }
    const { padding, lora_strength } = this.numbers;
    setAttributes(padding, { placeholder: place.padding ?? "–" });
    setAttributes(lora_strength, { placeholder: "1" });
    padding.disabled = mode === "f1" && own.padding === undefined;
    this.showImages(own.image);
  }

  showImages(image, names = []) {
    const all = [...new Set(image ? [image, ...names] : names)];
    const options = all.map((name) => h("option", { value: name }, name));
    if (document.activeElement !== this.image || names.length) {
      this.image.replaceChildren(h("option", { value: "" }, t("timeline.noImage")), ...options);
    }
    this.image.value = image ?? "";
  }

  async listImages() {
    const { sections, selected } = this.view.shown;
    this.showImages(sections[selected].image, await inputImages().catch(() => []));
  }

  roll() {
    const seed = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
    this.view.state.edit(edits.withOwn, "seed", seed);
  }

  onKey(event) {
    if (event.key !== "Escape") return;
    stop(event);
    this.view.pick(this.view.shown.selected);
  }
}

/** Set a field's value without moving the cursor in one that has it already. */
function setValue(field, value) {
  if (field.value !== String(value)) field.value = value;
}
