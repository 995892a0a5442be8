// The backend of an exported site: model and index are files of the site, and everything runs in this browser.

import { inkNow } from "./icon.js";
import { jsonOf } from "./packed.js";
import { drawSvg, isSvg, requirePicture } from "./picture.js";
import { missing, siteFile } from "./site_file.js";

const MAX_SOURCES = 1000;

// The smallest module with a vector instruction, `i8x16.splat`.
const SIMD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
);

export class Graphs {
  #worker;
  #calls = new Map();
  #next = 0;
  #site;
  #packs = new Map();
  #sources = new Map(); // SVG of the entries that were shown last, by id
  #urls = new Map();

  /** @param {(state: object) => void} onState called while the site loads */
  constructor(onState) {
    this.onState = onState;
  }

  async info() {
    if (!globalThis.WebAssembly?.validate?.(SIMD)) {
      throw new Error("This page needs a browser with WebAssembly SIMD: Chrome 104, Firefox 114, Safari 16.4, or newer.");
    }
    this.#site = await (await siteFile("site.json")).json();
    this.#worker = new Worker("worker.js", { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#take(data);
    this.#worker.onerror = (event) => this.#fail(event.message ? `${event.message} Reload the page.` : missing("worker.js", "it cannot be loaded"));
    this.ready = this.#call("ready", {});
    this.ready.catch(() => {});
    const { title, about, placeholder, count, can } = this.#site;
    return { title, about, placeholder, pictures: count, can, ready: this.ready };
  }

  /** Load what a dropped picture needs. */
  prepare() {
    return this.#call("prepare", {});
  }

  search(query, signal) {
    return this.#call("search", query, { signal });
  }

  pictures(filters, offset, limit, signal) {
    return this.#call("pictures", { filters, offset, limit }, { signal });
  }

  facets() {
    return this.#call("facets", {});
  }

  /** How many of the pictures that filters select have each value of the fields. */
  counts(filters, fields, signal) {
    return this.#call("counts", { filters }, { signal });
  }

  /** What the address of a page calls a picture: its name, as its number is another one after the next export. */
  keyOf(entry) {
    return entry.name;
  }

  entry(key) {
    return this.#call("entry", { key });
  }

  /** The equivalents of an icon in the other icon sets, with probabilities. */
  others(entry) {
    return this.#call("others", { id: Number(entry.id) });
  }

  duplicates(offset, limit, signal) {
    return this.#call("duplicates", { offset, limit }, { signal });
  }

  caption(image, onToken, signal) {
    return this.#call("caption", { image }, { onToken, signal });
  }

  /** A picture file that the other methods accept. @throws if it is none, or too large */
  async opened(file) {
    const bytes = await requirePicture(file);
    return isSvg(bytes) ? drawSvg(bytes, file.name || "the image") : file;
  }

  /** The address of a thumbnail, which an `<img>` shows. */
  async image(entry) {
    const { thumbnails } = this.#site;
    if (thumbnails.kind === "files") {
      if (!entry.is_there) throw new Error("this image was missing when the site was exported");
      if (entry.is_vector) return this.#drawn(entry);
      return `${thumbnails.folder}/${Math.floor(entry.id / 1000)}/${entry.id}.webp`;
    }
    return this.#drawn(entry);
  }

  /** The address of a drawing in the colour of the text, if it has none of its own. */
  async #drawn(entry) {
    const colour = inkNow();
    const svg = await this.svg(entry, colour);
    const key = `${entry.id} ${colour}`;
    if (!this.#urls.has(key)) this.#urls.set(key, URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" })));
    return this.#urls.get(key);
  }

  get hasDrawings() {
    return this.#site?.thumbnails.kind === "svg";
  }

  /** The SVG source of an entry, drawn in a colour if it has none of its own. */
  async svg(entry, colour = null) {
    const source = this.known(entry) ?? (await this.#source(entry));
    if (!this.#sources.has(entry.id)) {
      if (this.#sources.size >= MAX_SOURCES) this.#sources.delete(this.#sources.keys().next().value);
      this.#sources.set(entry.id, source);
    }
    return colour ? source.replace("<svg ", `<svg color="${colour}" `) : source;
  }

  /** The SVG source of an entry that was shown lately: no file is read for it. Undefined for another one. */
  known(entry) {
    return this.#sources.get(entry.id);
  }

  async #source(entry) {
    if (!entry.drawing) {
      return (await siteFile(`${this.#site.thumbnails.folder}/${Math.floor(entry.id / 1000)}/${entry.id}.svg`)).text();
    }
    const [pack, place] = entry.drawing;
    if (!this.#packs.has(pack)) {
      const path = `${this.#site.thumbnails.folder}/${pack}.json.gz`;
      this.#packs.set(pack, siteFile(path).then((response) => response.arrayBuffer()).then((buffer) => jsonOf(new Uint8Array(buffer))));
      this.#packs.get(pack).catch(() => this.#packs.delete(pack));
    }
    const { box, body } = (await this.#packs.get(pack))[place];
    const names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"';
    return `<svg ${names} viewBox="${box.join(" ")}" width="${box[2]}" height="${box[3]}">${body}</svg>`;
  }

  // --- Calls to the worker

  #call(call, args, { signal, onToken } = {}) {
    return new Promise((resolve, reject) => {
      if (this.#broken) return reject(new Error(this.#broken));
      if (signal?.aborted) return reject(signal.reason);
      const id = this.#next++;
      this.#calls.set(id, { resolve, reject, onToken: (token) => signal?.aborted || onToken?.(token) });
      signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
      const message = { id, call, args };
      if (this.#isListening) this.#worker.postMessage(message);
      else this.#waiting.push(message);
    });
  }

  #isListening = false;
  #waiting = [];
  #broken = null;

  #take({ id, result, token, error, state, isListening }) {
    if (isListening) {
      this.#isListening = true;
      for (const message of this.#waiting.splice(0)) this.#worker.postMessage(message);
    } else if (state) this.onState(state);
    else if (token !== undefined) this.#calls.get(id)?.onToken(token);
    else {
      const call = this.#calls.get(id);
      this.#calls.delete(id);
      if (error === undefined) call.resolve(result);
      else call.reject(new Error(error));
    }
  }

  #fail(message) {
    this.#broken = `The model could not be loaded. ${message}`;
    for (const { reject } of this.#calls.values()) reject(new Error(this.#broken));
    this.#calls.clear();
  }
}
