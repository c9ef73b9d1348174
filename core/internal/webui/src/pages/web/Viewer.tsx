import { notifications } from "@mantine/notifications";
import { useQueryClient } from "@tanstack/react-query";
import { type DragEvent, useCallback, useEffect, useRef, useState } from "react";
import { asError } from "~/api/client";
import { collect, type Dropped } from "../terminal/drop";
import { canFullScreen, enter, exit } from "../terminal/keyboard";
import { extendSession, webKey, type WebSession } from "./api";
import { Bar, type Side } from "./Bar";
import { give, isPaste, readIfAllowed, tooMuch } from "./clipboard";
import { ClipboardPanel } from "./ClipboardPanel";
import { Files } from "./Files";
import { isLeave, pasteKeys, touch } from "./keys";
import { Over } from "./Over";
import { Banner, useWarning } from "./Banner";
import { send } from "./transfers";
import { TouchKeyboard } from "./TouchKeyboard";
import { useScreen } from "./useScreen";
import classes from "./web.module.css";

// Viewer is a running session: the picture and everything around it.
export function Viewer({ s, watch }: { s: WebSession; watch: boolean }) {
  const client = useQueryClient();
  const frame = useRef<HTMLElement>(null);
  const box = useRef<HTMLDivElement>(null);
  const bar = useRef<HTMLDivElement>(null);
  const [side, setSide] = useState<Side>();
  const [scaled, setScaled] = useState(false);
  const [over, setOver] = useState(false);
  const [out, setOut] = useState<{ text: string; given: boolean }>();
  const lastInput = useRef(Date.now());
  const sent = useRef<string>(undefined);
  // What the clipboard's panel sent is what is pasted next, until the person
  // has been elsewhere and may have copied something.
  const byPanel = useRef(false);
  const may = { in: !watch && s.policy.clipboard_in > 0, out: !watch && s.policy.clipboard_out > 0, up: !watch && s.policy.upload_max > 0, files: !watch && s.policy.upload_max + s.policy.download_max > 0 };

  const copied = useCallback(
    (text: string) => {
      sent.current = text; // it is there already
      void give(text).then((given) => {
        setOut({ text, given });
        if (!given) notifications.show({ id: "copied", message: "Text was copied in the session. Open the clipboard panel to take it: your browser wants a click first." });
      });
    },
    [],
  );
  const picture = useScreen(s.id, watch, box, may.out ? copied : ignore);
  const { state, screen } = picture;
  const live = state.at === "live";

  const paste = useCallback(
    (text: string, press: boolean): boolean => {
      const problem = tooMuch(text, s.policy.clipboard_in);
      if (problem) {
        notifications.show({ id: "toomuch", color: "orange", message: problem });
        return false;
      }
      const known = sent.current === text;
      if (!known) screen.current?.paste(text);
      sent.current = text;
      // The text must be there before the keys that paste it.
      if (press) setTimeout(() => screen.current?.press(pasteKeys), known ? 0 : 120 + text.length / 20_000);
      return true;
    },
    [s.policy.clipboard_in, screen],
  );

  // Keys and pastes, before noVNC takes them.
  useEffect(() => {
    const el = box.current;
    if (!el || watch) return;
    const key = (e: KeyboardEvent) => {
      lastInput.current = Date.now();
      if (isLeave(e)) {
        e.preventDefault();
        e.stopImmediatePropagation();
        if (e.type === "keydown") bar.current?.querySelector<HTMLElement>("button")?.focus();
      } else if (isPaste(e)) {
        // The browser's own paste follows and needs no permission.
        e.stopImmediatePropagation();
        if (!may.in) e.preventDefault();
      }
    };
    const pasted = (e: ClipboardEvent) => {
      e.preventDefault();
      const text = byPanel.current ? "" : (e.clipboardData?.getData("text/plain") ?? "");
      if (may.in && text) paste(text, true);
      else if (may.in) screen.current?.press(pasteKeys);
    };
    const pointer = () => (lastInput.current = Date.now());
    const away = () => (byPanel.current = false);
    window.addEventListener("blur", away);
    el.addEventListener("keydown", key, true);
    el.addEventListener("keyup", key, true);
    document.addEventListener("paste", pasted);
    el.addEventListener("pointermove", pointer, { passive: true });
    el.addEventListener("pointerdown", pointer, { passive: true });
    el.addEventListener("wheel", pointer, { passive: true });
    return () => {
      window.removeEventListener("blur", away);
      el.removeEventListener("keydown", key, true);
      el.removeEventListener("keyup", key, true);
      document.removeEventListener("paste", pasted);
      el.removeEventListener("pointermove", pointer);
      el.removeEventListener("pointerdown", pointer);
      el.removeEventListener("wheel", pointer);
    };
  }, [watch, may.in, paste, screen]);

  // Where it was permitted once, what is on the clipboard goes along with the focus.
  useEffect(() => {
    if (!may.in || !live) return;
    const focus = () => void readIfAllowed().then((t) => {
      if (t && t !== sent.current && !tooMuch(t, s.policy.clipboard_in)) paste(t, false);
    });
    window.addEventListener("focus", focus);
    return () => window.removeEventListener("focus", focus);
  }, [may.in, live, paste, s.policy.clipboard_in]);

  useEffect(() => {
    if (live) screen.current?.focus();
  }, [live, screen]);
  useEffect(() => screen.current?.fit(scaled), [scaled, live, screen]);
  useEffect(() => {
    document.title = `${live ? "" : "· "}${s.target_name}${watch ? ` (${s.user_name ?? "watching"})` : ""} · Caponier`;
  }, [live, s.target_name, s.user_name, watch]);
  const ended = s.state === "ended" || state.at === "over" || state.at === "refused";
  useEffect(() => {
    if (!live || watch) return;
    const ask = (e: BeforeUnloadEvent) => e.preventDefault();
    window.addEventListener("beforeunload", ask);
    return () => window.removeEventListener("beforeunload", ask);
  }, [live, watch]);
  // What ended is read again: the reason stands there.
  useEffect(() => {
    if (state.at === "over") void client.invalidateQueries({ queryKey: webKey(s.id) });
  }, [state.at, client, s.id]);

  const warning = useWarning(watch || ended ? undefined : s, lastInput);
  const stay = () => {
    lastInput.current = Date.now();
    screen.current?.press([touch]);
    screen.current?.focus();
  };
  const extend = () => void extendSession(s.id).then(
    (now) => client.setQueryData(webKey(s.id), { ...s, ...now }),
    (e: unknown) => notifications.show({ color: "red", message: asError(e).message }),
  );
  const upload = (d: Dropped) => {
    if (d.tooMany) notifications.show({ message: "That is too many files at once: the first 20,000 are uploaded." });
    if (d.files.length + d.folders.length === 0) return;
    setSide("files");
    send(s.id, d, s.policy.upload_max);
  };
  const drop = (e: DragEvent) => {
    e.preventDefault();
    setOver(false);
    void collect(e.dataTransfer).then(upload, () => notifications.show({ message: "The browser could not read what was dropped." }));
  };

  return (
    <main ref={frame} className={classes.frame}>
      <h1 className={classes.hidden}>{watch ? `Watching ${s.user_name ?? "a session"} on ${s.target_name}` : s.target_name}</h1>
      <div ref={bar} className={classes.top}>
        <Bar
          s={s} picture={picture} watch={watch} ended={ended} side={side} setSide={setSide} scaled={scaled} setScaled={setScaled}
          may={may} out={out} toggleFull={canFullScreen() ? () => void (document.fullscreenElement ? exit() : frame.current && enter(frame.current).then(() => screen.current?.focus(), () => undefined)) : undefined}
        />
      </div>
      <div className={classes.work}>
        <Banner s={s} picture={picture} watch={watch} ended={ended} warning={warning} stay={stay} extend={extend} />
        <div
          className={classes.stage} data-off={(!live && !ended) || undefined}
          onDragOver={(e) => {
            if (!may.up || ended || ![...e.dataTransfer.types].includes("Files")) return;
            e.preventDefault();
            e.dataTransfer.dropEffect = "copy";
            setOver(true);
          }}
          onDragLeave={(e) => {
            if (!e.currentTarget.contains(e.relatedTarget as Node | null)) setOver(false);
          }}
          onDrop={drop}
        >
          <div
            ref={box} className={classes.picture} data-ended={ended || undefined} role="application" tabIndex={ended ? -1 : 0} onFocus={(e) => e.target === e.currentTarget && screen.current?.focus()}
            aria-label={watch ? `The screen of ${s.user_name ?? "the user"}, to look at` : `The browser on ${s.target_name}. Ctrl+Alt+Home leaves it.`}
          />
          {ended && <Over s={s} state={state} watch={watch} again={picture.again} />}
          {over && <div className={classes.drop} aria-hidden><span>Drop files or folders to upload them</span></div>}
          {live && !watch && <TouchKeyboard screen={screen} />}
        </div>
        {side && !ended && (
          <div className={classes.side}>
            {side === "files" && <Files s={s} upload={upload} close={() => setSide(undefined)} />}
            {side === "clipboard" && (
              <ClipboardPanel
                policy={s.policy} out={out} taken={() => setOut((o) => o && { ...o, given: true })} close={() => setSide(undefined)}
                send={(t) => {
                  if (!paste(t, false)) return false;
                  byPanel.current = true;
                  screen.current?.focus();
                  return true;
                }}
              />
            )}
          </div>
        )}
      </div>
    </main>
  );
}

const ignore = () => undefined;
