import { useComputedColorScheme } from "@mantine/core";
import { useEffect, useRef, useSyncExternalStore } from "react";
import { prefs } from "./prefs";
import type { Session } from "./session";
import classes from "./terminal.module.css";
import { themes } from "./themes";

// Screen gives a session's terminal a place in the page.
export function Screen({ session, shown }: { session: Session; shown: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const set = useSyncExternalStore(prefs.subscribe, prefs.get);
  const scheme = useComputedColorScheme("dark");
  const { term, fit } = session;
  useEffect(() => {
    const el = box.current;
    if (!el) return;
    if (term.element) el.append(term.element);
    else term.open(el);
    const fitNow = () => {
      if (el.clientWidth > 40 && el.clientHeight > 40) fit.fit();
    };
    const watch = new ResizeObserver(() => requestAnimationFrame(fitNow));
    watch.observe(el);
    fitNow();
    return () => watch.disconnect();
  }, [term, fit]);
  useEffect(() => {
    term.options.fontSize = set.fontSize;
    term.options.screenReaderMode = set.reader;
    term.options.theme = themes[set.scheme === "auto" ? scheme : set.scheme];
    if (shown) requestAnimationFrame(() => fit.fit());
  }, [term, fit, set, scheme, shown]);
  useEffect(() => {
    if (shown) term.focus();
  }, [shown, term]);
  return (
    <div
      ref={box} className={classes.screen} hidden={!shown} data-scheme={set.scheme === "auto" ? scheme : set.scheme}
      onContextMenu={(e) => {
        if (e.shiftKey) return; // the browser's own menu
        e.preventDefault();
        if (term.hasSelection()) {
          void session.copy();
          term.clearSelection();
        } else void session.pasteClipboard();
      }}
      onPasteCapture={(e) => {
        // Asked about before the terminal sees it.
        e.preventDefault();
        e.stopPropagation();
        void session.paste(e.clipboardData.getData("text/plain"));
      }}
    />
  );
}
