// Reads an AsyncAPI document with AsyncAPI's own parser, and fails where it finds an error or a warning.
"use strict";

const fs = require("node:fs");
const { Parser } = require("@asyncapi/parser");

// "The latest version of AsyncAPi is not used": the consumers' tools read 3.0.
const ACCEPTED = new Set(["asyncapi-latest-version"]);

(async () => {
  const { document, diagnostics } = await new Parser().parse(fs.readFileSync(process.argv[2], "utf8"));
  const found = diagnostics.filter(({ code, severity }) => severity <= 1 && !ACCEPTED.has(code));
  for (const { code, message, path } of found) {
    console.error(`${code} at ${path.join("/")}: ${message}`);
  }
  if (!document || found.length > 0) {
    process.exit(1);
  }
  console.log(`AsyncAPI ${document.version()}: ${document.messages().all().length} messages, no finding`);
})();
