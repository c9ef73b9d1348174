import { type Rule, same } from "./recipe";

// ruleText writes a rule for people: GET, POST https://cdn.example.org/lib
export function ruleText(r: Rule): string {
  const methods = r.methods?.length ? r.methods.join(", ") : "Any method";
  return `${methods} ${r.scheme ? `${r.scheme}://` : ""}${r.host || "any host"}${r.path ?? ""}${r.site === "-" ? ", directly" : r.site ? `, through site ${r.site}` : ""}`;
}

// hasRule tells whether a rule is in the list already.
export const hasRule = (rules: readonly Rule[], r: Rule) => rules.some((x) => same(x, r));
