// The model and the index of an exported site, in a worker: the page itself never waits for them.
// Messages in: {id, call, args}. Messages out: {id, result}, {id, token}, {id, error}, and {state} while it loads.

import { Adapted } from "./adapted.js";
import { Engine } from "./engine.js";
import { Library, numLikely, relevance, verdict } from "./library.js";
import { isUnfamiliar } from "./familiar.js";
import { jsonOf, unpacked } from "./packed.js";
import { pixelsOf, squareOf } from "./picture.js";
import { missing, siteFile } from "./site_file.js";
import { Tokenizer } from "./tokenizer.js";
import { askedWords, inWords } from "./words.js";

const site = await (await siteFile("site.json")).json();

const state = { bytes: 0, total: site.bytes, rows: 0, count: 0, canMean: false, isReady: false };
let told = 0;

/** Tell the page how far loading is; at most ten times a second. */
function tell(isDue = true) {
  if (!isDue && performance.now() - told < 100) return;
  told = performance.now();
  self.postMessage({ state });
}

/** The bytes of a file of the site. */
async function fetchBytes(path) {
  const response = await siteFile(path);
  if (!response.body) return unpacked(new Uint8Array(await response.arrayBuffer()));
  const parts = [];
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    state.bytes += value.length;
    tell(false);
  }
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return unpacked(whole);
}

/** A promise whose failure is told where it is awaited, even if that is later. */
function awaitedLater(promise) {
  promise.catch(() => {});
  return promise;
}

const json = async (path) => JSON.parse(new TextDecoder().decode(await fetchBytes(path)));

// --- Loading: the rows first, so that pictures are seen and words find something; then the text graph and the vectors.
// On a slow line, each of them would be late if all came at once.

let library = null;

const opened = awaitedLater((async () => {
  if (!site.library) return;
  library = new Library(await json(site.library));
  state.count = library.about.count;
})());

const folder = site.library?.slice(0, site.library.lastIndexOf("/") + 1);

const listed = awaitedLater((async () => {
  await opened;
  for (const { rows } of library?.about.chunks ?? []) {
    library.addRows(await json(folder + rows));
    state.rows = library.size;
    queries.clear();
    tell();
  }
})());

/** A file of the model, which is fetched when the rows are there. A page without an index begins with it. */
const afterRows = (path) => awaitedLater(listed.then(() => fetchBytes(path)));

// The graph y = x. Its session makes the runtime compile itself, beside the other files.
const IDENTITY = Uint8Array.of(
  8, 8, 58, 55, 10, 16, 10, 1, 120, 18, 1, 121, 34, 8, 73, 100, 101, 110, 116, 105, 116, 121, 18, 1, 103, 90,
  15, 10, 1, 120, 18, 10, 10, 8, 8, 1, 18, 4, 10, 2, 8, 1, 98, 15, 10, 1, 121, 18, 10, 10, 8, 8, 1, 18, 4, 10,
  2, 8, 1, 66, 4, 10, 0, 16, 13,
);

const wasm = afterRows(site.runtime.wasm);
const graphs = { text: afterRows(site.graphs.text) };
const weights = {};

/** The file with the tensors of a graph, which graphs may share; null if the graph holds them. */
function weightsOf(graph) {
  const path = site.weights[graph];
  if (!path) return null;
  return (weights[path] ??= afterRows(path).then((bytes) => ({ name: path.split("/").pop().replace(/\.gz$/, ""), bytes })));
}
awaitedLater(weightsOf("text"));

const engine = awaitedLater((async () => {
  const tokenizer = awaitedLater(listed.then(() => json(site.tokenizer)));
  const wasmBinary = await wasm;
  const ort = await import(new URL(site.runtime.module, self.location.href).href).catch(() => {
    throw new Error(missing(site.runtime.module, "it cannot be loaded"));
  });
  ort.env.wasm.numThreads = 1; // more would need headers that not every host sends
  ort.env.wasm.wasmBinary = wasmBinary;
  ort.env.logLevel = "error";
  await ort.InferenceSession.create(IDENTITY, { executionProviders: ["wasm"] });
  return new Engine(ort, site.model, new Tokenizer(await tokenizer));
})());

/** The vectors of an adapted model; null: embeddings are as the graphs give them. */
const adapted = awaitedLater((async () => {
  if (!site.adapted) return null;
  const [about, bytes] = [await listed.then(() => json(site.adapted.about)), await fetchBytes(site.adapted.arrays)];
  return new Adapted(about, bytes);
})());

let turn = engine; // the runtime makes one session at a time
const loaded = {};

/** The engine, once it has a graph. */
function withGraph(name) {
  return (loaded[name] ??= turn = awaitedLater(turn.then(async () => {
    const one = await engine;
    await one.load(name, await (graphs[name] ??= fetchBytes(site.graphs[name])), await weightsOf(name));
    return one;
  })));
}

const indexed = awaitedLater((async () => {
  await listed;
  await Promise.all([wasm, weightsOf("text")]); // words find by meaning once these and the vectors are there
  for (const { vectors } of library?.about.chunks ?? []) {
    const bytes = await fetchBytes(folder + vectors);
    library.addVectors(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    queries.clear();
    // The first pictures are found by meaning before the vectors of the others are there.
    withGraph("text").then(() => (state.canMean = true) && tell(), () => {});
  }
  await Promise.all(Object.keys(site.graphs).filter((name) => name !== "text").map((name) => (graphs[name] ??= awaitedLater(fetchBytes(site.graphs[name])))));
})());

// --- Texts

const MAX_CACHED = 20_000;
const embedded = new Map();

/** Embeddings of texts, each computed once. */
async function embedTexts(texts) {
  const vectors = new Map(texts.map((text) => [text, embedded.get(text)]));
  const missing = [...vectors.keys()].filter((text) => !vectors.get(text));
  if (missing.length) {
    const one = await adapted;
    let found = await (await withGraph("text")).encodeTexts(missing);
    if (one) found = found.map((embedding, i) => one.textVector(missing[i], embedding));
    if (embedded.size > MAX_CACHED) embedded.clear();
    missing.forEach((text, i) => {
      vectors.set(text, found[i]);
      embedded.set(text, found[i]);
    });
  }
  return texts.map((text) => vectors.get(text));
}

// --- Words that the model knows for a text that it does not know, as in `grr_coca_search.query.Thesaurus`

const thesaurus = awaitedLater((async () => {
  if (!site.thesaurus) return "";
  await weightsOf("text"); // a slow line loads these first
  return `\n${new TextDecoder().decode(await fetchBytes(site.thesaurus))}`;
})());

async function relatedWords(text) {
  const lines = await thesaurus;
  const entry = `\n${text.toLowerCase().split(/\s+/).filter(Boolean).join(" ")}\t`;
  const start = lines.indexOf(entry);
  if (start < 0) return [];
  const first = start + entry.length;
  const end = lines.indexOf("\n", first);
  return lines.slice(first, end < 0 ? undefined : end).split("\t");
}

/** The embedding of a text, or the mean of those of related words in its place. */
async function meaningOf(text, related) {
  if (!related.length) return (await embedTexts([text]))[0];
  const vectors = await embedTexts(related);
  const sum = vectors[0].map((_, i) => vectors.reduce((total, vector) => total + vector[i], 0));
  const length = Math.hypot(...sum);
  return sum.map((value) => value / length);
}

// --- Pictures: each that is dropped is encoded and captioned once

let last = null; // the last dropped picture: {digest, image, caption}

async function encoded(blob) {
  const digest = new Uint8Array(await digestOf(new Uint8Array(await blob.arrayBuffer()))).join();
  if (last?.digest !== digest) {
    const pixels = pixelsOf(blob, site.preprocess);
    const image = (async () => {
      const own = site.encoder?.own ? await squareOf(await pixels, site.encoder.own) : null;
      if (site.encoder) await withGraph("encoder");
      return (await withGraph("image")).encodeImage(await pixels, site.encoder, own);
    })();
    const unfamiliar = awaitedLater(pixels.then((square) => isUnfamiliar(square, site.calibration)));
    last = { digest, image, unfamiliar, caption: null, listeners: new Set(), text: "" };
  }
  return last;
}

/** A digest of bytes. Hosts without HTTPS have no `crypto.subtle`. */
async function digestOf(bytes) {
  if (self.crypto?.subtle) return crypto.subtle.digest("SHA-256", bytes);
  let [a, b] = [0x811c9dc5, bytes.length];
  for (const byte of bytes) {
    a = Math.imul(a ^ byte, 0x01000193);
    b = (Math.imul(b, 31) + byte) | 0;
  }
  return Int32Array.of(a, b).buffer;
}

async function captionOf(blob, onToken = () => {}) {
  const picture = await encoded(blob);
  if (picture.text) onToken(picture.text);
  picture.listeners.add(onToken);
  picture.caption ??= (async () => {
    const { cross } = await picture.image;
    return (await withGraph("step")).caption(cross, (text) => {
      picture.text = text;
      for (const tellToken of picture.listeners) tellToken(text);
    });
  })();
  return picture.caption;
}

// --- Search

const queries = new Map(); // the last rankings, for further pages of the same query

/** Queries with images have no relevances, which were fitted to texts. */
const hasImages = ({ image, like, unlike }) => Boolean(image || like.length || unlike.length);

async function ranked(query) {
  const { texts, without, like, unlike, image, filters } = query;
  const key = image ? null : JSON.stringify([texts, without, like, unlike, filters, library.numEmbedded]);
  if (key && queries.has(key)) return queries.get(key);
  const found = (async () => {
    const related = await Promise.all([...texts, ...without].map(inWords).map(relatedWords));
    const vectors = await Promise.all([...texts, ...without].map(inWords).map((text, i) => meaningOf(text, related[i])));
    const also = related.slice(0, texts.length).flatMap((words) => words.slice(0, library.ranking.words_also));
    const avoided = -library.ranking.without_weight;
    const parts = vectors.map((vector, i) => [i < texts.length ? 1 : avoided, vector]);
    const model = await adapted;
    const likeness = (id) => model?.queryOf(library.vector(Number(id))) ?? library.vector(Number(id));
    for (const id of like) parts.push([1, likeness(id)]);
    for (const id of unlike) parts.push([avoided, likeness(id)]);
    if (image) {
      const { embedding } = await (await encoded(image)).image;
      parts.push([1, model?.pictureQuery(embedding) ?? embedding]);
    }
    const vector = library.combined(parts);
    if (!vector) throw new Error("The query excludes everything it searches for.");
    const scores = library.scores(vector);
    const isOfTexts = !hasImages(query);
    const groups = library.rank(vector, scores, isOfTexts && !without.length ? texts : null, filters, also);
    const words = like.length || image ? new Set() : askedWords(texts.map(inWords).join(" "));
    if (!library.about.curve || !isOfTexts) return { scores, groups, words, background: null };
    const asked = vectors.slice(0, texts.length);
    const others = await embedTexts(library.about.captions.filter((caption) => caption.trim()));
    const background = library.background(vector, asked, others, groups[0]?.[0]);
    return { scores, groups, words, background };
  })();
  if (key) {
    if (queries.size > 8) queries.delete(queries.keys().next().value);
    queries.set(key, found);
    found.catch(() => queries.delete(key));
  }
  return found;
}

/** Of some hits: the relevance, and whether they have the words of the query. */
async function judged({ scores, groups, words, background }, start, end) {
  if (!background) return [];
  const rows = groups.slice(start, end).map(([row]) => row);
  const captions = rows.map((row) => library.entry(row).caption);
  const vectors = await embedTexts(captions.filter((caption) => caption.trim()));
  let next = 0;
  return rows.map((row, i) => {
    const likely = relevance(background, scores[row], captions[i].trim() ? vectors[next++] : null);
    const { isWritten, isCaptioned } = library.isCalled(row, words);
    const least = Math.max(isWritten ? library.ranking.written : 0, isCaptioned ? library.about.curve.captioned : 0);
    return { relevance: Math.max(likely, least), hasWords: isWritten || isCaptioned };
  });
}

/** What words find while the model is loaded. */
async function foundByWords({ texts, filters, offset, limit }) {
  await listed;
  const groups = library.rankByWords(texts, filters);
  const hits = groups.slice(offset, offset + limit).map(([row, ...copies]) => ({
    ...library.entry(row),
    score: 0,
    relevance: null,
    copies: copies.map((copy) => library.entry(copy)),
  }));
  const told = { verdict: "likely", num_likely: hits.length, can_tell: true, isByWords: true };
  const facets = offset ? [] : library.counts(groups);
  return { hits, more: offset + limit < groups.length, searched: library.size, facets, counted: groups.length, ...told };
}

const equivalents = {}; // files of them, by name

/** The JSON of a file that the page does not need to start: it is no part of the progress. */
async function later(path) {
  return jsonOf(new Uint8Array(await (await siteFile(path)).arrayBuffer()));
}

const calls = {
  async ready() {
    await Promise.all([withGraph("text"), indexed]);
    if (library?.about.curve) await embedTexts(library.about.captions.filter((caption) => caption.trim()));
    state.isReady = true;
    tell();
    const files = performance.getEntriesByType("resource").map(({ name }) => name);
    return { files };
  },

  /** Load what a dropped picture needs, before one is dropped. */
  async prepare() {
    if (site.encoder) await withGraph("encoder");
    await withGraph("image");
    await withGraph("step");
  },

  async search(query) {
    await opened;
    if (!library) throw new Error("This site has no images to search.");
    const { offset, limit } = query;
    if (!state.canMean && !query.image && !query.like.length && query.texts.length) return foundByWords(query);
    const found = await ranked(query);
    const end = Math.min(found.groups.length, offset + limit);
    const likely = await judged(found, offset, end);
    const first = offset ? await judged(found, 0, library.ranking.num_decisive_hits) : likely;
    const isKnown = found.background?.canTell ?? false;
    const hits = found.groups.slice(offset, end).map(([row, ...copies], i) => ({
      ...library.entry(row),
      score: found.scores[row],
      relevance: isKnown ? likely[i].relevance : null,
      copies: copies.map((copy) => library.entry(copy)),
    }));
    const model = await adapted;
    const unknown = model ? query.texts.map(inWords).filter((text) => !model.knows(text)) : [];
    return {
      hits,
      unknown,
      more: end < found.groups.length,
      searched: library.size,
      verdict: isKnown ? verdict(first, library.ranking, library.about.curve.nothing_below) : "likely",
      num_likely: isKnown ? numLikely(likely, library.ranking) : hits.length,
      facets: offset ? [] : library.counts(found.groups),
      counted: found.groups.length,
      can_tell: isKnown || !(found.background || hasImages(query)),
    };
  },

  async pictures({ filters, offset, limit }) {
    await opened;
    const { total, rows } = library.browse(filters, offset, limit);
    return { total, pictures: rows.map((row) => library.entry(row)) };
  },

  async entry({ key }) {
    await listed;
    const row = library?.rowOf(key) ?? -1;
    if (row < 0) throw new Error(`The image '${key}' is no longer in this index.`);
    return library.entry(row);
  },

  /** The equivalents of an icon in the other icon sets, with probabilities; none if they are not known. */
  async others({ id }) {
    await listed;
    const part = library.about.chunks[Math.floor(id / library.about.chunk)]?.others;
    if (!part) return [];
    equivalents[part] ??= later(folder + part).catch((error) => {
      delete equivalents[part];
      throw error;
    });
    const found = (await equivalents[part])[id % library.about.chunk];
    return found.map(([row, probability]) => ({ ...library.entry(row), probability }));
  },

  async duplicates({ offset, limit }) {
    await listed;
    const shown = library.about.groups.slice(offset, offset + limit);
    return {
      total: library.about.groups.length,
      sizes: shown.map((rows) => rows.length),
      groups: shown.map((rows) => rows.slice(0, 60).map((row) => library.entry(row))),
    };
  },

  async counts({ filters }) {
    await listed;
    return { facets: library.counts(library.browse(filters, 0, Infinity).rows.map((row) => [row])) };
  },

  async facets() {
    await opened;
    return { facets: library?.about.facets ?? [] };
  },

  async caption({ image }, onToken) {
    const picture = await encoded(image);
    return { caption: await captionOf(image, onToken), unfamiliar: await picture.unfamiliar };
  },
};

self.onmessage = async ({ data: { id, call, args } }) => {
  try {
    const result = await calls[call](args, (token) => self.postMessage({ id, token }));
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error.message || String(error) });
  }
};
tell();
self.postMessage({ isListening: true });
