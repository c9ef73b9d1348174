import { useMantineColorScheme, SegmentedControl, Stack, Text } from "@mantine/core";
import { useSession } from "~/app/session";
import { Page } from "~/ui/Page";
import { Identities } from "./Identities";
import { Keys } from "./Keys";
import { Passkeys } from "./Passkeys";
import { Password } from "./Password";
import { Part } from "./Part";
import { SecondFactor } from "./SecondFactor";
import { Sessions } from "./Sessions";
import { Tokens } from "./Tokens";
import classes from "./account.module.css";

// Account is everything about oneself: who one is, how one signs in, what is open.
export default function Account() {
  const { me } = useSession();
  return (
    <Page title="My account" hint="How you sign in, and what is signed in as you.">
      <div className={classes.parts}>
        <Profile />
        <Password />
        <SecondFactor />
        <Passkeys />
        <Identities />
        <Keys />
        <Tokens />
        <Sessions />
        <Preferences />
      </div>
      <Text size="xs" c="dimmed" mt="md">You came from {me.source} by {(me.methods ?? []).join(" and ")}.</Text>
    </Page>
  );
}

function Profile() {
  const { me } = useSession();
  const u = me.user;
  const facts: [string, string][] = [["User name", u.name], ["Name", u.display_name || "–"], ["Mail address", u.email || "–"], ["Permissions", (me.permissions ?? []).join(", ") || "none but your own things"]];
  return (
    <Part title="Profile" hint="An administrator can change this.">
      <dl className={classes.facts}>
        {facts.map(([name, value]) => (
          <div key={name}><dt>{name}</dt><dd>{value}</dd></div>
        ))}
      </dl>
    </Part>
  );
}

function Preferences() {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  return (
    <Part title="Preferences" hint="Kept in this browser.">
      <Stack gap={6} align="flex-start">
        <Text size="sm" fw={500} id="scheme">Colours</Text>
        <SegmentedControl
          aria-labelledby="scheme" value={colorScheme} onChange={(v) => setColorScheme(v as "light" | "dark" | "auto")}
          data={[{ value: "auto", label: "As the system" }, { value: "light", label: "Light" }, { value: "dark", label: "Dark" }]}
        />
      </Stack>
    </Part>
  );
}
