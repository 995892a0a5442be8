// One picture, large: its caption, where it lies, what its table says, and what can be done with it. It is a dialog; an
// icon is shown in a panel beside the grid, so that one keeps browsing.

import { element } from "./element.js";
import { iconPart, isIcon, nameOf } from "./icon.js";

export const OUTSIDE = "Outside this model's domain. Best guess:";
const MAX_ENLARGED = 4;
const numbers = new Intl.NumberFormat("en");

export class Detail {
  #dialog;
  #index = null;
  #isPanel = false;
  #others = { id: null, found: null }; // of the icon that was shown last
  entry = null; // the picture that is shown; null while it is closed

  /** @param {HTMLDialogElement} dialog */
  constructor(dialog, on) {
    this.#dialog = dialog;
    this.on = on;
    dialog.tabIndex = -1; // it has the focus: keys work whatever is drawn in it
    dialog.autofocus = true;
    dialog.addEventListener("click", ({ target }) => target === dialog && !this.#isPanel && dialog.close()); // beside it
    dialog.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.#isPanel) this.dismiss();
      if (event.altKey || event.ctrlKey || event.metaKey) return; // keys of the browser
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || this.#index === null || event.target.closest("input")) return;
      event.preventDefault();
      this.#go(step);
    });
    dialog.addEventListener("close", () => {
      if (dialog.open) return; // shown again since: the event comes with the next frame only
      if (this.#index !== null && !this.isLeaving && !this.#isPanel) on.grid.focus(this.#index); // a panel gives it back itself
      const isLeft = this.entry !== null;
      this.isLeaving = false;
      this.entry = null;
      if (isLeft) on.moved(true);
    });
  }

  /** Close it, without a step of the history: something else is shown now. */
  close() {
    if (!this.entry) return;
    this.entry = null;
    this.isLeaving = true;
    this.#dialog.close();
  }

  /** True if a panel is open: the grid beside it is used on. */
  get isPanel() {
    return this.entry !== null && this.#isPanel;
  }

  /** Close it, as by its button. */
  dismiss() {
    this.#dialog.close();
  }

  /** Draw it again, as in another style. */
  redraw() {
    if (this.isPanel) this.#show(this.entry);
  }

  /** Open the picture at an index of the grid. */
  async open(index) {
    const entry = await this.on.grid.entryAt(index);
    if (!entry) return;
    this.#index = index;
    const isStep = this.entry === null;
    this.#show(entry);
    this.on.moved(isStep);
  }

  /** Open a picture that is not in the grid. */
  openEntry(entry) {
    this.#index = null;
    const isStep = this.entry === null;
    this.#show(entry);
    this.on.moved(isStep);
  }

  async #go(step) {
    const index = this.#index + step;
    if (index < 0 || index >= this.on.grid.count) return;
    await this.open(index);
  }

  #leave(then) {
    if (!this.#isPanel) this.close();
    then();
  }

  #show(entry) {
    const { backend } = this.on;
    const style = this.on.iconStyle();
    this.entry = entry;
    if (!this.#dialog.open) {
      this.isLeaving = false;
      this.#isPanel = Boolean(style) && matchMedia("(min-width: 821px)").matches;
    }
    const { heading, set } = namesOf(entry);
    const isGuess = entry.fields?.unfamiliar === "yes";
    const image = element("img", { alt: heading });
    const frame = element("div", { className: "frame" }, image);
    // A small picture stays small: enlarged more than this, it would be a blur.
    if (!isIcon(entry)) image.addEventListener("load", () => {
      image.style.maxWidth = `${MAX_ENLARGED * image.naturalWidth}px`;
      image.style.maxHeight = `${MAX_ENLARGED * image.naturalHeight}px`;
    });
    image.addEventListener("error", () => image.hasAttribute("src") && frame.classList.add("unloaded"));
    if (!style) backend.image(entry, 1024).then((address) => (image.src = address), () => frame.classList.add("gone"));

    const title = element("h2", { id: "detail-caption", textContent: heading });
    const isNamed = heading !== entry.caption; // the caption is said below, or is the heading itself
    const caption = isNamed ? element("p", { className: "guess" }, entry.caption) : title;
    const eyebrow = element("p", { className: "eyebrow" }, isGuess ? OUTSIDE : "What the model sees");
    const hint = element("p", { className: "hint" });
    if (this.on.isExplaining() && entry.caption && entry.is_there) {
      hint.textContent = "Choose a word to see where the model looks.";
      const maps = once(() => backend.explain({ entry }));
      const choose = async (index) => {
        const { words, square } = await maps();
        drawHeat(frame, words[index]?.heat, square);
      };
      wordsOf(caption, choose, this.on.error);
    }
    const leave = () => this.#dialog.close();
    const close = element("button", { type: "button", className: "quiet close", "aria-label": "Close", on: { click: leave } }, glyph("m6 6 12 12M18 6 6 18"));

    const text = element("div", { className: "text" }, title);
    if (set) text.append(element("p", { className: "set" }, set));
    const isSaid = isNamed && entry.caption && !entry.drawing;
    text.append(isSaid ? element("div", { className: "said" }, eyebrow, caption, hint) : hint);
    const source = once(() => backend.svg(entry));
    if (isIcon(entry)) text.append(iconPart(entry, source, image, copy, style));
    const known = facts(entry);
    const actions = this.#actions(entry);
    text.append(actions, known);
    if (isIcon(entry)) source().then((svg) => sizeOf(svg, known), () => {});
    if (entry.copies?.length) {
      text.append(this.#strip(`${entry.copies.length} more that look the same`, entry.copies));
    }
    this.#showOthers(entry, style, style ? actions : known);
    const stage = element("div", { className: isIcon(entry) ? "stage vector" : "stage" }, frame);
    if (this.#index !== null && !this.#isPanel) stage.append(this.#arrow(-1), this.#arrow(1));
    const had = this.#dialog.open && document.activeElement?.classList.contains("arrow");
    this.#dialog.replaceChildren(stage, text, close);
    if (this.#isPanel) this.#showBeside();
    else {
      if (!this.#dialog.open) this.#dialog.showModal();
      if (!had) this.#dialog.focus();
    }
  }

  #showBeside() {
    if (this.#dialog.open) return;
    const focused = document.activeElement;
    this.#dialog.show(); // takes the focus
    focused?.focus({ preventScroll: true });
  }

  /** The equivalents of an icon in the other sets, if it is still shown after a moment: keys go through icons fast. */
  async #showOthers(entry, style, below) {
    if (!isIcon(entry) || !entry.fields?.set) return;
    if (this.#others.id !== entry.id) {
      if (style) await new Promise((resolve) => setTimeout(resolve, 150));
      if (this.entry !== entry) return;
      this.#others = { id: entry.id, found: this.on.backend.others(entry) };
    }
    const found = await this.#others.found.catch(() => []); // without them, the picture is shown all the same
    if (!found.length || this.entry !== entry || !below.isConnected) return;
    below.before(style ? this.#sideBySide(entry, found, style) : this.#strip("In the other sets", found));
  }

  /** An icon and its equivalents, each with its name, its set and its probability. */
  #sideBySide(entry, found, style) {
    const items = [entry, ...found.slice(0, 11)].map((one) => {
      const { heading, set } = namesOf(one);
      const share = one === entry ? "" : `${Math.round(one.probability * 100)}%`;
      const image = element("img", { alt: "" });
      this.on.backend.svg(one).then((svg) => (image.src = style.address(svg)), () => {});
      const open = () => {
        this.#index = null;
        this.#show(one);
        this.on.moved(false);
      };
      const title = `${heading} (${set})${share && `, ${share}`}`;
      const lines = [element("span", {}, heading), element("small", {}, [share, set].filter(Boolean).join(" · "))];
      const button = element("button", { type: "button", title, "aria-label": title, disabled: one === entry, on: { click: open } }, image, ...lines);
      return element("li", {}, button);
    });
    return element("section", { className: "copies sets" }, element("h3", {}, "In the other sets"), element("ul", {}, ...items));
  }

  #arrow(step) {
    const isPast = this.#index + step < 0 || this.#index + step >= this.on.grid.count;
    const [kind, label, path] = step < 0 ? ["back", "Previous image", "m14 6-6 6 6 6"] : ["on", "Next image", "m10 6 6 6-6 6"];
    const go = async () => {
      await this.#go(step);
      this.#dialog.querySelector(`.${kind}`)?.focus();
    };
    return element("button", { type: "button", className: `quiet arrow ${kind}`, disabled: isPast, "aria-label": label, on: { click: go } }, glyph(path));
  }

  #actions(entry) {
    const { backend } = this.on;
    const place = element("p", { className: "actions" });
    const act = (label, work, className = "") => {
      place.append(element("button", { type: "button", className, on: { click: ({ target }) => work(target) } }, label));
    };
    act("More like this", () => this.#leave(() => this.on.like(entry)), isIcon(entry) ? "" : "primary");
    if (this.on.isAsking()) act("Exclude similar", () => this.#leave(() => this.on.unlike(entry)));
    if (!backend.hasDrawings) act("Copy path", (button) => copy(button, async () => pathOf(entry)));
    if (!isIcon(entry)) act("Copy link", (button) => copy(button, async () => location.href));
    return place;
  }

  /** A row of pictures that can be opened. */
  #strip(heading, entries) {
    const items = entries.slice(0, 24).map((copy) => {
      const share = copy.probability === undefined ? "" : `, ${Math.round(copy.probability * 100)}%`;
      const title = copy.fields?.set ? `${nameOf(copy).name} (${copy.fields.set})${share}` : copy.name;
      const image = element("img", { alt: "" });
      this.on.backend.image(copy).then((address) => (image.src = address), () => {});
      const open = () => {
        this.#show(copy);
        this.on.moved(false);
      };
      return element("li", {}, element("button", { type: "button", title, "aria-label": title, on: { click: open } }, image));
    });
    return element("section", { className: "copies" }, element("h3", {}, heading), element("ul", {}, ...items));
  }
}

/**
 * What a picture is called: an icon by its name and set; one that is unlike what the model knows by what people called
 * it; any other by its caption.
 */
export function namesOf(entry) {
  const file = entry.name.slice(entry.name.lastIndexOf("/") + 1);
  const title = file.replace(/\.\w{2,5}$/, "");
  const called = entry.fields?.headline || title;
  if (isIcon(entry)) return { heading: nameOf(entry).name, set: entry.fields?.set ?? entry.folder ?? "" };
  if (entry.fields?.unfamiliar === "yes" || !entry.caption) return { heading: called, set: "" };
  return { heading: entry.caption, set: "" };
}

/** A path that opens: of the file that holds the picture, if it is a part of one. */
const pathOf = (entry) => entry.name.replace(/^(.*?\.(?:tar|tgz|zip|json)): .*$/, "$1");

/** What is known of a picture, as a list of terms. */
function facts(entry) {
  const list = element("dl");
  const say = (term, value) => {
    if (value === undefined || value === null || value === "") return;
    const isAddress = typeof value === "string" && /^https:\/\/[^\s]+$/.test(value);
    if (Array.isArray(value)) value = value.join(", ");
    const told = isAddress ? element("a", { href: value, rel: "noreferrer", target: "_blank" }, value.replace(/^https:\/\//, "")) : String(value);
    list.append(element("dt", {}, term), element("dd", {}, told));
  };
  if (typeof entry.relevance === "number") say("Relevance", `${Math.round(entry.relevance * 100)}%`);
  say(entry.drawing ? "Name" : "Path", entry.name);
  if (!entry.drawing) say("Changed", entry.date?.slice(0, 10));
  if (!isIcon(entry)) say("Size", entry.width && `${numbers.format(entry.width)} × ${numbers.format(entry.height)} pixels, ${bytes(entry.size)}`);
  for (const [name, value] of Object.entries(entry.fields ?? {})) {
    if (name === "unfamiliar") continue; // it is said with the caption
    if (name === "confidence" && typeof value === "number") say("Confidence", `${Math.round(value * 100)}%`);
    else if (name === "taken" && typeof value === "string") say("Taken", value.replace("T", " "));
    else say(name[0].toUpperCase() + name.slice(1).replaceAll("_", " "), value);
  }
  return list;
}

/** Say how large a drawing is by itself: its pixels in the index are of another size. */
function sizeOf(svg, list) {
  const [root] = /<svg\b[^>]*>/.exec(svg) ?? [""]; // a parser of documents would apply its styles
  const valueOf = (name) => new RegExp(`\\s${name}\\s*=\\s*["']([^"']*)["']`).exec(root)?.[1].trim() ?? "";
  const box = valueOf("viewBox").split(/[\s,]+/).map(Number);
  const sides = ["width", "height"].map((side, i) => (/^[\d.]+(px)?$/.test(valueOf(side)) ? parseFloat(valueOf(side)) : box[i + 2]));
  if (!sides.every((side) => side > 0)) return;
  const shown = sides.map((side) => numbers.format(side)).join(" × ");
  list.append(element("dt", {}, "Size"), element("dd", {}, `${shown}, vector`));
}

export function bytes(number) {
  if (number < 1e6) return `${Math.max(1, Math.round(number / 1e3))} KB`;
  return `${(number / 1e6).toFixed(1)} MB`;
}

export async function copy(button, make) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(await make());
    button.textContent = "Copied";
  } catch {
    button.textContent = "Copying is blocked by the browser";
  }
  setTimeout(() => (button.textContent = label), 1500);
}

/** A function that does some work when it is first called, and again if that has failed. */
export function once(work) {
  let found = null;
  return () => (found ??= work().catch((error) => {
    found = null;
    throw error;
  }));
}

/** Turn the words of a caption into buttons. `choose` is called with the number of a word. */
export function wordsOf(place, choose, onError) {
  const buttons = place.textContent.split(/\s+/).filter(Boolean).map((word, index) => {
    const button = element("button", { type: "button", className: "word", "aria-pressed": "false" }, word);
    button.addEventListener("click", async () => {
      const isOn = button.getAttribute("aria-pressed") === "true";
      for (const other of buttons) other.setAttribute("aria-pressed", "false");
      if (isOn) {
        await choose(-1).catch(onError);
        return;
      }
      button.setAttribute("aria-pressed", "true");
      place.classList.add("running");
      await choose(index).catch(onError);
      place.classList.remove("running");
    });
    return button;
  });
  place.replaceChildren(...buttons.flatMap((button, i) => (i ? [" ", button] : [button])));
}

/**
 * Lay a heat map over a picture. Without a map, the picture is bare again.
 * @param {number[]} square what the model sees: left, upper, right, lower, in shares of the picture's width and height
 */
export function drawHeat(frame, heat, square) {
  frame.querySelector("canvas")?.remove();
  frame.classList.toggle("explained", Boolean(heat));
  if (!heat) return;
  const image = frame.querySelector("img");
  const side = heat.length;
  const canvas = element("canvas", { width: side, height: side });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side, side);
  heat.flat().forEach((value, i) => pixels.data.set([214, 64, 20, Math.round(220 * Math.min(1, Math.max(0, value)))], i * 4));
  context.putImageData(pixels, 0, 0);
  // The picture fills the frame as far as its sides allow.
  const [width, height] = [image.naturalWidth || 1, image.naturalHeight || 1];
  const scale = Math.min(image.clientWidth / width, image.clientHeight / height);
  const [left, top, right, bottom] = square;
  canvas.style.width = canvas.style.height = `${(right - left) * width * scale}px`;
  const away = [((left + right - 1) / 2) * width * scale, ((top + bottom - 1) / 2) * height * scale];
  canvas.style.transform = `translate(${away[0]}px, ${away[1]}px)`;
  frame.append(canvas);
}

function glyph(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", "glyph");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
  line.setAttribute("d", path);
  svg.append(line);
  return svg;
}
