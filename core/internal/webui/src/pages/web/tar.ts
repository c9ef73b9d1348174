// Tar archives (POSIX.1-2001, pax) of files the browser holds. Contents are not
// read: the archive is a Blob made of headers and the files themselves.

export interface Entry {
  path: string; // relative, with slashes
  size: number;
  modified: number; // milliseconds since 1970
  dir?: boolean;
}

const block = 512;
const encoder = new TextEncoder();

// headers are the blocks before an entry's content: a pax header first, where
// ustar's fields cannot hold the path, the size or the time.
export function headers(e: Entry): Uint8Array<ArrayBuffer> {
  const path = e.dir && !e.path.endsWith("/") ? `${e.path}/` : e.path;
  const name = encoder.encode(path);
  const extra: [string, string][] = [];
  if (name.length > 100 || name.some((b) => b > 0x7e || b < 0x20)) extra.push(["path", path]);
  if (e.size > 0o77777777777) extra.push(["size", String(e.size)]);
  const out = extra.length > 0 ? [pax(extra), plain(ascii(path), Math.min(e.size, 0o77777777777), e.modified, e.dir ? "5" : "0")] : [plain(name, e.size, e.modified, e.dir ? "5" : "0")];
  return concat(out);
}

// padding follows a content of this size.
export const padding = (size: number) => new Uint8Array((block - (size % block)) % block);

// end closes an archive.
export const end = () => new Uint8Array(2 * block);

// archive puts files and empty folders into one archive.
export function archive(files: readonly { path: string; file: File }[], folders: readonly string[] = []): Blob {
  const parts: BlobPart[] = folders.map((path) => headers({ path, size: 0, modified: 0, dir: true }));
  for (const { path, file } of files) parts.push(headers({ path, size: file.size, modified: file.lastModified }), file, padding(file.size));
  parts.push(end());
  return new Blob(parts, { type: "application/x-tar" });
}

function ascii(path: string): Uint8Array {
  return encoder.encode(path.replace(/[^\x20-\x7e]/g, "_").slice(-100));
}

function plain(name: Uint8Array, size: number, modified: number, type: string): Uint8Array<ArrayBuffer> {
  const b = new Uint8Array(block);
  const put = (at: number, text: string) => b.set(encoder.encode(text), at);
  const octal = (at: number, n: number, digits: number) => put(at, n.toString(8).padStart(digits, "0"));
  b.set(name.slice(0, 100), 0);
  octal(100, type === "5" ? 0o755 : 0o644, 7);
  octal(108, 0, 7);
  octal(116, 0, 7);
  octal(124, size, 11);
  octal(136, Math.max(0, Math.floor(modified / 1000)), 11);
  put(148, "        ");
  put(156, type);
  put(257, "ustar\0");
  put(263, "00");
  let sum = 0;
  for (const x of b) sum += x;
  put(148, `${sum.toString(8).padStart(6, "0")}\0 `);
  return b;
}

function pax(extra: readonly [string, string][]): Uint8Array<ArrayBuffer> {
  const content = encoder.encode(extra.map(([k, v]) => record(k, v)).join(""));
  return concat([plain(encoder.encode("PaxHeader"), content.length, 0, "x"), content, padding(content.length)]);
}

// record is "LENGTH key=value\n", where the length counts itself.
function record(key: string, value: string): string {
  const rest = encoder.encode(` ${key}=${value}\n`).length;
  let length = rest + String(rest).length;
  if (rest + String(length).length !== length) length = rest + String(length).length;
  return `${length} ${key}=${value}\n`;
}

function concat(parts: readonly Uint8Array[]): Uint8Array<ArrayBuffer> {
  const out = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) {
    out.set(p, at);
    at += p.length;
  }
  return out;
}
