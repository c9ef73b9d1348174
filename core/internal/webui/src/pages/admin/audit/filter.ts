export type Span = "all" | "hour" | "day" | "week" | "month";

export interface Filter {
  type: string;
  outcome: string;
  about: string;
  span: Span;
}

export const spans: readonly (readonly [Span, string])[] = [["all", "All time"], ["hour", "Last hour"], ["day", "Last 24 hours"], ["week", "Last 7 days"], ["month", "Last 30 days"]];

const lengths: Record<Span, number> = { all: 0, hour: 3600_000, day: 86_400_000, week: 7 * 86_400_000, month: 30 * 86_400_000 };

// query is the filter as core reads it. An ID of a person is who acted or was
// acted on; of a thing, what was acted on.
export function query(f: Filter, now: number): { type?: string; outcome?: "ok" | "denied" | "failed"; about?: string; object?: string; connection?: string; since?: string } {
  const person = f.about.startsWith("usr_") || f.about === "";
  const connection = f.about.startsWith("con_");
  return {
    type: f.type || undefined,
    outcome: (f.outcome || undefined) as "ok" | "denied" | "failed" | undefined,
    about: person ? f.about || undefined : undefined,
    connection: connection ? f.about : undefined,
    object: person || connection ? undefined : f.about,
    since: f.span === "all" ? undefined : new Date(now - lengths[f.span]).toISOString(),
  };
}

export function exportURL(f: Filter, format: "jsonl" | "csv", now: number): string {
  const p = new URLSearchParams({ format });
  for (const [k, v] of Object.entries(query(f, now))) if (v) p.set(k, v);
  return `/api/v1/audit-events/export?${p}`;
}
