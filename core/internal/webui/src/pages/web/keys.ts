// Key symbols (X11 keysymdef.h) with the codes of their keys on a PC keyboard.
export type Key = readonly [keysym: number, code: string];

const ctrl: Key = [0xffe3, "ControlLeft"];
const alt: Key = [0xffe9, "AltLeft"];
const shift: Key = [0xffe1, "ShiftLeft"];
const letter = (c: string): Key => [c.charCodeAt(0), `Key${c.toUpperCase()}`];

export const escape: Key = [0xff1b, "Escape"];
export const backspace: Key = [0xff08, "Backspace"];
export const enter: Key = [0xff0d, "Enter"];
export const touch: Key = shift; // counts as presence and does nothing

export interface Special {
  label: string;
  hint: string; // how it is written on keys
  keys: readonly Key[];
  only?: string; // the browser that does something with it, or lets the page
}

// What this computer's browser keeps for itself, or a phone has not got.
const specials: readonly Special[] = [
  { label: "Reload", hint: "F5", keys: [[0xffc2, "F5"]] },
  { label: "Back", hint: "Alt ←", keys: [alt, [0xff51, "ArrowLeft"]] },
  { label: "Forward", hint: "Alt →", keys: [alt, [0xff53, "ArrowRight"]] },
  { label: "Find on the page", hint: "Ctrl F", keys: [ctrl, letter("f")] },
  { label: "Next field", hint: "Tab", keys: [[0xff09, "Tab"]] },
  { label: "Escape", hint: "Esc", keys: [escape] },
  { label: "Close the tab", hint: "Ctrl W", keys: [ctrl, letter("w")] },
  { label: "New tab", hint: "Ctrl T", keys: [ctrl, letter("t")] },
  // Sessions have one window. Firefox gives the key to the page, Chromium is not given it.
  { label: "Ctrl+N, for the page", hint: "Ctrl N", keys: [ctrl, letter("n")], only: "firefox" },
  { label: "Larger", hint: "Ctrl +", keys: [ctrl, [0x2b, "Equal"]] },
  { label: "Smaller", hint: "Ctrl −", keys: [ctrl, [0x2d, "Minus"]] },
  { label: "Usual size", hint: "Ctrl 0", keys: [ctrl, [0x30, "Digit0"]] },
];

// specialsOf are those that have an effect in a session with this browser.
export const specialsOf = (engine?: string): readonly Special[] => specials.filter((s) => s.only === undefined || s.only === engine);

export const pasteKeys: readonly Key[] = [ctrl, letter("v")];

// symbolOf is the key symbol of a character.
export function symbolOf(c: string): number {
  const p = c.codePointAt(0) ?? 0;
  if (c === "\n" || c === "\r") return enter[0];
  if (c === "\t") return 0xff09;
  return (p >= 0x20 && p <= 0x7e) || (p >= 0xa0 && p <= 0xff) ? p : 0x01000000 | p;
}

// isLeave: the one shortcut the page keeps, to get out of the picture.
export const isLeave = (e: { key: string; ctrlKey: boolean; altKey: boolean; shiftKey: boolean; metaKey: boolean }) => e.key === "Home" && e.ctrlKey && e.altKey && !e.metaKey;
