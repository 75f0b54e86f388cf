// Drives the console of `dev` in headless Chromium, as a person would who has five minutes.
// node .ci/console.js CHROMIUM ADDRESS FOLDER first|again
//
// `first` leaves its orders and the stock in FOLDER/left.json; `again`, after a new start of `dev --data`, finds them.
"use strict";

const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");

const { Page, drive, PATIENCE_MS } = require("./browser.js");

const [chromium, address, folder, part] = process.argv.slice(2);
const page = new Page(chromium, { width: 1440, height: 1000 });
const left = path.join(folder, "left.json");

const quote = (text) => JSON.stringify(text);
const click = async (id) => {
  await page.until(`#${id} can be pressed`, `!document.getElementById('${id}').disabled`);
  await page.evaluate(`document.getElementById('${id}').click()`);
};
const answerIs = (status) =>
  page.until(`the answer is ${status}`, `document.querySelector('#answer .badge')?.textContent === '${status}'`);
const stockIs = (product, stock) =>
  page.until(`the stock of ${product} is ${stock}`, `document.querySelector('tr[data-product=${product}] .stock')?.textContent === '${stock}'`);
const ordersAre = (count) => page.until(`${count} orders are listed`, `document.querySelectorAll('#orders tr').length === ${count}`);
const statusIs = (status) =>
  page.until(`the order is ${status}`, `document.querySelector('#orders tr.selected .badge')?.textContent === '${status}'`);
const eventIs = (type, order) =>
  page.until(`${type} of ${order} arrives`, `!!document.querySelector('#events [data-type=${type}][data-order="${order}"]')`);
const published = (count) =>
  page.until(`${count} changes are in Kafka`, `document.querySelectorAll('#history [data-published=yes]').length === ${count}`);
const partIs = (name, word) => page.until(`${name} is ${word}`, `document.getElementById('${name}-state').textContent === ${quote(word)}`);
const selected = () => page.evaluate("document.querySelector('#orders tr.selected button').dataset.order");
const clearAnswer = () => page.evaluate("document.getElementById('answer').replaceChildren()");

const done = [];
async function step(name, run) {
  await run();
  done.push(name);
  console.log(`  ${name}`);
}

/** Places what is chosen, and returns the order. */
async function place(status = 201) {
  await clearAnswer();
  await click("place-order");
  await answerIs(status);
  if (status !== 201) return undefined;
  const body = JSON.parse(await page.evaluate("document.querySelector('#answer pre').textContent"));
  await page.until("the new order is chosen", `document.querySelector('#orders tr.selected button')?.dataset.order === '${body.orderId}'`);
  return body.orderId;
}

/** Moves the focus as the Tab key does, until it is on the element. */
async function tabTo(id) {
  for (let presses = 0; presses < 80; presses++) {
    if (await page.evaluate(`document.activeElement?.id === '${id}' || document.activeElement?.dataset.product === '${id}'`)) return;
    await page.press("Tab");
  }
  throw new Error(`the Tab key never reaches ${id}`);
}

async function byKeyboardAlone() {
  await stockIs("PROD123", 50);
  await tabTo("PROD123");
  await page.send("Input.insertText", { text: "2" });
  await page.press("Enter");
  await answerIs(201);
  await ordersAre(1);
  await published(1);
  await eventIs("ORDER_PLACED", await selected());
  await tabTo("repeat");
  await page.press("Enter");
  await page.until("the repeat is told as one", "document.querySelector('#answer').textContent.includes('idempotency-replayed: true')");
  await ordersAre(1);
}

async function payment() {
  const order = await selected();
  await click("pay");
  await eventIs("PAYMENT_SUCCESS", order);
  await statusIs("CONFIRMED");
  await stockIs("PROD123", 48);
  await published(2);
  await click("pay-again");
  await page.until("the payment is there twice", `document.querySelectorAll('#events [data-type=PAYMENT_SUCCESS][data-order="${order}"]').length === 2`);
  await stockIs("PROD123", 48);
  await click("cancel");
  await statusIs("CANCELLED");
  await stockIs("PROD123", 50);
  await published(3);
}

async function withoutKey() {
  await page.evaluate("document.getElementById('with-key').click()");
  const first = await place();
  const second = await place();
  if (first !== second) throw new Error("the same lines within the window were two orders");
  await page.evaluate("document.getElementById('with-key').click()");
  await ordersAre(2);
  await click("confirm");
  await statusIs("CONFIRMED");
  await stockIs("PROD123", 48);
  await published(2);
}

async function kafkaAway() {
  await click("kafka-down");
  await partIs("kafka", "down");
  const order = await place();
  await page.until("its event waits", "document.querySelectorAll('#history [data-published=no]').length === 1");
  await click("kafka-up");
  await partIs("kafka", "up");
  await eventIs("ORDER_PLACED", order);
  await published(1);
  await click("cancel");
  await statusIs("CANCELLED");
  await published(2);
}

async function productServiceAway() {
  await page.evaluate("document.querySelector('[data-outage=errors]').click()");
  await partIs("products", "answers 503");
  await place(503);
  await ordersAre(3);
  await page.evaluate("document.querySelector('[data-outage=up]').click()");
  await partIs("products", "up");
  // Where the breaker has opened, it lets a call through again after a while.
  await page.until("the breaker is closed", "document.getElementById('health').textContent.includes('breaker closed')");
  await place();
  await ordersAre(4);
}

async function replicaKilled() {
  await click("replica-up");
  await partIs("replica", "running");
  await page.evaluate("document.getElementById('through').value = '2'");
  await place();
  const through = await page.evaluate("document.querySelector('#answer .line').textContent");
  if (!through.includes("replica 2")) throw new Error(`it went through another: ${through}`);
  await published(1);
  await click("replica-down");
  await partIs("replica", "killed");
  for (let count = 6; count <= 7; count++) {
    const order = await place();
    await ordersAre(count);
    // Within the lease of the relay that was killed.
    await eventIs("ORDER_PLACED", order);
  }
  await click("pay");
  await statusIs("CONFIRMED");
  await stockIs("PROD123", 46);
  await published(2);
}

/** WCAG 2.2, 1.4.3: text against what is behind it, at least 4.5. Returns what falls short. */
const CONTRAST = `(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const low = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest("noscript")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push(element.textContent.slice(0, 30) + " " + ratio.toFixed(2));
  }
  return low;
})()`;

/** What the screenshots show: Kafka is down, and the event of an order is pending. */
async function forTheScreenshots() {
  await click("kafka-down");
  await partIs("kafka", "down");
  await page.evaluate("document.querySelector('input[data-product=PROD456]').value = '1'");
  await place();
  await page.until("its event waits", "document.querySelectorAll('#history [data-published=no]').length === 1");
  await page.until("the service has noticed", "document.getElementById('health').textContent.includes('Kafka down')");
  await page.evaluate("document.activeElement.blur()");
}

async function everythingArrives() {
  await click("kafka-up");
  await partIs("kafka", "up");
  await published(1);
}

async function looks(scheme) {
  await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: scheme }, { name: "prefers-reduced-motion", value: "reduce" }] });
  // The rows that just changed are lit for a moment.
  await page.until("nothing is lit any more", "!document.querySelector('.catalogue .changed')");
  const low = await page.evaluate(CONTRAST);
  if (low.length > 0) throw new Error(`${scheme}: too little contrast: ${low.join("; ")}`);
  await page.evaluate("window.scrollTo(0, 0)");
  await page.screenshot(path.join(folder, `${scheme}.png`));
  const wide = await page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth");
  if (wide > 0) throw new Error(`the page is ${wide} pixels wider than the window`);
}

/** Everything that can be operated has a name that a screen reader reads. */
async function names() {
  await page.send("Accessibility.enable");
  const { nodes } = await page.send("Accessibility.getFullAXTree");
  const operable = ["button", "textbox", "spinbutton", "combobox", "checkbox", "link", "DisclosureTriangle"];
  const shown = nodes.filter((node) => !node.ignored && operable.includes(node.role?.value));
  const nameless = shown.filter((node) => !node.name?.value?.trim());
  if (nameless.length > 0) throw new Error(`without a name: ${nameless.map((node) => node.role.value).join(" ")}`);
  if (shown.length < 25) throw new Error(`only ${shown.length} controls were looked at`);
}

/** Pages of others are kept out. */
async function keepsOthersOut() {
  const { hostname, port } = new URL(address);
  const status = (method, url, headers) =>
    new Promise((resolve, reject) => {
      const request = http.request({ hostname, port, path: url, method, headers }, (answer) => {
        answer.resume();
        if (answer.headers["access-control-allow-origin"]) reject(new Error(`${url} has a CORS header`));
        resolve(answer.statusCode);
      });
      request.on("error", reject).end(method === "GET" ? undefined : '{"state":"down"}');
    });
  const json = { "Content-Type": "application/json" };
  const tries = [
    ["GET", "/events", { Host: "evil.example" }, 421],
    ["PUT", "/parts/kafka", { ...json, Origin: "http://evil.example" }, 403],
    ["PUT", "/parts/kafka", { ...json, "Sec-Fetch-Site": "cross-site" }, 403],
    ["PUT", "/parts/kafka", { "Content-Type": "text/plain" }, 415],
    ["OPTIONS", "/parts/kafka", { Origin: "http://evil.example", "Access-Control-Request-Method": "PUT" }, 403],
  ];
  for (const [method, url, headers, expected] of tries) {
    const found = await status(method, url, headers);
    if (found !== expected) throw new Error(`${method} ${url} ${quote(headers)}: ${found}, not ${expected}`);
  }
  await partIs("kafka", "up");
}

async function everyChangeIsThere() {
  for (const order of await page.evaluate("[...document.querySelectorAll('#orders button')].map((button) => button.dataset.order)")) {
    await page.evaluate(`document.querySelector('[data-order="${order}"]').click()`);
    await page.until(`${order} is shown`, `document.getElementById('order-id').title === '${order}'`);
    await page.until("all its changes are there", "!document.querySelector('#history [data-published=no]') && !!document.querySelector('#history li')");
  }
}

async function first() {
  await step("an order is placed by keyboard alone, and its repeat is the same order", byKeyboardAlone);
  await step("a payment confirms it once, and cancelling gives the stock back", payment);
  await step("without a key the same lines are one order; an admin confirms it", withoutKey);
  await step("Kafka is down: the service places the order and publishes its event when Kafka is up again", kafkaAway);
  await step("the Product Service is down: 503, no row is written; when it is up again, placing works", productServiceAway);
  await step("a replica is killed: the other one continues with orders, events and payments", replicaKilled);
  await step("every control has a name", names);
  await step("Kafka is down again, for the screenshots", forTheScreenshots);
  await step("light, with enough contrast", () => looks("light"));
  await step("dark, with enough contrast", () => looks("dark"));
  await step("Kafka back", everythingArrives);
  await step("pages of others are kept out", keepsOthersOut);
  await step("every change of every order is in Kafka", everyChangeIsThere);
  const orders = await page.evaluate("[...document.querySelectorAll('#orders button')].map((button) => button.dataset.order)");
  const records = await page.evaluate("document.querySelectorAll('#events li').length");
  fs.writeFileSync(left, JSON.stringify({ orders, records }));
}

async function again() {
  const { orders, records } = JSON.parse(fs.readFileSync(left));
  await step("the orders, the stock and the records of the last start are there", async () => {
    await ordersAre(orders.length);
    const found = await page.evaluate("[...document.querySelectorAll('#orders button')].map((button) => button.dataset.order)");
    if (quote(found) !== quote(orders)) throw new Error(`other orders: ${found}`);
    await stockIs("PROD123", 46);
    await page.until("all records are there", `document.querySelectorAll('#events li').length === ${records}`);
  });
  await step("every change of every order is in Kafka", everyChangeIsThere);
  await step("another order can be placed and paid", async () => {
    await place();
    await published(1);
    await click("pay");
    await statusIs("CONFIRMED");
    await stockIs("PROD123", 45);
  });
}

async function test() {
  await page.open(address);
  await page.until("the console shows the catalogue", "document.querySelectorAll('#catalogue tr').length >= 8");
  await (part === "first" ? first() : again());
  const elsewhere = page.requested.filter((url) => !url.startsWith(`${address}/`) && !url.startsWith("data:"));
  if (elsewhere.length > 0) throw new Error(`the page asks other hosts: ${elsewhere.join(" ")}`);
  const assets = page.refused.filter((url) => !url.startsWith(`${address}/api/`));
  const errors = [...page.errors, ...assets];
  if (errors.length > 0) throw new Error(`the page has errors: ${errors.join("; ")}`);
  console.log(`${part}: ${done.length} steps; ${page.requested.length} requests, all to the console`);
}

drive(page, test, 8 * PATIENCE_MS);
