import { api, asError, ask, offline, type ApiError } from "~/api/client";
import { ackMessage, decode, type FromCore, Outbox, pingMessage, resizeMessage } from "./wire";

// Close codes of core (webterm/socket.go).
export const closed = { protocol: 4400, signedOut: 4401, forbidden: 4403, taken: 4409, ended: 4410 } as const;

const ackEvery = 32 * 1024; // bytes
const pingEvery = 5_000;
const deadAfter = 12_000; // ms without any message while the page is visible
const waits = [300, 1000, 2000, 3000, 5000];

export type LinkState =
  | { at: "connecting" }
  | { at: "up" }
  | { at: "lost"; retryAt: number; since: number }
  | { at: "taken" }
  | { at: "over"; error?: ApiError };

interface Handlers {
  message(m: FromCore): void;
  state(s: LinkState): void;
}

// Link keeps a websocket to a session open: it reconnects, asks for output
// from where it was, and sends again what was typed meanwhile.
export class Link {
  readonly outbox = new Outbox();
  private socket?: WebSocket;
  private received = -1; // offset of output handed on; -1: nothing yet
  private shown = 0;
  private acked = 0;
  private size?: [number, number];
  private attempt = 0;
  private since = 0;
  private heard = 0;
  private timer?: ReturnType<typeof setTimeout>;
  private beat?: ReturnType<typeof setInterval>;
  private done = false;
  private ping = 0;
  roundTrip = 0; // ms, of the last ping

  constructor(
    private readonly path: string, // below /api/v1
    private readonly on: Handlers,
    // exists tells whether the session is still there: null yes, else why not.
    private readonly exists: () => Promise<ApiError | null>,
  ) {
    window.addEventListener("online", this.retryNow);
    document.addEventListener("visibilitychange", this.retryNow);
    this.open();
  }

  close(): void {
    this.done = true;
    window.removeEventListener("online", this.retryNow);
    document.removeEventListener("visibilitychange", this.retryNow);
    clearTimeout(this.timer);
    clearInterval(this.beat);
    this.socket?.close();
    this.socket = undefined;
  }

  type(data: Uint8Array): void {
    this.outbox.add(data);
    this.flush();
  }

  resize(cols: number, rows: number): void {
    if (this.size?.[0] === cols && this.size[1] === rows) return;
    this.size = [cols, rows];
    this.send(resizeMessage(cols, rows));
  }

  // wrote is called when the terminal has shown output up to offset.
  wrote(offset: number): void {
    this.shown = Math.max(this.shown, offset);
    if (this.shown - this.acked >= ackEvery || this.shown === this.received) {
      this.acked = this.shown;
      this.send(ackMessage(this.shown));
    }
  }

  // again takes the session back from another tab, or retries at once.
  again(): void {
    this.done = false;
    this.attempt = 0;
    this.open();
  }

  private readonly retryNow = () => {
    if (this.timer !== undefined && document.visibilityState === "visible" && navigator.onLine) this.open();
  };

  private open(): void {
    clearTimeout(this.timer);
    this.timer = undefined;
    const old = this.socket;
    this.socket = undefined;
    old?.close();
    if (this.since === 0) this.on.state({ at: "connecting" });
    const at = this.received >= 0 ? `?output=${this.received}` : "";
    const ws = new WebSocket(`${location.protocol === "http:" ? "ws" : "wss"}://${location.host}/api/v1${this.path}${at}`);
    ws.binaryType = "arraybuffer";
    this.socket = ws;
    this.heard = Date.now();
    ws.onmessage = (e) => {
      if (ws !== this.socket) return;
      this.heard = Date.now();
      const m = decode(e.data as ArrayBuffer);
      if (m) this.take(m);
    };
    ws.onclose = (e) => {
      if (ws === this.socket) void this.lost(e.code);
    };
    clearInterval(this.beat);
    this.beat = setInterval(() => {
      if (document.visibilityState !== "visible") {
        this.heard = Date.now(); // timers of hidden pages say nothing
        return;
      }
      if (Date.now() - this.heard > deadAfter) {
        this.socket = undefined;
        ws.close();
        void this.lost(1006);
      } else if (ws.readyState === WebSocket.OPEN) {
        this.ping = performance.now();
        ws.send(pingMessage(Math.floor(this.ping)));
      }
    }, pingEvery);
  }

  private take(m: FromCore): void {
    switch (m.kind) {
      case "hello":
        this.attempt = 0;
        this.since = 0;
        this.on.state({ at: "up" });
        if (m.fresh || this.received < 0) this.received = this.shown = this.acked = m.output;
        this.outbox.resume(m.input);
        if (this.size) this.send(resizeMessage(...this.size));
        this.flush();
        break;
      case "output":
        if (m.offset !== this.received) {
          // Never seen; a fresh start puts it right.
          this.received = -1;
          this.open();
          return;
        }
        this.received += m.data.length;
        break;
      case "screen":
        this.received = m.offset;
        break;
      case "accepted":
        this.outbox.accept(m.offset);
        this.flush();
        break;
      case "pong":
        this.roundTrip = performance.now() - this.ping;
        break;
    }
    this.on.message(m);
  }

  private flush(): void {
    if (this.socket?.readyState !== WebSocket.OPEN) return;
    for (let m = this.outbox.next(); m; m = this.outbox.next()) this.socket.send(m);
  }

  private send(m: ArrayBuffer): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(m);
  }

  private async lost(code: number): Promise<void> {
    clearInterval(this.beat);
    if (this.done) return;
    if (code === closed.ended) return this.finish();
    if (code === closed.taken) {
      this.done = true;
      return this.on.state({ at: "taken" });
    }
    if (this.since === 0) this.since = Date.now();
    const wait = waits[Math.min(this.attempt, waits.length - 1)]! * (0.75 + Math.random() / 2);
    this.attempt++;
    this.on.state({ at: "lost", since: this.since, retryAt: Date.now() + wait });
    const why = await this.exists().catch((e: unknown) => asError(e));
    if (this.done) return;
    if (why && why.status !== 0 && why.status < 500 && why.status !== 401 && why.status !== 429) return this.finish(why);
    if (this.timer === undefined) this.timer = setTimeout(() => this.open(), wait);
  }

  private finish(error?: ApiError): void {
    this.done = true;
    clearTimeout(this.timer);
    this.on.state({ at: "over", error });
  }
}

// terminalExists asks core whether a terminal session is still there.
export async function terminalExists(id: string): Promise<ApiError | null> {
  if (!navigator.onLine) return offline();
  try {
    await ask(api.GET("/terminal-sessions/{id}", { params: { path: { id } } }));
    return null;
  } catch (e) {
    return asError(e);
  }
}
