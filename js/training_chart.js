// What FPReelTrainLora shows of its run: the loss, how far it is, and the newest samples.
import { duration, extent, scale, smooth, thinned, ticks, within, zoomed } from "./lib/chart.js";
import { h, setAttributes } from "./dom.js";
import { t } from "./messages.js";
import { fileUrl } from "./node_bridge.js";

const SMOOTHING = 0.95;
const POINTS = 1200; // of a line, at most
const MARGIN = { left: 46, right: 8, top: 6, bottom: 20 };
const WIDTH = 520;
const CHART = 190;
const ZOOM = 1.25; // a step of wheel or key
const VIDEO = /\.(mp4|webm)$/i;

export class TrainingChart {
  static HEIGHT = 380;

  constructor() {
    this.range = null; // of steps that are shown; null for all
    this.text = h("div", { class: "fpreel-summary" });
    this.news = h("div", { class: "fpreel-news", role: "status" });
    this.details = h("div", { class: "fpreel-details" });
    this.chart = svg("svg", {
      class: "fpreel-chart",
      viewBox: `0 0 ${WIDTH} ${CHART}`,
      role: "img",
      tabindex: "0",
    });
    this.chart.addEventListener("wheel", (event) => this.onWheel(event));
    this.chart.addEventListener("keydown", (event) => this.onKey(event));
    this.chart.addEventListener("dblclick", () => this.zoomTo(null));
    this.hint = h("div", { class: "fpreel-order" });
    this.samples = h("div", { class: "fpreel-samples", role: "list" });
    const parts = [this.text, this.news, this.details, this.chart, this.hint, this.samples];
    this.element = h("div", { class: "fpreel fpreel-training", role: "group" }, ...parts);
  }

  show(report) {
    const isNews = report.state !== this.report?.state;
    this.report = report;
    setAttributes(this.element, { "aria-label": t("training.title"), "data-state": report.state });
    this.text.textContent = this.words();
    // Not every step: several a second would keep a screen reader talking.
    if (isNews) this.news.textContent = this.words();
    this.details.textContent = this.detailWords();
    this.hint.textContent = t("training.zoomHint");
    this.draw();
    this.showSamples();
  }

  words() {
    const { state, step, steps } = this.report;
    const parts = [t(`training.${state}`)];
    if (step !== undefined) parts.push(t("training.step", { step, steps }));
    const last = this.smoothed().at(-1);
    if (last) parts.push(t("training.loss", { loss: last[1].toPrecision(3) }));
    return parts.join(" · ");
  }

  detailWords() {
    const { state, lr, speed, remaining, elapsed, message } = this.report;
    const parts = [];
    if (lr !== undefined) parts.push(t("training.rate", { rate: lr.toExponential(1) }));
    if (speed) parts.push(paceWords(speed));
    if (elapsed !== undefined) parts.push(duration(elapsed));
    if (remaining !== undefined && !["finished", "interrupted"].includes(state)) {
      parts.push(t("result.left", { time: duration(remaining) }));
    }
    if (message) parts.push(message);
    return parts.join(" · ");
  }

  losses() {
    return (this.report.losses ?? []).filter(([, loss]) => Number.isFinite(loss));
  }

  smoothed() {
    const losses = this.losses();
    const values = smooth(
      losses.map(([, loss]) => loss),
      SMOOTHING,
    );
    return losses.map(([step], i) => [step, values[i]]);
  }

  /** All steps there are, or will be. */
  whole() {
    const losses = this.losses();
    const last = losses.at(-1)?.[0] ?? 1;
    return [losses[0]?.[0] ?? 0, Math.max(last, 1)];
  }

  draw() {
    const [low, high] = this.range ?? this.whole();
    const raw = within(this.losses(), low, high);
    const mean = within(this.smoothed(), low, high);
    const words = { "aria-label": this.chartWords(raw, mean) };
    setAttributes(this.chart, { ...words, "aria-description": t("training.zoomHint") });
    if (raw.length) this.drawLines(raw, mean, [low, high]);
    else this.chart.replaceChildren(note(t("training.noLoss")));
  }

  drawLines(raw, mean, [low, high]) {
    const reach = extent(raw.map(([, loss]) => loss));
    const x = scale([low, high], [MARGIN.left, WIDTH - MARGIN.right]);
    const y = scale(reach, [CHART - MARGIN.bottom, MARGIN.top]);
    const lines = [
      ...ticks(...reach, 4).map((loss) => gridLine(y(loss), String(loss))),
      ...ticks(low, high, 6).map((step) => mark(x(step), String(step))),
    ];
    this.chart.replaceChildren(
      ...lines,
      line(raw, x, y, "fpreel-raw"),
      line(mean, x, y, "fpreel-smooth"),
    );
  }

  chartWords(raw, mean) {
    if (!raw.length) return t("training.noLoss");
    const [from, to] = [raw[0][0], raw.at(-1)[0]];
    const [first, last] = [mean[0][1], mean.at(-1)[1]].map((loss) => loss.toPrecision(3));
    return t("training.chart", { from, to, first, last });
  }

  onWheel(event) {
    event.preventDefault();
    event.stopPropagation();
    const box = this.chart.getBoundingClientRect();
    const [low, high] = this.range ?? this.whole();
    const share = ((event.clientX - box.left) / box.width) * WIDTH;
    const around = scale([MARGIN.left, WIDTH - MARGIN.right], [low, high])(share);
    this.zoomBy(event.deltaY > 0 ? ZOOM : 1 / ZOOM, around);
  }

  onKey(event) {
    const factor = { "+": 1 / ZOOM, "=": 1 / ZOOM, "-": ZOOM }[event.key];
    const shift = { ArrowLeft: -0.2, ArrowRight: 0.2 }[event.key];
    const [low, high] = this.range ?? this.whole();
    if (factor) this.zoomBy(factor, high);
    else if (shift) this.moveBy((high - low) * shift);
    else if (event.key === "0" || event.key === "Escape") this.zoomTo(null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  zoomBy(factor, around) {
    const whole = this.whole();
    const range = zoomed(this.range ?? whole, whole, around, factor);
    const isWhole = range[1] - range[0] >= whole[1] - whole[0];
    this.zoomTo(isWhole ? null : range);
  }

  moveBy(steps) {
    if (!this.range) return;
    const whole = this.whole();
    const width = this.range[1] - this.range[0];
    const start = Math.max(whole[0], Math.min(this.range[0] + steps, whole[1] - width));
    this.zoomTo([start, start + width]);
  }

  zoomTo(range) {
    this.range = range;
    this.draw();
  }

  showSamples() {
    const samples = this.report.samples ?? [];
    const last = samples.at(-1)?.step;
    const newest = samples.filter(({ step }) => step === last);
    const names = newest.map(({ filename }) => filename).join();
    if (this.samples.dataset.names === names) return;
    this.samples.dataset.names = names;
    this.samples.hidden = !newest.length;
    this.samples.replaceChildren(...newest.map(sampleView));
  }
}

function sampleView(sample) {
  const src = fileUrl(sample);
  const words = t("training.sample", { step: sample.step, prompt: sample.prompt });
  const seen = VIDEO.test(sample.filename)
    ? h("video", {
        src,
        controls: true,
        loop: true,
        playsinline: true,
        "aria-label": words,
        props: { muted: true, autoplay: true },
      })
    : h("img", { src, alt: words });
  return h("div", { class: "fpreel-sample", role: "listitem", title: words }, seen);
}

const paceWords = (speed) =>
  speed >= 1
    ? t("training.stepsASecond", { speed: speed.toFixed(1) })
    : t("training.secondsAStep", { seconds: (1 / speed).toFixed(1) });

function line(points, x, y, name) {
  const path = thinned(points, POINTS).map(
    ([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`,
  );
  return svg("polyline", { class: name, points: path.join(" ") });
}

function gridLine(y, words) {
  return svg(
    "g",
    { class: "fpreel-grid" },
    svg("line", { x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y, y2: y }),
    svg("text", { x: MARGIN.left - 4, y: y + 3, "text-anchor": "end" }, words),
  );
}

function mark(x, words) {
  const y = CHART - MARGIN.bottom;
  return svg(
    "g",
    { class: "fpreel-grid" },
    svg("line", { x1: x, x2: x, y1: y, y2: y + 4 }),
    svg("text", { x, y: y + 15, "text-anchor": "middle" }, words),
  );
}

function note(words) {
  const place = { x: WIDTH / 2, y: CHART / 2, "text-anchor": "middle" };
  return svg("g", { class: "fpreel-grid" }, svg("text", place, words));
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  element.append(...children);
  return element;
}
