import { MantineProvider, localStorageColorSchemeManager } from "@mantine/core";
import type { ReactNode } from "react";
import { theme } from "./theme";
import { nonce } from "./trusted";

const scheme = localStorageColorSchemeManager({ key: "caponier-theme" });
const styleNonce = nonce();

// Frame is what every page stands in, signed in or not.
export function Frame({ children }: { children: ReactNode }) {
  return (
    <MantineProvider theme={theme} defaultColorScheme="auto" colorSchemeManager={scheme} getStyleNonce={() => styleNonce}>
      {children}
    </MantineProvider>
  );
}
