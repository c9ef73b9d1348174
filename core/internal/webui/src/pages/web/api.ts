import { api, ApiError, ask, offline, type Schemas } from "~/api/client";

export type WebSession = Schemas["WebaccessSession"];
// WebPolicy is what the person in front of the browser may do; 0 forbids.
export type WebPolicy = Schemas["WebaccessPolicy"];
// Waiting is a request of the session that needs a second person.
export type Waiting = Schemas["WebaccessWaiting"];
export type WebFile = Schemas["WireWebFile"];
export type Opening = Schemas["OpenWebSessionOpenInBody"];

const at = (id: string) => ({ params: { path: { id } } });

// webKey is where a session is kept; its topic makes it stale.
export const webKey = (id: string) => ["web", id] as const;

export const openSession = (body: Opening) => ask(api.POST("/web-sessions", { body }));
export const readSession = (id: string) => ask(api.GET("/web-sessions/{id}", at(id)));
export const endSession = (id: string) => ask(api.DELETE("/web-sessions/{id}", at(id)));
export const extendSession = (id: string) => ask(api.POST("/web-sessions/{id}/extend", at(id)));
export const withdraw = (id: string) => ask(api.POST("/web-approvals/{id}/withdraw", at(id)));
export const listFiles = async (id: string): Promise<WebFile[]> => (await ask(api.GET("/web-sessions/{id}/files", at(id)))).files ?? [];
export const removeFile = (id: string, path: string) => ask(api.DELETE("/web-sessions/{id}/files/{path}", { params: { path: { id, path } } }));

// fileURL is where a file, or a folder as a tar, is read and written; slashes
// of the path are encoded too.
export const fileURL = (id: string, path: string) => `/api/v1/web-sessions/${encodeURIComponent(id)}/files${path ? `/${encodeURIComponent(path)}` : ""}`;

const socketURL = (id: string, what: string, watch: boolean) => `${location.protocol === "http:" ? "ws" : "wss"}://${location.host}/api/v1/web-sessions/${encodeURIComponent(id)}/${what}${watch ? "?watch=1" : ""}`;

// screenURL is the websocket that carries RFB (RFC 6143), soundURL what pages play.
export const screenURL = (id: string, watch: boolean) => socketURL(id, "screen", watch);
export const soundURL = (id: string, watch: boolean) => socketURL(id, "sound", watch);

// exists tells whether the session goes on: null yes, else why not.
export async function exists(id: string): Promise<ApiError | null> {
  if (!navigator.onLine) return offline();
  try {
    const s = await readSession(id);
    return s.state === "ended" ? new ApiError(410, "ended", "The session has ended.", s.end_text ?? "") : null;
  } catch (e) {
    return e instanceof ApiError ? e : offline();
  }
}
