import { ActionIcon, CopyButton, Tooltip } from "@mantine/core";
import { IconCheck, IconCopy } from "@tabler/icons-react";
import classes from "./CopyText.module.css";

// CopyText shows something to paste elsewhere, with a button that copies it.
export function CopyText({ text, label = "Copy", block }: { text: string; label?: string; block?: boolean }) {
  return (
    <span className={classes.box} data-block={block || undefined}>
      <code className={classes.text} tabIndex={block ? 0 : undefined}>{text}</code>
      <CopyButton value={text}>
        {({ copied, copy }) => (
          <Tooltip label={copied ? "Copied" : label}>
            <ActionIcon variant="subtle" color={copied ? "sea" : "gray"} onClick={copy} aria-label={copied ? "Copied" : label}>
              {copied ? <IconCheck size={16} /> : <IconCopy size={16} />}
            </ActionIcon>
          </Tooltip>
        )}
      </CopyButton>
    </span>
  );
}
