import { Tooltip } from "@mantine/core";
import { useLive } from "../events";
import classes from "./Shell.module.css";

const text = {
  connecting: "Connecting to core",
  live: "Live: changes appear by themselves",
  lost: "Connection to core lost. What you see may be old; it updates when core is back.",
};

export function LiveState() {
  const live = useLive();
  return (
    <Tooltip label={text[live]} multiline maw={280}>
      <span className={classes.live} role="status" aria-label={text[live]}>
        <span className={classes.dot} data-live={live} />
      </span>
    </Tooltip>
  );
}
