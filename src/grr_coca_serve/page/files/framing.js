// The square around a drawing, equal to that of Python (`grr_coca.data.framing`).

const STRAY = 10; // at most one in this many pixels of a side may differ from the ground

/**
 * @param {(box: number[]) => Iterable<{y: number, data: Uint8ClampedArray}>} read the pixels of a box, from above: rows
 *   of RGBA, beginning with the row `y`
 * @param {{margin: number, tolerance: number, min_share: number, max_shift: number, max_enlargement: number}} framing of
 *   the checkpoint
 * @returns {{box: number[], ground: number[]} | null} the square (left, upper, right, lower), which may reach beyond the
 *   picture, and the colour of what is outside; null if the picture stays as it is
 */
export function frameOf(width, height, read, framing) {
  const { margin, tolerance, max_enlargement: most } = framing;
  const ground = groundOf(width, height, read, tolerance);
  if (!ground) return null;
  const drawing = drawingOf(width, height, read, ground, tolerance);
  if (!drawing) return null;
  if (isFramed(drawing, width, height, framing)) return null;
  const [left, top, right, bottom] = drawing;
  const longest = Math.max(right - left, bottom - top);
  const side = Math.max(longest, roundEven(longest / (1 - 2 * margin)), Math.ceil(Math.min(width, height) / most));
  const x = left + Math.floor((right - left - side) / 2);
  const y = top + Math.floor((bottom - top - side) / 2);
  return { box: [x, y, x + side, y + side], ground };
}

/** Whether a drawing reaches all sides of its picture, or is large and in the middle of a square one. */
function isFramed([left, top, right, bottom], width, height, { min_share: share, max_shift: most }) {
  if (left === 0 && top === 0 && right === width && bottom === height) return true;
  const longest = Math.max(right - left, bottom - top);
  const shift = Math.max(Math.abs(left + right - width), Math.abs(top + bottom - height)) / 2;
  return width === height && longest >= share * width && shift <= most * width;
}

/** The median of the four sides, if nearly all of each has that colour. */
function groundOf(width, height, read, tolerance) {
  const strips = [[0, 0, width, 1], [0, height - 1, width, height], [0, 0, 1, height], [width - 1, 0, width, height]];
  const sides = strips.map((strip) => [...read(strip)].flatMap(({ data }) => data));
  const ground = [0, 1, 2].map((channel) => median(sides, channel));
  const isGround = sides.every((parts) => {
    let [count, away] = [0, 0];
    for (const data of parts) {
      for (let at = 0; at < data.length; at += 4) away += differs(data, at, ground, tolerance);
      count += data.length / 4;
    }
    return STRAY * away <= count;
  });
  return isGround ? ground : null;
}

/** The lower median of a channel. */
function median(sides, channel) {
  const counts = new Uint32Array(256);
  let total = 0;
  for (const data of sides.flat()) {
    for (let at = channel; at < data.length; at += 4) counts[data[at]] += 1;
    total += data.length / 4;
  }
  let left = Math.floor((total - 1) / 2);
  let value = 0;
  while (left >= counts[value]) left -= counts[value++];
  return value;
}

/** The box of all that differs from the ground; null if nothing does. */
function drawingOf(width, height, read, ground, tolerance) {
  let [left, top, right, bottom] = [width, height, 0, 0];
  for (const { y, data } of read([0, 0, width, height])) {
    for (let row = 0; row * width * 4 < data.length; row++) {
      const start = row * width * 4;
      let first = 0;
      while (first < width && !differs(data, start + first * 4, ground, tolerance)) first += 1;
      if (first === width) continue;
      let last = width - 1;
      while (!differs(data, start + last * 4, ground, tolerance)) last -= 1;
      left = Math.min(left, first);
      right = Math.max(right, last + 1);
      top = Math.min(top, y + row);
      bottom = y + row + 1;
    }
  }
  return bottom ? [left, top, right, bottom] : null;
}

function differs(data, at, [red, green, blue], tolerance) {
  return (
    Math.abs(data[at] - red) > tolerance ||
    Math.abs(data[at + 1] - green) > tolerance ||
    Math.abs(data[at + 2] - blue) > tolerance
  );
}

/** Python's `round`: halves go to the even neighbour. */
export function roundEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return rest === 0.5 ? below + (below % 2) : Math.round(value);
}
