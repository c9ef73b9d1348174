// LocalChannel is what noVNC takes for its connection: it answers the handshake
// as a server without password would (RFC 6143 §7.1, §7.2), ignores everything
// else the client says, and passes on updates from a recording.

const text = (s: string) => new TextEncoder().encode(s);

// serverInit describes a true-colour desktop of 32 bits per pixel (RFC 6143 §7.3.2).
export function serverInit(width: number, height: number): Uint8Array<ArrayBuffer> {
  const name = text("recording");
  const b = new Uint8Array(24 + name.length);
  const v = new DataView(b.buffer);
  v.setUint16(0, width);
  v.setUint16(2, height);
  // bits, depth, big-endian, true colour, maxima of red, green, blue, shifts
  b.set([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0], 4);
  v.setUint32(20, name.length);
  b.set(name, 24);
  return b;
}

export class LocalChannel {
  binaryType = "arraybuffer";
  protocol = "";
  readyState: "open" | "closed" = "open";
  onopen: (() => void) | null = null;
  onerror: ((e: unknown) => void) | null = null;
  onclose: ((e: { code: number; reason: string }) => void) | null = null;
  private listener: ((e: { data: ArrayBufferLike | Uint8Array }) => void) | null = null;
  private answers: Uint8Array<ArrayBuffer>[];

  constructor(width: number, height: number, private ready: () => void) {
    // What is answered to the client's version, choice of security and ClientInit.
    this.answers = [new Uint8Array([1, 1]), new Uint8Array([0, 0, 0, 0]), serverInit(width, height)];
  }

  get onmessage() {
    return this.listener;
  }

  // The server speaks first, once somebody listens.
  set onmessage(listener) {
    const first = !this.listener && listener;
    this.listener = listener;
    if (first) queueMicrotask(() => this.tell(text("RFB 003.008\n")));
  }

  send(): void {
    const answer = this.answers.shift();
    if (!answer) return;
    // Not at once: the client is in the middle of what it does.
    queueMicrotask(() => {
      this.tell(answer);
      if (this.answers.length === 0) this.ready();
    });
  }

  // tell passes one message of the server to the client.
  tell(message: Uint8Array): void {
    if (this.readyState === "open") this.listener?.({ data: message });
  }

  close(): void {
    if (this.readyState === "closed") return;
    this.readyState = "closed";
    queueMicrotask(() => this.onclose?.({ code: 1000, reason: "" }));
  }
}
