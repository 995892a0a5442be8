// The backend of `grr-coca serve`: model and index are on a server, and the page asks for them over HTTP.

import { inkNow } from "./icon.js";
import { requirePicture } from "./picture.js";

export class Http {
  /** What the server is. While it loads its model, and while there is no index, it is asked again. */
  async info() {
    let info = null;
    while (!info) {
      try {
        info = await this.#json("info");
      } catch (error) {
        if (error.status !== 503 && !error.isLost) throw error;
        this.onWait?.(error.message);
        await new Promise((resolve) => setTimeout(resolve, 1000));
      }
    }
    if (info.can.includes("search")) info.can.push("duplicates");
    return { ...info, ready: Promise.resolve({}) };
  }

  async prepare() {}

  async search({ image, filters, ...query }, signal) {
    const body = { ...query, svg: true, ...(image && { image: await dataUrl(image) }), ...where(filters) };
    return this.#json("search", { method: "POST", body: JSON.stringify(body), headers: JSON_TYPE, signal }, true);
  }

  pictures(filters, offset, limit, signal) {
    return this.#longJson(`pictures?${new URLSearchParams({ offset, limit, svg: true, ...where(filters) })}`, { signal });
  }

  facets() {
    return this.#longJson("facets");
  }

  /** How many of the pictures that filters select have each value of some fields, or of all. */
  counts(filters, fields, signal) {
    return this.#longJson(`facets?${new URLSearchParams([...Object.entries(where(filters)), ...fields.map((field) => ["field", field])])}`, { signal });
  }

  /** What the address of a page calls a picture, and the picture that is called so. */
  keyOf(entry) {
    return entry.id;
  }

  entry(key) {
    return this.#json(`picture/${encodeURIComponent(key)}`);
  }

  /** The equivalents of an icon in the other icon sets, with probabilities. */
  async others(entry) {
    return (await this.#longJson(`picture/${encodeURIComponent(entry.id)}/others`)).others;
  }

  duplicates(offset, limit, signal) {
    return this.#longJson(`duplicates?${new URLSearchParams({ offset, limit })}`, { signal });
  }

  /** {caption, unfamiliar}; `onToken` gets the text so far. */
  async caption(image, onToken, signal) {
    const headers = { "Content-Type": image.type || "application/octet-stream", Accept: "text/event-stream" };
    const response = await this.#fetch("caption", { method: "POST", body: image, headers, signal }).catch((error) => {
      if (image.name) error.message = error.message.replace(/^the picture(?=: )/, () => image.name); // the server does not know it
      throw error;
    });
    let whole = null;
    for await (const { event, data } of events(response.body)) {
      if (event === "error") throw new Error(data.error.message);
      if (event === "done") whole = { caption: data.text, unfamiliar: data.unfamiliar === true };
      else onToken(data.text);
    }
    if (whole === null) throw new Error(BROKEN_OFF);
    return whole;
  }

  /** Words for a picture, the likeliest first. */
  async tags(image, signal) {
    const headers = { "Content-Type": image.type || "application/octet-stream" };
    const { tags } = await this.#json("caption?tags=5", { method: "POST", body: image, headers, signal });
    return tags.map(({ tag }) => tag);
  }

  /** Where the model looks for each word: for a file, or for an entry of the index. */
  explain({ file, entry }, signal) {
    if (entry) return this.#json(`explain?${new URLSearchParams({ id: entry.id })}`, { method: "POST", signal });
    const headers = { "Content-Type": file.type || "application/octet-stream" };
    return this.#json("explain", { method: "POST", body: file, headers, signal });
  }

  async opened(file) {
    await requirePicture(file);
    return file;
  }

  async image(entry, side = 320) {
    if (entry.is_vector) return `vector/${encodeURIComponent(entry.id)}?${new URLSearchParams({ ink: inkNow().slice(1), of: `${entry.date} ${entry.size}` })}`;
    // The browser keeps a thumbnail for a day, but not longer than its file is the same.
    return `image/${encodeURIComponent(entry.id)}?${new URLSearchParams({ side, of: `${entry.date} ${entry.size}` })}`;
  }

  hasDrawings = false;

  /** The SVG source of an entry, if it came with the answer. */
  known(entry) {
    return entry.svg;
  }

  /** The cleaned SVG source of an entry that has one. */
  async svg(entry) {
    if (entry.svg) return entry.svg;
    const response = await this.#fetch(`vector/${encodeURIComponent(entry.id)}`);
    if (!response.headers.get("Content-Type")?.startsWith("image/svg")) throw new Error("This file cannot be shown as SVG.");
    return response.text();
  }

  /** JSON that a large index may need longer for than one request may take. The server goes on, and is asked again. */
  async #longJson(path, options) {
    for (let left = MAX_REPEATS; ; left--) {
      try {
        return await this.#json(path, options);
      } catch (error) {
        if (error.status !== 504 || !left) throw error;
      }
    }
  }

  async #json(path, options, isRepeated = false) {
    return (await this.#fetch(path, options, isRepeated)).json();
  }

  /** A request that succeeds, or an error with a sentence of the server. */
  async #fetch(path, options = {}, isRepeated = false) {
    let response;
    try {
      response = await fetch(path, { credentials: "same-origin", ...options });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw this.#lost();
    }
    if (response.ok) return response;
    if (response.status === 401 && path !== "session" && (await this.#askForKey())) return this.#fetch(path, options, isRepeated);
    if (isRepeated && [429, 503].includes(response.status)) {
      await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(response.headers.get("Retry-After")) || 1)));
      return this.#fetch(path, options);
    }
    throw Object.assign(new Error(await reason(response)), { status: response.status });
  }

  /** The server cannot be reached. It is asked until it answers, and then `onBack` is called. */
  #lost() {
    if (!this.#isLost) {
      this.#isLost = true;
      this.onLost?.();
      this.#untilBack();
    }
    return Object.assign(new Error("Cannot reach the server. Trying again."), { isLost: true });
  }

  #isLost = false;

  async #untilBack() {
    for (let wait = 500; ; wait = Math.min(MAX_WAIT, wait * 1.5)) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      const isBack = await fetch("health", { cache: "no-store" }).then(() => true, () => false);
      if (!isBack) continue;
      this.#isLost = false;
      this.onBack?.();
      return;
    }
  }

  /** Called with what the server waits for. Set by the page. */
  onWait = null;

  /** Called when the server cannot be reached, and when it answers again. Set by the page. */
  onLost = null;
  onBack = null;

  /** Called when a picture could not be loaded: the server may be gone. */
  async imageFailed() {
    await this.#fetch("health", { cache: "no-store" }).catch(() => {});
  }

  /** True if the server accepts a key that the page asks for. Set by the page. */
  askForKey = null;
  #asking = null;

  async #askForKey() {
    this.#asking ??= (async () => {
      for (let isWrong = false; ; isWrong = true) {
        const key = await this.askForKey?.(isWrong);
        if (!key) return false;
        const response = await fetch("session", { method: "POST", body: JSON.stringify({ key }), headers: JSON_TYPE });
        if (response.status !== 401) return response.ok;
      }
    })().finally(() => (this.#asking = null));
    return this.#asking;
  }
}

const MAX_WAIT = 5000; // ms between two attempts to reach a server that is gone
const MAX_REPEATS = 20; // of requests that took too long: ten minutes
const JSON_TYPE = { "Content-Type": "application/json" };
const BROKEN_OFF = "The server closed the connection. Is it still running?";

async function reason(response) {
  try {
    const { message } = (await response.json()).error;
    if (message) return message;
  } catch {
    // not JSON: a proxy answers
  }
  return `The server answers ${response.status} ${response.statusText}.`;
}

function brokenOff(error) {
  if (error.name === "AbortError") throw error;
  throw new Error(BROKEN_OFF);
}

/** The events of a stream of server-sent events, with their data parsed. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(brokenOff);
    rest += (value ?? "").replaceAll("\r\n", "\n");
    const blocks = rest.split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").map((line) => /^(\w+): ?(.*)$/.exec(line)).filter(Boolean);
      const data = lines.filter(([, name]) => name === "data").map(([, , text]) => text);
      const event = lines.find(([, name]) => name === "event")?.[2] ?? "message";
      if (data.length) yield { event, data: JSON.parse(data.join("\n")) };
    }
    if (done) return;
  }
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("The image cannot be read."));
    reader.readAsDataURL(blob);
  });
}

/** The filters of the page in the filter language of the index. */
function where(filters) {
  const tests = Object.entries(filters).flatMap(([field, test]) => {
    if (test.in) return [`${field} in (${test.in.map(quoted).join(", ")})`];
    const from = test.from === undefined ? [] : [`${field} >= ${quoted(test.from)}`];
    const to = test.to === undefined ? [] : [`${field} <= ${quoted(test.to)}`];
    return [...from, ...to];
  });
  return tests.length ? { where: tests.join(" and ") } : {};
}

function quoted(value) {
  return typeof value === "number" ? String(value) : `'${String(value).replaceAll("'", "''")}'`;
}
