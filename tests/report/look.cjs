// Opens a page in Chromium, on a phone and on a desk, and prints what it saw as JSON.
// node look.cjs PLAYWRIGHT-CORE CHROMIUM PAGE
const [playwright, chromium, page] = process.argv.slice(2);

(async () => {
  const browser = await require(playwright).chromium.launch({ executablePath: chromium, args: ['--no-sandbox'] });
  const seen = {};
  for (const width of [390, 1200]) {
    const tab = await browser.newPage({ viewport: { width, height: 844 } });
    const complaints = [];
    tab.on('console', (message) => { if (message.type() !== 'log') complaints.push(message.text()); });
    tab.on('pageerror', (error) => complaints.push(String(error)));
    tab.on('request', (request) => { if (/^https?:/.test(request.url())) complaints.push(request.url()); });
    await tab.goto('file://' + page);
    seen[width] = await tab.evaluate(() => ({
      width: document.documentElement.scrollWidth,
      images: document.images.length,
      decoded: [...document.images].filter((image) => image.complete && image.naturalWidth > 0).length,
      tables: document.querySelectorAll('table').length,
      charts: [...document.querySelectorAll('svg')].map((chart) => Math.round(chart.getBoundingClientRect().width)),
      title: document.querySelector('h1').textContent,
    }));
    seen[width].complaints = complaints;
    await tab.close();
  }
  await browser.close();
  console.log(JSON.stringify(seen));
})().catch((error) => { console.error(error); process.exit(1); });
