// From the bytes of a picture file to the pixels that a model takes, equal to Pillow's (`grr_coca.data.preprocess`).

import { frameOf, roundEven } from "./framing.js";

export const MAX_PIXELS = 100_000_000;
const MAX_BYTES = 2 ** 28;
const MAX_RESIZED_PIXELS = 10_000_000;
const SVG_SIDE = 256;
const STRIP = 256; // rows that are read from the canvas at a time

/** An error whose message is a sentence for a person. */
export class PictureError extends Error {}

// --- What a file is, by its first bytes

/** Width and height in pixels, or null if the file is of no format that browsers show. Nothing is decoded. */
export function sizeOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const text = (at, length) => String.fromCharCode(...bytes.subarray(at, at + length));
  if (bytes.length < 16) return null;
  if (text(1, 3) === "PNG") return bytes.length < 24 ? null : [view.getUint32(16), view.getUint32(20)];
  if (text(0, 4) === "GIF8") return [view.getUint16(6, true), view.getUint16(8, true)];
  if (text(0, 2) === "BM" && bytes.length >= 26) return [view.getInt32(18, true), Math.abs(view.getInt32(22, true))];
  if (text(0, 4) === "RIFF" && text(8, 4) === "WEBP" && bytes.length >= 30) return sizeOfWebp(view, text(12, 4));
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return sizeOfJpeg(view);
  if (text(4, 4) === "ftyp") return sizeOfAvif(bytes, view);
  return null;
}

function sizeOfWebp(view, kind) {
  if (kind === "VP8 ") return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
  const bits = view.getUint32(21, true);
  if (kind === "VP8L") return [(bits & 0x3fff) + 1, ((bits >> 14) & 0x3fff) + 1];
  const long = (at) => view.getUint16(at, true) + (view.getUint8(at + 2) << 16) + 1;
  return kind === "VP8X" ? [long(24), long(27)] : null;
}

function sizeOfJpeg(view) {
  let at = 2;
  while (at + 9 < view.byteLength) {
    if (view.getUint8(at) !== 0xff) return null;
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) at += 1;
    else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return [view.getUint16(at + 7), view.getUint16(at + 5)];
    } else if (marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) at += 2;
    else at += 2 + view.getUint16(at + 2);
  }
  return null;
}

function sizeOfAvif(bytes, view) {
  const end = Math.min(bytes.length - 16, 65536);
  for (let at = 8; at < end; at++) {
    const isSize = bytes[at] === 0x69 && bytes[at + 1] === 0x73 && bytes[at + 2] === 0x70 && bytes[at + 3] === 0x65;
    if (isSize) return [view.getUint32(at + 8), view.getUint32(at + 12)]; // the box `ispe`
  }
  return null;
}

/** True if the bytes of a file are SVG. */
export function isSvg(bytes) {
  const head = new TextDecoder().decode(bytes.subarray(0, 4096)).trimStart();
  return head.startsWith("<svg") || ((head.startsWith("<?xml") || head.startsWith("<!")) && head.includes("<svg"));
}

/**
 * Raise an error if a file is too large, or is no picture that can be shown.
 * @returns {Promise<Uint8Array>} its bytes
 * @throws {PictureError}
 */
export async function requirePicture(blob) {
  const name = blob.name || "the image";
  if (blob.size > MAX_BYTES) throw new PictureError(`${name}: the file is too large: ${megabytes(blob.size)} (limit ${megabytes(MAX_BYTES)}).`);
  if (!blob.size) throw new PictureError(`${name}: the file is empty.`);
  const bytes = new Uint8Array(await blob.arrayBuffer());
  if (isSvg(bytes)) return bytes;
  const size = sizeOf(bytes);
  if (!size) throw new PictureError(`${name}: not an image in a format that this browser supports.`);
  if (size[0] * size[1] > MAX_PIXELS) {
    const count = (size[0] * size[1]).toLocaleString("en");
    throw new PictureError(`${name}: too many pixels: ${count} (limit ${MAX_PIXELS.toLocaleString("en")}). Scale it down first.`);
  }
  return bytes;
}

const megabytes = (bytes) => `${Math.round(bytes / 1e6)} MB`;

/**
 * An SVG file as a PNG of 256 pixels a side, oblong drawings in the middle. Only a document can draw SVG, no worker.
 * The browser runs no script of a picture, and loads nothing that it names.
 */
export async function drawSvg(bytes, name) {
  const source = new TextDecoder().decode(bytes);
  const tag = /<svg(?=[\s/>])(?:"[^"]*"|'[^']*'|[^>"'])*>/.exec(source)?.[0];
  const value = (attribute) => new RegExp(`\\s${attribute}\\s*=\\s*["']([^"']*)["']`).exec(tag ?? "")?.[1];
  const box = (value("viewBox") ?? "").trim().split(/[\s,]+/).map(Number);
  const sides = [parseFloat(value("width")) || box[2] || 300, parseFloat(value("height")) || box[3] || 150];
  const scale = SVG_SIDE / Math.max(...sides);
  const [width, height] = sides.map((side) => Math.max(1, Math.round(side * scale)));
  // An attribute that stands twice would make the file invalid.
  const bare = (tag ?? "").replace(/\s(?:width|height)\s*=\s*(?:"[^"]*"|'[^']*')/g, "");
  const view = value("viewBox") === undefined ? ` viewBox="0 0 ${sides[0]} ${sides[1]}"` : "";
  const sized = bare.replace("<svg", `<svg width="${width}" height="${height}"${view}`);
  const file = new Blob([source.replace(tag ?? "", () => sized)], { type: "image/svg+xml" });
  const url = URL.createObjectURL(file);
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = new OffscreenCanvas(SVG_SIDE, SVG_SIDE);
    canvas.getContext("2d").drawImage(image, (SVG_SIDE - width) >> 1, (SVG_SIDE - height) >> 1, width, height);
    return await canvas.convertToBlob();
  } catch {
    throw new PictureError(`${name}: an SVG file that cannot be drawn.`);
  } finally {
    URL.revokeObjectURL(url);
  }
}

// --- Pixels

/**
 * The square that a model sees.
 * @param {Blob} blob a picture that `requirePicture` accepts, but no SVG
 * @param {{image_size: number, order: string, opening: string, framing: ?object}} preprocess of the checkpoint; that of an
 *   image encoder of others also has `fit`, `crop` and `interpolation`
 * @returns {Promise<Uint8Array>} RGB, S S 3
 * @throws {PictureError} it cannot be decoded
 */
export async function pixelsOf(blob, preprocess) {
  const upright = preprocess.opening === "upright_on_white";
  const name = blob.name || "the image";
  if (!upright) blob = new Blob([asStored(new Uint8Array(await blob.arrayBuffer()))], { type: blob.type });
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: upright ? "default" : "none", // a profile is converted to sRGB, as in Python
      premultiplyAlpha: "none",
    });
  } catch {
    throw new PictureError(`${name}: corrupt, or not an image that this browser supports.`);
  }
  try {
    return square(bitmap, preprocess, upright);
  } finally {
    bitmap.close();
  }
}

/** The square that another preprocessing makes of a square of RGB pixels. */
export async function squareOf(pixels, preprocess) {
  const side = Math.sqrt(pixels.length / 3);
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set([pixels[3 * i], pixels[3 * i + 1], pixels[3 * i + 2], 255], 4 * i);
  const bitmap = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  try {
    return square(bitmap, preprocess, true);
  } finally {
    bitmap.close();
  }
}

const ORIENTATION = 0x0112;

/** The bytes of a file whose EXIF data turn nothing. Browsers turn a picture even if they are asked not to. */
function asStored(bytes) {
  const view = new DataView(bytes.buffer);
  const end = Math.min(bytes.length - 16, 2 ** 20);
  for (let at = 0; at < end; at++) {
    // A TIFF header: the order of bytes, 42, and where the first table begins.
    const isLittle = bytes[at] === 0x49 && bytes[at + 1] === 0x49;
    if (!isLittle && !(bytes[at] === 0x4d && bytes[at + 1] === 0x4d)) continue;
    if (view.getUint16(at + 2, isLittle) !== 42) continue;
    const table = at + view.getUint32(at + 4, isLittle);
    if (table + 2 > bytes.length) continue;
    const count = view.getUint16(table, isLittle);
    for (let entry = table + 2; entry < table + 2 + count * 12 && entry + 12 <= bytes.length; entry += 12) {
      if (view.getUint16(entry, isLittle) === ORIENTATION) view.setUint16(entry + 8, 1, isLittle);
    }
    break;
  }
  return bytes;
}

function square(bitmap, { image_size: side, order, framing, fit, crop = 1, interpolation = "bicubic" }, onWhite) {
  const { width, height } = bitmap;
  const to = { size: [side, side], onWhite, filter: FILTERS[interpolation] };
  const frame = framing ? frameOf(width, height, (box) => rowsOf(bitmap, box, onWhite), framing) : null;
  if (frame) return resized(bitmap, frame.box, { ...to, isCrop: true, ground: frame.ground });
  const isWhole = fit ? fit === "squash" || (framing && width === height) : width === side && height === side;
  if (isWhole) return resized(bitmap, [0, 0, width, height], to);
  if (order !== "resize_then_crop") {
    const shorter = Math.min(width, height);
    const [left, top] = [width, height].map((length) => roundEven((length - shorter) / 2));
    return resized(bitmap, [left, top, left + shorter, top + shorter], { ...to, isCrop: true });
  }
  const shorter = Math.floor(side / crop);
  const size = [width, height].map((length) => Math.trunc((shorter * length) / Math.min(width, height)));
  const [left, top] = size.map((length) => roundEven((length - side) / 2));
  if (size[0] * size[1] <= MAX_RESIZED_PIXELS) {
    return cropped(resized(bitmap, [0, 0, width, height], { ...to, size }), size[0], left, top, side);
  }
  const [across, down] = [width / size[0], height / size[1]];
  const box = [left * across, top * down, (left + side) * across, (top + side) * down];
  return resized(bitmap, box, to);
}

/**
 * The pixels of a box, from above: some rows of RGBA at a time, beginning with the row `y` of the box.
 * @param {number[]} ground the colour of what is outside of the picture
 */
function* rowsOf(bitmap, [left, top, right, bottom], onWhite, ground = [255, 255, 255]) {
  const [width, height] = [right - left, bottom - top];
  const canvas = new OffscreenCanvas(width, Math.min(STRIP, height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  const [fromX, toX] = [Math.max(0, left), Math.min(bitmap.width, right)];
  for (let y = 0; y < height; y += STRIP) {
    const rows = Math.min(STRIP, height - y);
    const [fromY, toY] = [Math.max(0, top + y), Math.min(bitmap.height, top + y + rows)];
    const [x, upper, across, down] = [fromX - left, fromY - top - y, toX - fromX, toY - fromY];
    context.fillStyle = `rgb(${ground})`;
    context.fillRect(0, 0, width, rows);
    if (across > 0 && down > 0) {
      if (onWhite) {
        context.fillStyle = "#fff";
        context.fillRect(x, upper, across, down);
      } else context.clearRect(x, upper, across, down);
      context.drawImage(bitmap, fromX, fromY, across, down, x, upper, across, down);
    }
    yield { y, data: context.getImageData(0, 0, width, rows).data };
  }
}

/**
 * Resizing as in Pillow: two passes of 8-bit results, each wide enough for what is scaled down.
 * @param {number[]} box left, upper, right, lower, which may be fractions
 * @param {{value: (x: number) => number, support: number}} filter one of `FILTERS`
 * @param {boolean} isCrop pixels outside of the box do not count, as after `crop`; it may reach beyond the picture, where
 *   all has the colour `ground`
 */
function resized(bitmap, box, { size, onWhite, filter, isCrop = false, ground = undefined }) {
  let [left, top, right, bottom] = box;
  let [fromX, fromY, width, height] = [0, 0, bitmap.width, bitmap.height];
  if (isCrop) {
    [fromX, fromY, width, height] = [left, top, right - left, bottom - top];
    [left, top, right, bottom] = [0, 0, width, height];
  }
  const across = coefficients(width, left, right, size[0], filter);
  const down = coefficients(height, top, bottom, size[1], filter);
  const first = down.starts[0];
  const last = down.starts[size[1] - 1] + down.counts[size[1] - 1];
  const wide = new Uint8Array((last - first) * size[0] * 3);
  const place = [fromX, fromY + first, fromX + width, fromY + last];
  for (const { y, data } of rowsOf(bitmap, place, onWhite, ground)) {
    for (let row = 0; row * width * 4 < data.length; row++) {
      weigh(data, row * width * 4, 4, wide, (y + row) * size[0] * 3, 3, across, size[0]);
    }
  }
  const out = new Uint8Array(size[0] * size[1] * 3);
  const offset = { ...down, starts: down.starts.map((start) => start - first) };
  const stride = size[0] * 3;
  for (let x = 0; x < size[0]; x++) weigh(wide, x * 3, stride, out, x * 3, stride, offset, size[1]);
  return out;
}

/** One line of pixels, resized: three channels from `source[start]` on, `step` apart. */
function weigh(source, start, step, out, to, outStep, { starts, counts, weights, most }, length) {
  for (let i = 0; i < length; i++) {
    let red = HALF;
    let green = HALF;
    let blue = HALF;
    let at = start + starts[i] * step;
    for (let k = i * most; k < i * most + counts[i]; k++, at += step) {
      const weight = weights[k];
      red += source[at] * weight;
      green += source[at + 1] * weight;
      blue += source[at + 2] * weight;
    }
    out[to] = clip(red);
    out[to + 1] = clip(green);
    out[to + 2] = clip(blue);
    to += outStep;
  }
}

const PRECISION = 2 ** 22; // Pillow's fixed-point numbers have 22 bits after the point
const HALF = PRECISION / 2;
const clip = (sum) => Math.max(0, Math.min(255, Math.floor(sum / PRECISION)));

/** Pillow's `precompute_coeffs` for a filter, from `inLength` pixels to `length`. */
function coefficients(inLength, from, to, length, filter) {
  if (from === 0 && to === inLength && length === inLength) return unchanged(length);
  const scale = (to - from) / length;
  const filterScale = Math.max(1, scale);
  const support = filter.support * filterScale;
  const most = Math.ceil(support) * 2 + 1;
  const starts = new Int32Array(length);
  const counts = new Int32Array(length);
  const weights = new Int32Array(length * most);
  const line = new Float64Array(most);
  for (let i = 0; i < length; i++) {
    const centre = from + (i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(inLength, Math.trunc(centre + support + 0.5)) - start;
    let total = 0;
    for (let k = 0; k < count; k++) total += line[k] = filter.value((k + start - centre + 0.5) * (1 / filterScale));
    for (let k = 0; k < count; k++) {
      const weight = (total ? line[k] / total : line[k]) * PRECISION;
      weights[i * most + k] = Math.trunc(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    starts[i] = start;
    counts[i] = count;
  }
  return { starts, counts, weights, most };
}

/** Each pixel alone, for a side that keeps its length. */
function unchanged(length) {
  return {
    starts: Int32Array.from({ length }, (_, i) => i),
    counts: new Int32Array(length).fill(1),
    weights: new Int32Array(length).fill(PRECISION),
    most: 1,
  };
}

function bicubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

const bilinear = (x) => Math.max(0, 1 - Math.abs(x));

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));

const lanczos = (x) => (-3 <= x && x < 3 ? sinc(x) * sinc(x / 3) : 0);

const FILTERS = {
  bicubic: { value: bicubic, support: 2 },
  bilinear: { value: bilinear, support: 1 },
  lanczos: { value: lanczos, support: 3 },
};

function cropped(pixels, width, left, top, side) {
  const out = new Uint8Array(side * side * 3);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * width + left) * 3;
    out.set(pixels.subarray(from, from + side * 3), y * side * 3);
  }
  return out;
}
