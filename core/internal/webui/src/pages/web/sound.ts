import { useEffect, useState } from "react";
import { soundURL } from "./api";
import { after, wait } from "./codes";
import { rate } from "./jitter";
import worklet from "./worklet?worker&url";

export type SoundState =
  | { at: "starting" }
  | { at: "on"; playing: boolean } // playing: something is heard just now
  | { at: "refused"; text: string };

// Sound plays a session until it is closed. Browsers want a click before it.
export class Sound {
  private readonly context = new AudioContext({ sampleRate: rate, latencyHint: "interactive" });
  private node?: AudioWorkletNode;
  private socket?: WebSocket;
  private timer?: ReturnType<typeof setTimeout>;
  private attempt = 0;
  private done = false;

  constructor(
    private readonly id: string,
    private readonly watch: boolean,
    private readonly on: (s: SoundState) => void,
  ) {
    on({ at: "starting" });
    this.start().catch((e: unknown) => this.refuse(e instanceof Error ? e.message : String(e)));
  }

  close(): void {
    if (this.done) return; // it was refused
    this.done = true;
    clearTimeout(this.timer);
    this.socket?.close();
    void this.context.close();
  }

  private async start(): Promise<void> {
    await this.context.audioWorklet.addModule(worklet);
    if (this.done) return;
    this.node = new AudioWorkletNode(this.context, "session-sound", { numberOfInputs: 0, outputChannelCount: [2] });
    this.node.port.onmessage = (e: MessageEvent<number>) => {
      if (!this.done) this.on({ at: "on", playing: e.data > 0 });
    };
    this.node.connect(this.context.destination);
    await this.context.resume();
    if (!this.done) this.open();
  }

  private open(): void {
    const ws = new WebSocket(soundURL(this.id, this.watch), ["binary"]);
    ws.binaryType = "arraybuffer";
    this.socket = ws;
    ws.onmessage = (e: MessageEvent<ArrayBuffer>) => {
      this.attempt = 0;
      // A player that was stopped (the machine sleeps, another app has its sound)
      // takes nothing: it would all wait there, and be late.
      if (this.context.state === "running") this.node?.port.postMessage(e.data, [e.data]);
      ws.send(new Uint8Array(1)); // heard: the next may come
    };
    ws.onclose = (e) => {
      if (this.done) return;
      const next = after(e.code, e.reason);
      if (next.then !== "retry") this.refuse(next.text);
      else this.timer = setTimeout(() => this.open(), wait(this.attempt++, Math.random()));
    };
  }

  private refuse(text: string): void {
    if (this.done) return;
    this.close();
    this.on({ at: "refused", text });
  }
}

// useSound plays a session while on is true; undefined is silence.
export function useSound(id: string, watch: boolean, on: boolean): SoundState | undefined {
  const [state, setState] = useState<SoundState>();
  useEffect(() => {
    if (!on) return;
    const sound = new Sound(id, watch, setState);
    return () => {
      sound.close();
      setState(undefined);
    };
  }, [id, watch, on]);
  return state;
}
