import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";
import { archive, headers } from "./tar";

const long = `${"folder-with-a-long-name/".repeat(8)}end.txt`;

test("tar of the system unpacks what the page packs", async () => {
  const dir = mkdtempSync(path.join(tmpdir(), "tar-"));
  try {
    const text = (name: string, body: string) => ({ path: name, file: new File([body], path.basename(name), { lastModified: 1_600_000_000_000 }) });
    const files = [text("a.txt", "a"), text("sub/Übung und Straße.txt", "ä".repeat(700)), text(long, "long"), text("exact.bin", "x".repeat(512)), text("empty", "")];
    const tar = path.join(dir, "t.tar");
    writeFileSync(tar, new Uint8Array(await archive(files, ["nothing/in/it"]).arrayBuffer()));
    const names = execFileSync("tar", ["-tf", tar, "--quoting-style=literal"], { encoding: "utf8", env: { ...process.env, LC_ALL: "C.UTF-8" } }).trim().split("\n");
    expect(names.sort()).toEqual([...files.map((f) => f.path), "nothing/in/it/"].sort());
    execFileSync("tar", ["-xf", tar, "-C", dir], { env: { ...process.env, LC_ALL: "C.UTF-8" } });
    for (const f of files) expect(readFileSync(path.join(dir, f.path), "utf8")).toBe(await f.file.text());
  } finally {
    rmSync(dir, { recursive: true });
  }
});

test("headers are whole blocks", () => {
  for (const e of [
    { path: "a", size: 1, modified: 0 },
    { path: long, size: 0o777777777777, modified: 1e12 },
    { path: "d", size: 0, modified: 0, dir: true },
  ])
    expect(headers(e).length % 512).toBe(0);
});

test("a pax record counts its own length", () => {
  for (let n = 80; n < 120; n++) {
    const b = headers({ path: "ü".repeat(n), size: 0, modified: 0 }).slice(512, 1024);
    const length = Number(new TextDecoder().decode(b.slice(0, b.indexOf(32))));
    expect(b[length - 1]).toBe(10);
    expect(b[length]).toBe(0);
  }
});
