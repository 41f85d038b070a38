// Elements without a framework.

/** An element: attributes, `on` listeners and properties by name, then its children. */
export function h(tag, { on = {}, props = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  setAttributes(element, attributes);
  Object.assign(element, props);
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Set attributes by name; true is an empty one, false and null take one away. */
export function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null) element.removeAttribute(name);
    else element.setAttribute(name, value === true ? "" : value);
  }
}

/** A hidden field that asks for a file, its `click` opens the dialog; the same can come twice. */
export function fileField(accept, use) {
  const field = h("input", { type: "file", accept, hidden: true });
  field.addEventListener("change", () => {
    const [file] = field.files;
    field.value = "";
    if (file) use(file);
  });
  return field;
}

/** An event is dealt with: neither the browser nor ComfyUI shall do anything about it. */
export function stop(event) {
  event.preventDefault();
  event.stopPropagation();
}

let styled = false;

/** Load the style sheet, once and only for graphs that need it. */
export function loadStyle() {
  if (styled) return;
  styled = true;
  const href = new URL("framepack_reel.css", import.meta.url).href;
  document.head.append(h("link", { rel: "stylesheet", href }));
}
