// The exported index: rows and 8-bit embeddings in memory, searched exactly. Runs in a worker.
// Ranking, folding and relevance follow `grr_coca_search` (answer, duplicates, relevance).

import { WordIndex, askedName, askedWords, hasWords, inWords, isOf } from "./words.js";

export const MAX_HITS = 600;
const QUERY_LEVELS = 2047; // of an integer query: sums of up to 8,000 products fit into 32 bits
export class Library {
  /**
   * @param {object} about `library.json`: count, width, rows per chunk, sample, curve of relevances, facets, groups, and
   *   `ranking`: the numbers of `grr_coca_search` by which hits are ranked
   */
  constructor(about) {
    this.about = about;
    this.ranking = about.ranking;
    this.size = 0; // rows that are loaded
    this.numEmbedded = 0; // rows whose vectors are loaded, too
    this.width = about.width;
    this.vectors = new Int8Array(about.count * about.width);
    this.scales = new Float32Array(about.count);
    this.groupOf = new Map(about.groups.flatMap((rows, group) => rows.map((row) => [row, group])));
    this.chunks = [];
    this.words = new WordIndex(about.ranking.max_words);
    this.masks = new Map();
  }

  /** Add the vectors of the next chunk: scales of 32 bits, then the 8-bit integers. */
  addVectors(buffer) {
    const count = buffer.byteLength / (4 + this.width);
    this.scales.set(new Float32Array(buffer, 0, count), this.numEmbedded);
    this.vectors.set(new Int8Array(buffer, count * 4, count * this.width), this.numEmbedded * this.width);
    this.numEmbedded += count;
  }

  /** Add the next chunk: the columns of its rows. They can be searched by words. */
  addRows(packed) {
    const columns = unpacked(packed);
    const count = columns.name.length;
    for (let i = 0; i < count; i++) {
      this.words.add([[columns.words[i], this.ranking.title_weight], [columns.caption[i], this.ranking.caption_weight]]);
    }
    this.chunks.push(columns);
    this.size += count;
    this.masks.clear();
  }

  /** All that is known of a row. */
  entry(row) {
    const columns = this.chunks[Math.floor(row / this.about.chunk)];
    const at = row % this.about.chunk;
    const entry = { id: String(row), fields: {} };
    for (const [name, values] of Object.entries(columns)) {
      if (name === "fields" || name === "words") continue;
      entry[name] = values[at];
    }
    for (const [name, values] of Object.entries(columns.fields)) {
      if (values[at] !== null) entry.fields[name] = values[at];
    }
    return entry;
  }

  /** The row of a name; -1 if there is none. */
  rowOf(name) {
    for (const [number, columns] of this.chunks.entries()) {
      const at = columns.name.indexOf(name);
      if (at >= 0) return number * this.about.chunk + at;
    }
    return -1;
  }

  vector(row) {
    const out = new Float32Array(this.width);
    const start = row * this.width;
    for (let i = 0; i < this.width; i++) out[i] = this.vectors[start + i] * this.scales[row];
    return out;
  }

  // --- Filters

  /** For each row 1 if it matches the filters, else 0; null if there are none. */
  mask(filters) {
    if (!Object.keys(filters).length) return null;
    const key = JSON.stringify(filters);
    const known = this.masks.get(key);
    if (known) return known;
    const mask = new Uint8Array(this.size).fill(1);
    for (const [field, test] of Object.entries(filters)) {
      const matches = tester(test);
      let row = 0;
      for (const columns of this.chunks) {
        const values = columns[field] ?? columns.fields[field];
        for (let i = 0; i < columns.name.length; i++, row++) if (!values || !matches(values[i])) mask[row] = 0;
      }
    }
    if (this.masks.size > 20) this.masks.clear();
    this.masks.set(key, mask);
    return mask;
  }

  /**
   * How many groups of rows have each value of the fields that are texts: [{field, values}]. Of near-duplicates, one that
   * has the value is enough: a filter would select it.
   */
  counts(groups) {
    return this.about.facets.filter(({ kind }) => kind === "text").map(({ field }) => {
      const counts = new Map();
      const valuesOf = (row) => {
        const columns = this.chunks[Math.floor(row / this.about.chunk)];
        return (columns[field] ?? columns.fields[field])?.[row % this.about.chunk] ?? [];
      };
      for (const rows of groups) {
        for (const value of new Set(rows.flatMap(valuesOf))) counts.set(value, (counts.get(value) ?? 0) + 1);
      }
      return { field, values: [...counts] };
    });
  }

  /** Rows in the order of the library. */
  browse(filters, offset, limit) {
    const mask = this.mask(filters);
    if (!mask) {
      const end = Math.min(this.size, offset + limit);
      const rows = Array.from({ length: Math.max(0, end - offset) }, (_, i) => offset + i);
      return { total: this.size, rows };
    }
    const rows = [];
    let total = 0;
    for (let row = 0; row < mask.length; row++) {
      if (!mask[row]) continue;
      if (total >= offset && rows.length < limit) rows.push(row);
      total++;
    }
    return { total, rows };
  }

  // --- Ranking

  /** Dot products of all rows with a vector. */
  scores(vector) {
    const { vectors, numEmbedded: size, scales } = this;
    const largest = vector.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-12);
    const query = Int32Array.from(vector, (value) => Math.round((value / largest) * QUERY_LEVELS));
    const unit = largest / QUERY_LEVELS;
    const scores = new Float32Array(size);
    multiply(vectors, query, scores);
    for (let row = 0; row < size; row++) scores[row] *= unit * scales[row];
    return scores;
  }

  /**
   * Groups of near-duplicate rows, the best group first; the first row of a group is its best.
   * @param {Float32Array} vector the query
   * @param {Float32Array} scores of all rows
   * @param {string[] | null} texts of the query, or null for a ranking by embeddings alone
   */
  rank(vector, scores, texts, filters, also = []) {
    const mask = this.mask(filters);
    const isAllowed = (row) => row < this.numEmbedded && (!mask || mask[row] === 1);
    const nearest = best(scores, MAX_HITS, mask);
    const searched = texts === null ? "" : [searchedWords(texts), ...also].join(" ");
    const byWords = texts === null ? [] : this.words.search(searched, this.ranking.scores_of_words * MAX_HITS, isAllowed);
    return this.folded(byWords.length ? this.#fused(vector, scores, nearest, byWords, texts) : nearest);
  }

  /** Groups of near-duplicate rows by words alone, while there are no embeddings of queries yet. */
  rankByWords(texts, filters) {
    const mask = this.mask(filters);
    const asked = askedWords(texts.map(inWords).join(" "));
    const found = this.words.search(searchedWords(texts), MAX_HITS, mask ? (row) => mask[row] === 1 : () => true);
    const ranked = found.map(([row, score]) => [row, score, this.#tier(row, texts, asked)]);
    return this.folded(ranked.sort((a, b) => b[2] - a[2] || b[1] - a[1] || a[0] - b[0]).map(([row]) => row));
  }

  #text(row, column) {
    return this.chunks[Math.floor(row / this.about.chunk)][column][row % this.about.chunk];
  }

  /** Whether people, and whether the model, call a row by all these words. */
  isCalled(row, asked) {
    const [isWritten, isCaptioned] = ["words", "caption"].map((column) => hasWords(asked, [this.#text(row, column)]));
    return { isWritten, isCaptioned };
  }

  /** As `_name_match_rank` in Python: 3 if texts are set and name of a row, 2 its name, 1 if people wrote all words, else 0. */
  #tier(row, texts, asked) {
    const name = askedName(texts[0]);
    const title = titleOf(this.#text(row, "name"));
    if (texts.length === 1 && isOf(name, title)) {
      const sets = [this.#text(row, "folder").toLowerCase(), title.slice(0, Math.max(0, title.lastIndexOf(":"))).toLowerCase()];
      return name.prefix && sets.includes(name.prefix) ? 3 : 2;
    }
    return this.isCalled(row, asked).isWritten ? 1 : 0;
  }

  /** Rows by how they are called, and then by how far they stand out and by their words, together. */
  #fused(vector, scores, nearest, byWords, texts) {
    const { word_weight, min_images, fused_at_once, scores_of_words } = this.ranking;
    const { middle, spread } = this.#usual(vector);
    const rarer = Math.log(Math.max(1, min_images / this.size));
    const asked = askedWords(texts.map(inWords).join(" "));
    const found = new Set();
    for (let start = 0; start < MAX_HITS; start += fused_at_once) {
      const end = start + fused_at_once;
      const words = new Map(byWords.slice(0, scores_of_words * end));
      const rows = new Set([...nearest.slice(start, end), ...byWords.slice(start, end).map(([row]) => row)]);
      const ranked = [...rows]
        .filter((row) => !found.has(row))
        .map((row) => [
          row,
          (scores[row] - middle) / spread + (words.has(row) ? word_weight * (words.get(row) + rarer) : 0),
          words.has(row) ? this.#tier(row, texts, asked) : 0,
        ])
        .sort((a, b) => b[2] - a[2] || b[1] - a[1] || a[0] - b[0]);
      for (const [row] of ranked) found.add(row);
    }
    return [...found].slice(0, MAX_HITS);
  }

  /** The median score of the sample with a query, and the deviation below it. */
  #usual(vector) {
    const sample = this.sample();
    if (this.#known?.vector === vector && this.#known.sample === sample) return this.#known.usual; // of the same search
    const products = sample.map((one) => dot(one, vector));
    const middle = median(products);
    const lower = products.filter((value) => value <= middle);
    const squares = lower.reduce((sum, value) => sum + (value - middle) ** 2, 0);
    const usual = { middle, spread: Math.sqrt((squares + this.ranking.prior_images / this.width) / (lower.length + this.ranking.prior_images)) };
    this.#known = { vector, sample, usual };
    return usual;
  }

  #known = null; // the newest vector, and how usual scores are with it

  /** Rows, grouped by near-duplicates, which Python has found. */
  folded(rows) {
    const groups = new Map();
    for (const row of rows) {
      const home = this.groupOf.get(row) ?? `row ${row}`;
      if (groups.has(home)) groups.get(home).push(row);
      else groups.set(home, [row]);
    }
    return [...groups.values()];
  }

  // --- The vector of a query

  /** Embeddings of a random sample of the library. */
  sample() {
    const drawn = this.about.sample.filter((row) => row < this.numEmbedded);
    if (this.sampled?.length !== drawn.length) this.sampled = drawn.map((row) => this.vector(row));
    return this.sampled;
  }

  /**
   * The unit vector of a weighted sum of embeddings, each divided by its deviation over the library.
   * @param {[number, Float32Array][]} parts
   * @returns {Float32Array | null} null if the parts cancel each other
   */
  combined(parts) {
    if (parts.length === 1) return parts[0][1];
    const sample = this.sample();
    const total = new Float32Array(this.width);
    for (const [weight, embedding] of parts) {
      const spread = sample.length > 1 ? deviation(sample.map((vector) => dot(vector, embedding))) : 1;
      const factor = weight / Math.max(spread, this.ranking.min_deviation);
      embedding.forEach((value, i) => (total[i] += factor * value));
    }
    const length = Math.sqrt(dot(total, total));
    return length < 1e-6 ? null : total.map((value) => value / length);
  }

  // --- Relevance

  /**
   * What hits of a query are compared with.
   * @param {Float32Array[]} asked embeddings of the texts of the query
   * @param {Float32Array[]} others embeddings of captions of some pictures of the library
   */
  background(vector, asked, others, bestRow) {
    const { middle, spread } = this.#usual(vector);
    const usual = others.length ? median(others.flatMap((other) => asked.map((text) => dot(other, text)))) : 0;
    const canTell = bestRow !== undefined && this.#canTell(this.vector(bestRow), usual);
    const { per_log_images, offset, ...weights } = this.about.curve;
    const base = per_log_images * Math.log(this.sample().length) + offset;
    return { middle, spread, usual: Math.min(usual, this.ranking.max_caption_cosine), asked, canTell, base, ...weights };
  }

  #canTell(top, usual) {
    const sample = this.sample();
    const { max_image_cosine, max_caption_cosine } = this.ranking;
    if (usual > max_caption_cosine || !this.#differs(sample)) return false;
    return median(sample.map((one) => dot(one, top))) <= max_image_cosine;
  }

  /** Whether a sample has rows that differ. All queries share the answer. */
  #differs(sample) {
    if (this.#differing?.sample === sample) return this.#differing.isSo;
    const { min_different, min_cosine } = this.ranking;
    let left = sample;
    for (let i = 1; i < min_different && left.length; i++) left = left.filter((one) => dot(one, left[0]) < min_cosine);
    this.#differing = { sample, isSo: left.length > 0 };
    return this.#differing.isSo;
  }

  #differing = null;
}

/** The probability that a hit is what the query asked for. `caption`: the embedding of its caption, or null. */
export function relevance(background, score, caption) {
  const { middle, spread, usual, asked, base, per_deviation, per_agreement, per_cosine } = background;
  const closest = caption ? Math.max(...asked.map((text) => dot(caption, text))) : 0;
  const agreement = (closest - usual) / (1 - usual);
  const logit = per_deviation * ((score - middle) / spread) + per_agreement * agreement + per_cosine * score + base;
  return 1 / (1 + Math.exp(-logit));
}

/** What a search says of its first hits: `likely`, `unsure` or `nothing`. As `SearchResult.verdict` in Python. */
export function verdict(hits, { num_decisive_hits, min_relevance }, nothingBelow) {
  const first = hits.slice(0, num_decisive_hits);
  const best = Math.max(0, ...first.map((hit) => hit.relevance));
  if (best >= min_relevance) return "likely";
  return best >= nothingBelow || first.some((hit) => hit.hasWords) ? "unsure" : "nothing";
}

/** The number of hits up to the last likely one; all if none is. As `SearchResult.num_likely` in Python. */
export function numLikely(hits, { min_relevance, num_less_likely }) {
  let last = 0;
  for (let place = 1; place <= hits.length && place - last <= num_less_likely; place++) {
    if (hits[place - 1].relevance >= min_relevance) last = place;
  }
  return last || hits.length;
}

/** What the full-text index is asked for: names in words, and as they were written. */
function searchedWords(texts) {
  return [...texts.map(inWords), ...texts.filter((text) => inWords(text) !== text)].join(" ");
}

/** The name of a file without folders and suffix, as `Path.stem` in Python, or that of an image in a file, which follows ": ". */
export function titleOf(name) {
  const inner = name.split(": ").at(-1);
  const last = inner.slice(inner.lastIndexOf("/") + 1);
  const dot = last.lastIndexOf(".");
  return dot > 0 && dot < last.length - 1 ? last.slice(0, dot) : last;
}

/** Columns, whose repeated values may be written as places in a list. */
function unpacked(columns) {
  const one = (column) => (column.of ? column.at.map((place) => column.of[place]) : column);
  const named = (group) => Object.fromEntries(Object.entries(group).map(([name, column]) => [name, one(column)]));
  return { ...named({ ...columns, fields: [] }), fields: named(columns.fields) };
}

/** Whether a value passes a filter: one of several values, or a range. */
function tester(test) {
  if (test.in) {
    const wanted = new Set(test.in);
    return (value) => (Array.isArray(value) ? value.some((one) => wanted.has(one)) : wanted.has(value));
  }
  return (value) =>
    value !== null && value !== undefined && !(test.from !== undefined && value < test.from) && !(test.to !== undefined && value > test.to);
}

/** The rows of the largest scores, largest first. A histogram finds those that can be among them. */
function best(scores, count, mask) {
  let [low, high] = [Infinity, -Infinity];
  for (let row = 0; row < scores.length; row++) {
    if (mask && !mask[row]) continue;
    if (scores[row] < low) low = scores[row];
    if (scores[row] > high) high = scores[row];
  }
  const numBins = 4096;
  const bins = new Uint32Array(numBins);
  const scale = (numBins - 1) / Math.max(high - low, 1e-9);
  for (let row = 0; row < scores.length; row++) if (!mask || mask[row]) bins[((scores[row] - low) * scale) | 0]++;
  let lowest = numBins - 1;
  for (let kept = 0; lowest > 0; lowest--) if ((kept += bins[lowest]) >= count) break;
  const rows = [];
  for (let row = 0; row < scores.length; row++) {
    if ((!mask || mask[row]) && ((scores[row] - low) * scale | 0) >= lowest) rows.push(row);
  }
  return rows.sort((a, b) => scores[b] - scores[a] || a - b).slice(0, count);
}

/** Dot products of rows with an integer query. Nearly all of a search is spent here, so it is written for the compiler. */
function multiply(vectors, query, products) {
  const width = query.length;
  const whole = width - (width % 4);
  let at = 0;
  for (let row = 0; row < products.length; row++) {
    let a = 0;
    let b = 0;
    let c = 0;
    let d = 0;
    let i = 0;
    for (; i < whole; i += 4, at += 4) {
      a = (a + Math.imul(query[i], vectors[at])) | 0;
      b = (b + Math.imul(query[i + 1], vectors[at + 1])) | 0;
      c = (c + Math.imul(query[i + 2], vectors[at + 2])) | 0;
      d = (d + Math.imul(query[i + 3], vectors[at + 3])) | 0;
    }
    for (; i < width; i++, at++) a = (a + Math.imul(query[i], vectors[at])) | 0;
    products[row] = a + b + c + d;
  }
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

function median(values) {
  if (!values.length) return 0;
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function deviation(values) {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  return Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length);
}
