import { Button, Group, Text } from "@mantine/core";
import { modals } from "@mantine/modals";
import { notifications } from "@mantine/notifications";
import { IconPlugConnected } from "@tabler/icons-react";
import { Link as RouterLink, useNavigate, useParams, useSearch } from "@tanstack/react-router";
import { useEffect, useRef, useState } from "react";
import "@xterm/xterm/css/xterm.css";
import { Empty } from "~/ui/Empty";
import { Bar } from "./Bar";
import { Files } from "./Files";
import { Find } from "./Find";
import { Notice } from "./Notice";
import { Screen } from "./Screen";
import { close, open, page, restore, show, useTabs } from "./store";
import { Tabs } from "./Tabs";
import classes from "./terminal.module.css";

// TerminalPage shows the open terminals. /terminal/$target?account= opens one
// more and then forgets the parameters, so that a reload does not repeat it.
export default function TerminalPage() {
  const { target } = useParams({ strict: false }) as { target?: string };
  const search = useSearch({ strict: false }) as { target?: string; account?: string };
  const navigate = useNavigate();
  const { sessions, active } = useTabs();
  const frame = useRef<HTMLDivElement>(null);
  const [files, setFiles] = useState(false);
  const [finding, setFinding] = useState(false);
  const asked = useRef("");
  const wanted = target ?? search.target;
  const account = search.account ?? "";
  useEffect(() => {
    const wish = `${wanted ?? ""}\n${account}`;
    if (wanted && asked.current !== wish) {
      asked.current = wish;
      // First what goes on in core: a new session must not be taken for one of those.
      void restore().then(() => {
        open({ target: String(wanted), account: String(account) });
        void navigate({ to: "/terminal", replace: true });
      });
    } else if (!wanted) {
      asked.current = "";
      void restore();
    }
  }, [wanted, account, navigate]);
  useEffect(() => {
    page.say = (message) => notifications.show({ message });
    page.find = () => setFinding(true);
    page.leave = () => frame.current?.querySelector<HTMLElement>('[role="tab"][aria-selected="true"]')?.focus();
    page.confirmPaste = (text) =>
      new Promise((resolve) => {
        const lines = text.split(/\r\n|\r|\n/).length;
        modals.openConfirmModal({
          title: `Paste ${lines} lines?`,
          children: <Text size="sm">The program may run each line as a command as soon as it arrives.</Text>,
          labels: { confirm: "Paste", cancel: "Cancel" },
          onConfirm: () => resolve(true),
          onCancel: () => resolve(false),
          onClose: () => resolve(false),
        });
      });
    return () => {
      page.say = page.find = page.leave = page.confirmPaste = undefined;
    };
  }, []);
  const current = sessions.find((s) => s.key === active);
  useEffect(() => {
    const st = current?.status;
    document.title = current ? `${st?.phase === "running" ? "" : "· "}${current.wish.target} · Caponier` : "Terminal · Caponier";
  }, [current, current?.status]);
  if (sessions.length === 0 && !wanted) {
    return (
      <div className={classes.none}>
        <h1 className={classes.hidden}>Terminal</h1>
        <Empty title="No terminal is open">
          <Group justify="center" mt="sm"><Button renderRoot={(p) => <RouterLink {...p} to="/targets" />} leftSection={<IconPlugConnected size={18} />}>Choose a target</Button></Group>
        </Empty>
      </div>
    );
  }
  return (
    <div ref={frame} className={classes.frame}>
      <h1 className={classes.hidden}>Terminal</h1>
      <Tabs sessions={sessions} active={active} show={show} close={close} />
      {current && <Bar session={current} frame={frame} files={files} setFiles={setFiles} find={() => setFinding(true)} />}
      <div className={classes.work}>
        <div className={classes.stage} id="terminal-panel" role="tabpanel" aria-label={current ? `Terminal on ${current.wish.target}` : "Terminal"}>
          {current && <Notice key={`n${current.key}`} session={current} />}
          {finding && current && <Find key={`f${current.key}`} session={current} close={() => (setFinding(false), current.term.focus())} />}
          {sessions.map((s) => <Screen key={s.key} session={s} shown={s.key === active} />)}
        </div>
        {files && current?.id && current.live && (
          <div className={classes.side}>
            <Files key={current.id} id={current.id} say={(message) => notifications.show({ message })} close={() => setFiles(false)} />
          </div>
        )}
      </div>
    </div>
  );
}
