import { describe, expect, it } from "vitest";
import { ahead, Jitter, most } from "./jitter";

const block = 960; // frames: 20 ms
// piece is a block whose samples count on from n.
function piece(n: number): ArrayBuffer {
  const view = new DataView(new ArrayBuffer(4 * block));
  for (let i = 0; i < block; i++) {
    view.setInt16(4 * i, (n + i) % 30_000, true);
    view.setInt16(4 * i + 2, -((n + i) % 30_000), true);
  }
  return view.buffer;
}
function pull(j: Jitter, frames: number): number[] {
  const left = new Float32Array(frames);
  const right = new Float32Array(frames).fill(9);
  const n = j.pull(left, right);
  expect(right.every((v, i) => v + left[i]! === 0)).toBe(true); // channels are told apart
  return [...left.subarray(0, n)].map((v) => Math.round(v * 32_768));
}

describe("Jitter", () => {
  it("plays without a gap once it has enough", () => {
    const j = new Jitter();
    let sent = 0;
    let heard = 0;
    for (let step = 0; step < 50; step++) {
      j.push(piece(sent));
      sent += block;
      const got = pull(j, block);
      expect(got.every((v, i) => v === (heard + i) % 30_000)).toBe(true);
      heard += got.length;
    }
    expect(j.late).toBeLessThanOrEqual(ahead);
    expect(heard).toBeGreaterThan(40 * block);
  });
  it("plays a short sound, too", () => {
    const j = new Jitter();
    j.push(piece(1));
    const got: number[] = [];
    for (let i = 0; i < 20; i++) got.push(...pull(j, block));
    expect(got).toHaveLength(block);
    expect(got[0]).toBe(1);
  });
  it("leaves out what is late", () => {
    const j = new Jitter();
    const sent = 100;
    for (let i = 0; i < sent; i++) {
      j.push(piece(i * block));
      expect(j.late).toBeLessThanOrEqual(most);
    }
    const got: number[] = [];
    for (let n = pull(j, 128); n.length > 0; n = pull(j, 128)) got.push(...n);
    expect(got.length).toBeLessThanOrEqual(most);
    expect(got.at(-1)).toBe((sent * block - 1) % 30_000); // the newest
  });
  it("keeps what it plays whole when it catches up", () => {
    const j = new Jitter();
    // Its player is a little slow, and asks for other pieces than come.
    const [left, right] = [new Float32Array(128), new Float32Array(128)];
    const jumps: number[] = []; // frames left out
    let next = 0;
    for (let step = 0; step < 600; step++) {
      j.push(piece(step * block));
      for (let asked = 0; asked + 128 <= block; asked += 128) {
        const n = j.pull(left, right);
        for (let i = 0; i < n; i++) {
          const got = Math.round(left[i]! * 32_768);
          if (got !== next) jumps.push((got - next + 30_000) % 30_000);
          next = (got + 1) % 30_000;
        }
      }
    }
    expect(jumps.length).toBeGreaterThan(1);
    expect(jumps.length).toBeLessThan(5); // a quarter of a second each, of twelve
    for (const n of jumps) expect(n).toBeGreaterThan(most - ahead - block);
  });
  it("takes a piece of any length", () => {
    const j = new Jitter();
    j.push(new ArrayBuffer(3));
    expect(j.late).toBe(0);
    j.push(new ArrayBuffer(4 * (3 * most) + 2));
    expect(j.late).toBeLessThanOrEqual(most);
  });
  it("is silent when nothing comes", () => {
    const j = new Jitter();
    expect(pull(j, 128)).toEqual([]);
    for (let i = 0; i < 10; i++) j.push(piece(0));
    while (pull(j, 128).length > 0);
    expect(pull(j, 128)).toEqual([]);
  });
});
