// What FPReelTrainLora shows of its run: the loss, how far it is, and the newest samples.
import { extent, scale, smooth, thinned, ticks, within, zoomed } from "./lib/chart.js";
import { h, setAttributes } from "./dom.js";
import { duration, t } from "./messages.js";
import { fileUrl } from "./node_bridge.js";

const SMOOTHING = 0.95;
const POINTS = 1200; // of a line, at most
const MARGIN = { left: 46, right: 8, top: 6, bottom: 20 };
const WIDTH = 520; // where it is not on a page yet
const CHART = 190;
const MARK = 80; // pixels between two steps that are written, at least
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
    this.slider = h("input", {
      type: "range",
      min: 0,
      step: 1,
      on: { input: () => this.chooseStep(Number(this.slider.value)) },
    });
    this.shownStep = h("span", {});
    this.steps = h("label", { class: "fpreel-steps" }, this.shownStep, this.slider);
    this.chosen = null; // the step whose samples are shown; null for the newest
    const seen = [this.hint, this.steps, this.samples];
    const parts = [this.text, this.news, this.details, this.chart, ...seen];
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
    const { state, lr, speed, remaining, elapsed, saved, validation } = this.report;
    const parts = [];
    if (lr !== undefined) parts.push(t("training.rate", { rate: lr.toExponential(1) }));
    if (speed) parts.push(paceWords(speed));
    if (elapsed !== undefined) parts.push(duration(elapsed));
    if (remaining !== undefined && !["finished", "interrupted"].includes(state)) {
      parts.push(t("result.left", { time: duration(remaining) }));
    }
    if (Number.isFinite(validation)) {
      parts.push(t("training.validation", { loss: validation.toPrecision(3) }));
    }
    if (saved) parts.push(t("training.saved", { name: saved }));
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

  /** Pixels of the chart, so that its words are as large as other words. */
  width() {
    return this.chart.clientWidth || WIDTH;
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
    const hidden = this.losses().length < 2; // no line yet
    for (const part of [this.chart, this.hint]) setAttributes(part, { hidden });
    setAttributes(this.chart, { viewBox: `0 0 ${this.width()} ${CHART}` });
    if (raw.length) this.drawLines(raw, mean, [low, high]);
  }

  drawLines(raw, mean, [low, high]) {
    const reach = extent(raw.map(([, loss]) => loss));
    const width = this.width();
    const x = scale([low, high], [MARGIN.left, width - MARGIN.right]);
    const y = scale(reach, [CHART - MARGIN.bottom, MARGIN.top]);
    const lines = [
      ...ticks(...reach, 4).map((loss) => gridLine(y(loss), String(loss), width)),
      ...ticks(low, high, Math.max(1, Math.floor(width / MARK)))
        .filter(Number.isInteger)
        .map((step) => mark(x(step), String(step))),
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
    const width = this.width();
    const share = ((event.clientX - box.left) / box.width) * width;
    const around = scale([MARGIN.left, width - MARGIN.right], [low, high])(share);
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
    const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => a - b);
    const shown = steps.includes(this.chosen) ? this.chosen : steps.at(-1);
    this.showSlider(steps, shown);
    const seen = samples.filter(({ step }) => step === shown);
    const names = seen.map(({ filename }) => filename).join();
    if (this.samples.dataset.names === names) return;
    this.samples.dataset.names = names;
    this.samples.hidden = !seen.length;
    this.samples.replaceChildren(...seen.map(sampleView));
  }

  showSlider(steps, shown) {
    this.steps.hidden = steps.length < 2;
    setAttributes(this.slider, { max: steps.length - 1 });
    this.slider.value = steps.indexOf(shown);
    this.shownStep.textContent = t("training.samplesOf", { step: shown ?? 0 });
    this.sampled = steps;
  }

  /** Show the samples of a step by its place; those of the last one follow the run. */
  chooseStep(place) {
    this.chosen = place === this.sampled.length - 1 ? null : this.sampled[place];
    this.showSamples();
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

function gridLine(y, words, width) {
  return svg(
    "g",
    { class: "fpreel-grid" },
    svg("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }),
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

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  setAttributes(element, attributes);
  element.append(...children);
  return element;
}
