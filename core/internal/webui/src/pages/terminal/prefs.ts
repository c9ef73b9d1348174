// What a person has set for his terminals, kept in this browser.
export interface Prefs {
  fontSize: number;
  reader: boolean; // for screen readers
  scheme: "auto" | "light" | "dark";
}

const place = "caponier.terminal";
const sizes = { least: 8, most: 32, usual: 14 };

function load(): Prefs {
  const usual: Prefs = { fontSize: sizes.usual, reader: false, scheme: "auto" };
  try {
    const p = JSON.parse(localStorage.getItem(place) ?? "{}") as Partial<Prefs>;
    return {
      fontSize: clamp(Number(p.fontSize) || usual.fontSize),
      reader: p.reader === true,
      scheme: p.scheme === "light" || p.scheme === "dark" ? p.scheme : "auto",
    };
  } catch {
    return usual;
  }
}

const clamp = (n: number) => Math.min(sizes.most, Math.max(sizes.least, Math.round(n)));

let now = load();
const listeners = new Set<() => void>();

export const prefs = {
  get: () => now,
  set(change: Partial<Prefs>): void {
    now = { ...now, ...change };
    localStorage.setItem(place, JSON.stringify(now));
    for (const l of listeners) l();
  },
  // zoom makes the text larger or smaller; 0 is the usual size.
  zoom: (by: number) => prefs.set({ fontSize: by === 0 ? sizes.usual : clamp(now.fontSize + by) }),
  subscribe(l: () => void): () => void {
    listeners.add(l);
    return () => listeners.delete(l);
  },
  // scheme is the colours in use: as set, or as the console has them.
  scheme(): "light" | "dark" {
    if (now.scheme !== "auto") return now.scheme;
    return document.documentElement.dataset.mantineColorScheme === "light" ? "light" : "dark";
  },
};
