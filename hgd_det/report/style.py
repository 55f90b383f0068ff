"""The page's style sheet: a phone first, two columns where there is room, paper, and a dark scheme.

`.s0` to `.s7` are the runs' colours, `.k0` to `.k5` the kinds of errors (both Okabe and Ito's, told apart
with any colour vision), `.t0` to `.t8` the stages, from large to small (viridis).
"""

STYLE = '''
:root { color-scheme: light dark;
  --ground: #fff; --ink: #1a2027; --soft: #58626d; --line: #dde2e7; --panel: #f5f7f9;
  --gap: #0072b21c;
  --s0: #59636e; --s1: #d55e00; --s2: #0072b2; --s3: #009e73; --s4: #b3558a; --s5: #b97f00; --s6: #3d9bd1;
  --s7: #8a6d3b;
  --k0: #0072b2; --k1: #cc79a7; --k2: #e69f00; --k3: #c3cad1; --k4: #56b4e9; --k5: #d55e00;
  --t0: #440154; --t1: #472d7b; --t2: #3b528b; --t3: #2c728e; --t4: #21918c; --t5: #28a178; --t6: #4cae52;
  --t7: #8fae1b; --t8: #c79a00; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ground: #14181d; --ink: #e7ebef; --soft: #a3adb8; --line: #2e363f; --panel: #1c2229;
  --gap: #4fb0e826;
  --s0: #aab4bf; --s1: #f08a3c; --s2: #4fb0e8; --s3: #35c79a; --s4: #dd93bd; --s5: #e8b23a; --s6: #8acdf5;
  --s7: #c7a873; --k3: #56606b;
  --t0: #b07cd0; --t1: #9a86e0; --t2: #7f97e8; --t3: #5fb0d8; --t4: #3fc0ba; --t5: #45cf9a; --t6: #74d96e;
  --t7: #b9dc46; --t8: #f0cd3c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 60rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; }
.kind { margin: 0; color: var(--soft); font-size: .8rem; letter-spacing: .09em; text-transform: uppercase; }
h1 { font-size: clamp(1.5rem, 5.2vw, 2.4rem); line-height: 1.18; letter-spacing: -.015em;
  margin: .3rem 0 .6rem; max-width: 24em; text-wrap: balance; }
h2 { font-size: 1.35rem; line-height: 1.25; letter-spacing: -.01em; margin: 0 0 .4rem; }
h3 { font-size: 1rem; margin: 0 0 .3rem; }
p { margin: 0 0 .8rem; max-width: 42rem; }
.lead { color: var(--soft); }
section { padding: 2rem 0 .6rem; border-top: 1px solid var(--line); margin-top: 1.6rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: 1rem 0 0;
  font-size: .9rem; }
a { color: var(--s2); text-decoration-thickness: 1px; text-underline-offset: 2px; }
figure { margin: .9rem 0 1.2rem; min-width: 0; }
figcaption, caption { color: var(--soft); font-size: .875rem; line-height: 1.45; text-align: left; }
figcaption { margin-top: .35rem; }
caption { caption-side: bottom; padding-top: .5rem; }
.wide { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 23rem), 1fr));
  gap: 0 2.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: .42rem .35rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: baseline; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
th:first-child, td:first-child { padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: .78rem; line-height: 1.25; vertical-align: bottom;
  border-bottom: 1.5px solid var(--soft); }
tbody th { font-weight: 600; overflow-wrap: break-word; }
tbody th small { display: block; color: var(--soft); font-weight: 400; font-size: .78rem; }
.best td, .best th { background: var(--gap); }
.words td { overflow-wrap: break-word; }
.words tbody th { white-space: nowrap; }
td b { font-weight: 650; }
.dot { display: inline-block; width: .62em; height: .62em; border-radius: 50%; background: currentColor;
  margin-right: .45em; }
svg { display: block; width: 100%; height: auto; max-width: 34rem; overflow: visible; }
svg text { font: 11px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .tick, svg .axis { fill: var(--soft); font-size: 10px; }
svg .tiny { font-size: 9px; fill: var(--soft); }
svg .value { font-weight: 650; font-size: 12px; }
svg g .name { fill: currentColor; font-weight: 600; }
svg .grid { stroke: var(--line); stroke-width: 1; fill: none; }
svg .gap { fill: var(--gap); }
svg .inside { fill: #fff; font-size: 10px; font-weight: 600; }
svg .k1 .inside, svg .k2 .inside, svg .k3 .inside, svg .k4 .inside { fill: #111; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .15rem 1rem; padding: 0;
  margin: .3rem 0 .5rem; font-size: .82rem; color: var(--soft); }
.scenes { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: 1rem 2.2rem; }
.mark { display: inline-block; width: 1.05em; height: .8em; vertical-align: -.05em; outline: 1px solid #000;
  background: #555; border: 2px solid #56b4e9; }
.mark.recalled { border: 3px solid #f0e442; } .mark.wrong { border: 1.5px solid #d55e00; }
.mark.missed { border: 2px dotted #fff; }
@media (max-width: 34rem) {
  .runs tr { display: grid; grid-template-columns: repeat(var(--n), 1fr); }
  .runs tbody th { grid-column: 1 / -1; border: 0; padding-bottom: 0; }
  .runs tbody th small { display: inline; margin-left: .5em; }
  .runs thead th:first-child { display: none; }
  .runs td, .runs thead th { text-align: left; padding-left: 0; } }
.panel { table-layout: fixed; }
.panel th, .panel td { border: 0; padding: .1rem .15rem; text-align: center; font-size: .72rem; line-height:
  1.2;
  vertical-align: middle; }
.panel thead th { font-size: .78rem; font-weight: 600; padding-bottom: .3rem; color: currentColor;
  overflow-wrap: anywhere; }
.panel tbody th { width: 2.6rem; color: var(--soft); font-weight: 400; text-align: left; }
.panel col:first-child { width: 2.9rem; }
.panel img { display: block; width: 100%; border-radius: 3px; background: var(--panel); }
.panel .map { image-rendering: pixelated; }
.panel span { color: var(--soft); display: block; padding: .1rem 0 .25rem; }
details { border-bottom: 1px solid var(--line); padding: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font: .75rem/1.45 ui-monospace, Menlo, Consolas,
  monospace;
  background: var(--panel); padding: .8rem; border-radius: 6px; }
.missing { color: var(--soft); font-size: .9rem; padding-left: 1.1rem; }
.missing li { overflow-wrap: anywhere; margin-bottom: .3rem; max-width: 44rem; }
footer { color: var(--soft); font-size: .82rem; padding-top: 1rem; padding-bottom: 3rem; }
''' + ''.join(f'.s{i} {{ color: var(--s{i}); }} ' for i in range(8)) + ''.join(
    f'.k{i} {{ color: var(--k{i}); }} ' for i in range(6)) + ''.join(
    f'.t{i} {{ color: var(--t{i}); }} ' for i in range(9)) + '''
@media print {
  @page { margin: 14mm; }
  :root { color-scheme: light; }
  body { font-size: 10.5pt; }
  nav, details pre { display: none; }
  section { break-inside: auto; }
  h2, h3 { break-after: avoid; }
  figure, table, .panel, svg { break-inside: avoid; }
  .best td, .best th, .dot, svg, img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
'''
