// Opens /docs in headless Chromium, places an order from the page as a person would, and reads the answer.
// node .ci/page.js CHROMIUM ADDRESS SCREENSHOT
"use strict";

const { Page, drive, PATIENCE_MS } = require("./browser.js");

const [chromium, address, screenshot] = process.argv.slice(2);
const page = new Page(chromium, { width: 1280, height: 1600 });

async function placeAnOrder() {
  await page.open(`${address}/docs`);
  const block = "#operations-orders-placeOrder";
  await page.until("the page shows the operation", `!!document.querySelector('${block} .opblock-summary-control')`);
  await page.evaluate(`document.querySelector('${block} .opblock-summary-control').click()`);
  // Execute does nothing before the example is in the body.
  const body = `document.querySelector('${block} textarea.body-param__text')`;
  await page.until("the operation can be tried", `!!document.querySelector('${block} .btn.execute') && !!${body}?.value`);
  await page.evaluate(`document.querySelector('${block} .btn.execute').click()`);
  const answer = `document.querySelector('${block} .live-responses-table')`;
  const status = await page.until(
    "the page shows the answer",
    `${answer} && ${answer}.querySelector('tbody .response-col_status').innerText.trim().slice(0, 3)`,
  );
  const shown = await page.evaluate(`${answer}.innerText`);
  await page.evaluate(`document.querySelector('${block} .btn.execute').scrollIntoView()`);
  await page.screenshot(screenshot);
  if (status !== "201") throw new Error(`the answer is ${status}: ${shown}`);
  const order = /"orderId": *"([0-9a-f-]{36})"/.exec(shown);
  if (!order) throw new Error(`no order is shown: ${shown}`);
  return order[1];
}

async function test() {
  const order = await placeAnOrder();
  const headers = { "X-User-Email": "user@example.com", "X-User-Role": "CUSTOMER" };
  const there = await fetch(`${address}/api/orders/${order}`, { headers });
  if (there.status !== 200) throw new Error(`the order that the page shows is not there: ${there.status}`);
  const elsewhere = page.requested.filter((url) => !url.startsWith(`${address}/`) && !url.startsWith("data:"));
  if (elsewhere.length > 0) throw new Error(`the page asks other hosts: ${elsewhere.join(" ")}`);
  const errors = [...page.errors, ...page.refused];
  if (errors.length > 0) throw new Error(`the page has errors: ${errors.join("; ")}`);
  console.log(`the page placed order ${order}; ${page.requested.length} requests, all to the service; ${screenshot}`);
}

drive(page, test, 2 * PATIENCE_MS);
