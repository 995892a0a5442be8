// A checkpoint's ONNX graphs in ONNX Runtime Web: embeddings of pictures and texts, and captions. Runs in a worker.
// `grr_coca.infer.export.graphs` says what goes into the graphs and comes out of them.

const CLS_SLOT = 0;
const MAX_BATCH = 16; // texts at a time: the padding of more would cost more than it saves

export class Engine {
  #ort;
  #sessions;

  /**
   * @param {object} ort the module of ONNX Runtime Web
   * @param {{bos_id: number, eos_id: number, context_length: number, embed_dim: number}} model numbers of the manifest
   * @param {Tokenizer} tokenizer
   */
  constructor(ort, model, tokenizer) {
    this.#ort = ort;
    this.#sessions = {};
    this.model = model;
    this.tokenizer = tokenizer;
  }

  /**
   * Load one graph: `image`, `text`, `step`, or `encoder`, the image encoder of others whose features `image` takes.
   * @param {?{name: string, bytes: Uint8Array}} weights the file that holds its tensors; null: the graph itself
   */
  async load(name, graph, weights) {
    this.#sessions[name] = await this.#ort.InferenceSession.create(graph, {
      executionProviders: ["wasm"],
      externalData: weights ? [{ path: weights.name, data: weights.bytes }] : [],
      graphOptimizationLevel: "all",
    });
  }

  /**
   * The unit-length embedding of a picture, and the keys and values that its captions read.
   * @param {Uint8Array} pixels RGB, S S 3
   * @param {?{keep: string}} encoder the image encoder that sees them, and which of its tokens are features; null: none
   * @param {?Uint8Array} own pixels for the model's own encoder beside that one
   */
  async encodeImage(pixels, encoder = null, own = null) {
    const inputs = encoder ? { features: await this.#features(pixels, encoder.keep) } : { pixels: this.#pixels(pixels) };
    if (own) inputs.pixels = this.#pixels(own);
    const { image_embedding: embedding, ...cross } = await this.#run("image", inputs);
    return { embedding: embedding.data, cross };
  }

  #pixels(pixels) {
    const side = Math.sqrt(pixels.length / 3);
    return new this.#ort.Tensor("uint8", pixels, [1, side, side, 3]);
  }

  /** All tokens of a picture, or their mean. */
  async #features(pixels, keep) {
    const { inputNames, outputNames } = this.#sessions.encoder;
    const { [outputNames[0]]: tokens } = await this.#run("encoder", { [inputNames[0]]: this.#pixels(pixels) });
    if (keep === "tokens") return tokens;
    const [, count, width] = tokens.dims;
    const mean = new Float32Array(width);
    tokens.data.forEach((value, i) => (mean[i % width] += value / count));
    return new this.#ort.Tensor("float32", mean, [1, 1, width]);
  }

  /** Unit-length embeddings of texts: an array of Float32Array. */
  async encodeTexts(texts) {
    const rows = texts.map((text) => this.#row(text));
    const found = new Array(texts.length);
    // Texts of like length share a batch: padding costs time.
    const order = rows.map((_, i) => i).sort((a, b) => rows[a].length - rows[b].length);
    for (let start = 0; start < order.length; start += MAX_BATCH) {
      const batch = order.slice(start, start + MAX_BATCH);
      const longest = Math.max(...batch.map((i) => rows[i].length));
      const ids = new BigInt64Array(batch.length * longest);
      batch.forEach((i, row) => ids.set(rows[i].map(BigInt), row * longest));
      const lengths = BigInt64Array.from(batch, (i) => BigInt(rows[i].length));
      const { text_embedding: embeddings } = await this.#run("text", {
        token_ids: new this.#ort.Tensor("int64", ids, [batch.length, longest]),
        lengths: new this.#ort.Tensor("int64", lengths, [batch.length]),
      });
      const width = embeddings.dims[1];
      batch.forEach((i, row) => (found[i] = embeddings.data.slice(row * width, (row + 1) * width)));
    }
    return found;
  }

  #row(text) {
    const { bos_id, eos_id, context_length } = this.model;
    const words = this.tokenizer.encode(text.trim().split(/\s+/).join(" "));
    return [bos_id, ...words.slice(0, context_length - 3), eos_id, CLS_SLOT];
  }

  /**
   * The likeliest caption, token by token.
   * @param {object} cross of `encodeImage`
   * @param {(text: string) => void} onToken called with the text so far
   */
  async caption(cross, onToken = () => {}) {
    const { bos_id, eos_id, context_length } = this.model;
    const ids = [];
    let past = this.#empty();
    let next = bos_id;
    // As in Python: [BOS], the caption with its end, and two more slots fit into the context.
    while (ids.length < context_length - 3) {
      const token_ids = new this.#ort.Tensor("int64", BigInt64Array.of(BigInt(next)), [1, 1]);
      const { logits, ...present } = await this.#run("step", { token_ids, ...cross, ...past });
      past = Object.fromEntries(Object.entries(present).map(([name, value]) => [name.replace("present", "past"), value]));
      next = largest(logits.data);
      if (next === eos_id) break;
      ids.push(next);
      onToken(this.tokenizer.decode(ids));
    }
    return this.tokenizer.decode(ids);
  }

  /** Keys and values of no tokens. */
  #empty() {
    const session = this.#sessions.step;
    const past = {};
    session.inputNames.forEach((name, i) => {
      if (!name.startsWith("past_")) return;
      const [, heads, , width] = session.inputMetadata[i].shape;
      past[name] = new this.#ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
    });
    return past;
  }

  async #run(name, inputs) {
    if (!this.#sessions[name]) throw new Error(`the graph ${name} is not loaded yet`);
    return this.#sessions[name].run(inputs);
  }
}

function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}
