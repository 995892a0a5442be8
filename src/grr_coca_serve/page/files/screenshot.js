// The icons in a screenshot: small, roughly square groups of edges with space around them. Words are wide, and photographs
// large, so neither is taken for an icon.

const MAX_WIDTH = 1920; // pixels that are looked at; a larger picture is scaled down
const MIN_EDGE = 28; // of 255: a smaller step between neighbours is no edge
const REACH = 3; // pixels between parts of one icon
const [MIN_SIDE, MAX_SIDE] = [10, 128];
const MAX_ASPECT = 1.8;
const MIN_ICON_EDGES = 24; // pixels
const MARGIN = 0.15; // of the longer side, around an icon that is cut out
const ROW = 24; // pixels: icons whose middles are as near are in one row
export const MAX_ICONS = 24;

/**
 * Cut out the icons of a picture, row by row.
 * @param {Blob} picture
 * @returns {Promise<File[]>} at most MAX_ICONS; none for a picture of one icon
 */
export async function iconsIn(picture) {
  const bitmap = await createImageBitmap(picture);
  const scale = Math.min(1, MAX_WIDTH / Math.max(bitmap.width, bitmap.height));
  const [width, height] = [Math.round(bitmap.width * scale), Math.round(bitmap.height * scale)];
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const boxes = iconBoxes(context.getImageData(0, 0, width, height));
  if (boxes.length < 2) return [];
  return Promise.all(boxes.slice(0, MAX_ICONS).map((box, number) => cutOut(canvas, box, number + 1)));
}

async function cutOut(canvas, [left, top, right, bottom], number) {
  const side = Math.max(right - left, bottom - top);
  const margin = Math.round(side * MARGIN);
  const whole = side + 2 * margin;
  const piece = new OffscreenCanvas(whole, whole);
  const [x, y] = [Math.round((left + right - whole) / 2), Math.round((top + bottom - whole) / 2)];
  const context = piece.getContext("2d");
  context.drawImage(canvas, Math.max(0, left - 1), Math.max(0, top - 1), 1, 1, 0, 0, whole, whole); // what is beside it
  context.drawImage(canvas, x, y, whole, whole, 0, 0, whole, whole);
  return new File([await piece.convertToBlob({ type: "image/png" })], `icon ${number}.png`, { type: "image/png" });
}

/** The boxes of icons among pixels: left, top, right, bottom, in the order in which one reads. */
export function iconBoxes({ data, width, height }) {
  const near = spread(edges(data, width, height), width, height);
  const all = components(near, width, height).filter(isIconBox);
  const found = all.filter((one) => !all.some((other) => encloses(one, other))); // a button around an icon is none
  const boxes = found.map(({ left, top, right, bottom }) => [left + REACH, top + REACH, right - REACH + 1, bottom - REACH + 1]);
  const rowOf = ([, top, , bottom]) => Math.round((top + bottom) / 2 / ROW);
  return boxes.sort((a, b) => rowOf(a) - rowOf(b) || a[0] - b[0]);
}

/** 1 where a pixel differs from its right or lower neighbour. */
function edges(data, width, height) {
  const found = new Uint8Array(width * height);
  const differ = (a, b) => Math.max(Math.abs(data[a] - data[b]), Math.abs(data[a + 1] - data[b + 1]), Math.abs(data[a + 2] - data[b + 2])) >= MIN_EDGE;
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      if ((x + 1 < width && differ(at * 4, at * 4 + 4)) || (y + 1 < height && differ(at * 4, (at + width) * 4))) found[at] = 1;
    }
  }
  return found;
}

/** 2 at edges, 1 within REACH of one: across, and then down. */
function spread(marks, width, height) {
  const across = new Uint8Array(marks.length);
  const wide = new Uint8Array(marks.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0, last = -Infinity; x < width + REACH; x++) {
      if (x < width && marks[y * width + x]) last = x;
      if (x >= REACH && x - last <= 2 * REACH) across[y * width + x - REACH] = 1;
    }
  }
  for (let x = 0; x < width; x++) {
    for (let y = 0, last = -Infinity; y < height + REACH; y++) {
      if (y < height && across[y * width + x]) last = y;
      if (y >= REACH && y - last <= 2 * REACH) wide[(y - REACH) * width + x] = 1;
    }
  }
  for (let at = 0; at < marks.length; at++) if (marks[at]) wide[at] = 2;
  return wide;
}

/** Connected groups of marks, with their boxes and the number of edges in them. */
function components(marks, width, height) {
  const seen = new Uint8Array(marks.length);
  const found = [];
  for (let start = 0; start < marks.length; start++) {
    if (!marks[start] || seen[start]) continue;
    const group = { left: width, top: height, right: 0, bottom: 0, edges: 0 };
    const waiting = [start];
    seen[start] = 1;
    while (waiting.length) {
      const at = waiting.pop();
      const [x, y] = [at % width, Math.floor(at / width)];
      group.left = Math.min(group.left, x);
      group.right = Math.max(group.right, x);
      group.top = Math.min(group.top, y);
      group.bottom = Math.max(group.bottom, y);
      if (marks[at] === 2) group.edges++;
      for (const next of [x > 0 && at - 1, x + 1 < width && at + 1, y > 0 && at - width, y + 1 < height && at + width]) {
        if (next === false || !marks[next] || seen[next]) continue;
        seen[next] = 1;
        waiting.push(next);
      }
    }
    found.push(group);
  }
  return found;
}

function encloses(one, other) {
  return one !== other && one.left < other.left && one.top < other.top && one.right > other.right && one.bottom > other.bottom;
}

function isIconBox({ left, top, right, bottom, edges: count }) {
  const sides = [right - left + 1 - 2 * REACH, bottom - top + 1 - 2 * REACH];
  const [short, long] = sides.sort((a, b) => a - b);
  return long >= MIN_SIDE && long <= MAX_SIDE && long <= MAX_ASPECT * short && count >= MIN_ICON_EDGES;
}
