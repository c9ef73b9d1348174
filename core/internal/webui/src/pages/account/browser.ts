// browserOf makes a user agent readable.
export function browserOf(agent: string | undefined): string {
  if (!agent) return "Unknown client";
  const m = /(Firefox|Edg|OPR|Chrome|Version)\/(\d+)/.exec(agent.replace(/Chrome\/\d+.*?(Edg|OPR)\//, "$1/"));
  if (!m || !agent.startsWith("Mozilla/")) return agent;
  const name: Record<string, string> = { Edg: "Edge", OPR: "Opera", Version: "Safari" };
  const system = /Windows|Android|iPhone|iPad|Mac OS X|CrOS|Linux/.exec(agent)?.[0] ?? "";
  return `${name[m[1] ?? ""] ?? m[1]} ${m[2]}${system ? ` on ${system.replace("Mac OS X", "macOS").replace("CrOS", "ChromeOS")}` : ""}`;
}
