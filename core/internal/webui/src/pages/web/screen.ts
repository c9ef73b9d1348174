import RFB from "@novnc/novnc";
import { exists, screenURL } from "./api";
import { after, median, wait } from "./codes";

export type ScreenState =
  | { at: "connecting" }
  | { at: "live" }
  | { at: "lost"; since: number; text: string }
  | { at: "over"; text: string }
  | { at: "refused"; text: string };

interface Handlers {
  state(s: ScreenState): void;
  clipboard(text: string): void;
  round(ms: number | undefined): void;
}

// What of noVNC has no public name: asking for one pixel is the only question
// a carrier answers at once, so it tells how long the way is.
interface Inside {
  _sock: unknown;
  _rfbConnectionState: string;
}
const ask = (rfb: RFB) =>
  (RFB as unknown as { messages: { fbUpdateRequest(sock: unknown, incremental: boolean, x: number, y: number, w: number, h: number): void } }).messages.fbUpdateRequest((rfb as unknown as Inside)._sock, false, 0, 0, 1, 1);

const askEvery = 4_000;
const quietFor = 150; // ms without data before a question, so that the next data is its answer
const deadAfter = 12_000;

// Screen keeps the picture of a session on a page: it connects, and connects
// again for as long as the session lives. The last picture stays meanwhile.
export class Screen {
  private rfb?: RFB;
  private socket?: WebSocket;
  private attempt = 0;
  private since = 0;
  private timer?: ReturnType<typeof setTimeout>;
  private beat?: ReturnType<typeof setInterval>;
  private done = false;
  private heard = 0;
  private asked = 0;
  private samples: number[] = [];
  private still?: HTMLCanvasElement;
  private scaled = false;

  constructor(
    private readonly id: string,
    private readonly watch: boolean,
    private readonly box: HTMLElement,
    private readonly on: Handlers,
  ) {
    window.addEventListener("online", this.now);
    document.addEventListener("visibilitychange", this.now);
    this.open();
  }

  close(): void {
    this.done = true;
    window.removeEventListener("online", this.now);
    document.removeEventListener("visibilitychange", this.now);
    clearTimeout(this.timer);
    clearInterval(this.beat);
    this.drop();
    this.still?.remove();
  }

  focus(): void {
    this.rfb?.focus({ preventScroll: true });
  }

  blur(): void {
    this.rfb?.blur();
  }

  paste(text: string): void {
    this.rfb?.clipboardPasteFrom(text);
  }

  // press sends keys down in order and up in the opposite one.
  press(keys: readonly (readonly [keysym: number, code: string])[]): void {
    for (const [sym, code] of keys) this.rfb?.sendKey(sym, code, true);
    for (const [sym, code] of [...keys].reverse()) this.rfb?.sendKey(sym, code, false);
  }

  // fit: the remote screen follows the window, or its picture is scaled to it.
  fit(scaled: boolean): void {
    this.scaled = scaled;
    if (this.rfb) this.apply(this.rfb);
  }

  // now tries at once what waits.
  readonly now = () => {
    if (!this.done && this.timer !== undefined && document.visibilityState === "visible") this.open();
  };

  private apply(rfb: RFB): void {
    rfb.viewOnly = this.watch;
    rfb.resizeSession = !this.watch && !this.scaled;
    // Until the remote screen has followed, and where it may not, the picture is scaled.
    rfb.scaleViewport = true;
  }

  private open(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.drop();
    if (this.since === 0) this.on.state({ at: "connecting" });
    const ws = new WebSocket(screenURL(this.id, this.watch), ["binary"]);
    ws.binaryType = "arraybuffer";
    this.socket = ws;
    this.heard = performance.now();
    this.asked = 0;
    // Before noVNC's own handlers, which take the picture away.
    ws.addEventListener("message", () => this.hear());
    ws.addEventListener("close", (e) => {
      if (ws === this.socket) void this.lost(e.code, e.reason);
    });
    const rfb = new RFB(this.box, ws, { shared: true });
    this.rfb = rfb;
    rfb.background = "transparent";
    rfb.focusOnClick = true;
    rfb.qualityLevel = 8;
    rfb.compressionLevel = 2;
    this.apply(rfb);
    rfb.addEventListener("connect", () => {
      if (rfb !== this.rfb) return;
      this.attempt = 0;
      this.since = 0;
      this.on.state({ at: "live" });
      this.still?.remove();
      this.still = undefined;
    });
    rfb.addEventListener("clipboard", (e) => this.on.clipboard(e.detail.text));
    rfb.addEventListener("disconnect", () => {
      // A peer that speaks nonsense: noVNC gave up before the socket did.
      if (rfb === this.rfb && ws.readyState <= WebSocket.OPEN) void this.lost(1002, "");
    });
    clearInterval(this.beat);
    this.beat = setInterval(() => this.probe(), 1_000);
  }

  private hear(): void {
    const now = performance.now();
    if (this.asked > 0) {
      this.samples = [...this.samples.slice(-6), now - this.asked];
      this.asked = 0;
      this.on.round(median(this.samples));
    }
    this.heard = now;
  }

  private lastProbe = 0;
  private probe(): void {
    const now = performance.now();
    if (document.visibilityState !== "visible") {
      this.heard = now; // timers of hidden pages say nothing
      this.asked = 0;
      return;
    }
    if (this.asked > 0 ? now - this.asked > deadAfter : now - this.heard > deadAfter + askEvery) {
      const ws = this.socket;
      this.socket = undefined;
      ws?.close();
      void this.lost(1006, "");
    } else if (this.rfb && (this.rfb as unknown as Inside)._rfbConnectionState === "connected" && this.asked === 0 && now - this.heard > quietFor && now - this.lastProbe > askEvery) {
      this.lastProbe = this.asked = now;
      ask(this.rfb);
    }
  }

  // keep holds the last picture behind the next one.
  private keep(): void {
    const canvas = this.box.querySelector<HTMLCanvasElement>("canvas:not([data-still])");
    if (!canvas || canvas.width === 0 || canvas.height === 0) return;
    const still = document.createElement("canvas");
    still.dataset.still = "";
    still.width = canvas.width;
    still.height = canvas.height;
    still.getContext("2d")?.drawImage(canvas, 0, 0);
    this.still?.remove();
    this.still = still;
    this.box.prepend(still);
  }

  private drop(): void {
    const { rfb, socket } = this;
    this.rfb = undefined;
    this.socket = undefined;
    if (rfb && (rfb as unknown as Inside)._rfbConnectionState !== "disconnected") {
      this.keep();
      rfb.disconnect();
    }
    socket?.close();
  }

  private async lost(code: number, reason: string): Promise<void> {
    clearInterval(this.beat);
    if (this.done) return;
    this.keep();
    this.drop();
    this.samples = [];
    this.on.round(undefined);
    const next = after(code, reason);
    if (next.then !== "retry") return this.finish({ at: next.then, text: next.text });
    if (this.since === 0) this.since = Date.now();
    const pause = wait(this.attempt++, Math.random());
    this.on.state({ at: "lost", since: this.since, text: next.text });
    const begun = performance.now();
    const why = await exists(this.id);
    if (this.done || this.rfb) return;
    if (why?.code === "ended") return this.finish({ at: "over", text: why.detail || why.title });
    if (why && (why.status === 404 || why.status === 410)) return this.finish({ at: "over", text: why.detail || why.title });
    if (why && why.status === 403) return this.finish({ at: "refused", text: why.detail || why.title });
    this.timer = setTimeout(() => this.open(), Math.max(0, pause - (performance.now() - begun)));
  }

  private finish(s: ScreenState): void {
    this.done = true;
    clearTimeout(this.timer);
    this.on.state(s);
  }
}
