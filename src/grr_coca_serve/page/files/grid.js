// A grid of pictures that scrolls with the page. Only the tiles near the window exist, so that 260,000 pictures are
// as light as 60.

import { element } from "./element.js";

const SPARE_ROWS = 2; // above and below the window
const MAX_HEIGHT = 12_000_000; // pixels; browsers cannot make elements much higher
const CHUNK = 100; // pictures that are asked for at a time
const LOADS = 8; // images that are requested in one task, so that a letter typed meanwhile need not wait

export class Grid {
  #list;
  #tiles = new Map(); // by index
  #free = [];
  #source = null;
  #count = 0;
  #columns = 1;
  #row = 1;
  #width = 0;
  #gap = 0;
  #focused = 0;
  #generation = 0;
  #asked = new Set();
  #entries = [];
  #due = false;
  #wanted = []; // [tile, its generation]: images to be requested after the next frame
  #split = Infinity; // the first picture below the divider
  #divider = element("li", { className: "divider" }, "Less likely"); // above the pictures that are

  /**
   * @param {HTMLElement} list
   * @param {object} on
   * @param {(entry: object) => Promise<string>} on.image the address of a thumbnail
   * @param {(entry: object) => string | undefined} on.known its address, if no request is needed for it
   * @param {(entry: object) => {caption: string, set: string, alike: string, hint: string}} on.describe the texts of a tile
   * @param {(index: number) => void} on.open
   * @param {(isEscape: boolean) => void} on.leave the first row is left upwards, or Escape pressed
   * @param {(index: number) => void} on.walked keys have moved the focus
   * @param {(entry: object) => boolean} on.isOpen it is shown beside the grid
   * @param {(entry: object, button: HTMLButtonElement) => void} on.copy
   * @param {() => void} on.failed a thumbnail could not be loaded
   */
  constructor(list, on) {
    this.#list = list;
    this.on = on;
    addEventListener("scroll", () => this.#later(), { passive: true });
    new ResizeObserver(() => this.#measure()).observe(list.parentElement);
    list.addEventListener("keydown", (event) => this.#key(event));
    list.addEventListener("focusin", ({ target }) => {
      if (target.matches("button.tile")) this.#focused = Number(target.dataset.index); // by a click, too
    });
    list.addEventListener("click", (event) => {
      const tile = event.target.closest("button.tile");
      if (tile) this.on.open(Number(tile.dataset.index));
      const copy = event.target.closest("button.copy");
      if (copy) this.#copy(Number(copy.previousElementSibling.dataset.index));
    });
  }

  /**
   * Show other pictures.
   * @param {{count: number, entries: object[], more: (start: number, end: number) => Promise<object[]>, split?: number}} source
   *   `entries`: those that are known, from the first on; `split`: the first picture that stands below "Less likely"
   * @param {boolean} keepsPlace stay at this place of the page
   */
  show(source, keepsPlace = false) {
    const hadFocus = this.#list.contains(document.activeElement);
    this.#generation++;
    this.#source = source;
    this.#count = source.count;
    this.#entries = [...source.entries];
    this.#split = source.split ?? Infinity;
    this.#asked.clear();
    this.#focused = keepsPlace ? Math.min(this.#focused, Math.max(0, this.#count - 1)) : 0;
    const reused = [...this.#tiles.keys()]; // tiles that stay in the page are laid out again only where they change
    this.#measure();
    for (const index of reused) {
      const tile = this.#tiles.get(index);
      if (tile) this.#fill(tile, index);
    }
    if (hadFocus) this.#focusAgain();
  }

  /** The number of pictures has become known, or grown. */
  grow(count) {
    this.#count = count;
    this.#resize();
    this.#render();
  }

  /** Further pictures have been found. */
  extend(entries) {
    this.#entries.push(...entries);
    this.grow(this.#entries.length);
    for (const { item } of this.#tiles.values()) item.setAttribute("aria-setsize", this.#count);
  }

  get count() {
    return this.#count;
  }

  entry(index) {
    return this.#entries[index];
  }

  /** The entry at an index, asked for if it is not known. */
  async entryAt(index) {
    if (!this.#entries[index]) await this.#ask(index);
    return this.#entries[index];
  }

  focus(index = this.#focused) {
    if (!this.#count) return;
    this.#focused = Math.max(0, Math.min(this.#count - 1, index));
    this.#reveal(this.#focused);
    this.#render();
    for (const [at, tile] of this.#tiles) tile.button.tabIndex = at === this.#focused ? 0 : -1;
    this.#tiles.get(this.#focused)?.button.focus({ preventScroll: true });
  }

  /** Mark the tile of the entry that is shown beside the grid. */
  mark() {
    for (const [index, tile] of this.#tiles) this.#markOne(tile, this.#entries[index]);
  }

  #markOne(tile, entry) {
    tile.item.classList.toggle("open", Boolean(entry && this.on.isOpen?.(entry)));
  }

  #copy(index) {
    const [entry, tile] = [this.#entries[index], this.#tiles.get(index)];
    if (entry && tile) this.on.copy?.(entry, tile.copy);
  }

  /** Draw all tiles again, as after a change of colours or sizes, or when a server is back. */
  redraw() {
    const hadFocus = this.#list.contains(document.activeElement);
    for (const index of [...this.#tiles.keys()]) this.#release(index);
    this.#measure();
    if (hadFocus) this.#focusAgain();
  }

  /** The tile that had the focus was replaced: the one in its place gets it, or the field if there is none. */
  #focusAgain() {
    if (this.#count) this.focus();
    else this.on.leave(false);
  }

  // --- Places

  #measure() {
    const style = getComputedStyle(this.#list);
    const width = this.#list.clientWidth;
    const wanted = parseFloat(style.getPropertyValue("--tile"));
    this.#gap = parseFloat(style.getPropertyValue("--gap"));
    const under = parseFloat(style.getPropertyValue("--under"));
    const columns = Math.max(2, Math.floor((width + this.#gap) / (wanted + this.#gap)));
    const first = this.#indexAt(Math.max(0, this.#scrolled().top));
    this.#columns = columns;
    this.#width = (width - this.#gap * (columns - 1)) / columns;
    const row = this.#width + under + this.#gap;
    const isOther = Math.abs(row - this.#row) > 0.01;
    this.#row = row;
    this.#rule = parseFloat(style.getPropertyValue("--divider"));
    this.#resize();
    if (isOther && first > 0) this.#reveal(first, true);
    for (const [index, tile] of this.#tiles) this.#place(tile, index);
    this.#render();
  }

  #rule = 0; // the height of the divider

  /** The row and column of a picture. Below the divider a new row begins. */
  #cell(index) {
    const isBelow = index >= this.#split;
    const before = isBelow ? Math.ceil(this.#split / this.#columns) : 0;
    const place = isBelow ? index - this.#split : index;
    return [before + Math.floor(place / this.#columns), place % this.#columns];
  }

  /** How far a picture is from the top of the grid. */
  #top(index) {
    return this.#cell(index)[0] * this.#row + (index >= this.#split ? this.#rule : 0);
  }

  /** The first picture of the row at a distance from the top. */
  #indexAt(distance) {
    const row = Math.floor(distance / this.#row);
    const above = Math.ceil(Math.min(this.#split, this.#count) / this.#columns);
    if (row < above || this.#split >= this.#count) return row * this.#columns;
    return this.#split + Math.max(0, Math.floor((distance - this.#rule) / this.#row) - above) * this.#columns;
  }

  get #height() {
    return this.#count ? this.#top(this.#count - 1) + this.#row - this.#gap : 0;
  }

  #resize() {
    this.#list.style.height = `${Math.min(MAX_HEIGHT, this.#height)}px`;
  }

  /** How far the whole grid is scrolled. A grid that is too high for an element scrolls faster than the page. */
  #scrolled() {
    const top = -this.#list.getBoundingClientRect().top;
    const height = this.#height;
    if (height <= MAX_HEIGHT) return { top, shift: 0 };
    const share = Math.max(0, Math.min(1, top / (MAX_HEIGHT - innerHeight)));
    const real = top < 0 ? top : share * (height - innerHeight);
    return { top: real, shift: top - real };
  }

  #reveal(index, isAtTop = false) {
    const { top } = this.#scrolled();
    const place = this.#top(index);
    const header = parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop) || 0;
    let by = 0;
    if (isAtTop || place < top + header) by = place - top - header;
    else if (place + this.#row > top + innerHeight) by = place + this.#row - top - innerHeight;
    if (!by) return;
    const height = this.#height;
    scrollBy({ top: height <= MAX_HEIGHT ? by : (by * (MAX_HEIGHT - innerHeight)) / (height - innerHeight), behavior: "instant" });
  }

  // --- Tiles

  #later() {
    if (this.#due) return;
    this.#due = true;
    requestAnimationFrame(() => {
      this.#due = false;
      this.#render();
    });
  }

  #render() {
    if (!this.#source) return;
    const { top, shift } = this.#scrolled();
    const start = Math.min(this.#count, this.#indexAt(Math.max(0, top - SPARE_ROWS * this.#row)));
    const last = this.#indexAt(Math.max(0, top + innerHeight + SPARE_ROWS * this.#row)) + this.#columns;
    const end = Math.max(start, Math.min(this.#count, last));
    this.#list.style.setProperty("--shift", `${shift}px`);
    for (const index of [...this.#tiles.keys()]) {
      const isKept = index >= start && index < end;
      if (!isKept) this.#release(index);
    }
    for (let index = end - 1; index >= start; index--) if (!this.#tiles.has(index)) this.#make(index);
    this.#divide(start);
    for (let index = start; index < end; index++) if (!this.#entries[index]) this.#ask(index);
    if (end === this.#count && this.#count) this.on.end?.();
  }

  /** Put the divider where it belongs, also in the order in which the list is read aloud. */
  #divide(start) {
    if (this.#split <= 0 || this.#split >= this.#count) {
      this.#divider.remove();
      return;
    }
    const below = this.#tiles.get(Math.max(start, this.#split))?.item ?? null;
    if (!this.#divider.isConnected || this.#divider.nextSibling !== below) this.#list.insertBefore(this.#divider, below);
    this.#divider.style.translate = `0 calc(${this.#top(this.#split) - this.#rule}px + var(--shift))`;
  }

  #make(index) {
    const tile = this.#free.pop() ?? this.#newTile();
    this.#tiles.set(index, tile);
    tile.button.dataset.index = index;
    tile.item.setAttribute("aria-posinset", index + 1);
    this.#place(tile, index);
    this.#fill(tile, index);
    this.#list.insertBefore(tile.item, this.#tiles.get(index + 1)?.item ?? null); // read aloud in this order
  }

  #newTile() {
    const tile = newTile();
    tile.image.addEventListener("error", () => {
      if (!tile.image.hasAttribute("src")) return;
      tile.item.classList.add("unloaded");
      this.on.failed?.();
    });
    return tile;
  }

  #place(tile, index) {
    const x = this.#cell(index)[1] * (this.#width + this.#gap);
    tile.item.style.width = `${this.#width}px`;
    tile.item.style.translate = `${x}px calc(${this.#top(index)}px + var(--shift))`;
  }

  #fill(tile, index) {
    const entry = this.#entries[index];
    tile.button.tabIndex = index === this.#focused ? 0 : -1;
    tile.item.setAttribute("aria-setsize", this.#count);
    const before = tile.said ?? {}; // what has not changed is not laid out again
    const said = entry ? this.on.describe(entry) : { caption: "", set: "", alike: "", hint: "" };
    tile.said = said;
    if (said.caption !== before.caption) {
      tile.caption.textContent = said.caption;
      tile.copy.setAttribute("aria-label", `Copy SVG: ${said.caption}`);
    }
    if (said.set !== before.set) tile.set.textContent = said.set;
    if (said.hint !== before.hint) tile.button.title = said.hint;
    if (said.alike !== before.alike) say(tile.alike, said.alike, "more that look the same");
    this.#markOne(tile, entry);
    this.#draw(tile, entry);
  }

  /** Show the image of an entry in a tile. One that is shown there stays. */
  #draw(tile, entry) {
    const { classList } = tile.item;
    const isFailed = classList.contains("gone") || classList.contains("unloaded");
    const drawn = entry ? `${entry.id} ${entry.date} ${entry.size}` : null; // a file that has changed is drawn again
    if (entry && tile.drawn === drawn && !isFailed) return;
    tile.drawn = drawn;
    tile.generation = {};
    classList.toggle("waiting", !entry);
    classList.toggle("vector", Boolean(entry?.is_vector));
    classList.remove("gone", "unloaded");
    const address = entry && this.on.known?.(entry);
    if (address !== undefined) {
      tile.image.src = address;
      return;
    }
    tile.image.removeAttribute("src");
    if (!entry) return;
    if (!this.#wanted.length) requestAnimationFrame(() => setTimeout(() => this.#load()));
    this.#wanted.push([tile, tile.generation, entry]);
  }

  /** Request images that are still wanted: first those from the top of the window on. */
  #load() {
    const first = this.#indexAt(Math.max(0, this.#scrolled().top));
    const place = ([tile]) => (Number(tile.button.dataset.index) - first + this.#count) % this.#count;
    this.#wanted = this.#wanted.filter(([tile, generation]) => tile.generation === generation).sort((a, b) => place(a) - place(b));
    for (const [tile, generation, entry] of this.#wanted.splice(0, LOADS)) {
      this.on.image(entry).then(
        (address) => {
          if (tile.generation === generation) tile.image.src = address;
        },
        () => {
          if (tile.generation === generation) tile.item.classList.add("gone");
        },
      );
    }
    if (this.#wanted.length) setTimeout(() => this.#load());
  }

  #release(index) {
    const tile = this.#tiles.get(index);
    this.#tiles.delete(index);
    if (tile.button === document.activeElement) this.#list.focus({ preventScroll: true });
    tile.item.remove();
    tile.generation = tile.drawn = null;
    if (this.#free.length < 200) this.#free.push(tile);
  }

  /** Ask for the pictures around an index. */
  async #ask(index) {
    const start = index - (index % CHUNK);
    if (this.#asked.has(start)) return;
    this.#asked.add(start);
    const generation = this.#generation;
    try {
      const entries = await this.#source.more(start, Math.min(this.#count, start + CHUNK));
      if (generation !== this.#generation) return;
      entries.forEach((entry, i) => (this.#entries[start + i] = entry));
      for (const [at, tile] of this.#tiles) if (at >= start && at < start + entries.length) this.#fill(tile, at);
    } catch (error) {
      if (generation !== this.#generation) return;
      this.#asked.delete(start);
      this.on.error?.(error);
    }
  }

  // --- Keys

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const page = Math.max(1, Math.floor((innerHeight * 0.8) / this.#row)) * this.#columns;
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.#columns,
      ArrowDown: this.#columns,
      PageUp: -page,
      PageDown: page,
      Home: -Infinity,
      End: Infinity,
    };
    if (event.key === "Escape" || (event.key === "ArrowUp" && this.#focused < this.#columns)) {
      event.preventDefault();
      this.on.leave(event.key === "Escape");
    } else if (event.key in steps) {
      event.preventDefault();
      this.focus(this.#focused + steps[event.key]);
      this.on.walked?.(this.#focused);
    } else if (event.key === "c") this.#copy(this.#focused);
  }
}

/** A short text, with what only screen readers say after it. */
function say(place, text, more) {
  place.textContent = text;
  if (text) place.append(element("span", { className: "unseen" }, ` ${more}`));
}

function newTile() {
  const image = element("img", { alt: "", decoding: "async", draggable: false });
  const [caption, alike, set] = ["caption", "alike", "set"].map((className) => element("span", { className }));
  const button = element(
    "button",
    { type: "button", className: "tile" },
    element("span", { className: "frame" }, image),
    element("span", { className: "line" }, caption, alike),
    set,
  );
  const copy = element("button", { type: "button", className: "copy", tabIndex: -1 }, "Copy");
  return { item: element("li", {}, button, copy), button, copy, image, caption, set, alike };
}
