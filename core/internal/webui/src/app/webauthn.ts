// What a browser's authenticator takes and gives, in the JSON form core speaks
// (WebAuthn §5.1.8, §5.1.9). Written out, because not every browser of use has
// parseRequestOptionsFromJSON and toJSON.
const bytes = (text: string): ArrayBuffer => {
  const raw = atob(text.replace(/-/g, "+").replace(/_/g, "/"));
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out.buffer;
};

const text = (b: ArrayBuffer | null | undefined): string | undefined =>
  b ? btoa(String.fromCharCode(...new Uint8Array(b))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "") : undefined;

interface Described {
  id: string;
  type: "public-key";
  transports?: AuthenticatorTransport[];
}

const describe = (list: Described[] | undefined) => list?.map((c) => ({ ...c, id: bytes(c.id) }));

type Options = Record<string, unknown> & { challenge: string };
const inside = (options: unknown): Options => (options as { publicKey: Options }).publicKey;

// available tells whether this browser can use passkeys at all.
export const available = () => typeof window.PublicKeyCredential === "function";

// offersInField tells whether the browser can offer passkeys where the user
// name is typed.
export async function offersInField(): Promise<boolean> {
  return available() && ((await PublicKeyCredential.isConditionalMediationAvailable?.()) ?? false);
}

// assert asks for a passkey and answers with what core checks.
export async function assert(options: unknown, how: { signal?: AbortSignal; inField?: boolean } = {}): Promise<unknown> {
  const o = inside(options);
  const publicKey = { ...o, challenge: bytes(o.challenge), allowCredentials: describe(o["allowCredentials"] as Described[] | undefined) } as PublicKeyCredentialRequestOptions;
  const c = (await navigator.credentials.get({ publicKey, signal: how.signal, mediation: how.inField ? "conditional" : undefined })) as PublicKeyCredential | null;
  if (!c) throw new DOMException("no passkey", "NotAllowedError");
  const r = c.response as AuthenticatorAssertionResponse;
  return {
    id: c.id, rawId: text(c.rawId), type: c.type, clientExtensionResults: c.getClientExtensionResults(), authenticatorAttachment: c.authenticatorAttachment ?? undefined,
    response: { clientDataJSON: text(r.clientDataJSON), authenticatorData: text(r.authenticatorData), signature: text(r.signature), userHandle: text(r.userHandle) },
  };
}

// create makes a new passkey.
export async function create(options: unknown): Promise<unknown> {
  const o = inside(options);
  const user = o["user"] as { id: string; name: string; displayName: string };
  const publicKey = {
    ...o, challenge: bytes(o.challenge), user: { ...user, id: bytes(user.id) }, excludeCredentials: describe(o["excludeCredentials"] as Described[] | undefined),
  } as unknown as PublicKeyCredentialCreationOptions;
  const c = (await navigator.credentials.create({ publicKey })) as PublicKeyCredential | null;
  if (!c) throw new DOMException("no passkey", "NotAllowedError");
  const r = c.response as AuthenticatorAttestationResponse;
  return {
    id: c.id, rawId: text(c.rawId), type: c.type, clientExtensionResults: c.getClientExtensionResults(), authenticatorAttachment: c.authenticatorAttachment ?? undefined,
    response: { clientDataJSON: text(r.clientDataJSON), attestationObject: text(r.attestationObject), transports: r.getTransports?.() ?? [] },
  };
}

// explain says what became of a passkey that the browser did not give.
export function explain(cause: unknown): string {
  const name = cause instanceof DOMException ? cause.name : "";
  if (name === "InvalidStateError") return "This device has a passkey of yours already.";
  if (name === "NotAllowedError" || name === "AbortError") return "No passkey was used: it was cancelled, or took too long.";
  if (name === "SecurityError") return "Passkeys do not work at this address. Open the console by its proper name.";
  return "The browser could not use a passkey.";
}
