import { Checkbox, NumberInput, SegmentedControl, SimpleGrid, Stack, Switch, Text, Textarea } from "@mantine/core";
import { Panel } from "../parts/Panel";
import { asMiB, type Browser, fromMiB } from "./draft";
import type { Part } from "./Editor";

const mib = 1 << 20;

// Users says what the person in front of the browser may do.
export function Users({ d, set, at }: Part) {
  const b = d.browser;
  const change = (c: Partial<Browser>) => set({ browser: { ...b, ...c } });
  const size = (key: "clipboard_in" | "clipboard_out" | "upload_max" | "download_max", label: string, fallback: number) => {
    const on = (b[key] ?? fallback) > 0;
    return (
      <div key={key}>
        <Switch label={label} checked={on} onChange={(e) => change({ [key]: e.currentTarget.checked ? fallback : 0 })} />
        {on && <NumberInput mt={6} aria-label={`${label}: at most, MiB`} suffix=" MiB" min={0.001} max={key.startsWith("clip") ? 64 : 65_536} decimalScale={3} value={asMiB(b[key], fallback)} onChange={(v) => Number(v) > 0 && change({ [key]: fromMiB(v) })} error={at(`web.browser.${key}`)} hideControls />}
      </div>
    );
  };
  const minutes = (key: "idle_s" | "max_s", label: string, description: string) => (
    <NumberInput label={label} description={description} min={0} value={Math.round((b[key] ?? 0) / 60)} onChange={(v) => change({ [key]: 60 * (Number(v) || 0) })} error={at(`web.browser.${key}`)} />
  );
  return (
    <Panel title="What people may do">
      <Stack gap="lg">
        <div>
          <Text fw={500} size="sm" mb={4} id="engine">Browser</Text>
          <SegmentedControl aria-labelledby="engine" value={b.engine ?? "firefox"} onChange={(e) => change({ engine: e as "firefox" | "chromium" })} data={[{ value: "firefox", label: "Firefox" }, { value: "chromium", label: "Chromium" }]} />
          <Text size="xs" c="dimmed" mt={4}>Chromium needs a carrier that has it.</Text>
          {at("web.browser.engine") && <Text size="xs" c="red">{at("web.browser.engine")}</Text>}
        </div>
        <div>
          <Text fw={500} size="sm" mb={4} id="mode">Window</Text>
          <SegmentedControl style={{ flexWrap: "wrap" }} aria-labelledby="mode" value={b.mode ?? "kiosk"} onChange={(m) => change({ mode: m as "kiosk" | "bar" | "auto" })} data={[{ value: "kiosk", label: "The page alone" }, { value: "bar", label: "With address bar" }, { value: "auto", label: "Bar at the upper edge" }]} />
        </div>
        <div>
          <Text fw={500} size="sm" mb={4} id="popups">Windows that pages open</Text>
          <SegmentedControl style={{ flexWrap: "wrap" }} aria-labelledby="popups" value={b.popups ?? "tab"} onChange={(p) => change({ popups: p as "tab" | "block" })} data={[{ value: "tab", label: "Fill the screen" }, { value: "block", label: "Are not opened" }]} />
          {at("web.browser.popups") && <Text size="xs" c="red">{at("web.browser.popups")}</Text>}
        </div>
        <Checkbox label="Developer tools (F12)" description="They show what pages get: not the stored credential, which is never in the browser, but the cookies of the application. Whoever has these is signed in from wherever it can be reached." checked={b.devtools ?? false} onChange={(e) => change({ devtools: e.currentTarget.checked })} />
        <Checkbox label="Sound" description="What pages play can be heard by people in the session and by those who watch it. It is not recorded." checked={b.sound ?? false} onChange={(e) => change({ sound: e.currentTarget.checked })} />
        <SimpleGrid cols={{ base: 1, xs: 2, md: 4 }} spacing="md">
          {size("clipboard_in", "Paste into it", 16 * mib)}
          {size("clipboard_out", "Copy out of it", 16 * mib)}
          {size("upload_max", "Upload files", 1024 * mib)}
          {size("download_max", "Download files", 1024 * mib)}
        </SimpleGrid>
        <Text size="xs" c="dimmed" mt={-8}>Sizes are per paste, copy and file. Files also need a grant with “Files”.</Text>
        <Checkbox label="Record copied texts" description="Without this only their size and hash are recorded." checked={b.clipboard_text ?? false} onChange={(e) => change({ clipboard_text: e.currentTarget.checked })} />
        <SimpleGrid cols={{ base: 1, xs: 3 }} spacing="md">
          {minutes("idle_s", "Ends when idle for, minutes", "0: as grant and settings say.")}
          {minutes("max_s", "Longest session, minutes", "0: as grant and settings say.")}
          <NumberInput label="Told before, seconds" description="On the screen." min={0} max={3600} value={b.notice_s ?? 60} onChange={(v) => change({ notice_s: Number(v) || 0 })} error={at("web.browser.notice_s")} />
        </SimpleGrid>
        <Checkbox label="People may extend a session once more for as long" disabled={!b.max_s} checked={(b.extend ?? false) && Boolean(b.max_s)} onChange={(e) => change({ extend: e.currentTarget.checked })} error={at("web.browser.extend")} />
        <Textarea label="Watermark" description="Drawn over the picture, a line each. {user}, {target}, {account}, {address} and {date} stand for what they say." placeholder={"{user}\n{date}"} value={b.watermark ?? ""} onChange={(e) => change({ watermark: e.currentTarget.value })} error={at("web.browser.watermark")} autosize minRows={2} maxRows={6} maxLength={300} />
      </Stack>
    </Panel>
  );
}
