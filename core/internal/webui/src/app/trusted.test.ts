import { readdirSync, readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { harmless } from "./trusted";

describe("harmless", () => {
  it.each(["", "plain text", ".a { color: red }", '<div class="x"><svg viewBox="0 0 1 1"><path d="M0,0"></path></svg></div>'])("lets %s through", (s) => expect(harmless(s)).toBe(true));
  it.each([
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '<div onclick="x()">', "<svg/onload=x>", '<a href="javascript:x">', "<iframe srcdoc=x>", "<div><style>x</style></div>", '<svg><use href="data:x"></use></svg>',
    "<div\nonclick=x>", '<p title=">" onfocus=x>', "<button formaction=javascript:x>", "<foreignObject>", "<math>", "<object>", "<embed>", "<link>", "<meta>", "<base>",
  ])("refuses %s", (s) => expect(harmless(s)).toBe(false));
  it("lets every template of the recording player through", () => {
    const dist = new URL("../../node_modules/asciinema-player/dist/", import.meta.url);
    const file = readdirSync(dist).find((f) => f.startsWith("opts-"));
    const templates = [...readFileSync(new URL(file ?? "", dist), "utf8").matchAll(/template\(`([^`]+)`/g)].map((m) => m[1] ?? "");
    expect(templates.length).toBeGreaterThan(20);
    expect(templates.filter((t) => !harmless(t))).toEqual([]);
  });
});
