import RFB from "@novnc/novnc";
import { type Ref, useEffect, useImperativeHandle, useRef } from "react";
import { LocalChannel } from "./channel";
import type { Frame, Pointer, Shape } from "./frames";
import classes from "./web.module.css";

export interface Stage {
  show(frames: Frame[]): void;
}

// Picture is noVNC showing what it is given, and the pointer over it: the
// recording keeps the pointer apart from the picture.
export function Picture({ width, height, ready, ref }: { width: number; height: number; ready: () => void; ref: Ref<Stage> }) {
  const box = useRef<HTMLDivElement>(null);
  const cursor = useRef<HTMLCanvasElement>(null);
  const channel = useRef<LocalChannel>(null);
  const place = useRef<{ size: { width: number; height: number }; at?: Pointer; shape?: Shape }>({ size: { width, height } });

  const put = () => {
    const el = cursor.current;
    const picture = box.current?.querySelector("canvas");
    if (!el || !picture || !box.current) return;
    const { at, shape, size } = place.current;
    if (!at || !shape?.width) {
      el.hidden = true;
      return;
    }
    const scale = picture.getBoundingClientRect().width / size.width;
    const origin = box.current.getBoundingClientRect();
    const to = picture.getBoundingClientRect();
    el.hidden = false;
    el.style.transform = `translate(${to.left - origin.left + (at.x - shape.hotX) * scale}px, ${to.top - origin.top + (at.y - shape.hotY) * scale}px) scale(${scale})`;
  };

  useEffect(() => {
    if (!box.current) return;
    const local = new LocalChannel(width, height, ready);
    const rfb = new RFB(box.current, local);
    rfb.viewOnly = true;
    rfb.focusOnClick = false;
    rfb.scaleViewport = true;
    rfb.background = "transparent";
    channel.current = local;
    const seen = new ResizeObserver(() => requestAnimationFrame(put));
    seen.observe(box.current);
    return () => {
      seen.disconnect();
      channel.current = null;
      rfb.disconnect();
    };
  }, []);

  useImperativeHandle(ref, () => ({
    show: (frames) => {
      for (const f of frames) {
        channel.current?.tell(f.update);
        if (f.key) place.current.size = { width: f.width, height: f.height };
        if (f.pointer) place.current.at = f.pointer;
        if (f.shape) {
          place.current.shape = f.shape;
          const el = cursor.current;
          if (el && f.shape.width) {
            el.width = f.shape.width;
            el.height = f.shape.height;
            el.getContext("2d")?.putImageData(new ImageData(f.shape.rgba, f.shape.width, f.shape.height), 0, 0);
          }
        }
      }
      // After noVNC has taken a new size.
      requestAnimationFrame(put);
    },
  }), []);

  return (
    <div className={classes.picture}>
      <div ref={box} className={classes.canvas} aria-hidden />
      <canvas ref={cursor} className={classes.pointer} hidden aria-hidden />
    </div>
  );
}
