// How long the page takes in headless Chromium: one JSON object with milliseconds since the navigation began, and kilobytes.
// node ready.mjs URL
import { chromium } from 'playwright-core';

const flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: flags });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  await page.goto(process.argv[2]);
  await page.waitForFunction(() => performance.getEntriesByName('ready').length > 0, null, { timeout: 60000 });
  console.log(JSON.stringify(await page.evaluate(() => {
    const entries = performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'));
    const size = (api) => entries.filter((e) => e.name.includes('/api/') === api).reduce((sum, e) => sum + e.encodedBodySize, 0) / 1000;
    const at = (name) => performance.getEntriesByName(name)[0].startTime;
    return { drawn_ms: at('drawn'), ready_ms: at('ready'), page_kb: size(false), data_kb: size(true), steps: Q.columns.step.length };
  })));
} finally {
  await browser.close();
}
