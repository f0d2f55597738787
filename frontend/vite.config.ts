import { defineConfig } from "vite";

// Two pages, two entries with fixed names (the templates name them); everything else carries a content hash.
export default defineConfig({
  base: "/static/dist/",
  build: {
    outDir: "../src/wetread/web/static/dist",
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 4096,
    rollupOptions: {
      input: { worklist: "src/worklist.ts", study: "src/study.ts" },
      output: {
        entryFileNames: "[name].js",
        chunkFileNames: "chunks/[name]-[hash].js",
        assetFileNames: "assets/[name]-[hash][extname]",
      },
    },
  },
  worker: { format: "es" },
});
