// Drives headless Chromium for the tests of the dashboard: each line on standard input is {page, code, given}; the code runs
// as an async function of (page, given) with Playwright's page. Everything that a page should not do is noted as a complaint.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [origin, executablePath, deadline] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"] });
const AsyncFunction = Object.getPrototypeOf(async () => {}).constructor;
const pages = new Map();
const complaints = [];

async function pageOf(name) {
  if (!pages.has(name)) {
    const context = await browser.newContext({ baseURL: origin, viewport: { width: 1280, height: 860 } });
    context.setDefaultTimeout(Number(deadline));
    const page = await context.newPage();
    page.on("console", (message) => {
      // The browser says of every answer of 4xx or 5xx that it is one; the tests provoke some.
      if (message.type() === "error" && !/Failed to load resource/.test(message.text())) complaints.push(`console: ${message.text()}`);
    });
    page.on("pageerror", (error) => complaints.push(`error: ${error.stack}`));
    page.on("request", (request) => {
      const url = new URL(request.url());
      if (url.origin !== origin && !["data:", "blob:"].includes(url.protocol)) complaints.push(`request: ${request.url()}`);
    });
    await page.addInitScript(() => addEventListener("securitypolicyviolation", (event) =>
      console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`)));
    pages.set(name, page);
  }
  return pages.get(name);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { page, code, given } = JSON.parse(line);
  let answer;
  try {
    if (page === null) answer = { result: complaints.splice(0) };
    else answer = { result: (await new AsyncFunction("page", "given", code)(await pageOf(page), given)) ?? null };
  } catch (error) {
    answer = { error: error.stack };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
process.exit(0);
