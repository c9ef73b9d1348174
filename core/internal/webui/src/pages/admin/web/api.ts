import { offline, problem } from "~/api/client";
import type { Rule } from "./recipe";

// Proposal is a rule for requests that were refused.
export interface Proposal {
  rule: Rule;
  count: number;
  first_at: string;
  last_at: string;
  example_url?: string;
}

async function call<T>(method: string, path: string): Promise<T> {
  const r = await fetch(`/api/v1${path}`, { method, credentials: "same-origin" }).catch(() => {
    throw offline();
  });
  const text = await r.text();
  let body: unknown;
  try {
    body = text ? JSON.parse(text) : undefined;
  } catch {
    body = undefined;
  }
  if (!r.ok) throw problem(r, body);
  return body as T;
}

const at = (id: string) => `/targets/${encodeURIComponent(id)}/web-proposals`;

export const readProposals = (id: string) => call<{ proposals: Proposal[] | null }>("GET", at(id)).then((a) => a.proposals ?? []);
export const clearProposals = (id: string) => call<void>("DELETE", at(id));
