import classes from "./StateBadge.module.css";

export type Tone = "good" | "warn" | "bad" | "busy" | "off";

const tones: Record<string, Tone> = {
  connected: "good", online: "good", complete: "good", ok: "good", active: "good", allowed: "good", healthy: "good", open: "good", live: "good",
  requested: "busy", connecting: "busy", recording: "busy", disconnecting: "busy", pending: "busy", draining: "warn", drained: "warn", cordoned: "warn",
  degraded: "warn", incomplete: "warn", expiring: "warn", locked: "warn", unknown: "off",
  failed: "bad", damaged: "bad", offline: "bad", revoked: "bad", refused: "bad", denied: "bad",
  disconnected: "off", closed: "off", expired: "off", disabled: "off", ended: "off",
};

// StateBadge is a state as a word with a dot: never by colour alone.
export function StateBadge({ state, tone, label }: { state: string; tone?: Tone; label?: string }) {
  return (
    <span className={classes.badge} data-tone={tone ?? tones[state] ?? "off"}>
      <span className={classes.dot} aria-hidden />
      {label ?? state.charAt(0).toUpperCase() + state.slice(1).replaceAll("_", " ")}
    </span>
  );
}
