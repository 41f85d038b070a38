// Reads and writes widgets of nodes by name, and files by ComfyUI's routes; knows no view.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

export const findWidget = (node, name) => node.widgets?.find((widget) => widget.name === name);

/** A widget's value, or the fallback where there is none. */
export const widgetValue = (node, name, fallback) => findWidget(node, name)?.value ?? fallback;

export function setWidget(node, name, value) {
  const widget = findWidget(node, name);
  if (!widget || widget.value === value) return;
  widget.value = value;
  widget.callback?.(value);
}

/** The place of an input by its name, or -1. */
export const slotOf = (node, name) =>
  node.inputs?.findIndex((input) => input.name === name) ?? -1;

export function isLinked(node, name) {
  const slot = slotOf(node, name);
  return slot >= 0 && Boolean(node.isInputConnected(slot));
}

/** The source node of an input by name, or null. */
export function inputNode(node, name) {
  const slot = slotOf(node, name);
  return slot < 0 ? null : (node.getInputNode(slot) ?? null);
}

const latest = new Map(); // elements by the node and widget that they are shown as

/**
 * Nodes 2.0 goes on to show a widget's old element where undo or another workflow has made a node of
 * the same number: take its place.
 */
function takePlace(node, name, element) {
  if (!LiteGraph.vueNodesMode || !node.graph) return;
  const key = `${node.graph.isRootGraph ? "" : node.graph.id} ${node.id} ${name}`;
  const old = latest.get(key)?.deref();
  latest.set(key, new WeakRef(element));
  if (old && old !== element && old.isConnected && !element.isConnected) old.replaceWith(element);
}

/** An element as a widget of a node. */
export function addElement(node, name, type, element, options) {
  requestAnimationFrame(() => takePlace(node, name, element));
  const widget = node.addDOMWidget(name, type, element, { hideOnZoom: false, ...options });
  // A panel that draws the widget a second time would leave it as wide as the panel is.
  Object.defineProperty(widget, "width", { get: () => undefined, set: () => {} });
  return widget;
}

/** Take away the row of a field on the outside of a subgraph; the field inside stays as it is. */
export function hideField(field) {
  field.hidden = true;
  const { options, widgetId } = field;
  if (!widgetId || options.hidden) return; // only such fields have options of their own
  options.hidden = true; // which Nodes 2.0 reads
  Reflect.set(field, "options", options); // frontends that can be told so
}

/** One step of ComfyUI's undo. */
export function asOneStep(change) {
  app.canvas?.emitBeforeChange?.();
  try {
    change();
  } finally {
    app.canvas?.emitAfterChange?.();
  }
}

/** Ask a run to end after the section in progress. */
export const finishRun = (run) =>
  api.fetchApi("/fpreel/finish", { method: "POST", body: JSON.stringify({ run }) });

/** Where a file of ComfyUI's folders is served. */
export function fileUrl({ filename, subfolder = "", type = "input" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/** Where an image that a widget names is served: "folder/name.png" or "name.png [output]". */
export function imageUrl(name) {
  const [, path, type = "input"] = /^(.*?)(?: \[(\w+)\])?$/.exec(name);
  const cut = path.lastIndexOf("/");
  return fileUrl({
    filename: path.slice(cut + 1),
    subfolder: path.slice(0, Math.max(cut, 0)),
    type,
  });
}

/** Names of the images in the input folder. */
export async function inputImages() {
  const answer = await api.fetchApi("/object_info/LoadImage");
  const [kind, options] = (await answer.json()).LoadImage.input.required.image;
  return Array.isArray(kind) ? kind : (options.options ?? []);
}

/** The sections of a zip of another program, whose pictures go into the input folder. */
export async function uploadSections(file, { mode, count, fixed }) {
  const body = new FormData();
  body.append("file", file);
  body.append("mode", mode);
  body.append("count", String(count));
  body.append("fixed", String(fixed));
  const answer = await api.fetchApi("/fpreel/sections", { method: "POST", body });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error ?? `${answer.status} ${answer.statusText}`);
  return found;
}

/** Put a picture into the input folder; its name there. */
export async function uploadImage(file) {
  const body = new FormData();
  body.append("image", file);
  const answer = await api.fetchApi("/upload/image", { method: "POST", body });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const { name, subfolder } = await answer.json();
  return subfolder ? `${subfolder}/${name}` : name;
}
