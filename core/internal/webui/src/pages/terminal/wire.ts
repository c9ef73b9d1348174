// The messages of a terminal's websocket; core/internal/webterm/proto.go has
// their layout. Offsets count bytes since the session began; they stay far
// below 2^53.

export const maxInput = 32 * 1024; // bytes of input in one message
export const inputWindow = 128 * 1024; // bytes of input under way

export type FromCore =
  | { kind: "hello"; output: number; input: number; fresh: boolean }
  | { kind: "output"; offset: number; data: Uint8Array }
  | { kind: "screen"; offset: number; data: Uint8Array }
  | { kind: "accepted"; offset: number }
  | { kind: "pong"; token: number }
  | { kind: "state"; state: unknown }
  | { kind: "size"; cols: number; rows: number };

// decode reads a message from core; null is one this page does not know.
export function decode(buffer: ArrayBuffer): FromCore | null {
  const v = new DataView(buffer);
  if (v.byteLength < 1) return null;
  const offset = () => Number(v.getBigUint64(1));
  const rest = () => new Uint8Array(buffer, 9);
  try {
    switch (v.getUint8(0)) {
      case 0x81: return { kind: "hello", output: offset(), input: Number(v.getBigUint64(9)), fresh: v.getUint8(17) === 1 };
      case 0x82: return { kind: "output", offset: offset(), data: rest() };
      case 0x83: return { kind: "accepted", offset: offset() };
      case 0x84: return { kind: "pong", token: offset() };
      case 0x85: return { kind: "state", state: JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 1))) as unknown };
      case 0x86: return { kind: "screen", offset: offset(), data: rest() };
      case 0x87: return { kind: "size", cols: v.getUint16(1), rows: v.getUint16(3) };
    }
  } catch {
    return null;
  }
  return null;
}

function withOffset(kind: number, offset: number, data?: Uint8Array): ArrayBuffer {
  const b = new ArrayBuffer(9 + (data?.length ?? 0));
  const v = new DataView(b);
  v.setUint8(0, kind);
  v.setBigUint64(1, BigInt(offset));
  if (data) new Uint8Array(b, 9).set(data);
  return b;
}

export const inputMessage = (offset: number, data: Uint8Array) => withOffset(0x01, offset, data);
export const ackMessage = (offset: number) => withOffset(0x03, offset);
export const pingMessage = (token: number) => withOffset(0x04, token);

export function resizeMessage(cols: number, rows: number): ArrayBuffer {
  const b = new ArrayBuffer(5);
  const v = new DataView(b);
  v.setUint8(0, 0x02);
  v.setUint16(1, cols);
  v.setUint16(3, rows);
  return b;
}

// Outbox keeps what was typed until core has passed it on, so that nothing is
// lost or sent twice when the network fails in between.
export class Outbox {
  private chunks: Uint8Array[] = [];
  private first = 0; // offset of chunks[0]
  private sent = 0; // offset up to which it was sent on this socket
  private accepted = 0;
  end = 0;

  // waiting is how many bytes core has not passed on yet.
  get waiting(): number {
    return this.end - this.accepted;
  }

  add(data: Uint8Array): void {
    for (let i = 0; i < data.length; i += maxInput) this.chunks.push(data.slice(i, i + maxInput));
    this.end += data.length;
  }

  // resume forgets what core has, and sends the rest again.
  resume(taken: number): void {
    this.drop(taken);
    this.sent = Math.max(taken, this.first);
    this.accepted = Math.max(this.accepted, Math.min(taken, this.end));
  }

  accept(offset: number): void {
    this.accepted = Math.max(this.accepted, offset);
    this.drop(offset);
  }

  // next is the next message within the window, or null.
  next(): ArrayBuffer | null {
    let at = this.first;
    for (const c of this.chunks) {
      if (at + c.length > this.sent) {
        if (at + c.length > this.accepted + inputWindow) return null;
        const from = this.sent;
        this.sent = at + c.length;
        return inputMessage(from, c.subarray(from - at));
      }
      at += c.length;
    }
    return null;
  }

  private drop(upTo: number): void {
    while (this.chunks.length > 0 && this.first + this.chunks[0]!.length <= upTo) this.first += this.chunks.shift()!.length;
  }
}
