import { bytes } from "~/ui/Bytes";

const encoder = new TextEncoder();

// sizeOf a text as it travels.
export const sizeOf = (text: string) => encoder.encode(text).length;

// tooMuch says why a text may not pass, or nothing.
export function tooMuch(text: string, most: number): string | undefined {
  const size = sizeOf(text);
  return size > most ? `That text has ${bytes(size)}; at most ${bytes(most)} may pass at once.` : undefined;
}

// give puts text on this computer's clipboard; false: the browser wants a click first.
export async function give(text: string): Promise<boolean> {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

// canRead tells whether the page may ask for the clipboard by itself.
export const canRead = () => typeof navigator.clipboard?.readText === "function";

// readIfAllowed reads this computer's clipboard when that was permitted before:
// it never makes the browser ask.
export async function readIfAllowed(): Promise<string | undefined> {
  if (!canRead() || !document.hasFocus()) return undefined;
  try {
    const p = await navigator.permissions.query({ name: "clipboard-read" as PermissionName });
    return p.state === "granted" ? await navigator.clipboard.readText() : undefined;
  } catch {
    return undefined;
  }
}

// isPaste: the keys that paste here; the browser then hands out the text itself.
export function isPaste(e: { key: string; code: string; ctrlKey: boolean; metaKey: boolean; shiftKey: boolean; altKey: boolean }): boolean {
  if (e.altKey) return false;
  if ((e.ctrlKey || e.metaKey) && (e.key === "v" || e.key === "V")) return true;
  return e.shiftKey && !e.ctrlKey && e.key === "Insert";
}
