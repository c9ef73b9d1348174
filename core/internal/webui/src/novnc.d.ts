// What the console uses of noVNC's RFB client; the package has no types.
declare module "@novnc/novnc" {
  export interface RFBOptions {
    shared?: boolean;
    wsProtocols?: string[];
  }

  // What noVNC takes instead of a websocket.
  export interface RawChannel {
    binaryType: string;
    protocol: string;
    readyState: string;
    onopen: (() => void) | null;
    onmessage: ((e: { data: ArrayBufferLike | Uint8Array }) => void) | null;
    onerror: ((e: unknown) => void) | null;
    onclose: ((e: { code: number; reason: string }) => void) | null;
    send(data: unknown): void;
    close(): void;
  }

  export interface RFBEvents {
    connect: CustomEvent<Record<string, never>>;
    disconnect: CustomEvent<{ clean: boolean }>;
    clipboard: CustomEvent<{ text: string }>;
    desktopname: CustomEvent<{ name: string }>;
    securityfailure: CustomEvent<{ status: number; reason?: string }>;
    bell: CustomEvent<Record<string, never>>;
  }

  export default class RFB {
    constructor(target: Element, channel: string | WebSocket | RawChannel, options?: RFBOptions);
    viewOnly: boolean;
    focusOnClick: boolean;
    clipViewport: boolean;
    dragViewport: boolean;
    scaleViewport: boolean;
    resizeSession: boolean;
    showDotCursor: boolean;
    background: string;
    qualityLevel: number; // 0 to 9
    compressionLevel: number; // 0 to 9
    addEventListener<K extends keyof RFBEvents>(type: K, listener: (e: RFBEvents[K]) => void): void;
    removeEventListener<K extends keyof RFBEvents>(type: K, listener: (e: RFBEvents[K]) => void): void;
    disconnect(): void;
    focus(options?: FocusOptions): void;
    blur(): void;
    sendKey(keysym: number, code: string | null, down?: boolean): void;
    clipboardPasteFrom(text: string): void;
    getImageData(): ImageData;
    toDataURL(type?: string, quality?: number): string;
  }
}
