import { Text } from "@mantine/core";
import { modals } from "@mantine/modals";
import { useEffect } from "react";

const reloaded = "caponier:reloaded";

// tellConflict explains a 412: somebody else changed the same thing meanwhile.
export function tellConflict(reload: () => void): void {
  modals.openConfirmModal({
    modalId: "conflict",
    title: "Somebody changed this meanwhile",
    children: <Text size="sm">Nothing of yours was saved, so that their change is not lost. Load the new version, then make your change again.</Text>,
    labels: { confirm: "Load the new version", cancel: "Keep looking at mine" },
    onConfirm: () => {
      reload();
      window.dispatchEvent(new Event(reloaded));
    },
  });
}

// useReloaded runs close when the new version is loaded after a conflict: what
// an open form shows is of the old one.
export function useReloaded(close: () => void): void {
  useEffect(() => {
    window.addEventListener(reloaded, close);
    return () => window.removeEventListener(reloaded, close);
  }, [close]);
}
