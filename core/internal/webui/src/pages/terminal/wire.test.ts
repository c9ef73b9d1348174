import { describe, expect, it } from "vitest";
import { ackMessage, decode, inputWindow, maxInput, Outbox, resizeMessage } from "./wire";

const bytes = (n: number) => Uint8Array.from({ length: n }, (_, i) => i % 251);
function read(m: ArrayBuffer): { offset: number; data: Uint8Array } {
  return { offset: Number(new DataView(m).getBigUint64(1)), data: new Uint8Array(m, 9) };
}

describe("messages", () => {
  it("are laid out as core reads them", () => {
    expect([...new Uint8Array(resizeMessage(258, 24))]).toEqual([2, 1, 2, 0, 24]);
    expect([...new Uint8Array(ackMessage(1))]).toEqual([3, 0, 0, 0, 0, 0, 0, 0, 1]);
  });
  it("are read as core writes them", () => {
    const hello = Uint8Array.from([0x81, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 7, 1]).buffer;
    expect(decode(hello)).toEqual({ kind: "hello", output: 256, input: 7, fresh: true });
    const state = new TextEncoder().encode('\u0085{"state":"running"}'.slice(1));
    expect(decode(Uint8Array.from([0x85, ...state]).buffer)).toEqual({ kind: "state", state: { state: "running" } });
    expect(decode(new ArrayBuffer(0))).toBeNull();
    expect(decode(Uint8Array.from([0x81, 0]).buffer)).toBeNull();
    expect(decode(Uint8Array.from([0x01, 0]).buffer)).toBeNull();
  });
});

describe("Outbox", () => {
  it("sends nothing twice and loses nothing over a reconnect", () => {
    const box = new Outbox();
    const all = bytes(3 * maxInput + 17);
    box.add(all);
    const got: number[] = [];
    const take = (m: ArrayBuffer | null) => {
      if (!m) return false;
      const { offset, data } = read(m);
      expect(offset).toBeLessThanOrEqual(got.length);
      got.push(...data.subarray(got.length - offset));
      return true;
    };
    take(box.next());
    take(box.next());
    // The second message never arrived; core has a part of the first.
    got.length = 1000;
    box.resume(1000);
    while (take(box.next()));
    expect(got).toEqual([...all]);
    box.accept(all.length);
    expect(box.waiting).toBe(0);
    expect(box.next()).toBeNull();
  });
  it("keeps to the window", () => {
    const box = new Outbox();
    box.add(bytes(4 * inputWindow));
    let sent = 0;
    for (let m = box.next(); m; m = box.next()) sent += m.byteLength - 9;
    expect(sent).toBe(inputWindow);
    box.accept(maxInput);
    expect(box.next()).not.toBeNull();
    expect(box.next()).toBeNull();
  });
});
