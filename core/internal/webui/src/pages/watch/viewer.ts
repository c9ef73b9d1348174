import { Unicode11Addon } from "@xterm/addon-unicode11";
import { Terminal } from "@xterm/xterm";
import { api, ApiError, asError, ask, type Schemas } from "~/api/client";
import { Link, type LinkState } from "../terminal/link";

export type Connection = Schemas["ConnRecord"];
export interface Watcher {
  user_id: string;
  user_name: string;
  since: string;
}
export interface Happening {
  at: number; // seconds since the recording began
  kind: string;
  fields?: Record<string, string>;
}
interface Told {
  connection?: Connection;
  watchers?: Watcher[];
  event?: Happening;
  ended?: boolean;
  text?: string;
}

export interface View {
  at: "connecting" | "live" | "lost" | "ended" | "refused";
  connection?: Connection;
  watchers: Watcher[];
  events: Happening[];
  text?: string;
  error?: ApiError;
}

const mostEvents = 200;

// Viewer shows somebody's live connection; it can send nothing into it.
export class Viewer {
  readonly term: Terminal;
  view: View = { at: "connecting", watchers: [], events: [] };
  private readonly link: Link;

  constructor(readonly id: string, private readonly changed: () => void) {
    this.term = new Terminal({
      allowProposedApi: true, disableStdin: true, cursorBlink: false, cursorInactiveStyle: "outline", scrollback: 5000, minimumContrastRatio: 4.5,
      fontFamily: '"JetBrains Mono", "Cascadia Mono", "SF Mono", ui-monospace, "DejaVu Sans Mono", monospace', linkHandler: { activate: () => undefined },
    });
    this.term.loadAddon(new Unicode11Addon());
    this.term.unicode.activeVersion = "11";
    this.link = new Link(`/connections/${encodeURIComponent(id)}/watch`, {
      message: (m) => {
        switch (m.kind) {
          case "hello":
            this.term.reset();
            break;
          case "size":
            this.term.resize(Math.max(2, m.cols), Math.max(1, m.rows));
            this.changed();
            break;
          case "screen":
            this.term.write(m.data);
            break;
          case "output": {
            const upTo = m.offset + m.data.length;
            this.term.write(m.data, () => this.link.wrote(upTo));
            break;
          }
          case "state":
            this.told(m.state as Told);
            break;
        }
      },
      state: (s) => this.linked(s),
    }, () => this.watchable());
  }

  close(): void {
    this.link.close();
    this.term.dispose();
  }

  private async watchable(): Promise<ApiError | null> {
    try {
      const c = await ask(api.GET("/connections/{id}", { params: { path: { id: this.id } } }));
      this.set({ connection: c });
      if (c.state === "disconnected" || c.state === "failed") return new ApiError(409, "not_live", "The connection has ended.", c.end_detail ?? "");
      if (!c.recorded) return new ApiError(409, "not_recorded", "This connection is not recorded, so it cannot be watched.");
      if (!c.recording_id) return null;
      // The handshake's refusal is not shown to pages: ask for it.
      const r = await fetch(`/api/v1/connections/${encodeURIComponent(this.id)}/watch`, { headers: { Accept: "application/problem+json" } });
      const p = (await r.json().catch(() => ({}))) as { title?: string; detail?: string; code?: string };
      return r.status === 426 || r.status >= 500 ? null : new ApiError(r.status, p.code ?? "", p.title ?? "Watching was refused.", p.detail ?? "");
    } catch (e) {
      return asError(e);
    }
  }

  private told(t: Told): void {
    if (t.connection) this.set({ connection: t.connection, watchers: t.watchers ?? [] });
    if (t.event) this.set({ events: [...this.view.events, t.event].slice(-mostEvents) });
    if (t.ended) this.set({ at: "ended", text: t.text });
  }

  private linked(s: LinkState): void {
    switch (s.at) {
      case "up":
        this.set({ at: "live" });
        break;
      case "lost":
        this.set({ at: "lost" });
        break;
      case "over":
        if (this.view.at !== "ended") this.set(s.error && s.error.code !== "not_live" ? { at: "refused", error: s.error } : { at: "ended", text: s.error?.detail });
        break;
    }
  }

  private set(change: Partial<View>): void {
    this.view = { ...this.view, ...change };
    this.changed();
  }
}
