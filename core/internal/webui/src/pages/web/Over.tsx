import { Button, Group, Text, Title } from "@mantine/core";
import { IconMovie, IconRefresh, IconTargetArrow } from "@tabler/icons-react";
import { Link } from "@tanstack/react-router";
import { useSession } from "~/app/session";
import type { WebSession } from "./api";
import { openPath } from "./path";
import type { ScreenState } from "./screen";
import classes from "./web.module.css";

// Why sessions end, where core's own text says nothing.
const ends: Record<string, string> = {
  user: "You ended it.", target: "The browser was closed.", terminated: "An administrator ended it.", access_lost: "Your access to this target was withdrawn.", login_ended: "Your login has ended.",
  idle: "Nobody used it for too long.", max_duration: "It reached its longest permitted time.", route_lost: "The browser's machine was lost.", lease_over: "Core could not confirm your access any more.",
  shutdown: "This core is shutting down. Open it again in a moment.", error: "Something went wrong in the browser.", core_lost: "The core that carried it stopped.",
};

// Over stands where the picture was.
export function Over({ s, state, watch, again }: { s: WebSession; state: ScreenState; watch: boolean; again: () => void }) {
  const { can } = useSession();
  const refused = state.at === "refused";
  const told = s.end_text || (state.at === "over" || refused ? state.text : "");
  const known = ends[s.end_reason ?? ""] ?? "";
  const text = told && told !== "The session has ended." ? told : known;
  return (
    <div className={classes.card} role="alert">
      <Title order={2} size="h3">{refused ? "The picture is not shown" : watch ? "The session has ended" : "Your session has ended"}</Title>
      {text && <Text size="sm" mt={6}>{text}</Text>}
      {!refused && !watch && <Text size="sm" mt={6} c="dimmed">The browser and what was in it are gone.</Text>}
      <Group gap="xs" mt="md">
        {refused && <Button onClick={again} leftSection={<IconRefresh size={17} />}>Try again</Button>}
        {!refused && !watch && <Button component="a" href={openPath(s.target_name, s.account ?? "")} leftSection={<IconRefresh size={17} />} data-autofocus>Open again</Button>}
        {s.recording_id && (watch || can("recordings:view")) && <Button variant="default" renderRoot={(p) => <Link {...p} to={`/recordings/${s.recording_id}`} />} leftSection={<IconMovie size={17} />}>Play the recording</Button>}
        <Button variant="default" renderRoot={(p) => <Link {...p} to={watch ? "/connections" : "/targets"} />} leftSection={<IconTargetArrow size={17} />}>{watch ? "Connections" : "My targets"}</Button>
      </Group>
    </div>
  );
}
