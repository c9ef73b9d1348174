import { describe, expect, it } from "vitest";
import { parseCast, squeeze } from "./cast";
import { clock } from "./words";

const text = '{"version":2,"width":100,"height":30}\n[0.5,"o","a"]\n[10.5,"o","b"]\n[11,"m","integrity: complete"]\n[12,"o","brok';

describe("parseCast", () => {
  it("reads header and events, and stops at a broken end", () => {
    const c = parseCast(text);
    expect(c).toMatchObject({ cols: 100, rows: 30, duration: 11 });
    expect(c.events).toHaveLength(3);
  });
  it("refuses other formats", () => expect(() => parseCast('{"version":1}')).toThrow());
});

describe("squeeze", () => {
  const s = squeeze(parseCast(text), 2);
  it("shortens pauses", () => expect(s.cast.events.map((e) => e[0])).toEqual([0.5, 2.5, 3]));
  it("maps both ways", () => {
    for (const t of [0, 0.25, 0.5, 5, 10.5, 10.9, 11]) expect(s.toReal(s.toShown(t))).toBeCloseTo(t);
    expect(s.toShown(5.5)).toBeCloseTo(1.5);
    expect(s.toShown(99)).toBe(3);
  });
});

describe("clock", () => {
  it("writes minutes and hours", () => expect([clock(7.9), clock(754), clock(3723)]).toEqual(["0:07", "12:34", "1:02:03"]));
});
