// A QR code encoder (ISO/IEC 18004) for what the console shows itself: text in
// byte mode, error correction level M, versions 1 to 13 (up to 331 bytes).

// Per version: error correction words per block, and blocks as [count, data words].
const layout: [number, [number, number][]][] = [
  [10, [[1, 16]]], [16, [[1, 28]]], [26, [[1, 44]]], [18, [[2, 32]]], [24, [[2, 43]]], [16, [[4, 27]]], [18, [[4, 31]]],
  [22, [[2, 38], [2, 39]]], [22, [[3, 36], [2, 37]]], [26, [[4, 43], [1, 44]]], [30, [[1, 50], [4, 51]]], [22, [[6, 36], [2, 37]]], [22, [[8, 37], [1, 38]]],
];
const centres: number[][] = [[], [6, 18], [6, 22], [6, 26], [6, 30], [6, 34], [6, 22, 38], [6, 24, 42], [6, 26, 46], [6, 28, 50], [6, 30, 54], [6, 32, 58], [6, 34, 62]];

// The field GF(256) over x^8 + x^4 + x^3 + x^2 + 1.
const exp = new Uint8Array(512);
const log = new Uint8Array(256);
for (let i = 0, x = 1; i < 255; i++) {
  exp[i] = exp[i + 255] = x;
  log[x] = i;
  x = x & 0x80 ? (x << 1) ^ 0x11d : x << 1;
}
const times = (a: number, b: number) => (a && b ? (exp[(log[a] as number) + (log[b] as number)] as number) : 0);

// parity is the remainder of the data by the generator of the given degree.
export function parity(data: readonly number[], degree: number): number[] {
  let gen = [1];
  for (let i = 0; i < degree; i++) {
    const next = new Array<number>(gen.length + 1).fill(0);
    gen.forEach((g, j) => {
      next[j] = (next[j] as number) ^ g;
      next[j + 1] = (next[j + 1] as number) ^ times(g, exp[i] as number);
    });
    gen = next;
  }
  const rest = [...data, ...new Array<number>(degree).fill(0)];
  for (let i = 0; i < data.length; i++) {
    const lead = rest[i] as number;
    if (lead) gen.forEach((g, j) => (rest[i + j] = (rest[i + j] as number) ^ times(g, lead)));
  }
  return rest.slice(data.length);
}

// words are all code words of a version, interleaved as they are placed.
function words(text: Uint8Array, version: number): number[] {
  const [degree, groups] = layout[version - 1] as (typeof layout)[number];
  const capacity = groups.reduce((n, [count, size]) => n + count * size, 0);
  const bits: number[] = [];
  const put = (value: number, n: number) => {
    for (let i = n - 1; i >= 0; i--) bits.push((value >> i) & 1);
  };
  put(4, 4);
  put(text.length, version < 10 ? 8 : 16);
  for (const b of text) put(b, 8);
  put(0, Math.min(4, capacity * 8 - bits.length));
  while (bits.length % 8) bits.push(0);
  const data: number[] = [];
  for (let i = 0; i < bits.length; i += 8) data.push(parseInt(bits.slice(i, i + 8).join(""), 2));
  for (let pad = 0xec; data.length < capacity; pad ^= 0xec ^ 0x11) data.push(pad);
  const blocks: number[][] = [];
  let at = 0;
  for (const [count, size] of groups) for (let i = 0; i < count; i++) blocks.push(data.slice(at, (at += size)));
  const checks = blocks.map((b) => parity(b, degree));
  const out: number[] = [];
  for (const set of [blocks, checks]) {
    const longest = Math.max(...set.map((b) => b.length));
    for (let i = 0; i < longest; i++) for (const b of set) if (i < b.length) out.push(b[i] as number);
  }
  return out;
}

type Grid = (boolean | undefined)[][];

// frame draws what every code of a version has; undefined cells are for data.
function frame(version: number): Grid {
  const size = 17 + 4 * version;
  const m: Grid = Array.from({ length: size }, () => new Array<boolean | undefined>(size).fill(undefined));
  const set = (x: number, y: number, dark: boolean) => {
    if (x >= 0 && y >= 0 && x < size && y < size) (m[y] as boolean[])[x] = dark;
  };
  for (const [cx, cy] of [[3, 3], [size - 4, 3], [3, size - 4]] as const) {
    for (let y = -4; y <= 4; y++) for (let x = -4; x <= 4; x++) {
      const far = Math.max(Math.abs(x), Math.abs(y));
      set(cx + x, cy + y, far !== 2 && far !== 4);
    }
  }
  const c = centres[version - 1] as number[];
  for (const cy of c) for (const cx of c) {
    if ((cx === 6 && cy === 6) || (cx === 6 && cy === size - 7) || (cx === size - 7 && cy === 6)) continue;
    for (let y = -2; y <= 2; y++) for (let x = -2; x <= 2; x++) set(cx + x, cy + y, Math.max(Math.abs(x), Math.abs(y)) !== 1);
  }
  for (let i = 8; i < size - 8; i++) {
    set(i, 6, i % 2 === 0);
    set(6, i, i % 2 === 0);
  }
  if (version >= 7) {
    let rest = version;
    for (let i = 0; i < 12; i++) rest = (rest << 1) ^ ((rest >> 11) * 0x1f25);
    const code = (version << 12) | rest;
    for (let i = 0; i < 18; i++) {
      const dark = ((code >> i) & 1) === 1;
      set(size - 11 + (i % 3), Math.floor(i / 3), dark);
      set(Math.floor(i / 3), size - 11 + (i % 3), dark);
    }
  }
  format(m, 0); // keeps the place
  return m;
}

// format writes level M and the mask, twice.
function format(m: Grid, mask: number): void {
  const size = m.length;
  let rest = mask; // level M is 00
  for (let i = 0; i < 10; i++) rest = (rest << 1) ^ ((rest >> 9) * 0x537);
  const code = ((mask << 10) | rest) ^ 0x5412;
  const bit = (i: number) => ((code >> i) & 1) === 1;
  const set = (x: number, y: number, dark: boolean) => ((m[y] as boolean[])[x] = dark);
  for (let i = 0; i <= 5; i++) set(8, i, bit(i));
  set(8, 7, bit(6));
  set(8, 8, bit(7));
  set(7, 8, bit(8));
  for (let i = 9; i < 15; i++) set(14 - i, 8, bit(i));
  for (let i = 0; i < 8; i++) set(size - 1 - i, 8, bit(i));
  for (let i = 8; i < 15; i++) set(8, size - 15 + i, bit(i));
  set(8, size - 8, true);
}

const masks: ((x: number, y: number) => boolean)[] = [
  (x, y) => (x + y) % 2 === 0, (_, y) => y % 2 === 0, (x) => x % 3 === 0, (x, y) => (x + y) % 3 === 0,
  (x, y) => (Math.floor(x / 3) + Math.floor(y / 2)) % 2 === 0, (x, y) => ((x * y) % 2) + ((x * y) % 3) === 0,
  (x, y) => (((x * y) % 2) + ((x * y) % 3)) % 2 === 0, (x, y) => (((x + y) % 2) + ((x * y) % 3)) % 2 === 0,
];

// penalty is how hard a code is to read (§7.8.3).
function penalty(m: boolean[][]): number {
  const size = m.length;
  let sum = 0;
  let dark = 0;
  const line = (at: (i: number) => boolean) => {
    let run = 0;
    let row = "";
    for (let i = 0; i < size; i++) {
      row += at(i) ? "1" : "0";
      run = i > 0 && at(i) === at(i - 1) ? run + 1 : 1;
      if (run === 5) sum += 3;
      else if (run > 5) sum++;
    }
    for (let i = row.search(/10111010000|00001011101/); i >= 0; ) {
      sum += 40;
      const next = row.slice(i + 1).search(/10111010000|00001011101/);
      i = next < 0 ? -1 : i + 1 + next;
    }
  };
  for (let k = 0; k < size; k++) {
    const row = m[k] as boolean[];
    line((i) => row[i] as boolean);
    line((i) => (m[i] as boolean[])[k] as boolean);
    dark += row.filter(Boolean).length;
    const below = m[k + 1];
    if (below) for (let i = 0; i + 1 < size; i++) if (row[i] === row[i + 1] && row[i] === below[i] && row[i] === below[i + 1]) sum += 3;
  }
  return sum + Math.floor(Math.abs((dark * 100) / (size * size) - 50) / 5) * 10;
}

// encode makes the modules of a code, without the quiet zone.
export function encode(text: string): boolean[][] {
  const raw = new TextEncoder().encode(text);
  const version = 1 + layout.findIndex(([, groups], i) => groups.reduce((n, [c, s]) => n + c * s, 0) * 8 >= 4 + (i < 9 ? 8 : 16) + raw.length * 8);
  if (version === 0) throw new Error("too long for a QR code");
  const fixed = frame(version);
  const size = fixed.length;
  const data = words(raw, version);
  let best: { m: boolean[][]; cost: number } | undefined;
  masks.forEach((masked, mask) => {
    const m: Grid = fixed.map((r) => [...r]);
    let i = 0;
    for (let right = size - 1; right > 0; right -= 2) {
      if (right === 6) right = 5;
      for (let k = 0; k < size; k++) {
        const up = ((right + 1) & 2) === 0;
        const y = up ? size - 1 - k : k;
        for (const x of [right, right - 1]) {
          if ((fixed[y] as Grid[number])[x] !== undefined) continue;
          const dark = (((data[i >> 3] ?? 0) >> (7 - (i & 7))) & 1) === 1;
          (m[y] as boolean[])[x] = dark !== masked(x, y);
          i++;
        }
      }
    }
    format(m, mask);
    const cost = penalty(m as boolean[][]);
    if (!best || cost < best.cost) best = { m: m as boolean[][], cost };
  });
  return (best as { m: boolean[][] }).m;
}
