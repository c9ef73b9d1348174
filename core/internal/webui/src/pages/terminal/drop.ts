// Files and folders that were dropped or chosen, with their paths.
export interface Found {
  file: File;
  path: string; // relative, with slashes
}

export interface Dropped {
  files: Found[];
  folders: string[]; // empty ones
  tooMany: boolean;
}

const most = 20_000;

// collect walks what was dropped; it must be called within the event, since
// the browser forgets the items after it.
export function collect(data: DataTransfer): Promise<Dropped> {
  const entries = [...data.items].filter((i) => i.kind === "file").map((i) => i.webkitGetAsEntry()).filter((e) => e !== null);
  const out: Dropped = { files: [], folders: [], tooMany: false };
  return Promise.all(entries.map((e) => walk(e, "", out))).then(() => out);
}

async function walk(entry: FileSystemEntry, above: string, out: Dropped): Promise<void> {
  if (out.files.length >= most) {
    out.tooMany = true;
    return;
  }
  const path = above + entry.name;
  if (entry.isFile) {
    const file = await new Promise<File>((ok, no) => (entry as FileSystemFileEntry).file(ok, no));
    out.files.push({ file, path });
    return;
  }
  const reader = (entry as FileSystemDirectoryEntry).createReader();
  let any = false;
  for (;;) {
    const some = await new Promise<FileSystemEntry[]>((ok, no) => reader.readEntries(ok, no));
    if (some.length === 0) break;
    any = true;
    for (const e of some) await walk(e, `${path}/`, out);
  }
  if (!any) out.folders.push(path);
}

// chosen reads the files of an <input type=file>, folders included.
export const chosen = (list: FileList): Found[] => [...list].slice(0, most).map((file) => ({ file, path: file.webkitRelativePath || file.name }));

// join puts a name below a directory of the target.
export const join = (dir: string, name: string) => (dir.endsWith("/") ? dir + name : `${dir}/${name}`);

// above is the directory a path is in.
export function above(path: string): string {
  const i = path.replace(/\/+$/, "").lastIndexOf("/");
  return i <= 0 ? "/" : path.slice(0, i);
}
