// Login is what a stored document for web applications can hold.
export interface Login {
  username: string;
  password: string;
  totp: string; // seed in base32, or an otpauth:// URL
  token: string;
  certificate: string; // PEM
  key: string;
}

export const emptyLogin: Login = { username: "", password: "", totp: "", token: "", certificate: "", key: "" };

// loginDocument is the JSON that is stored: only what was filled in. The seed
// loses the blanks that people copy with it.
export function loginDocument(l: Login): Record<string, string> {
  const totp = l.totp.startsWith("otpauth:") ? l.totp.trim() : l.totp.replace(/[\s-]/g, "").toUpperCase();
  return Object.fromEntries(Object.entries({ ...l, totp }).filter(([, v]) => v !== ""));
}

// seedProblem says what is wrong with a TOTP seed, or nothing.
export function seedProblem(text: string): string | undefined {
  const t = text.trim();
  if (t === "") return undefined;
  if (t.startsWith("otpauth:")) return /^otpauth:\/\/totp\/.*[?&]secret=[A-Za-z2-7=]+/.test(t) ? undefined : "This is no otpauth://totp address with a secret.";
  return /^[A-Za-z2-7]{16,}=*$/.test(t.replace(/[\s-]/g, "")) ? undefined : "A seed is at least 16 letters and the digits 2 to 7.";
}
