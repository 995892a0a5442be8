// Vectors of an adapted model, as `grr_coca.infer.adapted` computes them: of texts, from their words and the embeddings of
// the base; and of pictures as queries, only from these embeddings.

const RULES = 1; // version of `wordsOf`, `RULES` of `grr_coca.infer.adapted.words`

export class Adapted {
  #ids;
  #about;

  /**
   * @param {object} about rules, words, unspaced, split, text_weight, plain_share, and the shape of each array by name
   * @param {Uint8Array} bytes the arrays one after another, in half precision
   */
  constructor(about, bytes) {
    if (about.rules !== RULES) throw new Error("The model uses other word rules than this page. Export it again.");
    this.#about = about;
    this.#ids = new Map(about.words.map((word, id) => [word, id]));
    const halves = new Uint16Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    let start = 0;
    for (const [name, shape] of Object.entries(about.shapes)) {
      const end = start + shape.reduce((size, length) => size * length, 1);
      this[name] = Float32Array.from(halves.subarray(start, end), single);
      start = end;
    }
    const share = about.plain_share;
    this.lengths = [Math.sqrt(1 / (1 + share)), Math.sqrt(share / (1 + share))];
  }

  /** True if a text has a word of the captions that the model was adapted to. */
  knows(text) {
    return wordsOf(text, this.#about.unspaced).some((word) => this.#ids.has(word));
  }

  /** The vector of a text. Without any known word, only its embedding by the base counts. */
  textVector(text, embedding) {
    const [width] = this.#about.split;
    const centred = unit(embedding.map((value, i) => value - this.text_mean[i]));
    const first = new Float32Array(width);
    const add = (row, weight) => {
      for (let i = 0, at = row * width; i < width; i++, at++) first[i] += weight * this.word_map[at];
    };
    const known = this.#weights(text);
    for (const [id, weight] of known) add(id, weight);
    const weight = this.#about.text_weight;
    centred.forEach((value, i) => add(this.#ids.size + i, Math.sqrt(weight) * value));
    const scale = 1 / Math.sqrt(Math.max((known.size > 0) + weight, 1e-9));
    const predicted = unit(first.map((value, i) => value * scale - this.word_offset[i]));
    return this.#joined(predicted, this.#plain(centred), this.lengths);
  }

  /** The query for pictures that look like one, from its embedding by the base. */
  pictureQuery(embedding) {
    if (!this.#about.split[1]) throw new Error("This model takes features and cannot compare images.");
    const centred = embedding.map((value, i) => value - this.image_mean[i]);
    return this.#joined(new Float32Array(this.#about.split[0]), this.#plain(centred), [0, 1]);
  }

  /** The query for pictures that look like one of the library, from its vector. */
  queryOf(vector) {
    const [width, rest] = this.#about.split;
    return unit(vector.map((value, i) => (rest && i < width ? 0 : value)));
  }

  /** The known words of a text: number in the text × rarity, scaled to length 1. */
  #weights(text) {
    const found = new Map();
    for (const word of wordsOf(text, this.#about.unspaced)) {
      const id = this.#ids.get(word);
      if (id !== undefined) found.set(id, (found.get(id) ?? 0) + this.#about.rarities[id]);
    }
    const length = Math.hypot(...found.values());
    for (const [id, value] of found) found.set(id, value / length);
    return found;
  }

  #plain(centred) {
    const width = this.#about.split[1];
    const out = new Float32Array(width);
    for (let row = 0, at = 0; row < centred.length; row++) for (let i = 0; i < width; i++, at++) out[i] += centred[row] * this.plain_map[at];
    return unit(out);
  }

  #joined(first, second, [one, other]) {
    const out = new Float32Array(first.length + second.length);
    first.forEach((value, i) => (out[i] = one * value));
    second.forEach((value, i) => (out[first.length + i] = other * value));
    return out;
  }
}

/** The words of a text, in order: `split_words` of Python. */
export function wordsOf(text, unspaced) {
  const words = [];
  let run = [];
  let isUnspaced = false;
  for (const letter of `${text.normalize("NFKC").toLowerCase()} `) {
    const belongs = /[\p{L}\p{M}\p{N}]/u.test(letter);
    const code = letter.codePointAt(0);
    const isNext = belongs && unspaced.some(([first, last]) => first <= code && code <= last);
    if (run.length && (!belongs || isNext !== isUnspaced)) {
      if (isUnspaced) words.push(...run, ...run.slice(1).map((next, i) => run[i] + next));
      else words.push(run.join(""));
      run = [];
    }
    if (belongs) {
      run.push(letter);
      isUnspaced = isNext;
    }
  }
  return words;
}

function unit(row) {
  const length = Math.max(Math.sqrt(row.reduce((sum, value) => sum + value * value, 0)), 1e-9);
  return row.map((value) => value / length);
}

/** The number of 16 bits as one of 32. */
function single(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
