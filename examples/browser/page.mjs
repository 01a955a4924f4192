// Opens the page in a headless Chromium, has it write, and prints what it shows: `node page.mjs MODULE MODEL PROMPT [BROWSER]`.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { basename, extname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";

const [module, model, prompt, program = "chromium-headless-shell"] = process.argv.slice(2);

// The folder as README.md has it laid out, without copies.
const here = fileURLToPath(new URL(".", import.meta.url));
const types = { ".html": "text/html", ".mjs": "text/javascript", ".json": "application/json", ".wasm": "application/wasm" };
const place = (url) => {
    if (url === "/") return join(here, "index.html");
    if (url.startsWith("/model/")) return join(model, basename(url));
    return url.endsWith(".wasm") ? module : join(here, basename(url));
};
const server = createServer((request, response) => {
    try {
        const path = place(request.url);
        const bytes = readFileSync(path);
        response.writeHead(200, { "content-type": types[extname(path)] ?? "application/octet-stream" }).end(bytes);
    } catch {
        response.writeHead(404).end();
    }
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));

// Chromium's protocol: JSON, each message ended by a zero, in on its third file and out on its fourth.
const profile = mkdtempSync(join(tmpdir(), "page-"));
const browser = spawn(
    program,
    ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", `--user-data-dir=${profile}`],
    // A group of its own, to be ended whole.
    { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"], detached: true },
);
const ended = new Promise((_, reject) => {
    const end = (why) => reject(new Error(`${program} ended: ${why}`));
    [browser, browser.stdio[3]].forEach((part) => part.on("error", (error) => end(error.message)));
    browser.on("exit", end);
});
const answers = new Map();
let left = "";
browser.stdio[4].setEncoding("utf8").on("data", (data) => {
    const messages = (left + data).split("\0");
    left = messages.pop();
    for (const { id, result, error } of messages.map((message) => JSON.parse(message))) {
        const [resolve, reject] = answers.get(id) ?? [];
        error ? reject?.(new Error(error.message)) : resolve?.(result);
    }
});
let sent = 0;
function send(method, params, sessionId) {
    const id = ++sent;
    browser.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    return new Promise((resolve, reject) => answers.set(id, [resolve, reject]));
}

async function write() {
    const url = `http://127.0.0.1:${server.address().port}/`;
    const { targetId } = await send("Target.createTarget", { url });
    const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
    const see = async (expression) => {
        const { result, exceptionDetails } = await send("Runtime.evaluate", { expression, returnByValue: true }, sessionId);
        if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
        return result.value;
    };
    const until = async (expression) => {
        for (const start = Date.now(); Date.now() - start < 120_000; await sleep(50)) {
            if (await see(expression)) return;
        }
        throw new Error(`the page still says ${await see("document.body.innerText")}`);
    };
    await until("document.querySelector('button')?.disabled === false");
    await see(`document.querySelector("#prompt").value = ${JSON.stringify(prompt)}; document.querySelector("button").click()`);
    await until("document.querySelector('#status').textContent.endsWith('a second.')");
    console.error(await see("document.querySelector('#status').textContent"));
    console.log(await see("document.querySelector('#text').textContent"));
}

try {
    await Promise.race([write(), ended]);
} catch (error) {
    console.error(error.message);
    process.exitCode = 1;
} finally {
    ended.catch(() => {});
    if (browser.exitCode === null && browser.pid) process.kill(-browser.pid, "SIGKILL");
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
    process.exit();
}
