// A full-text index: BM25 over stems with weights of fields, as in SQLite's FTS5 with `porter unicode61`.

// And the words of names and queries, as in `grr_coca_search.words`.

const K1 = 1.2;
const B = 0.75;
const MIN_IDF = 1e-6;

export class WordIndex {
  #postings = new Map(); // stem: a flat list of row, weighted occurrences
  #lengths = [];
  #total = 0;
  #stems = new Map();

  /** @param {number} maxWords of a text that are looked up */
  constructor(maxWords) {
    this.maxWords = maxWords;
  }

  /**
   * Add the next row.
   * @param {[string, number][]} fields texts, and what a word in each counts
   */
  add(fields) {
    const row = this.#lengths.length;
    const counts = new Map();
    let length = 0;
    for (const [text, weight] of fields) {
      const words = tokensOf(text);
      length += words.length;
      for (const word of words) {
        const stem = this.#stem(word);
        counts.set(stem, (counts.get(stem) ?? 0) + weight);
      }
    }
    for (const [stem, count] of counts) {
      const posting = this.#postings.get(stem);
      if (posting) posting.push(row, count);
      else this.#postings.set(stem, [row, count]);
    }
    this.#lengths.push(length);
    this.#total += length;
  }

  /**
   * The rows that match the words of a text best, with their scores, best first. They need not have all words.
   * @param {(row: number) => boolean} isAllowed
   * @returns {[number, number][]}
   */
  search(text, count, isAllowed) {
    const scores = new Map();
    const size = this.#lengths.length;
    const usual = this.#total / Math.max(1, size);
    for (const stem of new Set([...new Set(tokensOf(text))].slice(0, this.maxWords).map((word) => this.#stem(word)))) {
      const posting = this.#postings.get(stem) ?? [];
      const found = posting.length / 2;
      const idf = Math.max(MIN_IDF, Math.log((size - found + 0.5) / (found + 0.5)));
      for (let i = 0; i < posting.length; i += 2) {
        const [row, times] = [posting[i], posting[i + 1]];
        if (!isAllowed(row)) continue;
        const damped = times + K1 * (1 - B + (B * this.#lengths[row]) / usual);
        scores.set(row, (scores.get(row) ?? 0) + (idf * times * (K1 + 1)) / damped);
      }
    }
    const ranked = [...scores].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
    return ranked.slice(0, count);
  }

  #stem(word) {
    let stem = this.#stems.get(word);
    if (stem === undefined) this.#stems.set(word, (stem = stemOf(word)));
    return stem;
  }
}

function tokensOf(text) {
  const plain = text.normalize("NFD").replace(/\p{M}+/gu, "").toLowerCase();
  return plain.match(/[\p{L}\p{N}]+/gu) ?? [];
}

// --- Names: `ShoppingCart`, `shopping-cart` and `lucide:shopping-cart` are two words

const SAY_NOTHING = new Set(["a", "an", "and", "at", "for", "in", "of", "on", "or", "the", "to", "with"]);

/** The words of a text in lower case, without accents. Names are split where case, letters and digits change. */
export function wordsOf(text) {
  const bare = text.normalize("NFD").replace(/\p{M}+/gu, "");
  const runs = bare.match(/[\p{L}\p{Nl}\p{No}]+|\p{Nd}+/gu) ?? [];
  return runs.flatMap((run) => run.match(/[A-Z]+(?![a-z])|[A-Z]?[^A-Z]+/g)).map((word) => word.toLowerCase());
}

/** The name that a query asks for: the set before a colon, or "", and the words of the name. */
export function askedName(query) {
  const [, prefix, name] = /^(?:([^\s:]+):)?([^\s:]+)$/.exec(query.trim()) ?? [null, "", query];
  return { prefix: (prefix ?? "").toLowerCase(), words: wordsOf(name) };
}

/** True if a name is the one that is asked for, whatever its spelling. */
export function isOf(asked, name) {
  return asked.words.length > 0 && wordsOf(name.slice(name.lastIndexOf(":") + 1)).join(" ") === asked.words.join(" ");
}

/** A query that is an identifier in words; another one as it is. */
export function inWords(query) {
  const { words } = askedName(query);
  const isOne = query.trim().split(/\s+/).length === 1;
  const bare = query.replace(/^[^\S\ufeff]+|[^\S\ufeff]+$/g, ""); // a byte order mark is no space in Python
  const isPlain = wordsOf(query).join(" ") === bare.toLowerCase();
  return isOne && words.length && !isPlain ? words.join(" ") : query;
}

/** The words of a query that say something, in the singular. */
export function askedWords(query) {
  const { words } = askedName(query);
  const telling = words.filter((word) => !SAY_NOTHING.has(word));
  return new Set((telling.length ? telling : words).map(singular));
}

/** True if texts have all words that were asked for, in the singular or plural. */
export function hasWords(asked, texts) {
  if (!asked.size) return false;
  const found = new Set(texts.flatMap((text) => [...wordsOf(text), ...text.toLowerCase().trim().split(/\s+/)]).map(singular));
  return [...asked].every((word) => found.has(word));
}

function singular(word) {
  if (word.length > 4 && word.endsWith("ies")) return `${word.slice(0, -3)}y`;
  if (word.length > 4 && /(ches|shes|sses|xes|zes)$/.test(word)) return word.slice(0, -2);
  return word.length > 3 && word.endsWith("s") && !word.endsWith("ss") ? word.slice(0, -1) : word;
}

// --- Porter's stemmer (Program 14, 1980): https://tartarus.org/martin/PorterStemmer/def.txt

const CONSONANT = "[^aeiou]";
const VOWEL = "[aeiouy]";
const CONSONANTS = `${CONSONANT}[^aeiouy]*`;
const VOWELS = `${VOWEL}[aeiou]*`;
const HAS_SYLLABLE = new RegExp(`^(${CONSONANTS})?${VOWELS}${CONSONANTS}`);
const HAS_ONE = new RegExp(`^(${CONSONANTS})?${VOWELS}${CONSONANTS}(${VOWELS})?$`);
const HAS_TWO = new RegExp(`^(${CONSONANTS})?${VOWELS}${CONSONANTS}${VOWELS}${CONSONANTS}`);
const HAS_VOWEL = new RegExp(`^(${CONSONANTS})?${VOWEL}`);
const SHORT = new RegExp(`^${CONSONANTS}${VOWEL}[^aeiouwxy]$`);

const SECOND = Object.entries({
  ational: "ate", tional: "tion", enci: "ence", anci: "ance", izer: "ize", bli: "ble", alli: "al", entli: "ent",
  eli: "e", ousli: "ous", ization: "ize", ation: "ate", ator: "ate", alism: "al", iveness: "ive", fulness: "ful",
  ousness: "ous", aliti: "al", iviti: "ive", biliti: "ble", logi: "log",
});
const THIRD = Object.entries({ icate: "ic", ative: "", alize: "al", iciti: "ic", ical: "ic", ful: "", ness: "" });
const FOURTH = /^(.+?)(al|ance|ence|er|ic|able|ible|ant|ement|ment|ent|ou|ism|ate|iti|ous|ive|ize)$/;

export function stemOf(word) {
  if (word.length < 3 || !/^[a-z]+$/.test(word)) return word;
  const startsWithY = word[0] === "y";
  if (startsWithY) word = `Y${word.slice(1)}`;
  word = word.replace(/^(.+?)(ss|i)es$/, "$1$2").replace(/^(.+?)([^s])s$/, "$1$2");
  word = first(word);
  if (/y$/.test(word) && HAS_VOWEL.test(word.slice(0, -1))) word = `${word.slice(0, -1)}i`;
  word = replaced(word, SECOND);
  word = replaced(word, THIRD);
  word = fourth(word);
  if (/e$/.test(word)) {
    const stem = word.slice(0, -1);
    if (HAS_TWO.test(stem) || (HAS_ONE.test(stem) && !SHORT.test(stem))) word = stem;
  }
  if (/ll$/.test(word) && HAS_TWO.test(word)) word = word.slice(0, -1);
  return startsWithY ? `y${word.slice(1)}` : word;
}

/** Past tense and participle. */
function first(word) {
  if (/^(.+?)eed$/.test(word)) return HAS_SYLLABLE.test(word.slice(0, -3)) ? word.slice(0, -1) : word;
  const stem = /^(.+?)(ed|ing)$/.exec(word)?.[1];
  if (stem === undefined || !HAS_VOWEL.test(stem)) return word;
  if (/(at|bl|iz)$/.test(stem)) return `${stem}e`;
  if (/([^aeiouylsz])\1$/.test(stem)) return stem.slice(0, -1);
  return SHORT.test(stem) ? `${stem}e` : stem;
}

function replaced(word, endings) {
  const match = endings.filter(([ending]) => word.endsWith(ending)).sort((a, b) => b[0].length - a[0].length)[0];
  if (!match) return word;
  const stem = word.slice(0, -match[0].length);
  return stem && HAS_SYLLABLE.test(stem) ? stem + match[1] : word;
}

function fourth(word) {
  const ending = FOURTH.exec(word);
  if (ending) return HAS_TWO.test(ending[1]) ? ending[1] : word;
  const stem = /^(.+?[st])ion$/.exec(word)?.[1];
  return stem && HAS_TWO.test(stem) ? stem : word;
}
