import { asError } from "~/api/client";

// fieldErrors turns core's field problems into messages by field name, and the
// rest (of fields the form does not show) into one list.
export function fieldErrors(error: unknown, fields: readonly string[]): { byField: Record<string, string>; others: string[] } {
  const byField: Record<string, string> = {};
  const others: string[] = [];
  if (error === undefined || error === null) return { byField, others };
  for (const f of asError(error).errors) {
    const name = f.field.replace(/^body\./, "");
    if (fields.includes(name)) byField[name] = byField[name] ? `${byField[name]} ${f.message}` : f.message;
    else others.push(`${name}: ${f.message}`);
  }
  return { byField, others };
}
