import type { Schemas } from "~/api/client";

export type Provider = Schemas["SigninProviderView"];
export type Authority = Schemas["SigninAnchorView"];
type ProviderConfig = Schemas["SigninProviderConfig"];
type AuthorityConfig = Schemas["SigninAnchorConfig"];

export const tag = (version: number) => ({ "If-Match": `"${version}"` });

export const linkWords: Record<NonNullable<ProviderConfig["link"]>, string> = {
  none: "Only by an administrator or the user",
  name: "By the same user name",
  verified_email: "By a verified mail address",
};

export const fieldWords: Record<AuthorityConfig["field"], string> = {
  subject_cn: "Subject: common name", subject_serial: "Subject: serial number", subject_email: "Subject: mail address",
  san_email: "Alternative name: mail address", san_upn: "Alternative name: UPN", san_dns: "Alternative name: host name", san_uri: "Alternative name: URI",
};

export const choices = <K extends string>(words: Record<K, string>) => (Object.entries(words) as [K, string][]).map(([value, label]) => ({ value, label }));

// words splits what people type into lists: with blanks, commas or lines.
export const words = (text: string) => text.split(/[\s,]+/).filter(Boolean);

// some leaves an empty list out, so that core takes what it takes by default.
export const some = <T,>(list: T[]) => (list.length > 0 ? list : undefined);

export interface ListState {
  tone: "good" | "warn" | "bad" | "off";
  text: string;
  until?: string;
}

// listState says what the revocation lists of an authority mean for logins.
export function listState(a: Authority, now: number): ListState {
  if (!a.crl_at) return a.config.require_crl ? { tone: "bad", text: "None: nobody gets in" } : { tone: "off", text: "None" };
  if (a.crl_until && Date.parse(a.crl_until) <= now) return { tone: "bad", text: "Out of date: nobody gets in", until: a.crl_until };
  const near = a.crl_until && Date.parse(a.crl_until) - now < 24 * 3600_000;
  return { tone: near ? "warn" : "good", text: a.crl_entries === 1 ? "1 revoked" : `${a.crl_entries} revoked`, until: a.crl_until };
}
