import { createTheme, type MantineColorsTuple } from "@mantine/core";

// A quiet sea green; shade 7 under white text, on both grounds, and shade 4 as
// text on the dark one pass AA.
const sea: MantineColorsTuple = ["#eefaf8", "#d8f1ed", "#b0e3db", "#83d2c7", "#57bfb1", "#2fa899", "#178b7e", "#0f766e", "#0d5f59", "#0a4a46"];
const ink: MantineColorsTuple = ["#d5dade", "#b4bcc4", "#939ea9", "#717d8a", "#4b5662", "#38414b", "#1b222a", "#1e252c", "#171d23", "#10151a"];

export const theme = createTheme({
  primaryColor: "sea",
  primaryShade: 7,
  autoContrast: true,
  luminanceThreshold: 0.25,
  colors: { sea, dark: ink },
  defaultRadius: "md",
  cursorType: "pointer",
  focusRing: "auto",
  respectReducedMotion: true,
  fontFamily: 'system-ui, -apple-system, "Segoe UI", "Noto Sans", "DejaVu Sans", sans-serif',
  fontFamilyMonospace: 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace',
  headings: { fontWeight: "650", sizes: { h1: { fontSize: "1.5rem" }, h2: { fontSize: "1.125rem" }, h3: { fontSize: "1rem" } } },
  components: {
    Tooltip: { defaultProps: { withArrow: true, openDelay: 300 } },
    // The title of a dialog is no banner of the page.
    Modal: { defaultProps: { centered: true, closeButtonProps: { "aria-label": "Close" }, overlayProps: { backgroundOpacity: 0.4 }, attributes: { header: { role: "presentation" } } } },
    DrawerHeader: { defaultProps: { role: "presentation" } },
    Badge: { defaultProps: { variant: "light", radius: "sm" } },
    TextInput: { defaultProps: { autoComplete: "off" } },
  },
});
