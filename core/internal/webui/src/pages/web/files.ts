import type { Dropped } from "../terminal/drop";
import type { WebFile } from "./api";

export interface Row {
  name: string;
  path: string;
  dir: boolean;
  size: number; // of a folder: what is known to be in it
  modified: number;
}

// rowsOf are the entries of one folder, folders first, from the flat list.
export function rowsOf(files: readonly WebFile[], folder: string): Row[] {
  const at = folder === "" ? "" : `${folder.replace(/\/+$/, "")}/`;
  const rows = new Map<string, Row>();
  for (const f of files) {
    const path = f.path.replace(/\/+$/, "");
    if (!path.startsWith(at) || path.length === at.length) continue;
    const rest = path.slice(at.length);
    const cut = rest.indexOf("/");
    const name = cut < 0 ? rest : rest.slice(0, cut);
    const was = rows.get(name);
    if (cut < 0 && !f.dir) rows.set(name, { name, path, dir: false, size: f.size_bytes, modified: f.modified });
    else rows.set(name, { name, path: at + name, dir: true, size: (was?.size ?? 0) + (f.dir ? 0 : f.size_bytes), modified: Math.max(was?.modified ?? 0, f.modified) });
  }
  return [...rows.values()].sort((a, b) => Number(b.dir) - Number(a.dir) || a.name.localeCompare(b.name, undefined, { numeric: true }));
}

// tooLarge are the files that may not pass.
export const tooLarge = (d: Dropped, most: number) => d.files.filter((f) => f.file.size > most);

// plan says how files travel: one file by itself, everything else as a tar.
export function plan(d: Dropped): { path: string; tar: boolean; name: string } {
  const only = d.files[0];
  if (d.files.length === 1 && d.folders.length === 0 && only && !only.path.includes("/")) return { path: only.path, tar: false, name: only.path };
  const tops = new Set([...d.files.map((f) => f.path), ...d.folders].map((p) => p.split("/")[0] ?? p));
  const [top] = tops;
  return { path: "", tar: true, name: tops.size === 1 && top ? `Folder ${top}` : `${d.files.length} files` };
}
