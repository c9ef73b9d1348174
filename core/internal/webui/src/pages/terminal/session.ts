import { ClipboardAddon, type IClipboardProvider } from "@xterm/addon-clipboard";
import { FitAddon } from "@xterm/addon-fit";
import { SearchAddon } from "@xterm/addon-search";
import { Unicode11Addon } from "@xterm/addon-unicode11";
import { WebLinksAddon } from "@xterm/addon-web-links";
import { Terminal } from "@xterm/xterm";
import { api, ApiError, asError, ask, type Schemas } from "~/api/client";
import { Link, type LinkState, terminalExists } from "./link";
import { prefs } from "./prefs";
import { themes } from "./themes";

export type State = Schemas["WebtermTerminal"];

// Status is what a tab shows about its session.
export interface Status {
  phase: "opening" | "connecting" | "running" | "lost" | "taken" | "ended" | "refused";
  state?: Partial<State>;
  error?: ApiError;
  retryAt?: number;
  // giveUpAt is when core ends the session nobody came back to.
  giveUpAt?: number;
}

export interface Wish {
  target: string;
  account: string;
  reason?: string;
}

// resumeFor is how long core keeps a session without a browser.
const resumeFor = 120_000;
const maxPaste = 4 * 1024 * 1024;

// What leaves the terminal for the page around it.
export interface Surroundings {
  changed(): void;
  say(text: string): void;
  confirmPaste(text: string): Promise<boolean>;
  find(): void;
  leave(): void;
  step(by: number): void;
}

let count = 0;

// The terminal sets colours by style attributes, which the page's policy
// forbids in markup; the same through the object model it permits.
function permitStyles(): void {
  const set = Element.prototype.setAttribute;
  const own = HTMLSpanElement.prototype;
  own.setAttribute = function (this: HTMLElement, name: string, value: string) {
    if (name === "style") this.style.cssText = value;
    else set.call(this, name, value);
  };
}
permitStyles();

// Session is one terminal with its connection. It lives outside of React: a
// tab that is not shown goes on.
export class Session {
  readonly key = `t${++count}`;
  readonly term: Terminal;
  readonly fit = new FitAddon();
  readonly search = new SearchAddon();
  status: Status = { phase: "opening" };
  id = "";
  title = "";
  private link?: Link;
  private closed = false;

  constructor(readonly wish: Wish, private readonly around: Surroundings, existing?: State) {
    this.term = new Terminal({
      allowProposedApi: true, // the Unicode version is one
      cursorBlink: true,
      fontFamily: '"JetBrains Mono", "Cascadia Mono", "SF Mono", ui-monospace, "DejaVu Sans Mono", monospace',
      fontSize: prefs.get().fontSize,
      screenReaderMode: prefs.get().reader,
      scrollback: 10_000,
      theme: themes[prefs.scheme()],
      minimumContrastRatio: 4.5,
      macOptionIsMeta: true,
      rightClickSelectsWord: false,
      linkHandler: { activate: (e, url) => openLink(e, url) },
    });
    const t = this.term;
    t.loadAddon(this.fit);
    t.loadAddon(this.search);
    t.loadAddon(new Unicode11Addon());
    t.unicode.activeVersion = "11";
    t.loadAddon(new WebLinksAddon((e, url) => openLink(e, url)));
    t.loadAddon(new ClipboardAddon(undefined, this.clipboard()));
    t.attachCustomKeyEventHandler((e) => this.key_(e));
    const encoder = new TextEncoder();
    t.onData((d) => this.type(encoder.encode(d)));
    t.onBinary((d) => this.type(Uint8Array.from(d, (c) => c.charCodeAt(0))));
    t.onResize(({ cols, rows }) => this.link?.resize(cols, rows));
    t.onTitleChange((title) => {
      this.title = title.slice(0, 100);
      around.changed();
    });
    if (existing) this.follow(existing);
    else void this.open();
  }

  // open asks core for the session, again after a reason was given.
  async open(reason?: string): Promise<void> {
    if (reason !== undefined) this.wish.reason = reason;
    this.set({ phase: "opening" });
    const { target, account } = this.wish;
    try {
      const state = await ask(
        api.POST("/terminal-sessions", { body: { target, account: account || undefined, reason: this.wish.reason || undefined, cols: this.term.cols, rows: this.term.rows } }),
      );
      if (this.closed) {
        void ask(api.DELETE("/terminal-sessions/{id}", { params: { path: { id: state.id } } })).catch(() => undefined);
        return;
      }
      this.follow(state);
    } catch (e) {
      this.set({ phase: "refused", error: asError(e) });
    }
  }

  // reopen starts a new session after the end of one.
  reopen(): void {
    this.link?.close();
    this.link = undefined;
    this.term.reset();
    void this.open();
  }

  retry(): void {
    this.link?.again();
  }

  // close ends the session.
  close(): void {
    this.closed = true;
    this.link?.close();
    this.term.dispose();
    if (this.id && this.live) void ask(api.DELETE("/terminal-sessions/{id}", { params: { path: { id: this.id } } })).catch(() => undefined);
  }

  get live(): boolean {
    return this.status.phase !== "ended" && this.status.phase !== "refused";
  }

  get roundTrip(): number {
    return this.link?.roundTrip ?? 0;
  }

  // paste asks before what a shell would run line by line.
  async paste(text: string): Promise<void> {
    if (!text) return;
    if (text.length > maxPaste) {
      this.around.say("That is too much to paste. Upload it as a file instead.");
      return;
    }
    if (/[\r\n]/.test(text.replace(/[\r\n]+$/, "")) && !this.term.modes.bracketedPasteMode && !(await this.around.confirmPaste(text))) return;
    this.term.paste(text);
    this.term.focus();
  }

  async pasteClipboard(): Promise<void> {
    try {
      await this.paste(await navigator.clipboard.readText());
    } catch {
      this.around.say("The browser does not let this page read the clipboard. Press Ctrl+V instead.");
    }
  }

  async copy(): Promise<void> {
    const text = this.term.getSelection();
    if (!text) return;
    await navigator.clipboard.writeText(text).catch(() => this.around.say("The browser does not let this page write to the clipboard."));
  }

  private follow(state: State): void {
    this.id = state.id;
    this.set({ phase: state.state === "running" ? "running" : "connecting", state });
    this.link?.close();
    this.link = new Link(`/terminal-sessions/${this.id}/socket`, {
      message: (m) => {
        switch (m.kind) {
          case "hello":
            if (m.fresh) this.term.reset();
            break;
          case "output": {
            const upTo = m.offset + m.data.length;
            this.term.write(m.data, () => this.link?.wrote(upTo));
            break;
          }
          case "screen":
            this.term.write(m.data, () => this.link?.wrote(m.offset));
            break;
          case "state":
            this.told(m.state as State);
            break;
        }
      },
      state: (s) => this.linked(s),
    }, () => terminalExists(this.id));
    this.link.resize(this.term.cols, this.term.rows);
  }

  private told(state: State): void {
    this.set({ phase: state.state === "ended" ? "ended" : state.state === "running" ? "running" : "connecting", state: { ...this.status.state, ...clear, ...state } });
  }

  private linked(s: LinkState): void {
    const { state } = this.status;
    switch (s.at) {
      case "up":
        if (this.status.phase === "lost" || this.status.phase === "taken") this.set({ phase: state?.state === "running" ? "running" : "connecting", state });
        break;
      case "lost":
        this.set({ phase: "lost", state, retryAt: s.retryAt, giveUpAt: s.since + resumeFor });
        break;
      case "taken":
        this.set({ phase: "taken", state });
        break;
      case "over":
        if (this.status.phase !== "ended") this.set({ phase: "ended", state: { ...state, text: s.error ? "The session ended while this page was not connected." : state?.text } });
        break;
    }
  }

  private set(status: Status): void {
    this.status = status;
    const dead = status.phase !== "running" && status.phase !== "connecting" && status.phase !== "lost";
    this.term.options.disableStdin = dead || status.state?.locked === true;
    this.term.options.cursorBlink = !dead;
    this.around.changed();
  }

  private type(data: Uint8Array): void {
    if (!this.link || this.status.state?.locked) return;
    this.link.type(data);
  }

  // key_ keeps the few keys that are the page's own from the remote side.
  private key_(e: KeyboardEvent): boolean {
    if (e.type !== "keydown" || !e.ctrlKey || e.altKey || e.metaKey) return true;
    const own = (run: () => void) => {
      e.preventDefault();
      e.stopPropagation();
      run();
      return false;
    };
    if (e.shiftKey) {
      switch (e.code) {
        case "KeyC": return own(() => void this.copy());
        case "KeyV": return own(() => void this.pasteClipboard());
        case "KeyF": return own(() => this.around.find());
        case "PageUp": return own(() => this.around.step(-1));
        case "PageDown": return own(() => this.around.step(1));
        case "Escape": case "Home": return own(() => this.around.leave());
      }
      return true;
    }
    // Ctrl+C copies nothing here: it interrupts, as in every terminal.
    switch (e.key) {
      case "=": case "+": return own(() => prefs.zoom(1));
      case "-": return own(() => prefs.zoom(-1));
      case "0": return own(() => prefs.zoom(0));
    }
    return true;
  }

  // clipboard lets programs on the target set the clipboard (OSC 52), which is
  // said, and never read it.
  private clipboard(): IClipboardProvider {
    return {
      readText: () => "",
      writeText: async (_, text) => {
        if (!document.hasFocus() || text.length > 100_000) return;
        await navigator.clipboard.writeText(text).then(
          () => this.around.say(`${this.wish.target} has put text on your clipboard.`),
          () => undefined,
        );
      },
    };
  }
}

// What a later state leaves out when it does not hold any more.
const clear: Partial<State> = { locked: false, lock_text: undefined, watchers: undefined };

// openLink opens a link of the output only with Ctrl or Command held, in a
// page that knows nothing of this one.
function openLink(e: MouseEvent, url: string): void {
  if (!e.ctrlKey && !e.metaKey) return;
  let scheme = "";
  try {
    scheme = new URL(url).protocol;
  } catch {
    return;
  }
  if (scheme === "https:" || scheme === "http:") window.open(url, "_blank", "noopener,noreferrer");
}
