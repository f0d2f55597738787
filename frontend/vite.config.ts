import { defineConfig } from "vite";

// Entries with fixed names (the templates name them); everything else carries a content hash.
export default defineConfig({
  base: "/static/dist/",
  resolve: { alias: { xmlbuilder2: new URL("src/no-xml.ts", import.meta.url).pathname } },
  build: {
    outDir: "../src/wetread/web/static/dist",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 4096,
    // What is bundled is given on, so its licences are too.
    license: { fileName: "licenses.md" },
    rollupOptions: {
      input: { common: "src/common.ts", worklist: "src/worklist.ts", study: "src/study.ts", figures: "src/figures.ts", try: "src/try.ts" },
      output: {
        entryFileNames: "[name].js",
        chunkFileNames: "chunks/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
        // What the viewer, which comes later, shares with an entry is a chunk: a page asks for an entry by its version, so
        // that an import of it would be another one, and run the page twice.
        codeSplitting: { groups: [{ name: "shared", test: /frontend\/src\/(frame|language|heatmap|page|keys)\.ts$/ }] },
      },
    },
  },
  worker: { format: "es" },
});
