// Texts to token ids and back, by a `tokenizer.json` of Hugging Face with a byte-level BPE: our own, or CLIP's.
// The ids are those of the Python package `tokenizers`; a test compares them.

const SPACES = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // `\s` of JavaScript differs
// The words of GPT-2, which `ByteLevel` cuts a text into.
const GPT2_WORDS = `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+`;
const ENDS = new RegExp(`^[\\x1c-\\x1f${SPACES}]+|[\\x1c-\\x1f${SPACES}]+$`, "gu"); // what `strip` of Python removes
const MAX_CACHED = 10_000;

/** A regular expression of Oniguruma as one of JavaScript, for those that `tokenizer.json` files hold. */
function expression(pattern) {
  const inClasses = pattern.replace(/\[(?:\\.|[^\]])*\]/g, (part) => part.replaceAll("\\s", SPACES));
  return new RegExp(inClasses.replaceAll("\\s", `[${SPACES}]`).replaceAll("\\S", `[^${SPACES}]`), "gu");
}

/** The letter that stands for each byte: printable ones for themselves, the others from code 256 on. */
function letters() {
  const isPrintable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(isPrintable(byte) ? byte : next++));
}

const LETTERS = letters();
const BYTES = new Map(LETTERS.map((letter, byte) => [letter, byte]));

export class Tokenizer {
  /** @param {object} file the content of `tokenizer.json` */
  constructor(file) {
    const { model } = file;
    if (model?.type !== "BPE" || model.byte_fallback || model.ignore_merges || model.continuing_subword_prefix) {
      throw new Error("tokenizer.json: only byte-level BPE is supported");
    }
    this.ids = new Map(Object.entries(model.vocab));
    const special = file.added_tokens ?? [];
    for (const { content, id } of special) this.ids.set(content, id);
    this.special = new Set(special.filter((token) => token.special).map((token) => token.id));
    this.tokens = new Map([...this.ids].map(([token, id]) => [id, token]));
    const pairs = model.merges.map((merge) => (Array.isArray(merge) ? merge.join(" ") : merge));
    this.ranks = new Map(pairs.map((pair, rank) => [pair, rank]));
    this.suffix = model.end_of_word_suffix ?? "";
    this.normalizers = steps(file.normalizer, "normalizers").map(normalizer);
    this.cut = steps(file.pre_tokenizer, "pretokenizers").map(cutter);
    this.endMark = steps(file.decoder, "decoders").find((step) => step.type === "Replace")?.pattern.String ?? "";
    this.cache = new Map();
  }

  /** The ids of a text, without begin and end tokens. */
  encode(text) {
    const clean = this.normalizers.reduce((before, change) => change(before), text);
    const words = this.cut.reduce((before, cut) => before.flatMap(cut), clean ? [clean] : []);
    return words.flatMap((word) => this.#merged(word));
  }

  /** The text of ids. Special tokens are left out. */
  decode(ids) {
    const joined = ids
      .filter((id) => !this.special.has(id))
      .map((id) => this.tokens.get(id) ?? "")
      .join("");
    const marked = this.endMark ? joined.replaceAll(this.endMark, "Ġ") : joined;
    const bytes = Uint8Array.from([...marked].flatMap((letter) => BYTES.get(letter) ?? []));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes).replace(ENDS, "");
  }

  /** The ids of one word, whose pairs are merged in the order of their ranks. */
  #merged(word) {
    const known = this.cache.get(word);
    if (known) return known;
    const parts = [...word];
    if (parts.length) parts[parts.length - 1] += this.suffix;
    for (;;) {
      let best = Infinity;
      let at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(`${parts[i]} ${parts[i + 1]}`);
        if (rank !== undefined && rank < best) [best, at] = [rank, i];
      }
      if (at < 0) break;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    const ids = parts.map((part) => this.ids.get(part)).filter((id) => id !== undefined);
    if (this.cache.size >= MAX_CACHED) this.cache.clear();
    this.cache.set(word, ids);
    return ids;
  }
}

/** The steps of a part of `tokenizer.json`, which may be missing, one, or a sequence. */
function steps(part, name) {
  if (!part) return [];
  return part.type === "Sequence" ? part[name] : [part];
}

function normalizer(step) {
  switch (step.type) {
    case "NFC":
      return (text) => text.normalize("NFC");
    case "Lowercase": // letter by letter, as in Rust: a word's last sigma has no form of its own
      return (text) => Array.from(text, (letter) => letter.toLowerCase()).join("");
    case "Replace": {
      const { Regex, String: plain } = step.pattern;
      const sought = Regex === undefined ? plain : expression(Regex);
      return (text) => text.replaceAll(sought, () => step.content);
    }
    default:
      throw new Error(`tokenizer.json: the normalizer ${step.type} is not supported`);
  }
}

function cutter(step) {
  switch (step.type) {
    case "ByteLevel": {
      const words = step.use_regex === false ? null : expression(GPT2_WORDS);
      return (text) => {
        const begun = step.add_prefix_space && !text.startsWith(" ") ? ` ${text}` : text;
        return (words ? (begun.match(words) ?? []) : [begun]).map(asLetters);
      };
    }
    case "Split": {
      if (step.behavior !== "Removed" || !step.invert) break;
      const words = expression(step.pattern.Regex);
      return (text) => text.match(words) ?? [];
    }
  }
  throw new Error(`tokenizer.json: the pre-tokenizer ${step.type} is not supported`);
}

function asLetters(text) {
  return Array.from(new TextEncoder().encode(text), (byte) => LETTERS[byte]).join("");
}
