import { bytes } from "~/ui/Bytes";
import { CopyText } from "~/ui/CopyText";
import { duration } from "~/ui/Time";
import { Facts, Panel } from "../parts/Panel";
import { presets, read, type Spec } from "./recipe";
import { ruleText } from "./rules";

// WebFacts sums a web target up.
export function WebFacts({ w }: { w: Spec }) {
  const p = w.policy ?? {};
  const b = w.browser ?? {};
  const way = presets.find((x) => x.value === read(p.recipe, w.start_url).preset)?.label ?? "";
  const allow = p.allow ?? [];
  const size = (n: number | undefined, what: string) => (n === undefined ? undefined : n > 0 ? `${what} up to ${bytes(n)}` : `no ${what}`);
  const tls = p.tls ?? {};
  return (
    <Panel title="Web application">
      <Facts rows={[
        ["Start URL", <CopyText key="u" text={w.start_url} />], ["Sign-in", way],
        ["May also reach", allow.length === 0 ? "nothing else" : <>{allow.slice(0, 4).map((r) => <div key={ruleText(r)} className="mono">{ruleText(r)}</div>)}{allow.length > 4 && <div>and {allow.length - 4} more</div>}</>],
        p.learn ? ["Learning", "refused requests are noted as proposals"] : false,
        ["People may", [size(b.clipboard_in, "paste"), size(b.clipboard_out, "copy"), size(b.upload_max, "upload"), size(b.download_max, "download")].filter(Boolean).join(", ")],
        b.popups === "block" ? ["Pages' windows", "not opened"] : false,
        b.sound ? ["Sound", "can be heard, is not recorded"] : false,
        b.devtools ? ["Developer tools", "permitted"] : false,
        b.max_s || b.idle_s ? ["Ends", [b.max_s ? `after ${duration(b.max_s)}${b.extend ? ", can be extended" : ""}` : "", b.idle_s ? `when idle for ${duration(b.idle_s)}` : ""].filter(Boolean).join(", ")] : false,
        b.watermark ? ["Watermark", <span key="w" className="mono">{b.watermark.split("\n").join(" / ")}</span>] : false,
        tls.unchecked ? ["Certificate", "not checked"] : tls.anchors ? ["Certificate", tls.only ? "only of the given authorities" : "also of the given authorities"] : false,
      ]} />
    </Panel>
  );
}
