// Files of a site travel as `.gz`, which any host sends, and are unpacked here.

/**
 * The bytes of a file. A host that names the encoding lets the browser unpack it; then the bytes do not begin as gzip.
 * @param {Uint8Array} bytes as they came
 * @returns {Promise<Uint8Array>}
 */
export async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The JSON in the bytes of a file. */
export async function jsonOf(bytes) {
  return JSON.parse(new TextDecoder().decode(await unpacked(bytes)));
}
