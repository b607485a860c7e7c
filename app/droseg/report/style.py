"""The look of a report: one style sheet for screen, phone and paper; no fonts or files from elsewhere."""

CSS = """
:root { --ink: #1c2430; --quiet: #5b6675; --line: #dfe4ea; --soft: #f5f7f9; --accent: #0072B2; --other: #B85C00;
  --bad: #A3324B; --good: #00684A; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main, header, footer { max-width: 1280px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 40px; }
h1 { font-size: 1.85rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.015em; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 56px 0 8px; padding-top: 20px; border-top: 1px solid var(--line);
  letter-spacing: -0.01em; }
h3 { font-size: 1rem; margin: 28px 0 8px; }
p { margin: 8px 0; max-width: 76ch; }
.quiet, .note { color: var(--quiet); }
.note { font-size: 0.875rem; }
.group { white-space: nowrap; font-weight: 600; }
nav { margin: 16px 0 0; font-size: 0.875rem; display: flex; flex-wrap: wrap; gap: 4px 18px; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.verdict { margin: 26px 0 0; padding: 20px 24px; background: var(--soft); border-left: 4px solid var(--accent);
  border-radius: 0 6px 6px 0; font-size: 1.0625rem; }
.verdict p { margin: 0; max-width: 84ch; }
.verdict p + p { margin-top: 12px; }
.verdict .group { overflow-wrap: anywhere; }
.verdict small { font-size: 0.9em; color: var(--quiet); font-variant-numeric: tabular-nums; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; margin: 16px 0 0; }
.tile { border: 1px solid var(--line); border-radius: 6px; padding: 12px 16px; }
.tile b { display: block; font-size: 1.65rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; }
.tile span { display: block; font-size: 0.8125rem; color: var(--quiet); overflow-wrap: anywhere; }
.helped { color: var(--good); font-weight: 650; }
.hurt { color: var(--bad); font-weight: 650; }
.inconclusive { color: var(--quiet); font-weight: 600; }
.helped::before { content: "\\25B2\\00A0"; font-size: 0.7em; vertical-align: 0.15em; }
.hurt::before { content: "\\25BC\\00A0"; font-size: 0.7em; vertical-align: 0.15em; }
/* A shadow at the side where more columns are; it is covered at the end. */
.scroll { overflow-x: auto; margin: 12px 0; -webkit-overflow-scrolling: touch; background:
  linear-gradient(to right, #fff 30%, transparent) left / 40px 100% no-repeat local,
  linear-gradient(to left, #fff 30%, transparent) right / 40px 100% no-repeat local,
  linear-gradient(to right, rgba(28, 36, 48, 0.18), transparent) left / 12px 100% no-repeat scroll,
  linear-gradient(to left, rgba(28, 36, 48, 0.18), transparent) right / 12px 100% no-repeat scroll; }
table { border-collapse: collapse; font-size: 0.84375rem; font-variant-numeric: tabular-nums; min-width: 50%; }
th, td { padding: 7px 8px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--quiet); font-size: 0.8125rem; line-height: 1.3; vertical-align: bottom;
  white-space: normal; }
thead th { border-bottom: 2px solid var(--line); }
th:first-child, td:first-child, .left { text-align: left; }
td:first-child { font-weight: 600; white-space: normal; overflow-wrap: anywhere; min-width: 8em; max-width: 24em; }
tr.all td { border-bottom: 2px solid var(--line); }
tr.unranked td { color: var(--quiet); font-weight: 400; }
h3.run { font-size: 1.125rem; border-bottom: 2px solid var(--line); padding-bottom: 4px; }
h4 { font-size: 0.9375rem; margin: 4px 0; }
tr.worst td:first-child { box-shadow: inset 3px 0 0 var(--bad); padding-left: 10px; }
td small { color: var(--quiet); font-size: 0.8125rem; font-weight: 400; }
.text th, .text td { text-align: left; }
.heat td { min-width: 84px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 28px 32px; }
.plots figure { margin: 0; }
.plots h3 { margin-top: 8px; }
.plot { display: block; width: 100%; height: auto; fill: var(--ink); font: 13px system-ui, -apple-system, "Segoe UI",
  Roboto, Arial, sans-serif; }
.plot .grid { stroke: var(--line); fill: none; }
.plot .ticks { fill: var(--quiet); font-size: 12px; }
.plot .lane { font-weight: 600; }
.plot .quiet { fill: var(--quiet); font-weight: 400; font-size: 12px; }
.plot .field { fill: #f7eef0; }
/* Okabe and Ito's palette, darkened where text stands in it: told apart with any color vision; shapes differ too. */
.run0 { fill: var(--accent); stroke: var(--accent); }
.run1 { fill: var(--other); stroke: var(--other); }
.run2 { fill: #007A5A; stroke: #007A5A; }
.run3 { fill: #A8558A; stroke: #A8558A; }
.run4 { fill: #3B3B3B; stroke: #3B3B3B; }
.run5 { fill: #8A7A00; stroke: #8A7A00; }
.plot circle, .mark, .legend circle { fill-opacity: 0.55; stroke: #fff; stroke-width: 0.5; }
.dots { fill: none; stroke-width: 3.5; stroke-linecap: round; stroke-opacity: 0.35; }
.box { fill-opacity: 0.12; stroke-opacity: 0.45; }
.whisker { stroke-opacity: 0.45; }
.median { stroke-width: 2.5; fill: none; }
.failed { stroke-width: 1.8; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 22px; font-size: 0.875rem; margin: 4px 0 12px; }
.legend svg { width: 14px; height: 14px; vertical-align: -2px; margin-right: 6px; }
.cases { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 28px 32px; }
.case { border-top: 3px solid var(--ink); padding-top: 8px; break-inside: avoid; }
.case h3 { margin: 0; overflow-wrap: anywhere; }
.case p { margin: 2px 0 8px; font-size: 0.875rem; }
.panels { display: grid; grid-template-columns: repeat(3, 1fr); gap: 6px; }
.panels figure { margin: 0; }
.panels img { width: 100%; height: auto; display: block; background: #000; border-radius: 3px; }
.panels figcaption { font-size: 0.8125rem; color: var(--quiet); text-align: center; margin-top: 3px; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 6px; vertical-align: -1px;
  border: 1px solid rgba(0, 0, 0, 0.25); }
details { margin: 12px 0; border: 1px solid var(--line); border-radius: 6px; padding: 0 16px; }
summary { cursor: pointer; padding: 11px 0; font-weight: 600; }
details[open] summary { border-bottom: 1px solid var(--line); }
details .scroll { max-height: 70vh; overflow: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 8px 24px; font-size: 0.9375rem; }
dt { font-weight: 600; }
dd { margin: 0; max-width: 80ch; overflow-wrap: anywhere; }
footer { margin-top: 48px; padding-bottom: 40px; font-size: 0.8125rem; color: var(--quiet); }
@media (max-width: 640px) {
  body { font-size: 15px; }
  main, header, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 24px; }
  h1 { font-size: 1.5rem; }
  h2 { margin-top: 40px; }
  .verdict { padding: 14px 16px; margin-left: -16px; margin-right: -16px; border-radius: 0; font-size: 1rem; }
  .group { white-space: normal; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 10px 12px; }
  .tile b { font-size: 1.35rem; }
  th, td { padding: 6px 8px; }
  th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
  td:first-child { min-width: 116px; }
  th:first-child, td:first-child { max-width: 40vw; overflow-wrap: anywhere; border-right: 1px solid var(--line); }
  .plot { font-size: 17px; }
  .plot .ticks, .plot .quiet { font-size: 15px; }
  dl { grid-template-columns: 1fr; gap: 2px; }
  dd { margin-bottom: 10px; }
}
@media print {
  @page { size: landscape; margin: 12mm; }
  body { font-size: 10.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  header { padding-top: 0; }
  nav { display: none; }
  footer { margin-top: 12pt; padding-bottom: 0; break-before: avoid; }
  h2 { margin-top: 24pt; break-after: avoid; }
  h3 { break-after: avoid; }
  .verdict { background: none; border: 1px solid #999; border-left: 4px solid #000; }
  .scroll, details .scroll { overflow: visible; max-height: none; background: none; }
  table { font-size: 8pt; min-width: 0; max-width: 100%; }
  td small { font-size: 0.9em; }
  th, td { padding: 2.5pt 4pt; }
  .text td { white-space: normal; }
  td:first-child { min-width: 6em; }
  /* Folded parts are long tables that lie beside the page as CSV; only the notes for that are printed. */
  details { border: none; padding: 0; margin: 4pt 0; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  details.file::details-content { display: none; }
  details.file summary::after { content: attr(data-file); font-weight: 400; }
  summary { list-style: none; padding: 2pt 0; }
  figure, .case, tr, .tile { break-inside: avoid; }
  .plots, .cases { grid-template-columns: 1fr 1fr; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
}
"""
