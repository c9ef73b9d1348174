// The browser keeps Ctrl+W, Ctrl+T and Ctrl+N for itself, except in full
// screen where the Keyboard Lock API exists (Chromium).
interface Keyboard {
  lock(keys?: string[]): Promise<void>;
  unlock(): void;
}

const keyboard = (): Keyboard | undefined => (navigator as { keyboard?: Keyboard }).keyboard;

export const canLock = () => typeof keyboard()?.lock === "function";
export const canFullScreen = () => document.fullscreenEnabled;

// enter shows el alone on the screen; all keys then go to the terminal. Esc
// leaves when it is held.
export async function enter(el: Element): Promise<void> {
  await el.requestFullscreen({ navigationUI: "hide" });
  await keyboard()?.lock().catch(() => undefined);
}

export async function exit(): Promise<void> {
  keyboard()?.unlock();
  if (document.fullscreenElement) await document.exitFullscreen();
}
