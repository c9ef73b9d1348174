import { type RefObject, useEffect, useMemo, useRef, useState } from "react";
import { Screen, type ScreenState } from "./screen";

export interface Picture {
  state: ScreenState;
  round?: number; // ms
  screen: RefObject<Screen | undefined>;
  // again opens the picture anew after a refusal.
  again: () => void;
}

// useScreen shows a session's picture in box while the component is there.
export function useScreen(id: string, watch: boolean, box: RefObject<HTMLElement | null>, clipboard: (text: string) => void): Picture {
  const [state, setState] = useState<ScreenState>({ at: "connecting" });
  const [round, setRound] = useState<number>();
  const [tries, setTries] = useState(0);
  const screen = useRef<Screen>(undefined);
  const take = useRef(clipboard);
  take.current = clipboard;
  useEffect(() => {
    const el = box.current;
    if (!el) return;
    const s = new Screen(id, watch, el, { state: setState, round: setRound, clipboard: (t) => take.current(t) });
    screen.current = s;
    return () => {
      screen.current = undefined;
      s.close();
    };
  }, [id, watch, box, tries]);
  return useMemo(() => ({ state, round, screen, again: () => setTries((n) => n + 1) }), [state, round]);
}
