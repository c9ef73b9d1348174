import { describe, expect, it } from "vitest";
import { encode, parity } from "./qr";

describe("QR codes", () => {
  it("computes the error correction words of the standard's example", () => {
    // ISO/IEC 18004 annex I: 01234567 as version 1-M.
    const data = [0x10, 0x20, 0x0c, 0x56, 0x61, 0x80, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11, 0xec, 0x11];
    expect(parity(data, 10)).toEqual([0xa5, 0x24, 0xd4, 0xc1, 0xed, 0x36, 0xc7, 0x87, 0x2c, 0x55]);
  });
  it("takes the smallest version that holds the text", () => {
    for (const [bytes, size] of [[14, 21], [15, 25], [26, 25], [122, 45], [123, 49], [180, 53], [331, 69]] as const) {
      expect(encode("x".repeat(bytes)).length, `${bytes} bytes`).toBe(size);
    }
    expect(() => encode("x".repeat(332))).toThrow();
  });
  it("has its finder patterns, timing and dark module", () => {
    const m = encode("otpauth://totp/Caponier:jane?secret=JBSWY3DPEHPK3PXP");
    const finder = ["#######", "#     #", "# ### #", "# ### #", "# ### #", "#     #", "#######"];
    const n = m.length;
    for (const [x, y] of [[0, 0], [n - 7, 0], [0, n - 7]] as const) {
      finder.forEach((row, i) => expect(m[y + i]?.slice(x, x + 7).map((d) => (d ? "#" : " ")).join("")).toBe(row));
    }
    for (let i = 8; i < n - 8; i++) expect(m[6]?.[i]).toBe(i % 2 === 0);
    expect(m[n - 8]?.[8]).toBe(true);
  });
});
