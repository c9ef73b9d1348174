import type { Schemas } from "~/api/client";
import { bytes } from "~/ui/Bytes";
import type { Tone } from "~/ui/StateBadge";

export type Approval = Schemas["WebaccessApproval"];

const words: Record<Approval["state"], { state: string; tone: Tone; label: string }> = {
  waiting: { state: "waiting", tone: "busy", label: "Waiting" },
  approved: { state: "approved", tone: "good", label: "Approved" },
  denied: { state: "denied", tone: "bad", label: "Denied" },
  expired: { state: "expired", tone: "off", label: "Expired" },
  withdrawn: { state: "withdrawn", tone: "off", label: "Taken back" },
  lost: { state: "lost", tone: "bad", label: "Lost" },
};

export const stateOf = (a: Pick<Approval, "state">) => words[a.state];

// outcome says who decided, and why. What is lost may have been approved before.
export function outcome(a: Pick<Approval, "state" | "decided_by" | "reason">): string {
  const by = a.decided_by ? `${a.state === "lost" ? "approved " : ""}by ${a.decided_by}` : "";
  return [by, a.reason].filter(Boolean).join(": ");
}

// bodyOf says what is sent along, in a sentence.
export function bodyOf(a: Pick<Approval, "length_bytes" | "content_type">): string {
  if (a.length_bytes === 0) return "Nothing is sent along.";
  const what = a.content_type ? ` (${a.content_type})` : "";
  return a.length_bytes < 0 ? `It has a body of unknown length${what}.` : `It has a body of ${bytes(a.length_bytes)}${what}.`;
}

// methodOf is the request line's method, and what the rule saw if an
// application may take another from elsewhere: "POST as DELETE".
export function methodOf(a: Pick<Approval, "method" | "rule_method">): string {
  return a.rule_method && a.rule_method !== a.method ? `${a.method} as ${a.rule_method}` : a.method;
}

// pathOf is a URL without its origin, which the target names already.
export function pathOf(url: string): string {
  const at = url.indexOf("/", url.indexOf("://") + 3);
  return at < 0 ? "/" : url.slice(at);
}

// key is where lists of approvals are kept; its topic makes them stale.
export const key = (...rest: string[]) => ["web_approvals", ...rest] as const;
