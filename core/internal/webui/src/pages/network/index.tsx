import { Button, Tabs } from "@mantine/core";
import { IconPlus } from "@tabler/icons-react";
import { useState } from "react";
import { useSession } from "~/app/session";
import { Page } from "~/ui/Page";
import { Definitions } from "./Definitions";
import { Editor } from "./Editor";
import { Mine } from "./Mine";
import classes from "./Network.module.css";
import { Routers } from "./Routers";
import { Sessions } from "./Sessions";

// Network access: what one may open, and what is open. Administrators also see
// everybody's sessions, the targets and the routers.
export default function Network() {
  const { can, everywhere } = useSession();
  const [making, setMaking] = useState(false);
  const targets = can("targets:view");
  const many = targets || can("connections:view") || everywhere("edges:view");
  return (
    <Page
      title="Network access" fill hint="An open session lets your address, and only yours, reach what it opens. Keep this page open while you work."
      actions={can("targets:manage") && <Button leftSection={<IconPlus size={17} />} onClick={() => setMaking(true)}>New network target</Button>}
    >
      {many ? (
        <Tabs defaultValue="mine" keepMounted={false} className={classes.tabs}>
          <Tabs.List>
            <Tabs.Tab value="mine">Open</Tabs.Tab>
            {can("connections:view") && <Tabs.Tab value="sessions">Sessions</Tabs.Tab>}
            {targets && <Tabs.Tab value="targets">Targets</Tabs.Tab>}
            {everywhere("edges:view") && <Tabs.Tab value="routers">Routers</Tabs.Tab>}
          </Tabs.List>
          <Tabs.Panel value="mine" className={classes.panel}><Mine /></Tabs.Panel>
          <Tabs.Panel value="sessions" className={classes.panel}><Sessions /></Tabs.Panel>
          <Tabs.Panel value="targets" className={classes.panel}><Definitions make={() => setMaking(true)} /></Tabs.Panel>
          <Tabs.Panel value="routers" className={classes.panel}><Routers /></Tabs.Panel>
        </Tabs>
      ) : (
        <Mine />
      )}
      <Editor opened={making} close={() => setMaking(false)} />
    </Page>
  );
}
