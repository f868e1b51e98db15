// Copies what vendor.json names from node_modules into static/vendor, each file only if it is the
// recorded one. `node copy-assets.mjs --record` writes the digests of what npm has brought instead.
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const list = join(here, "vendor.json");
const wanted = JSON.parse(readFileSync(list, "utf8"));
const records = process.argv.includes("--record");

mkdirSync(join(here, "static", "vendor"), { recursive: true });
for (const [name, entry] of Object.entries(wanted)) {
  const body = readFileSync(join(here, "node_modules", entry.from));
  const digest = createHash("sha384").update(body).digest("base64");
  if (records) {
    entry.sha384 = digest;
  } else if (digest !== entry.sha384) {
    console.error(`${entry.from} is not the recorded file: ${digest}`);
    process.exit(1);
  } else {
    writeFileSync(join(here, "static", "vendor", name), body);
  }
}
if (records) writeFileSync(list, JSON.stringify(wanted, null, 2) + "\n");
