import { ActionIcon, Tooltip } from "@mantine/core";
import { IconFolderUp } from "@tabler/icons-react";
import { type ReactNode, useRef } from "react";
import { chosen, type Found } from "./drop";

// Tool is a button of a file panel.
export function Tool({ label, icon, onClick, disabled }: { label: string; icon: ReactNode; onClick?: () => void; disabled?: boolean }) {
  return (
    <Tooltip label={label}>
      <ActionIcon variant="subtle" color="gray" aria-label={label} onClick={onClick} disabled={disabled}>{icon}</ActionIcon>
    </Tooltip>
  );
}

// FolderButton has a whole folder chosen.
export function FolderButton({ choose }: { choose: (f: Found[]) => void }) {
  const input = useRef<HTMLInputElement>(null);
  return (
    <>
      <Tool label="Upload a folder" icon={<IconFolderUp size={18} />} onClick={() => input.current?.click()} />
      <input
        ref={(el) => {
          input.current = el;
          el?.setAttribute("webkitdirectory", "");
        }}
        type="file" multiple hidden aria-hidden tabIndex={-1}
        onChange={(e) => {
          if (e.currentTarget.files) choose(chosen(e.currentTarget.files));
          e.currentTarget.value = "";
        }}
      />
    </>
  );
}
