// Opens the live page of a running coordinator in headless Chromium and checks what a user would look for.
// node page.mjs URL [SHOTS_DIR]
import { chromium } from 'playwright-core';
import { mkdirSync } from 'node:fs';

const [url, shots] = process.argv.slice(2);
const fail = (text) => { console.error('FAILED: ' + text); process.exitCode = 1; };
const check = (ok, text) => (ok ? console.log('ok  ' + text) : fail(text));
const flags = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || '/usr/bin/chromium', args: flags });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 }, colorScheme: 'light' });
const complaints = [];
page.on('console', (m) => { if (['error', 'warning'].includes(m.type())) complaints.push(m.text()); });
page.on('pageerror', (e) => complaints.push(e.message));
const until = async (what, seconds, test, argument) => {
  const began = Date.now();
  try { await page.waitForFunction(test, argument, { timeout: seconds * 1000, polling: 100 }); check(true, `${what} (${((Date.now() - began) / 1000).toFixed(1)} s)`); return true; }
  catch { fail(`${what}: not within ${seconds} s`); return false; }
};

try {
  await page.goto(url);
  await until('the page connects', 10, () => document.getElementById('link').textContent.includes('live'));
  const bytes = await page.evaluate(() => performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))
    .filter((e) => !e.name.includes('/api/')).reduce((sum, e) => sum + e.encodedBodySize, 0));
  check(bytes > 50000 && bytes <= 300000, `the page weighs ${Math.round(bytes / 1000)} KB, at most 300`);
  await until('a step is drawn', 240, () => Q.columns.step.length >= 2 && document.querySelectorAll('#curves canvas').length >= 6);
  const before = await page.evaluate(() => Q.columns.step.length);
  await until('the curves move', 60, (n) => Q.columns.step.length > n, before);
  check((await page.locator('#verdict b').textContent()) !== 'Starting', 'the verdict is given: ' + (await page.locator('#verdict').textContent()));

  // A killed worker.
  const worker = await page.locator('#fleet tr[data-id="worker-1"] td').first().getAttribute('title');
  const pid = Number((worker || '').replace('process ', ''));
  check(pid > 1, `the fleet shows worker-1 as process ${pid}`);
  process.kill(pid, 'SIGKILL');
  await until('the fleet follows a killed worker', 5, (old) => {
    const row = document.querySelector('#fleet tr[data-id="worker-1"]');
    return row && (row.className === 'gone' || row.children[0].title !== old);
  }, worker);
  await until('and its successor', 15, (old) => {
    const row = document.querySelector('#fleet tr[data-id="worker-1"]');
    return row && row.className !== 'gone' && row.children[0].title !== old;
  }, worker);

  // A group.
  await page.locator('#list .group').first().click();
  await until('a group opens with its responses', 5, () => document.querySelectorAll('#detail tbody tr').length > 1);
  await until('its image is visible', 5, () => [...document.querySelectorAll('#detail img')].some((i) => i.complete && i.naturalWidth > 0 && i.clientWidth > 20));
  await page.locator('#filters select').selectOption({ label: 'unanimous' });
  await until('the filter answers', 5, () => [...document.querySelectorAll('#list .chip')].every((c) => c.textContent === 'unanimous'));
  await page.locator('#filters select').selectOption({ index: 0 });

  if (shots) {
    mkdirSync(shots, { recursive: true });
    await page.waitForTimeout(800);
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: shots + '/page-light.png', fullPage: true });
    await page.emulateMedia({ colorScheme: 'dark' });
    await page.waitForTimeout(500);
    await page.screenshot({ path: shots + '/page-dark.png', fullPage: true });
    await page.setViewportSize({ width: 390, height: 844 });
    await page.waitForTimeout(800);
    await page.evaluate(() => scrollTo(0, 0));
    await page.screenshot({ path: shots + '/page-phone.png' });
  }
  await page.setViewportSize({ width: 390, height: 844 });
  await page.waitForTimeout(300);
  check(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing is wider than a phone');
  check(complaints.length === 0, 'the console is silent' + (complaints.length ? ': ' + complaints.join(' | ') : ''));
} finally {
  await browser.close();
}
