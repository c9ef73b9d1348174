import { Anchor, Button, Group, Select, Text, useComputedColorScheme } from "@mantine/core";
import { IconEye, IconLock, IconLockOpen, IconPlayerPlay, IconPlayerStop } from "@tabler/icons-react";
import { Link, useParams } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import "@xterm/xterm/css/xterm.css";
import { api, ask } from "~/api/client";
import { useSession } from "~/app/session";
import { Confirm } from "~/ui/Confirm";
import { ErrorBox } from "~/ui/ErrorBox";
import { Page } from "~/ui/Page";
import { StateBadge } from "~/ui/StateBadge";
import { themes } from "../terminal/themes";
import { type Connection, Viewer } from "./viewer";
import classes from "./watch.module.css";

type Block = "none" | "target" | "user";

// Watch shows a live connection as its user sees it.
export default function Watch() {
  const { connection: id = "" } = useParams({ strict: false }) as { connection?: string };
  const [viewer, setViewer] = useState<Viewer>();
  const [, look] = useState(0);
  useEffect(() => {
    const v = new Viewer(id, () => look((n) => n + 1));
    setViewer(v);
    return () => v.close();
  }, [id]);
  const view = viewer?.view;
  const c = view?.connection;
  return (
    <Page
      title={c ? `${c.user_name} on ${c.target_name}` : "Watch"} fill
      back={<Anchor component={Link} to="/connections" size="sm">← Connections</Anchor>}
      hint={c && <Facts c={c} />}
      actions={c && <Orders c={c} over={view?.at === "ended"} />}
    >
      {view?.at === "refused" && <ErrorBox error={view.error} />}
      {view?.at === "lost" && <Text size="sm" role="status" className={classes.note} data-tone="warn">The connection to core is lost. Connecting again…</Text>}
      {view?.at === "ended" && (
        <Group gap="sm" role="status" className={classes.note}>
          <Text size="sm" style={{ flex: 1 }}>{view.text || "The connection has ended."}</Text>
          {c?.recording_id && <Button size="xs" variant="default" renderRoot={(p) => <Link {...p} to={`/recordings/${c.recording_id}`} />} leftSection={<IconPlayerPlay size={16} />}>Play the recording</Button>}
        </Group>
      )}
      {c?.locked_at && (
        <Text size="sm" role="status" className={classes.note} data-tone="warn">
          <IconLock size={16} /> Locked by {c.locked_by}: {c.lock_text}{c.lock_block === "target" ? " New connections to this target are refused." : c.lock_block === "user" ? " All new connections of this user are refused." : ""}
        </Text>
      )}
      <div className={classes.body}>
        {viewer && <Picture viewer={viewer} />}
        <aside className={classes.side} aria-label="About this connection">
          <h2><IconEye size={16} /> Watching now</h2>
          <ul>{(view?.watchers ?? []).map((w, i) => <li key={w.user_id + i}>{w.user_name}</li>)}</ul>
          <h2>What happens</h2>
          <ol>{(view?.events ?? []).slice(-30).reverse().map((e, i) => <li key={i}><span className="mono">{clock(e.at)}</span> {e.kind}{e.fields && Object.values(e.fields).some(Boolean) ? `: ${Object.values(e.fields).filter(Boolean).join(", ")}` : ""}</li>)}</ol>
          {(view?.events ?? []).length === 0 && <Text size="sm" c="dimmed">Commands, files and locks appear here.</Text>}
        </aside>
      </div>
    </Page>
  );
}

function clock(s: number): string {
  const t = Math.floor(s);
  return [Math.floor(t / 3600), Math.floor(t / 60) % 60, t % 60].map((n) => String(n).padStart(2, "0")).join(":");
}

function Facts({ c }: { c: Connection }) {
  return (
    <Group gap="xs">
      <StateBadge state={c.locked_at ? "locked" : c.state} />
      <span>{[c.account && `as ${c.account}`, `from ${c.source}`, c.site && `site ${c.site}`, c.node_name && `through ${c.node_name}`, c.via && `by ${c.via}`, `since ${new Date(c.requested_at).toLocaleTimeString("en-GB")}`].filter(Boolean).join(" · ")}</span>
      {c.reason && <span>Reason: {c.reason}</span>}
    </Group>
  );
}

// Picture is the read-only terminal, scaled so that all of it is seen.
function Picture({ viewer }: { viewer: Viewer }) {
  const box = useRef<HTMLDivElement>(null);
  const scheme = useComputedColorScheme("dark");
  useEffect(() => {
    const el = box.current;
    if (!el) return;
    const { term } = viewer;
    term.open(el);
    const fit = () => {
      // The watched size is given; the text size is what can follow the window.
      const width = el.clientWidth - 16;
      const height = el.clientHeight - 12;
      if (width < 50 || height < 50) return;
      const size = Math.max(6, Math.min(16, Math.floor(Math.min(width / (term.cols * 0.61), height / (term.rows * 1.2)))));
      if (term.options.fontSize !== size) term.options.fontSize = size;
    };
    const watch = new ResizeObserver(() => requestAnimationFrame(fit));
    watch.observe(el);
    const resized = term.onResize(fit);
    fit();
    return () => {
      watch.disconnect();
      resized.dispose();
    };
  }, [viewer]);
  useEffect(() => {
    viewer.term.options.theme = themes[scheme];
  }, [viewer, scheme]);
  return <div ref={box} className={classes.picture} data-scheme={scheme} role="region" aria-label="The terminal as its user sees it" />;
}

function Orders({ c, over }: { c: Connection; over: boolean }) {
  const { can, everywhere, me } = useSession();
  const [asking, setAsking] = useState<"lock" | "unlock" | "end">();
  const [block, setBlock] = useState<Block>("none");
  if (!can("connections:manage")) return null;
  const params = { path: { id: c.id } };
  const own = c.user_id === me.user.id;
  return (
    <>
      {c.locked_at ? (
        <Button variant="default" leftSection={<IconLockOpen size={18} />} disabled={own} onClick={() => setAsking("unlock")}>Unlock</Button>
      ) : (
        <Button variant="default" leftSection={<IconLock size={18} />} disabled={own || over || !c.lockable} onClick={() => setAsking("lock")}>Lock</Button>
      )}
      <Button color="red" variant="light" leftSection={<IconPlayerStop size={18} />} disabled={over} onClick={() => setAsking("end")}>End</Button>
      <Confirm
        opened={asking === "lock"} close={() => setAsking(undefined)} title="Lock this connection" action="Lock" reason="wanted" reasonLabel="Shown to the user"
        run={(reason) => ask(api.POST("/connections/{id}/lock", { params, body: { reason: reason || undefined, block_new: block } }))}
      >
        {c.user_name} cannot type any more and is told so. The session goes on and its output is shown.
        <Select
          mt="sm" label="New connections" value={block} onChange={(v) => setBlock((v as Block | null) ?? "none")} allowDeselect={false}
          data={[{ value: "none", label: "Allow" }, { value: "target", label: `Refuse to ${c.target_name}` }, ...(everywhere("connections:manage") ? [{ value: "user", label: "Refuse all of this user" }] : [])]}
        />
      </Confirm>
      <Confirm opened={asking === "unlock"} close={() => setAsking(undefined)} title="Unlock this connection" action="Unlock" run={() => ask(api.POST("/connections/{id}/unlock", { params }))}>
        {c.user_name} can type again, and new connections are permitted as before.
      </Confirm>
      <Confirm
        opened={asking === "end"} close={() => setAsking(undefined)} title="End this connection" action="End it" danger reason="wanted" reasonLabel="Shown to the user"
        run={(reason) => ask(api.DELETE("/connections/{id}", { params: { ...params, query: { reason: reason || undefined } } }))}
      >
        The session of {c.user_name} on {c.target_name} ends at once.
      </Confirm>
    </>
  );
}
