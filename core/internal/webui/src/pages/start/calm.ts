import { useCallback, useEffect, useRef } from "react";

// calm calls run at once, and then at most every ms however often it is asked;
// the last ask is never lost.
export function calm(run: () => void, ms: number, now: () => number = Date.now, later: (f: () => void, ms: number) => unknown = setTimeout): () => void {
  let last = Number.NEGATIVE_INFINITY;
  let waiting = false;
  return () => {
    if (waiting) return;
    const wait = last + ms - now();
    if (wait <= 0) {
      last = now();
      run();
      return;
    }
    waiting = true;
    later(() => {
      waiting = false;
      last = now();
      run();
    }, wait);
  };
}

export function useCalm(run: () => void, ms: number): () => void {
  const latest = useRef(run);
  useEffect(() => {
    latest.current = run;
  });
  const held = useRef<() => void>(undefined);
  return useCallback(() => {
    held.current ??= calm(() => latest.current(), ms);
    held.current();
  }, [ms]);
}
