// The part of the viewer's sound that runs on the browser's audio thread.
import { Jitter } from "./jitter";

declare abstract class AudioWorkletProcessor {
  readonly port: MessagePort;
  abstract process(inputs: Float32Array[][], outputs: Float32Array[][]): boolean;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;

// tellEvery is how many frames pass between two words on what was played.
const tellEvery = 12_000;

class Player extends AudioWorkletProcessor {
  private readonly jitter = new Jitter();
  private frames = 0;
  private played = 0;

  constructor() {
    super();
    this.port.onmessage = (e: MessageEvent<ArrayBuffer>) => this.jitter.push(e.data);
  }

  process(_: Float32Array[][], outputs: Float32Array[][]): boolean {
    const [left, right] = outputs[0] ?? [];
    if (!left || !right) return true;
    this.played += this.jitter.pull(left, right);
    this.frames += left.length;
    if (this.frames >= tellEvery) {
      this.port.postMessage(this.played);
      this.frames = this.played = 0;
    }
    return true;
  }
}

registerProcessor("session-sound", Player);
