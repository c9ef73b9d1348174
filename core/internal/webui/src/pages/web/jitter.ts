// What is heard a little later than it came: samples come in pieces, now and
// then late, and are played without a gap. Frames are pairs of samples.

export const rate = 48_000; // frames a second
export const ahead = (rate * 150) / 1000; // kept before the first is played
export const most = (rate * 400) / 1000; // more than this is late, and left out

// Jitter holds what waits to be played.
export class Jitter {
  private readonly held = new Float32Array(2 * most);
  private first = 0; // frame
  private count = 0; // frames
  private playing = false;
  private waited = 0; // frames asked for since the first of what waits came

  // push takes samples of 16 bits, little endian, left and right in turn.
  push(data: ArrayBuffer): void {
    const view = new DataView(data);
    const all = Math.floor(data.byteLength / 4);
    const frames = Math.min(all, ahead);
    // Too late: what is newest is played next.
    if (this.count + frames >= most) this.skip(this.count + frames - ahead);
    for (let i = all - frames; i < all; i++) {
      const at = 2 * ((this.first + this.count++) % most);
      this.held[at] = view.getInt16(4 * i, true) / 32_768;
      this.held[at + 1] = view.getInt16(4 * i + 2, true) / 32_768;
    }
  }

  // pull fills left and right and returns how many frames of them were there.
  pull(left: Float32Array, right: Float32Array): number {
    if (!this.playing && this.count > 0) {
      this.waited += left.length;
      this.playing = this.count >= ahead || this.waited >= ahead; // a short sound is all there is
    }
    const n = this.playing ? Math.min(left.length, this.count) : 0;
    for (let i = 0; i < n; i++) {
      const at = 2 * ((this.first + i) % most);
      left[i] = this.held[at]!;
      right[i] = this.held[at + 1]!;
    }
    left.fill(0, n);
    right.fill(0, n);
    this.skip(n);
    if (this.count === 0) {
      this.playing = false;
      this.waited = 0;
    }
    return n;
  }

  // late is how much waits, in frames.
  get late(): number {
    return this.count;
  }

  private skip(n: number): void {
    this.first = (this.first + n) % most;
    this.count -= n;
  }
}
