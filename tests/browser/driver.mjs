// Drives headless Chromium for the tests: opens the page named by the first argument, then calls one function of the page
// per line of JSON on standard input, and answers each with a line of JSON on standard output.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const [url, executablePath] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath,
  // The authority of the test's certificates is nobody's; there is no sandbox for root.
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--ignore-certificate-errors"],
});
const page = await browser.newPage();
page.on("console", (message) => process.stderr.write(`${message.text()}\n`));
await page.goto(url);

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line);
  let answer;
  try {
    answer = { result: (await page.evaluate(([name, given]) => window[name](...given), [name, given])) ?? null };
  } catch (error) {
    answer = { error: error.message };
  }
  process.stdout.write(JSON.stringify(answer) + "\n");
}
await browser.close();
process.exit(0);
