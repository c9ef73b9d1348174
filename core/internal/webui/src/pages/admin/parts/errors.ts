import { ApiError, asError } from "~/api/client";

const bare = (field: string) => field.replace(/^(body|query|path)\./, "");

// errorsAt hands out core's field problems to the inputs that ask for them; a
// problem of window.days[0] belongs to whoever shows "window.days" or "window".
// What no input asked for is the rest, to be shown below the form.
export function errorsAt(error: unknown) {
  const e = error === null || error === undefined ? undefined : asError(error);
  const asked = new Set<string>();
  const belongs = (field: string, name: string) => field === name || field.startsWith(`${name}.`) || field.startsWith(`${name}[`);
  const others = () => (e?.errors ?? []).filter((f) => ![...asked].some((name) => belongs(bare(f.field), name)));
  return {
    at(name: string): string | undefined {
      asked.add(name);
      const texts = (e?.errors ?? []).filter((f) => belongs(bare(f.field), name)).map((f) => (bare(f.field) === name ? f.message : `${bare(f.field).slice(name.length).replace(/^\./, "")}: ${f.message}`));
      return texts.length > 0 ? texts.join(" ") : undefined;
    },
    others,
    rest(): unknown {
      return e && new ApiError(e.status, e.code, e.title, e.detail, others(), e.requestId, e.retryAfter);
    },
  };
}
