// Cloudflare's own simulator of R2, as `wrangler dev` runs it, but without wrangler's second server
// in front, which takes half of the time of each request. Its options are in the file that is named.
import { readFileSync } from "node:fs";
import { Miniflare } from "miniflare";

const { port, folder, buckets, credentials, token } = JSON.parse(readFileSync(process.argv[2]));
const env = { TOKEN: { type: "text", value: token } };
for (const name of buckets) {
  env[name] = { type: "r2", name, dev: { experimentalS3Credentials: credentials } };
}
const contents = readFileSync(new URL("local_r2_worker.mjs", import.meta.url), "utf8");
const server = new Miniflare({
  host: "127.0.0.1",
  port,
  cf: false,
  enableDevRegistry: false,
  logRequests: false,
  resourcePersistencePath: folder,
  workers: [
    {
      config: {
        name: "local-r2",
        compatibilityDate: "2026-01-01",
        env,
        manifest: { mainModule: "worker.mjs", modules: { "worker.mjs": { type: "esm", contents } } },
      },
    },
  ],
});
for (const signal of ["SIGINT", "SIGTERM"]) {
  process.once(signal, () => server.dispose());
}
await server.ready;
