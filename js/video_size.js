// The size of the video that a plan will become: found by following the links of the graph.
import { nearestBucket, sizeForArea } from "./lib/sections.js";
import { inputNode, isLinked, slotOf, widgetValue } from "./node_bridge.js";

const TOY_SIZE = [64, 64];
const TOY_WORLD = "Toy World (built in)";
const FAR = 32; // links that are followed

/**
 * [width, height], or null where the graph does not tell.
 * imageSize: the size of an image of the input folder by its name, or null while it is not known.
 */
export function videoSize(plan, imageSize) {
  const sampler = findSampler(plan);
  const start = sampler && inputNode(sampler, "start_latent");
  const image = start && (inputNode(start, "image") ?? inputNode(start, "pixels"));
  return image ? sizeOf(image, imageSize, FAR) : null;
}

/** Names of the images that the video begins and ends with: {start, end}, null where unknown. */
export function framePictures(plan) {
  const start = findSampler(plan);
  const end = behind(plan).find((node) => node.type === "FPReelEndFrame");
  return {
    start: start && pictureOf(inputNode(start, "start_latent"), "image", FAR),
    end: end ? pictureOf(inputNode(end, "end_image"), "image", FAR) : null,
    hasEnd: Boolean(end),
  };
}

/** The image of the input folder that comes to an input of a node. */
function pictureOf(node, input, far) {
  if (!node || far === 0) return null;
  if (node.type === "LoadImage") return String(widgetValue(node, "image", "")) || null;
  const slot = slotOf(node, input);
  if (slot < 0 || !node.isInputConnected(slot)) return null;
  const source = node.getInputNode(slot);
  // The second output of FPReelCanvas is its end image.
  const isEnd = source?.type === "FPReelCanvas" && node.getInputLink(slot)?.origin_slot === 1;
  return pictureOf(source, isEnd ? "end_image" : "image", far - 1);
}

const findSampler = (plan) =>
  behind(plan).find((node) => node.inputs?.some((input) => input.name === "start_latent")) ?? null;

/** A plan and the nodes that its outputs lead to. */
function behind(plan) {
  const seen = new Set([plan]);
  for (const node of seen) {
    const next = (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes?.(slot) ?? []);
    for (const other of next) if (seen.size < FAR) seen.add(other);
  }
  return [...seen];
}

function sizeOf(node, imageSize, far) {
  if (!node || far === 0) return null;
  if (node.type === "FPReelToyWorldScene") return TOY_SIZE;
  if (node.type === "LoadImage") return imageSize(String(widgetValue(node, "image", "")));
  if (node.type === "FPReelCanvas") return canvasSize(node, imageSize, far);
  return node.type === "Reroute" ? sizeOf(node.getInputNode(0), imageSize, far - 1) : null;
}

function canvasSize(canvas, imageSize, far) {
  const names = ["fit", "resolution", "width", "height"];
  if (names.some((name) => isLinked(canvas, name))) return null;
  const [fit, resolution, width, height] = names.map((name) => widgetValue(canvas, name));
  if (fit === "exact") return [width, height];
  if (fit !== "area" && isToyWorld(inputNode(canvas, "model"), far)) return TOY_SIZE;
  const image = sizeOf(inputNode(canvas, "image"), imageSize, far - 1);
  if (!image) return null;
  return fit === "area" ? sizeForArea(...image, resolution ** 2) : nearestBucket(...image);
}

/** Whether a MODEL comes from Toy World, whatever is applied to it on the way. */
function isToyWorld(node, far) {
  if (!node || far === 0) return false;
  if (node.type === "FPReelLoadSnapshot") return widgetValue(node, "snapshot") === TOY_WORLD;
  return isToyWorld(inputNode(node, "model"), far - 1);
}

const sizes = new Map();

/** The size of an image that is served at an address; `ready` is called when it is known. */
export function servedSize(url, ready) {
  if (!sizes.has(url)) {
    sizes.set(url, null);
    const image = new Image();
    image.onload = () => {
      sizes.set(url, [image.naturalWidth, image.naturalHeight]);
      ready();
    };
    image.src = url;
  }
  return sizes.get(url);
}
