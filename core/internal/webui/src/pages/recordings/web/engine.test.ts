import { describe, expect, it } from "vitest";
import { Engine, type Source, type Span } from "./engine";
import type { Frame } from "./frames";

const frameAt = (t: number, key = false): Frame => ({ t, key, width: 1, height: 1, update: new Uint8Array(0) });

// A recording with frames at the given times, every fourth a keyframe.
class Recording implements Source {
  asked: string[] = [];
  live = false;
  fail?: Error;
  waiting: (() => void)[] = [];
  constructor(public frames: Frame[], public end: number) {}

  private answer(list: Frame[], to: number, base: number) {
    if (this.fail) throw this.fail;
    return { list, upTo: this.live ? (list.at(-1)?.t ?? base) : Math.min(to, this.end) };
  }

  async from(t: number, to: number, wait: boolean) {
    this.asked.push(`from ${t} to ${to}`);
    let first = -1;
    this.frames.forEach((f, i) => (first = f.key && (f.t <= t || first < 0) ? i : first));
    const list = this.frames.filter((f, i) => i >= Math.max(first, 0) && f.t <= Math.max(t, to));
    if (wait && list.length === 0) await new Promise<void>((go) => this.waiting.push(go));
    return this.answer(list, to, t);
  }

  async after(t: number, to: number, wait: boolean) {
    this.asked.push(`after ${t} to ${to}${wait ? " wait" : ""}`);
    const pick = () => this.frames.filter((f) => f.t > t && f.t <= to);
    if (wait && pick().length === 0) await new Promise<void>((go) => this.waiting.push(go));
    return this.answer(pick(), to, t);
  }

  arrives(f: Frame) {
    this.frames.push(f);
    for (const go of this.waiting.splice(0)) go();
  }
}

const settle = async () => {
  for (let i = 0; i < 12; i++) await Promise.resolve();
};

function rig(times: number[], end: number, idle: Span[] = [], live = false) {
  const rec = new Recording(times.map((t, i) => frameAt(t, i % 4 === 0)), end);
  rec.live = live;
  const shown: number[] = [];
  const e = new Engine(rec, (list) => shown.push(...list.map((f) => f.t)), () => {}, end, live);
  e.grow(end, live, idle);
  let now = 0;
  const run = async (seconds: number, step = 0.1) => {
    for (let s = 0; s < seconds - 1e-9; s += step) {
      e.tick((now += step * 1000));
      await settle();
    }
  };
  e.tick(0);
  return { rec, shown, e, run };
}

const times = Array.from({ length: 100 }, (_, i) => i); // a frame each second

describe("Engine", () => {
  it("seeks by the keyframe before", async () => {
    const { e, shown } = rig(times, 99);
    await e.seek(41.5);
    expect(shown).toEqual([40, 41]);
    expect(e.state).toMatchObject({ t: 41.5, playing: false, loading: false });
  });

  it("plays in order, with each frame once, and fetches ahead", async () => {
    const { e, shown, run, rec } = rig(times, 99);
    await e.seek(10, true);
    await run(40);
    expect(shown.slice(shown.indexOf(10))).toEqual(times.slice(10, 50).concat(shown.includes(50) ? [50] : []));
    expect(e.state.t).toBeCloseTo(50, 1);
    expect(rec.asked.length).toBeLessThan(6);
  });

  it("shows what is due at every speed, and ends", async () => {
    for (const speed of [0.5, 2, 8]) {
      const { e, shown, run } = rig(times, 99);
      e.speed = speed;
      await e.seek(0, true);
      await run(40 / speed);
      expect(e.state.t).toBeCloseTo(40, 0);
      await run(60 / speed + 2);
      expect(shown).toEqual(times);
      expect(e.state).toMatchObject({ t: 99, playing: false });
      e.play(); // again from the start
      await settle();
      expect(e.state).toMatchObject({ t: 0, playing: true });
    }
  });

  it("skips idle time, and does not when told so", async () => {
    const sparse = [0, 1, 2, 60, 61, 62];
    const { e, shown, run } = rig(sparse, 62, [{ from: 2, to: 60 }]);
    await e.seek(0, true);
    await run(6);
    expect(shown).toEqual(sparse);
    const slow = rig(sparse, 62, [{ from: 2, to: 60 }]);
    slow.e.skipIdle = false;
    await slow.e.seek(0, true);
    await slow.run(6);
    expect(slow.shown).toEqual([0, 1, 2]);
    expect(slow.e.state.t).toBeCloseTo(6, 1);
  });

  it("keeps the later of two seeks", async () => {
    const { e, shown } = rig(times, 99);
    const first = e.seek(80);
    const second = e.seek(20);
    await Promise.all([first, second]);
    expect(e.state.t).toBe(20);
    expect(shown).toEqual([20]);
  });

  it("pauses, steps, and goes on", async () => {
    const { e, shown, run } = rig(times, 99);
    await e.seek(5, true);
    await run(0.5);
    e.pause();
    const t = e.state.t;
    await run(3);
    expect(e.state.t).toBe(t);
    e.step();
    expect(shown.at(-1)).toBe(6);
    expect(e.state.t).toBe(6);
    e.play();
    await run(1.05);
    expect(shown.at(-1)).toBe(7);
  });

  it("stops with the error, and tries again", async () => {
    const { e, run, rec, shown } = rig(times, 99);
    rec.fail = new Error("damaged at block 7");
    await e.seek(5, true);
    expect(e.state).toMatchObject({ playing: false, loading: false });
    expect(e.state.error?.message).toBe("damaged at block 7");
    await run(2);
    expect(rec.asked.length).toBe(1);
    rec.fail = undefined;
    await e.seek(5);
    expect(e.state.error).toBeUndefined();
    expect(shown.at(-1)).toBe(5);
  });

  it("follows a live recording, leaves it by seeking back, and comes back", async () => {
    const { e, run, rec, shown } = rig([0, 1, 2, 3, 4, 5], 5, [], true);
    await e.follow();
    await run(0.5);
    expect(e.state).toMatchObject({ following: true, playing: true });
    expect(rec.asked.at(-1)).toMatch(/wait$/);
    const asked = rec.asked.length;
    await run(3);
    expect(rec.asked.length).toBe(asked); // one request is held open
    rec.arrives(frameAt(6.5));
    await run(0.3);
    expect(shown.at(-1)).toBe(6.5);
    expect(e.state).toMatchObject({ t: 6.5, duration: 6.5 });
    await e.seek(4, true);
    expect(e.state.following).toBe(false);
    await run(4);
    expect(e.state).toMatchObject({ following: true, t: 6.5 });
    rec.arrives(frameAt(20));
    await run(0.3);
    expect(shown.at(-1)).toBe(20);
    rec.live = false;
    e.grow(20, false, []);
    await run(1);
    expect(e.state).toMatchObject({ following: false, playing: false, t: 20 });
  });

  it("waits for the first frame of a recording that has just begun", async () => {
    const { e, run, rec, shown } = rig([], 0, [], true);
    await e.follow();
    await run(3);
    expect(rec.asked.length).toBeLessThan(5);
    rec.arrives(frameAt(0.4, true));
    await run(2);
    expect(shown).toEqual([0.4]);
  });
});
