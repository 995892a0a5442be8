/**
 * An element with properties, attributes (names with a hyphen, such as `aria-label`) and children.
 * @param {object} properties `on` holds listeners by the names of events
 */
export function element(name, { on = {}, ...properties } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  for (const [event, listener] of Object.entries(on)) made.addEventListener(event, listener);
  made.append(...children);
  return made;
}
