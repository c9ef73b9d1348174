import type { FieldProblem } from "~/api/client";

const columns = ["name", "kind", "site", "host", "port", "tags", "accounts", "comment"];

const quote = (v: string) => (/[",\n]/.test(v) ? `"${v.replaceAll('"', '""')}"` : v);

// asTable makes a table of plain lines of hosts, "site/host:port" or
// "name site/host:port"; what has a header line already stays as it is.
export function asTable(text: string): string {
  const lines = text.replace(/^\ufeff/, "").split(/\r?\n/);
  const head = (lines.find((l) => l.trim() !== "") ?? "").toLowerCase().split(",").map((c) => c.trim());
  if (head.includes("host") && head.every((c) => columns.includes(c))) return text;
  const out = ["name,site,host,port"];
  for (const line of lines) {
    const l = line.trim();
    const words = l.startsWith("#") ? [] : l.split(/[\s,;]+/).filter(Boolean);
    const address = words.at(-1);
    if (!address) continue;
    const slash = address.indexOf("/");
    const site = slash > 0 ? address.slice(0, slash) : "";
    const rest = address.slice(slash + 1);
    const m = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d+))?$/.exec(rest);
    const host = m?.[1] ?? m?.[2] ?? rest;
    const name = words.length > 1 ? (words[0] ?? "") : host.toLowerCase().replace(/[^a-z0-9._-]+/g, "-");
    out.push([name, site, host, m?.[3] ?? ""].map(quote).join(","));
  }
  return out.join("\n");
}

// byLine sorts problems as they stand in the text: "line 12: port".
export function byLine(problems: readonly FieldProblem[]): { line: string; text: string }[] {
  return problems
    .map((p) => {
      const m = /^line (\d+)(?:: (.*))?$/.exec(p.field);
      return m ? { n: Number(m[1]), line: `Line ${m[1]}`, text: m[2] ? `${m[2]} ${p.message}` : p.message } : { n: 0, line: p.field, text: p.message };
    })
    .sort((a, b) => a.n - b.n)
    .map(({ line, text }) => ({ line, text }));
}
