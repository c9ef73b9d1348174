import type { ITheme } from "@xterm/xterm";

// Two palettes; every colour passes AA on its ground (the terminal raises the
// contrast of what programs choose themselves).
export const themes: Record<"light" | "dark", ITheme> = {
  dark: {
    background: "#10151a", foreground: "#d5dade", cursor: "#57bfb1", cursorAccent: "#10151a", selectionBackground: "#2f5c63",
    black: "#2a323a", red: "#f2777a", green: "#7fc98f", yellow: "#e6c07b", blue: "#7aa7f0", magenta: "#d19bdb", cyan: "#57bfb1", white: "#d5dade",
    brightBlack: "#939ea9", brightRed: "#ff9a9c", brightGreen: "#a3e0ae", brightYellow: "#f6d79a", brightBlue: "#a3c4ff", brightMagenta: "#e7bdf0", brightCyan: "#83d2c7", brightWhite: "#ffffff",
  },
  light: {
    background: "#ffffff", foreground: "#1e252c", cursor: "#0f766e", cursorAccent: "#ffffff", selectionBackground: "#b0e3db",
    black: "#1e252c", red: "#b3261e", green: "#1d6f33", yellow: "#7a5600", blue: "#1f4fb2", magenta: "#86338f", cyan: "#0d5f59", white: "#6b7681",
    brightBlack: "#56616c", brightRed: "#c9352c", brightGreen: "#22803c", brightYellow: "#8a6200", brightBlue: "#2a62d1", brightMagenta: "#9a3fa5", brightCyan: "#0f766e", brightWhite: "#38414b",
  },
};
