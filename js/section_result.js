// What FPReelSampler shows of its run: the section in progress, and the video so far.
import { clipsOf, plannedOf, sectionStates } from "./lib/reports.js";
import { h, setAttributes } from "./dom.js";
import { duration, t } from "./messages.js";
import { fileUrl, finishRun } from "./node_bridge.js";

export class SectionResult {
  static HEIGHT = 380;

  constructor() {
    this.clips = [];
    this.playing = 0;
    this.only = null;
    this.text = h("div", { class: "fpreel-summary" });
    this.news = h("div", { class: "fpreel-news", role: "status" });
    this.bar = h("progress", { class: "fpreel-bar", max: 1 });
    this.cells = h("div", { class: "fpreel-cells", role: "group" });
    this.finish = h("button", {
      class: "fpreel-finish",
      type: "button",
      on: { click: () => finishRun(this.report.run) },
    });
    this.picture = h("img", { class: "fpreel-picture", alt: "" });
    this.video = h("video", {
      class: "fpreel-video",
      controls: true,
      playsinline: true,
      props: { muted: true },
      on: { ended: () => this.next() },
    });
    this.log = h("div", { class: "fpreel-log", tabindex: "0" });
    const seen = [this.picture, this.video, this.log];
    const parts = [this.text, this.news, this.bar, this.cells, this.finish, ...seen];
    this.element = h("div", { class: "fpreel fpreel-result", role: "group" }, ...parts);
  }

  show(report) {
    const isNews = ["state", "section"].some((name) => report[name] !== this.report?.[name]);
    this.report = report;
    setAttributes(this.element, { "aria-label": t("result.title"), "data-state": report.state });
    this.text.textContent = this.words();
    // Not every step, which would keep a screen reader talking.
    if (isNews) this.news.textContent = this.words();
    this.showProgress();
    this.showCells();
    this.showFinish();
    this.showPicture();
    this.showClips();
    this.log.textContent = this.logLines().join("\n");
  }

  /** At the end: what the ledger said, and how far each section is from the start image. */
  logLines() {
    const { state, log = [], done = [] } = this.report;
    if (state === "sampling") return [];
    const drifts = done.filter(({ drift }) => drift);
    return [...log, ...drifts.map(({ section, drift }) => t("result.drift", { section, ...drift }))];
  }

  words() {
    const { state, section, order, step, steps, elapsed, remaining } = this.report;
    const sections = plannedOf(this.report);
    if (state === "finished") return this.finishedWords();
    if (state === "interrupted") return this.stoppedWords();
    if (order === undefined) return t("result.starting", { sections });
    const place = { section, order: order + 1, sections, step: step ?? 0, steps: steps ?? "…" };
    const rest = remaining ? ` · ${t("result.left", { time: duration(remaining) })}` : "";
    return `${t("result.progress", place)} · ${duration(elapsed)}${rest}`;
  }

  stoppedWords() {
    const { sections, done = [], elapsed, ledger } = this.report;
    const stopped = t("result.interrupted", { time: duration(elapsed) });
    const kept = t("result.kept", { done: done.length, sections });
    return ledger && done.length ? `${stopped} · ${kept}` : stopped;
  }

  finishedWords() {
    const { frames, fps, width, height, elapsed, sections, done = [] } = this.report;
    const early = t("result.early", { done: done.length, sections });
    return [
      ...(done.length < sections ? [early] : []),
      t("timeline.frames", { frames }),
      t("timeline.seconds", { seconds: (frames / fps).toFixed(2) }),
      `${width}×${height}`,
      t("result.took", { time: duration(elapsed) }),
    ].join(" · ");
  }

  showProgress() {
    const { state, done = [], step = 0, steps = 1 } = this.report;
    const current = state === "sampling" && step < steps ? step / steps : 0;
    this.bar.hidden = state !== "sampling";
    this.bar.value = Math.min(1, (done.length + current) / plannedOf(this.report));
    setAttributes(this.bar, { "aria-label": t("result.title") });
  }

  /** A button a section: what became of it, and its clip to be played alone. */
  showCells() {
    const states = sectionStates(this.report);
    setAttributes(this.cells, { "aria-label": t("timeline.strip") });
    while (this.cells.children.length < states.length) this.cells.append(this.newCell());
    while (this.cells.children.length > states.length) this.cells.lastChild.remove();
    states.forEach((state, section) => {
      const name = `${t("timeline.name", { section })}: ${t(`result.${state}`)}`;
      const hasClip = clipsOf(this.report).some((clip) => clip.section === section);
      setAttributes(this.cells.children[section], {
        "aria-label": name,
        title: hasClip ? `${name}\n${t("result.play")}` : name,
        "data-state": state,
        "aria-disabled": hasClip ? null : "true",
        "aria-pressed": String(this.only === section),
      });
      this.cells.children[section].textContent = state === "stored" ? `↺ ${section}` : section;
    });
  }

  /** The run can end as a whole video where another section would follow. */
  showFinish() {
    const { state, order = 0, finishing = false } = this.report;
    this.finish.hidden = state !== "sampling" || order + 1 >= plannedOf(this.report);
    this.finish.disabled = finishing;
    this.finish.textContent = t(finishing ? "result.finishing" : "result.finish");
    setAttributes(this.finish, { title: t("result.finishTip") });
  }

  newCell() {
    const section = this.cells.children.length;
    return h("button", { type: "button", on: { click: () => this.play(section) } });
  }

  /** Play one section alone, or all of them again. */
  play(section) {
    const clip = this.clips.findIndex((candidate) => candidate.section === section);
    if (clip < 0) return;
    this.only = this.only === section ? null : section;
    this.start(this.only === null ? 0 : clip);
    this.showCells();
  }

  showPicture() {
    const { state, picture, section } = this.report;
    this.picture.hidden = state !== "sampling" || !picture;
    if (this.picture.hidden || this.picture.src === picture) return;
    this.picture.src = picture;
    this.picture.alt = t("result.picture", { section });
  }

  showClips() {
    const current = this.clips[this.playing]?.clip.filename;
    this.clips = clipsOf(this.report);
    this.video.hidden = !this.clips.length;
    const same = this.clips.findIndex(({ clip }) => clip.filename === current);
    if (same >= 0) this.playing = same;
    else if (this.clips.length) this.start(0);
    else this.video.removeAttribute("src");
  }

  next() {
    if (this.only === null && this.clips.length) this.start((this.playing + 1) % this.clips.length);
  }

  start(index) {
    this.playing = index;
    const { clip, section } = this.clips[index];
    this.video.src = fileUrl(clip);
    setAttributes(this.video, { "aria-label": t("timeline.name", { section }) });
    this.video.play().catch(() => {}); // a page in the background may not start videos
  }
}
