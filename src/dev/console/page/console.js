// The console of `order-service dev`. It makes the calls of a shop, its Payment Service and its admins.
"use strict";

const $ = (id) => document.getElementById(id);

/** Creates an element with children. Text becomes text nodes, never HTML. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined));
  return made;
}

const ADMIN = { "X-User-Email": "admin@example.com", "X-User-Role": "ADMIN" };
const customer = () => ({ "X-User-Email": $("customer").value.trim(), "X-User-Role": "CUSTOMER" });
const money = (amount) => amount.toLocaleString("en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
const short = (id) => `…${id.slice(-8)}`;
const STATUS = { CREATED: "wait", CONFIRMED: "good", CANCELLED: "plain" };
const badge = (text, kind = "plain") => element("span", { class: `badge ${kind}` }, text);

let state;
let orders = [];
let selected;
let lastPlacement;
/** The last payment of each order, to send the same bytes again. */
const payments = new Map();
/** For each order, the partition and offset of its events in Kafka, by sequence number. */
const published = new Map();

// ---- Calls

/** Makes one call, and returns the answer and its duration. A network error becomes an answer with status 0. */
async function call(method, path, { headers = {}, body } = {}) {
  const started = performance.now();
  const request = { method, headers: { ...headers } };
  if (method !== "GET") request.headers["Content-Type"] = "application/json";
  if (body !== undefined) request.body = typeof body === "string" ? body : JSON.stringify(body);
  try {
    const response = await fetch(path, request);
    const text = await response.text();
    let value;
    try { value = JSON.parse(text); } catch { value = text; }
    return { method, path, status: response.status, headers: response.headers, text, value, ms: performance.now() - started };
  } catch (error) {
    return { method, path, status: 0, headers: new Headers(), text: "", value: { detail: `No answer: ${error.message}` }, ms: performance.now() - started };
  }
}

function showAnswer(answer, meaning) {
  const { status, headers, value } = answer;
  const kind = status >= 200 && status < 300 ? "good" : status >= 400 && status < 500 ? "wait" : "bad";
  const line = element("p", { class: "line" },
    badge(String(status || "no answer"), kind),
    element("code", {}, `${answer.method} ${answer.path.replace(/[0-9a-f]{8}-[0-9a-f-]{19}([0-9a-f]{8})/, "…$1")}`),
    element("span", { class: "quiet" }, `${Math.round(answer.ms)} ms`));
  const replica = headers.get("x-replica");
  if (replica) line.append(element("span", { class: "quiet" }, `replica ${replica}`));
  for (const name of ["idempotency-replayed", "retry-after"]) {
    if (headers.get(name)) line.append(element("code", {}, `${name}: ${headers.get(name)}`));
  }
  const shown = typeof value === "object" ? JSON.stringify(value, null, 2) : answer.text;
  const parts = [line];
  if (meaning) parts.push(element("p", { class: "meaning" }, meaning));
  if (shown) parts.push(element("pre", { tabindex: "0", "aria-label": "Body of the answer" }, shown));
  $("answer").replaceChildren(...parts);
}

// ---- Placing

const newKey = () => { $("key").value = crypto.randomUUID(); };

function chosenItems() {
  return [...document.querySelectorAll("#catalogue input")]
    .map((input) => ({ productId: input.dataset.product, quantity: Number(input.value) }))
    .filter((item) => item.quantity > 0);
}

function placementMeaning(answer) {
  if (answer.status === 201) {
    return answer.headers.get("idempotency-replayed")
      ? "The key is known: the answer is the first order, and nothing was written."
      : "Committed: the order, its history and its event are in PostgreSQL.";
  }
  if (answer.status === 503) return "Nothing was written.";
  if (answer.status === 502) return answer.value.detail;
  return undefined;
}

async function place(placement) {
  lastPlacement = placement;
  $("place-order").disabled = true;
  const headers = { ...customer(), ...placement.headers };
  if ($("through").value) headers["X-Replica"] = $("through").value;
  const answer = await call("POST", "/api/orders", { headers, body: placement.body });
  $("place-order").disabled = false;
  $("repeat").disabled = false;
  showAnswer(answer, placementMeaning(answer));
  if (answer.status === 201) {
    if (placement.headers["Idempotency-Key"] === $("key").value && $("with-key").checked) newKey();
    selected = answer.value.orderId;
  }
  await refresh();
}

$("place").addEventListener("submit", (event) => {
  event.preventDefault();
  const headers = {};
  if ($("with-key").checked && $("key").value.trim()) headers["Idempotency-Key"] = $("key").value.trim();
  place({ headers, body: { items: chosenItems() } });
});
$("repeat").addEventListener("click", () => place(lastPlacement));
$("new-key").addEventListener("click", newKey);
$("with-key").addEventListener("change", () => {
  $("key").disabled = $("new-key").disabled = !$("with-key").checked;
});

// ---- Orders

const current = () => orders.find((order) => order.orderId === selected);

/** Reads the list and the selected order again. Calls during a refresh share one more round. */
let refreshing;
let again = false;
async function refresh() {
  if (refreshing) { again = true; return refreshing; }
  refreshing = (async () => {
    do {
      again = false;
      const list = await call("GET", "/api/orders?limit=50", { headers: ADMIN });
      if (list.status === 200) {
        orders = list.value;
        if (!selected && orders.length > 0) selected = orders[0].orderId;
        renderOrders();
      }
      if (selected) await readOrder(selected);
    } while (again);
    refreshing = undefined;
  })();
  return refreshing;
}

function renderOrders() {
  const shown = JSON.stringify([orders, selected]);
  if (shown === renderOrders.shown) return;
  renderOrders.shown = shown;
  const focused = document.activeElement?.dataset?.order;
  $("no-orders").hidden = orders.length > 0;
  $("orders").replaceChildren(...orders.map((order) => {
    const choose = element("button", { type: "button", "data-order": order.orderId, "aria-current": order.orderId === selected ? "true" : undefined, "aria-label": `Order ${order.orderId}` }, short(order.orderId));
    choose.addEventListener("click", () => { selected = order.orderId; refresh(); });
    return element("tr", { class: order.orderId === selected ? "selected" : undefined },
      element("td", {}, choose),
      element("td", {}, badge(order.status, STATUS[order.status])),
      element("td", { class: "number" }, money(order.totalAmount)),
      element("td", { class: "number quiet" }, clock(order.orderDate)));
  }));
  if (focused) document.querySelector(`[data-order="${focused}"]`)?.focus();
}

async function readOrder(id) {
  const [order, history] = await Promise.all([
    call("GET", `/api/orders/${id}`, { headers: ADMIN }),
    call("GET", `/api/orders/${id}/history`, { headers: ADMIN }),
  ]);
  if (id !== selected || order.status !== 200 || history.status !== 200) return;
  $("order").hidden = false;
  $("order-id").textContent = short(id);
  $("order-id").title = id;
  const lines = order.value.items.map((item) => `${item.quantity} × ${item.productId} at ${money(item.price)}`);
  $("order-lines").textContent = [lines.join(", "), `total ${money(order.value.totalAmount)}`, order.value.customerId].join(" · ");
  const { status } = order.value;
  $("pay").disabled = $("pay-failed").disabled = payments.has(id);
  $("pay-again").disabled = !payments.has(id);
  $("confirm").disabled = status !== "CREATED";
  $("cancel").disabled = status === "CANCELLED";
  $("cancel").textContent = status === "CONFIRMED" ? "Cancel as admin" : "Cancel";
  renderHistory(id, history.value);
}

function renderHistory(id, history) {
  const shown = history.map((entry, index) => {
    const place = published.get(id)?.get(index + 1);
    const change = entry.previousStatus ? `${entry.previousStatus} → ${entry.status}` : entry.status;
    const who = entry.actorId ?? entry.actorRole.toLowerCase();
    return element("li", { "data-published": place ? "yes" : "no" },
      element("span", { class: "sequence" }, String(index + 1)),
      element("span", {}, change),
      place ? badge(`in Kafka at ${place}`, "good") : badge("waits in the outbox", "wait"),
      element("span", { class: "who" }, [clock(entry.changedAt), who, entry.reason].filter(Boolean).join(" · ")));
  });
  const text = shown.map((entry) => entry.textContent).join("\n");
  if (text === $("history").dataset.text) return;
  $("history").dataset.text = text;
  $("history").replaceChildren(...shown);
}

async function publishPayment(record) {
  const answer = await call("POST", "/payments", { body: record });
  showAnswer(answer, answer.status === 200
    ? "The payment event is in Kafka. The service reads it and changes the order."
    : "The payment could not be published. A real Payment Service would retry.");
  return answer.status === 200;
}

async function pay(eventType) {
  const order = current();
  if (!order) return;
  const record = JSON.stringify({
    eventType,
    service: "PAYMENT_SERVICE",
    userEmail: order.customerId,
    entityId: order.orderId,
    amount: order.totalAmount,
    timestamp: new Date().toISOString(),
    metadata: { eventId: crypto.randomUUID(), paymentMode: "UPI" },
  });
  if (await publishPayment(record)) payments.set(order.orderId, record);
  await refresh();
}

$("pay").addEventListener("click", () => pay("PAYMENT_SUCCESS"));
$("pay-failed").addEventListener("click", () => pay("PAYMENT_FAILED"));
$("pay-again").addEventListener("click", async () => {
  await publishPayment(payments.get(selected));
  await refresh();
});

async function change(method, path, headers, body) {
  showAnswer(await call(method, path, { headers, body }));
  await refresh();
}

$("confirm").addEventListener("click", () => change("PUT", `/api/orders/${selected}/status`, ADMIN, { status: "CONFIRMED" }));
$("cancel").addEventListener("click", () => {
  const order = current();
  if (!order) return;
  if (order.status === "CONFIRMED") {
    change("PUT", `/api/orders/${selected}/status`, ADMIN, { status: "CANCELLED", reason: "RETURNED" });
  } else {
    const owner = { "X-User-Email": order.customerId, "X-User-Role": "CUSTOMER" };
    change("POST", `/api/orders/${selected}/cancel`, owner, { reason: "changed my mind" });
  }
});

// ---- Parts

const PROMISES = {
  kafka: {
    up: "Stop Kafka, then place an order: the answer is the same, and the event waits in the outbox.",
    down: "You can still place orders. Restart Kafka: the events of each order arrive, in order.",
  },
  products: {
    up: "Break it, then place an order: the answer is 503, and nothing is written. Reads still work.",
    errors: "Placing and confirming fail. After some failures the circuit breaker opens, and the answer comes at once.",
    hangs: "A placement gives up at its deadline of 3 s. Nothing is written, and no other request waits for it.",
    "loses-answers": "Confirm an order now: the stock is taken, but the answer is lost. Repair it: the stock was still taken only once.",
  },
  replica: {
    "not-started": "A second process of the service with the same database and Kafka. Start it, use both, then kill it.",
    starting: "Replica 2 is starting.",
    running: "Kill it (SIGKILL) while orders are in flight. Replica 1 takes over its work within 7 s.",
    killed: "Killed by SIGKILL. No acknowledged order is lost: replica 1 continues with its orders and events.",
    failed: "The process exited; the terminal shows why.",
  },
};

const WORDS = {
  up: ["up", "good"], down: ["down", "bad"], errors: ["answers 503", "bad"], hangs: ["hangs", "bad"],
  "loses-answers": ["loses answers", "bad"], "not-started": ["not started", "plain"], starting: ["starting", "wait"],
  running: ["running", "good"], killed: ["killed", "bad"], failed: ["ended", "bad"],
};

function showPart(name, partState, promise) {
  const [word, kind] = WORDS[partState];
  $(`${name}-state`).replaceChildren(badge(word, kind));
  $(`${name}-promise`).textContent = promise ?? PROMISES[name][partState];
}

function renderParts() {
  const { kafka, products, replica, service } = state;
  const given = (variable) => `${variable} is set, so the console cannot break this part.`;
  showPart("kafka", kafka.state, kafka.embedded ? undefined : given("KAFKA_BOOTSTRAP_SERVERS"));
  $("kafka-down").disabled = !kafka.embedded || kafka.state === "down";
  $("kafka-up").disabled = !kafka.embedded || kafka.state === "up";
  showPart("products", products.state, products.embedded ? undefined : given("PRODUCT_SERVICE_URL"));
  for (const button of document.querySelectorAll("[data-outage]")) {
    const isNow = button.dataset.outage === products.state;
    button.disabled = !products.embedded || (isNow && products.state === "up");
    if (button.dataset.outage !== "up") button.setAttribute("aria-pressed", String(isNow));
  }
  showPart("replica", replica.state);
  $("replica-up").disabled = ["running", "starting"].includes(replica.state);
  $("replica-down").disabled = replica.state !== "running";
  $("through").options[2].disabled = replica.state !== "running";
  if (replica.state !== "running" && $("through").value === "2") $("through").value = "";
  $("docs").href = `${service.url}/docs`;
  renderHealth(service.health);
}

function renderHealth(health) {
  const rows = [];
  const add = (label, word, kind) => rows.push(element("li", {}, badge(`${label} ${word}`, kind)));
  if (health?.components) {
    const { database, kafka, productService } = health.components;
    const good = (word, fine) => (word === fine ? "good" : word === "unknown" ? "plain" : "bad");
    add("replica 1", health.status, "good");
    add("database", database, good(database, "up"));
    add("Kafka", kafka, good(kafka, "up"));
    add("breaker", productService, productService === "half_open" ? "wait" : good(productService, "closed"));
  } else {
    add("replica 1", "not ready", "bad");
  }
  const text = rows.map((row) => row.textContent).join();
  if ($("health").dataset.text === text) return;
  $("health").dataset.text = text;
  $("health").replaceChildren(...rows);
}

/** Updates the rows in place, so that typed quantities stay. */
function renderCatalogue() {
  const { catalogue } = state.products;
  for (const product of catalogue ?? []) {
    let row = document.querySelector(`tr[data-product="${CSS.escape(product.id)}"]`);
    if (!row) {
      const quantity = element("input", { type: "number", min: "0", max: "10000", value: product.id === "PROD123" ? "1" : "0", "data-product": product.id, "aria-label": `Quantity of ${product.name}` });
      row = element("tr", { "data-product": product.id },
        element("td", {}, product.name, element("small", {}, product.id)),
        element("td", { class: "number price" }), element("td", { class: "number stock" }),
        element("td", { class: "number" }, quantity));
      $("catalogue").append(row);
    }
    row.querySelector(".price").textContent = money(product.price);
    const stock = row.querySelector(".stock");
    if (stock.textContent && stock.textContent !== String(product.stock)) {
      row.classList.add("changed");
      setTimeout(() => row.classList.remove("changed"), 2000);
    }
    stock.textContent = String(product.stock);
  }
}

async function setPart(part, wanted) {
  const answer = await call("PUT", `/parts/${part}`, { body: { state: wanted } });
  if (answer.status !== 200) showAnswer(answer);
}

$("kafka-down").addEventListener("click", () => setPart("kafka", "down"));
$("kafka-up").addEventListener("click", () => setPart("kafka", "up"));
$("replica-up").addEventListener("click", () => setPart("replica", "up"));
$("replica-down").addEventListener("click", () => setPart("replica", "down"));
for (const button of document.querySelectorAll("[data-outage]")) {
  button.addEventListener("click", () => setPart("product-service", button.dataset.outage));
}

// ---- Kafka

const MOST_EVENTS = 200;
let seen = 0;

function showRecord(record) {
  const { topic, partition, offset, value } = record;
  const place = `${partition}/${offset}`;
  const { eventType = "not an event", entityId = "", metadata = {} } = value ?? {};
  if (metadata.sequence) {
    if (!published.has(entityId)) published.set(entityId, new Map());
    published.get(entityId).set(metadata.sequence, place);
  }
  const change = metadata.previousStatus && `→ ${metadata.status}`;
  const about = [clock(record.arrivedAt), topic, metadata.sequence && `sequence ${metadata.sequence}`, change, metadata.reason];
  const summary = element("summary", {},
    element("strong", {}, eventType), element("code", {}, short(entityId)), element("code", { class: "quiet" }, place),
    element("span", { class: "about" }, about.filter(Boolean).join(" · ")));
  const details = element("details", {}, summary, element("pre", {}, JSON.stringify(value, null, 2)));
  $("events").prepend(element("li", { class: "fresh", "data-type": eventType, "data-order": entityId }, details));
  while ($("events").children.length > MOST_EVENTS) $("events").lastElementChild.remove();
  seen += 1;
  $("events-count").textContent = `${seen} ${seen === 1 ? "record" : "records"}`;
  $("no-events").hidden = true;
}

const stream = new EventSource("/events");
stream.addEventListener("state", (event) => {
  const next = JSON.parse(event.data);
  // `dev` was restarted: the data on this page is outdated.
  if (state && state.run !== next.run) return location.reload();
  state = next;
  renderParts();
  renderCatalogue();
});
stream.addEventListener("record", (event) => {
  showRecord(JSON.parse(event.data));
  refresh();
});
stream.addEventListener("error", () => {
  $("health").dataset.text = "";
  $("health").replaceChildren(element("li", {}, badge("no connection to dev", "bad")));
});
stream.addEventListener("open", () => { if (state) renderHealth(state.service.health); });

newKey();
refresh();
// Changes arrive as events. While Kafka is down, none arrive, so the page polls.
setInterval(() => { if (state?.kafka.state === "down") refresh(); }, 3000);
