// Headless Chromium over its own pipe: messages of the DevTools protocol in JSON, with a NUL behind each.
"use strict";

const { spawn } = require("node:child_process");
const fs = require("node:fs");
const os = require("node:os");
const path = require("node:path");

const PATIENCE_MS = 60_000;

/** A page in a browser of its own, with the addresses that it asked for (`requested`), those that were not answered or with
 * 400 and more (`refused`), and all other errors. */
class Page {
  constructor(chromium, { width, height }) {
    this.profile = fs.mkdtempSync(path.join(os.tmpdir(), "page-"));
    this.browser = spawn(
      chromium,
      [
        "--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", `--window-size=${width},${height}`,
        `--user-data-dir=${this.profile}`, "about:blank",
      ],
      { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] },
    );
    this.waiting = new Map();
    this.requested = [];
    this.refused = [];
    this.errors = [];
    this.next = 1;
    let received = "";
    this.browser.stdio[4].on("data", (data) => {
      const parts = (received + data).split("\0");
      received = parts.pop();
      parts.forEach((part) => this.receive(JSON.parse(part)));
    });
  }

  send(method, params = {}) {
    const id = this.next++;
    this.browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId: this.session })}\0`);
    return new Promise((resolve, reject) => this.waiting.set(id, { resolve, reject }));
  }

  receive(message) {
    if (message.id) {
      const { resolve, reject } = this.waiting.get(message.id);
      this.waiting.delete(message.id);
      return message.error ? reject(new Error(message.error.message)) : resolve(message.result);
    }
    const { method, params } = message;
    if (method === "Network.requestWillBeSent") this.requested.push(params.request.url);
    if (method === "Runtime.exceptionThrown") this.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
    if (method === "Log.entryAdded" && params.entry.level === "error") {
      // Chromium reports each answer of 400 and more as an error of the network.
      const { source, text, url } = params.entry;
      (source === "network" ? this.refused : this.errors).push(source === "network" ? url : text);
    }
  }

  async open(url) {
    const { targetId } = await this.send("Target.createTarget", { url: "about:blank" });
    this.session = (await this.send("Target.attachToTarget", { targetId, flatten: true })).sessionId;
    for (const domain of ["Network", "Runtime", "Log", "Page"]) await this.send(`${domain}.enable`);
    await this.send("Page.navigate", { url });
  }

  async evaluate(expression) {
    const { result, exceptionDetails } = await this.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
    if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
    return result.value;
  }

  /** Waits until the expression is true, and returns its value. */
  async until(what, expression) {
    const deadline = Date.now() + PATIENCE_MS;
    for (;;) {
      const value = await this.evaluate(expression);
      if (value) return value;
      if (Date.now() > deadline) throw new Error(`never happened: ${what}; errors: ${this.errors.join("; ")}`);
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }

  async press(key) {
    const code = { Enter: 13, Tab: 9, " ": 32 }[key];
    const text = { Enter: "\r", " ": " " }[key];
    const event = { key, code: key === " " ? "Space" : key, windowsVirtualKeyCode: code };
    await this.send("Input.dispatchKeyEvent", { type: text ? "keyDown" : "rawKeyDown", text, ...event });
    await this.send("Input.dispatchKeyEvent", { type: "keyUp", ...event });
  }

  async screenshot(file) {
    const { data } = await this.send("Page.captureScreenshot", { format: "png", captureBeyondViewport: false });
    fs.writeFileSync(file, Buffer.from(data, "base64"));
  }

  close() {
    return new Promise((resolve) => {
      this.browser.on("exit", () => resolve(this.removeProfile(50)));
      this.browser.kill();
    });
  }

  /** Processes of the browser may write to the profile for a moment after its end. */
  async removeProfile(tries) {
    for (;;) {
      try {
        return fs.rmSync(this.profile, { recursive: true, force: true });
      } catch (error) {
        if (--tries === 0) throw error;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
    }
  }
}

/** Runs a test against a page, and ends the process with its outcome. */
function drive(page, test, patience) {
  const end = async (code) => {
    clearTimeout(timer);
    await page.close();
    process.exit(code);
  };
  const fail = (error) => {
    console.error(error.message);
    end(1);
  };
  const timer = setTimeout(() => fail(new Error("the browser does not answer")), patience);
  page.browser.on("error", fail);
  test().then(() => end(0), fail);
}

module.exports = { Page, drive, PATIENCE_MS };
