// The frames of a web session as core sends them: entries of 4 bytes length, 8
// bytes microseconds since the start, frame (shared/rfb defines its layout). An
// entry without a frame ends them and says up to when they are all there.

export interface Pointer {
  x: number;
  y: number;
}

export interface Shape {
  hotX: number;
  hotY: number;
  width: number; // 0: the application hides the pointer
  height: number;
  rgba: Uint8ClampedArray<ArrayBuffer>;
}

export interface Frame {
  t: number; // seconds since the start
  key: boolean;
  width: number;
  height: number;
  pointer?: Pointer;
  shape?: Shape;
  update: Uint8Array<ArrayBuffer>; // a whole FramebufferUpdate message
}

export interface Frames {
  list: Frame[];
  upTo: number; // seconds: all there is until then is in list
}

const header = 14;

// parseFrame takes one frame apart; undefined when it is not one we know.
export function parseFrame(t: number, b: Uint8Array<ArrayBuffer>): Frame | undefined {
  if (b.length < header + 4 || b[0] !== 1) return undefined;
  const v = new DataView(b.buffer, b.byteOffset, b.length);
  const flags = v.getUint8(1);
  const n = v.getUint32(10);
  if (n > b.length - header - 4) return undefined;
  const f: Frame = { t, key: (flags & 1) !== 0, width: v.getUint16(2), height: v.getUint16(4), update: b.subarray(header + n) };
  if (flags & 2) f.pointer = { x: v.getUint16(6), y: v.getUint16(8) };
  if (flags & 4 && n >= 8) {
    const [width, height] = [v.getUint16(18), v.getUint16(20)];
    if (n !== 8 + 4 * width * height) return undefined;
    f.shape = { hotX: v.getUint16(14), hotY: v.getUint16(16), width, height, rgba: new Uint8ClampedArray(b.slice(22, header + n).buffer) };
  }
  return f;
}

// parseFrames reads an answer. One without its last entry was cut short.
export function parseFrames(buffer: ArrayBuffer): Frames {
  const v = new DataView(buffer);
  const list: Frame[] = [];
  for (let at = 0; at + 12 <= buffer.byteLength; ) {
    const size = v.getUint32(at);
    const t = Number(v.getBigUint64(at + 4)) / 1e6;
    at += 12;
    if (size === 0) return { list, upTo: t };
    if (at + size > buffer.byteLength) break;
    const f = parseFrame(t, new Uint8Array(buffer, at, size));
    if (!f) throw new Error("A frame of the recording has an unknown form. Reload the page: it may be older than core.");
    list.push(f);
    at += size;
  }
  throw new Error("The recording was not sent to its end: it may be damaged. Check it under “Keeping”.");
}
