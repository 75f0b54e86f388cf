// Opens /docs in headless Chromium, places an order from the page as a person would, and reads the answer.
// node .ci/page.js CHROMIUM ADDRESS SCREENSHOT
//
// It speaks the DevTools protocol over Chromium's own pipe: messages of JSON with a NUL behind each.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const PATIENCE_MS = 60_000;
const [chromium, address, screenshot] = process.argv.slice(2);

const profile = fs.mkdtempSync(path.join(os.tmpdir(), "page-"));
const browser = spawn(
  chromium,
  [
    "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--no-first-run", "--disable-background-networking", "--window-size=1280,1600", `--user-data-dir=${profile}`,
    "about:blank",
  ],
  { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
);

const waiting = new Map();
const requested = [];
const errors = [];
let next = 1;
let session;

function send(method, params = {}) {
  const id = next++;
  browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: session })}\0`);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

function receive(message) {
  if (message.id) {
    const { resolve, reject } = waiting.get(message.id);
    waiting.delete(message.id);
    return message.error ? reject(new Error(message.error.message)) : resolve(message.result);
  }
  const { method, params } = message;
  if (method === "Network.requestWillBeSent") requested.push(params.request.url);
  if (method === "Runtime.exceptionThrown") errors.push(params.exceptionDetails.text);
  if (method === "Log.entryAdded" && params.entry.level === "error") errors.push(params.entry.text);
}

let received = "";
browser.stdio[4].on("data", (data) => {
  const parts = (received + data).split("\0");
  received = parts.pop();
  parts.forEach((part) => receive(JSON.parse(part)));
});

async function evaluate(expression) {
  const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true });
  if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.text}`);
  return result.value;
}

async function until(what, expression) {
  const deadline = Date.now() + PATIENCE_MS;
  for (;;) {
    const value = await evaluate(expression);
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`never happened: ${what}; errors: ${errors.join("; ")}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

async function placeAnOrder() {
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  session = (await send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
  for (const domain of ["Network", "Runtime", "Log", "Page"]) await send(`${domain}.enable`);
  await send("Page.navigate", { url: `${address}/docs` });
  const block = "#operations-orders-placeOrder";
  await until("the page shows the operation", `!!document.querySelector('${block} .opblock-summary-control')`);
  await evaluate(`document.querySelector('${block} .opblock-summary-control').click()`);
  await until("the operation can be tried", `!!document.querySelector('${block} .btn.execute')`);
  await evaluate(`document.querySelector('${block} .btn.execute').click()`);
  const answer = `document.querySelector('${block} .live-responses-table')`;
  const status = await until(
    "the page shows the answer",
    `${answer} && ${answer}.querySelector('tbody .response-col_status').innerText.trim().slice(0, 3)`,
  );
  const shown = await evaluate(`${answer}.innerText`);
  await evaluate(`document.querySelector('${block} .btn.execute').scrollIntoView()`);
  const { data } = await send("Page.captureScreenshot", { format: "png", captureBeyondViewport: false });
  fs.writeFileSync(screenshot, Buffer.from(data, "base64"));
  if (status !== "201") throw new Error(`the answer is ${status}: ${shown}`);
  const order = /"orderId": *"([0-9a-f-]{36})"/.exec(shown);
  if (!order) throw new Error(`no order is shown: ${shown}`);
  return order[1];
}

async function main() {
  const order = await placeAnOrder();
  const headers = { "X-User-Email": "user@example.com", "X-User-Role": "CUSTOMER" };
  const there = await fetch(`${address}/api/orders/${order}`, { headers });
  if (there.status !== 200) throw new Error(`the order that the page shows is not there: ${there.status}`);
  const elsewhere = requested.filter((url) => !url.startsWith(`${address}/`) && !url.startsWith("data:"));
  if (elsewhere.length > 0) throw new Error(`the page asks other hosts: ${elsewhere.join(" ")}`);
  if (errors.length > 0) throw new Error(`the page has errors: ${errors.join("; ")}`);
  console.log(`the page placed order ${order}; ${requested.length} requests, all to the service; ${screenshot}`);
}

const timer = setTimeout(() => fail(new Error("the browser does not answer")), 2 * PATIENCE_MS);

function end(code) {
  clearTimeout(timer);
  browser.on("exit", () => {
    fs.rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    process.exit(code);
  });
  browser.kill();
}

function fail(error) {
  console.error(error.message);
  end(1);
}

browser.on("error", fail);
main().then(() => end(0), fail);
