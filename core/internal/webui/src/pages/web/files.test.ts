import { expect, test } from "vitest";
import { plan, rowsOf, tooLarge } from "./files";

const file = (path: string, size_bytes = 1, dir = false) => ({ path, size_bytes, dir, modified: size_bytes });

test("a folder's entries: folders first, by name with numbers", () => {
  const list = [file("b10.txt"), file("b9.txt"), file("docs", 0, true), file("docs/a.pdf", 5), file("docs/deep/x", 7), file("loose/only", 3)];
  expect(rowsOf(list, "").map((r) => `${r.name}${r.dir ? "/" : ""} ${r.size}`)).toEqual(["docs/ 12", "loose/ 3", "b9.txt 1", "b10.txt 1"]);
  expect(rowsOf(list, "docs").map((r) => `${r.path}${r.dir ? "/" : ""}`)).toEqual(["docs/deep/", "docs/a.pdf"]);
  expect(rowsOf(list, "doc")).toEqual([]);
  expect(rowsOf([file("empty", 0, true)], "empty")).toEqual([]);
});

const dropped = (paths: string[], folders: string[] = []) => ({ files: paths.map((path) => ({ path, file: new File(["abc"], path) })), folders, tooMany: false });

test.each([
  [dropped(["a b.txt"]), { path: "a b.txt", tar: false, name: "a b.txt" }],
  [dropped(["dir/a.txt"]), { path: "", tar: true, name: "Folder dir" }],
  [dropped(["dir/a.txt", "dir/b/c.txt"], ["dir/empty"]), { path: "", tar: true, name: "Folder dir" }],
  [dropped(["a", "b"]), { path: "", tar: true, name: "2 files" }],
  [dropped([], ["empty"]), { path: "", tar: true, name: "Folder empty" }],
])("how %j travels", (d, want) => {
  expect(plan(d)).toEqual(want);
});

test("files over the cap are found before anything leaves", () => {
  expect(tooLarge(dropped(["a", "b"]), 3)).toEqual([]);
  expect(tooLarge(dropped(["a", "b"]), 2)).toHaveLength(2);
});
