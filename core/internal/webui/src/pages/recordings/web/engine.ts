import type { Frame, Frames } from "./frames";

export interface Span {
  from: number;
  to: number;
}

export interface Source {
  // from returns the frames needed to show the picture at t, then those up to.
  // wait: of a live recording, when there are some.
  from(t: number, to: number, wait: boolean, signal: AbortSignal): Promise<Frames>;
  // after returns the frames later than t.
  after(t: number, to: number, wait: boolean, signal: AbortSignal): Promise<Frames>;
}

export interface State {
  t: number; // seconds: the moment shown
  playing: boolean;
  loading: boolean; // wants to go on and has nothing yet
  following: boolean; // shows a live session as it goes on
  duration: number;
  error?: Error;
}

// How much is fetched at once, and from when on more is fetched, in seconds of
// the recording at speed 1.
const ahead = 20;
const low = 8;
// An idle stretch is shown for a moment, then skipped to shortly before its end.
const lead = 0.7;

// Engine decides which frames are shown when. It knows no screen and no clock:
// tick is called with the time, show with the frames.
export class Engine {
  state: State;
  speed = 1;
  skipIdle = true;
  idle: readonly Span[] = [];
  private queue: Frame[] = []; // fetched, not shown
  private upTo = -1; // fetched until then
  private begun = false; // a first frame was fetched
  private last = 0; // of tick, ms
  private rest = 0; // until then nothing is asked for
  private fetching?: AbortController;

  constructor(
    private source: Source,
    private show: (frames: Frame[]) => void,
    private changed: () => void,
    duration: number,
    private live: boolean,
  ) {
    this.state = { t: 0, playing: false, loading: false, following: live, duration };
  }

  private set(change: Partial<State>): void {
    this.state = { ...this.state, ...change };
    this.changed();
  }

  // grow is told what is known about the recording now.
  grow(duration: number, live: boolean, idle: readonly Span[]): void {
    this.idle = idle;
    const over = this.live && !live;
    this.live = live;
    this.set({ duration: Math.max(duration, this.state.duration), following: this.state.following && live });
    if (over) this.fill();
  }

  // seek shows the picture at t. Of frames passed at once, only the last shows.
  async seek(t: number, play = this.state.playing): Promise<void> {
    t = Math.min(Math.max(t, 0), this.state.duration);
    this.stop();
    this.queue = [];
    this.upTo = t;
    const mine = (this.fetching = new AbortController());
    this.set({ t, playing: play, loading: true, following: false, error: undefined });
    try {
      const got = await this.source.from(t, t, false, mine.signal);
      if (this.fetching !== mine) return;
      this.fetching = undefined;
      this.begun = got.list.length > 0;
      this.show(got.list);
      // Live, frames from before t may still be on their way.
      this.upTo = this.live ? got.upTo : t;
      this.set({ loading: false });
      this.fill();
    } catch (e) {
      this.fail(mine, e);
    }
  }

  // follow goes to the end of a live recording and stays there.
  async follow(): Promise<void> {
    if (!this.live) return;
    await this.seek(this.state.duration, true);
    if (!this.state.error) this.set({ following: true });
  }

  play(): void {
    if (!this.live && this.state.t >= this.state.duration) void this.seek(0, true);
    else {
      this.set({ playing: true, error: undefined });
      this.fill();
    }
  }

  pause(): void {
    this.set({ playing: false, following: false });
  }

  // step shows the next frame; the one before needs a seek.
  step(): void {
    this.pause();
    const next = this.queue.shift();
    if (next) {
      this.show([next]);
      this.set({ t: next.t });
    }
    this.fill();
  }

  // tick goes on to the time now, in ms of any clock that only rises.
  tick(now: number): void {
    const passed = Math.min(Math.max(now - this.last, 0), 500) / 1000;
    this.last = now;
    const s = this.state;
    if (!s.playing || (this.fetching && !this.begun && !this.live)) return;
    if (s.following) return this.showAll();
    let t = s.t + passed * this.speed;
    if (this.skipIdle) t = this.skip(t);
    const end = Math.min(this.upTo, s.duration);
    const short = t > end;
    if (short) t = Math.max(end, s.t);
    this.showUntil(t);
    const over = t >= s.duration;
    if (over && this.live) return this.set({ t, following: true, loading: false });
    this.set({ t, playing: !over, loading: short && !over });
    if (!over) this.fill();
  }

  // skip returns where an idle stretch that t is in ends.
  private skip(t: number): number {
    const span = this.idle.find((i) => t > i.from + lead && t < i.to - lead);
    return span ? span.to - lead : t;
  }

  private showUntil(t: number): void {
    let n = 0;
    while (n < this.queue.length && (this.queue[n] as Frame).t <= t) n++;
    if (n > 0) this.show(this.queue.splice(0, n));
  }

  private showAll(): void {
    const last = this.queue.at(-1);
    if (last) {
      this.show(this.queue.splice(0));
      this.set({ t: last.t, duration: Math.max(this.state.duration, last.t) });
    }
    this.fill();
  }

  // fill fetches what is needed next, one request at a time.
  private fill(): void {
    const s = this.state;
    if (this.fetching || s.error || this.last < this.rest) return;
    const want = Math.max(this.speed, 1);
    const waits = this.live && this.upTo >= s.duration - 0.001;
    if (!waits && (this.upTo >= s.duration || this.upTo - s.t > low * want)) return;
    // Across an idle stretch, what follows it is needed.
    const from = Math.max(s.t, this.upTo);
    const span = this.skipIdle ? this.idle.find((i) => from >= i.from && from < i.to) : undefined;
    void this.fetch((span?.to ?? from) + ahead * want, waits);
  }

  private async fetch(to: number, wait: boolean): Promise<void> {
    const mine = (this.fetching = new AbortController());
    try {
      const before = this.upTo;
      const got = await (this.begun || !this.live ? this.source.after(before, wait ? 1e8 : to, wait, mine.signal) : this.source.from(before, 1e8, true, mine.signal));
      if (this.fetching !== mine) return;
      this.fetching = undefined;
      this.queue.push(...got.list);
      this.begun ||= got.list.length > 0;
      this.upTo = Math.max(before, got.upTo);
      const newest = got.list.at(-1)?.t ?? 0;
      if (this.live && newest > this.state.duration) this.set({ duration: newest });
      // What came to no later moment is not asked for again at once.
      if (this.upTo <= before && !this.live) this.upTo = this.state.duration;
      else if (this.upTo <= before) this.rest = this.last + 1000;
    } catch (e) {
      this.fail(mine, e);
    }
  }

  private fail(mine: AbortController, e: unknown): void {
    if (this.fetching !== mine) return;
    this.fetching = undefined;
    this.set({ playing: false, loading: false, following: false, error: e instanceof Error ? e : new Error(String(e)) });
  }

  // stop ends what is being fetched.
  stop(): void {
    this.fetching?.abort();
    this.fetching = undefined;
  }
}
