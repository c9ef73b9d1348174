import { describe, expect, it } from "vitest";
import { LocalChannel, serverInit } from "./channel";
import { addressAt, choose, indexAt, merge, type Moment } from "./events";
import { parseFrame, parseFrames } from "./frames";

// frame builds a frame as shared/rfb defines it.
function frame(flags: number, update: number[], shape: number[] = []): Uint8Array<ArrayBuffer> {
  return new Uint8Array([1, flags, 5, 0, 3, 32, 0, 7, 0, 9, 0, 0, 0, shape.length, ...shape, ...update]);
}

function entries(...list: [us: number, frame: Uint8Array][]): ArrayBuffer {
  const b = new Uint8Array(list.reduce((n, [, f]) => n + 12 + f.length, 0));
  const v = new DataView(b.buffer);
  let at = 0;
  for (const [us, f] of list) {
    v.setUint32(at, f.length);
    v.setBigUint64(at + 4, BigInt(us));
    b.set(f, at + 12);
    at += 12 + f.length;
  }
  return b.buffer;
}

const empty = new Uint8Array(0);

describe("parseFrame", () => {
  it("reads size, pointer, pointer image and update", () => {
    const f = parseFrame(2, frame(7, [0, 0, 0, 0], [0, 1, 0, 2, 0, 1, 0, 1, 10, 20, 30, 255]));
    expect(f).toMatchObject({ t: 2, key: true, width: 1280, height: 800, pointer: { x: 7, y: 9 }, shape: { hotX: 1, hotY: 2, width: 1, height: 1 } });
    expect([...(f?.shape?.rgba ?? [])]).toEqual([10, 20, 30, 255]);
    expect([...(f?.update ?? [])]).toEqual([0, 0, 0, 0]);
  });
  it("leaves out what is not there", () => {
    const f = parseFrame(0, frame(0, [0, 0, 0, 0]));
    expect(f?.key).toBe(false);
    expect(f?.pointer).toBeUndefined();
    expect(f?.shape).toBeUndefined();
  });
  it("refuses other versions and lengths that do not fit", () => {
    const other = frame(1, [0, 0, 0, 0]);
    other[0] = 2;
    expect(parseFrame(0, other)).toBeUndefined();
    const long = frame(1, [0, 0, 0, 0]);
    long[13] = 200;
    expect(parseFrame(0, long)).toBeUndefined();
    expect(parseFrame(0, frame(4, [0, 0, 0, 0], [0, 0, 0, 0, 0, 9, 0, 9]))).toBeUndefined();
    expect(parseFrame(0, new Uint8Array(3))).toBeUndefined();
  });
});

describe("parseFrames", () => {
  it("reads entries and up to when they are all there", () => {
    const got = parseFrames(entries([1_500_000, frame(1, [0, 0, 0, 0])], [1_700_001, frame(0, [0, 0, 0, 0])], [9_000_000, empty]));
    expect(got.list.map((f) => f.t)).toEqual([1.5, 1.700001]);
    expect(got.upTo).toBe(9);
  });
  it("tells an answer that was cut short", () => {
    const whole = entries([1, frame(1, [0, 0, 0, 0])], [2, empty]);
    for (const n of [0, 5, 20, whole.byteLength - 1]) expect(() => parseFrames(whole.slice(0, n))).toThrow(/not sent to its end/);
  });
});

describe("LocalChannel", () => {
  it("answers the handshake of RFB 3.8 and ignores what follows", async () => {
    let ready = 0;
    const c = new LocalChannel(1280, 800, () => ready++);
    const heard: Uint8Array[] = [];
    c.onmessage = (e) => heard.push(new Uint8Array(e.data as Uint8Array));
    await Promise.resolve();
    expect(new TextDecoder().decode(heard[0])).toBe("RFB 003.008\n");
    for (let i = 0; i < 6; i++) {
      c.send(); // version, security, ClientInit, then what a viewer asks for
      await Promise.resolve();
    }
    expect(heard.length).toBe(4);
    expect([...(heard[1] ?? [])]).toEqual([1, 1]);
    expect([...(heard[2] ?? [])]).toEqual([0, 0, 0, 0]);
    expect(heard[3]).toEqual(serverInit(1280, 800));
    expect(ready).toBe(1);
    c.tell(new Uint8Array([0, 0, 0, 0]));
    expect(heard.length).toBe(5);
    c.close();
    c.tell(new Uint8Array([0, 0, 0, 0]));
    expect(heard.length).toBe(5);
  });
  it("says what desktop it is", () => {
    const v = new DataView(serverInit(1280, 800).buffer);
    expect([v.getUint16(0), v.getUint16(2), v.getUint8(4), v.getUint32(20)]).toEqual([1280, 800, 32, 9]);
    expect(v.byteLength).toBe(33);
  });
});

const moment = (t: number, kind: string, fields: Record<string, string> = {}): Moment => ({ t, kind, fields });

describe("events", () => {
  const list = [
    moment(1, "request", { method: "GET", url: "https://a/", type: "text/html" }), moment(2, "request", { method: "GET", url: "https://a/x.css", type: "text/css" }),
    moment(3, "navigation", { url: "https://b/" }), moment(3, "blocked", { url: "https://Evil/" }),
  ];
  it("finds the present one", () => {
    expect([0, 1, 2.5, 3, 9].map((t) => indexAt(list, t))).toEqual([-1, 0, 1, 3, 3]);
    expect(indexAt([], 1)).toBe(-1);
  });
  it("finds the page shown", () => {
    expect([0, 1, 2.9, 3.1].map((t) => addressAt(list, t))).toEqual(["", "https://a/", "https://a/", "https://b/"]);
  });
  it("filters by kind and text", () => {
    expect(choose(list, new Set(["blocked"]), "").length).toBe(1);
    expect(choose(list, new Set(), "EVIL").map((m) => m.kind)).toEqual(["blocked"]);
    expect(choose(list, new Set(["request"]), "evil")).toEqual([]);
  });
  it("sorts what arrives late", () => {
    expect(merge([moment(1, "a"), moment(5, "b")], [moment(3, "c")]).map((m) => m.kind)).toEqual(["a", "c", "b"]);
  });
});
