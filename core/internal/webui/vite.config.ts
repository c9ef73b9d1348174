import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

// Puts a gzip copy beside every file worth it; the Go handler serves that one.
function gzip(): Plugin {
  return {
    name: "gzip",
    apply: "build",
    generateBundle: {
      order: "post",
      handler(_, bundle) {
        for (const [name, file] of Object.entries(bundle)) {
          if (!/\.(js|css|svg|wasm)$/.test(name)) continue;
          const source = Buffer.from(file.type === "chunk" ? file.code : file.source);
          if (source.length < 1024) continue;
          this.emitFile({ type: "asset", fileName: `${name}.gz`, source: gzipSync(source, { level: 9 }) });
        }
      },
    },
  };
}

// Styles before scripts: the frame in index.html is painted while they load.
function stylesFirst(): Plugin {
  return {
    name: "styles-first",
    apply: "build",
    transformIndexHtml: {
      order: "post",
      handler: (html) => {
        const styles = html.match(/ *<link rel="stylesheet"[^>]*>\n/g) ?? [];
        const rest = styles.reduce((text, link) => text.replace(link, ""), html);
        return rest.replace(/ *<script type="module"/, (script) => styles.join("") + script);
      },
    },
  };
}

export default defineConfig({
  plugins: [react(), gzip(), stylesFirst()],
  resolve: { alias: { "~": fileURLToPath(new URL("./src", import.meta.url)) } },
  build: {
    target: ["chrome123", "firefox128", "safari17.5"],
    // The policy forbids data: for scripts and styles; small files stay files.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    emptyOutDir: false, // dist/.gitkeep stays; scripts/clean.mjs empties the rest
    reportCompressedSize: true,
    chunkSizeWarningLimit: 900,
    // What index.html needs comes as one file, not as a dozen.
    rolldownOptions: { output: { codeSplitting: { groups: [{ name: "first", tags: ["$initial"] }] } } },
  },
  worker: { format: "es" },
  server: {
    // npm run dev against a running core: CAPONIER_URL=https://127.0.0.1:8443 npm run dev
    proxy: { "/api": { target: process.env.CAPONIER_URL ?? "https://127.0.0.1:8443", secure: false, ws: true } },
  },
});
