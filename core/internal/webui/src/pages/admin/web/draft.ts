import type { Schemas } from "~/api/client";
import { blank, compile, type Policy, type Recipe, read, type Simple, type Spec } from "./recipe";

export type Target = Schemas["TargetView"];
export type Browser = Schemas["TargetWebBrowser"];

// Draft is a web target while it is edited.
export interface Draft {
  name: string;
  site: string;
  comment: string;
  tags: string[];
  disabled: boolean;
  start: string;
  insecure: boolean;
  api: boolean; // for programs, too
  scan: string;
  simple: Simple;
  recipe: Recipe; // in force with the preset advanced
  policy: Policy; // without its recipe
  browser: Browser;
}

export function draftOf(t?: Target): Draft {
  const w = t?.web;
  const { recipe, ...policy } = w?.policy ?? {};
  const start = w?.start_url ?? "";
  return {
    name: t?.name ?? "", site: t?.site ?? "", comment: t?.comment ?? "", tags: t?.tags ?? [], disabled: t?.disabled ?? false, start, insecure: w?.insecure ?? false, api: w?.api ?? false, scan: w?.scan_url ?? "",
    simple: w ? read(recipe, start) : { ...blank, preset: "form" }, recipe: recipe ?? {}, policy, browser: w?.browser ?? {},
  };
}

// recipeOf is the recipe a draft means.
export const recipeOf = (d: Draft): Recipe => (d.simple.preset === "advanced" ? d.recipe : compile(d.simple, d.start).recipe);

// specOf is what is saved, and what stands in its way.
export function specOf(d: Draft): { web: Spec; problems: string[] } {
  const { problems } = d.simple.preset === "advanced" ? { problems: [] } : compile(d.simple, d.start);
  const recipe = recipeOf(d);
  return {
    problems,
    web: { start_url: d.start.trim(), ...(d.insecure ? { insecure: true } : {}), ...(d.api ? { api: true } : {}), ...(d.scan ? { scan_url: d.scan } : {}), policy: { ...d.policy, recipe }, browser: d.browser },
  };
}

const mib = 1 << 20;

// asMiB and fromMiB turn bytes into what the form shows.
export const asMiB = (n: number | undefined, fallback: number) => Math.round(((n ?? fallback) / mib) * 1000) / 1000;
export const fromMiB = (v: number | string) => Math.round(Math.max(0, Number(v) || 0) * mib);

// lines of a text that say something.
export const listOf = (text: string): string[] => text.split(/[\s,]+/).filter(Boolean);
