import { expect, test } from "vitest";
import { readLines } from "./lines";

test("lines come whole however they are cut", async () => {
  const bytes = new TextEncoder().encode('{"a":1}\n{"ü":2}\n\n{"c":3}');
  const stream = new ReadableStream<Uint8Array>({
    start(c) {
      for (let i = 0; i < bytes.length; i += 3) c.enqueue(bytes.slice(i, i + 3));
      c.close();
    },
  });
  const got: string[] = [];
  for await (const l of readLines(stream)) got.push(l);
  expect(got).toEqual(['{"a":1}', '{"ü":2}', '{"c":3}']);
});
