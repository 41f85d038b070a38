// Words on a node, below its widgets: never saved, and as high as they need.
import { app } from "../../scripts/app.js";
import { h, loadStyle } from "./dom.js";
import { addElement } from "./node_bridge.js";

const [LETTER, LINE, AROUND, MOST_LINES] = [7, 17, 28, 8]; // pixels, with margins of the widget

export class NodeWords {
  /** name: of the widget; attributes: of the element that holds the words. */
  constructor(node, name, attributes) {
    loadStyle();
    this.node = node;
    this.before = node.size[1];
    this.text = h("div", { tabindex: "0", ...attributes }); // scrolls where it is long
    const height = () => AROUND + LINE * Math.min(this.lines(), MOST_LINES);
    const element = h("div", { class: "fpreel" }, this.text);
    this.widget = addElement(node, name, "FPREEL_WORDS", element, {
      serialize: false,
      getMinHeight: height,
      getMaxHeight: height,
    });
    this.widget.serialize = false;
  }

  lines() {
    const beside = Math.max(1, (this.node.size[0] - 2 * AROUND) / LETTER);
    const long = (line) => Math.max(1, Math.ceil(line.length / beside));
    return this.text.textContent.split("\n").reduce((sum, line) => sum + long(line), 0);
  }

  show(words) {
    this.text.textContent = words;
    this.fit(this.node.size[1]);
  }

  remove() {
    if (!this.node.widgets?.includes(this.widget)) return;
    this.node.removeWidget(this.widget);
    this.fit(this.before);
  }

  fit(height) {
    this.node.setSize([this.node.size[0], Math.max(height, this.node.computeSize()[1])]);
    app.canvas?.setDirty?.(true, true);
  }
}
