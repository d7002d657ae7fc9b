"""How the page looks: one column, tables that scroll by themselves, light and dark."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1f2329; --soft: #5c636d;
  --line: #dfe1e5; --best: #dff3ec; --accent: #14705f; }
@media (prefers-color-scheme: dark) { :root { --ground: #131518; --card: #1a1d21; --ink: #e6e8eb;
  --soft: #a0a7b1; --line: #343941; --best: #173a33; --accent: #5cc9b3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p, li { max-width: 76ch; }
.soft, figcaption, caption { color: var(--soft); }
nav { margin: 14px 0 0; display: flex; flex-wrap: wrap; gap: 4px 16px; }
a { color: var(--accent); }
.scroll { overflow-x: auto; margin: 0 0 18px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
caption { text-align: left; padding: 0 0 4px; font-size: 0.88rem; }
th, td { padding: 5px 10px; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
thead th { font-weight: 600; border-bottom-color: var(--soft); }
td.best { font-weight: 700; background: var(--best); }
td.second { text-decoration: underline; text-underline-offset: 3px; }
figure { margin: 0 0 22px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 640px; height: auto; font-family: inherit; }
figcaption { font-size: 0.88rem; margin-top: 8px; }
.strip { display: flex; flex-wrap: wrap; gap: 10px; margin: 0 0 18px; }
.strip div { width: 104px; font-size: 0.76rem; line-height: 1.3; overflow-wrap: anywhere; }
.strip img { width: 96px; height: 96px; object-fit: contain; border-radius: 4px;
  border: 1px solid var(--line);
  image-rendering: pixelated; display: block; margin-bottom: 3px; background: var(--card); }
code { font: 0.86em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
td code { white-space: normal; }
details { margin: 0 0 16px; }
summary { cursor: pointer; color: var(--accent); }
@media print { figure, .strip { break-inside: avoid; } }
"""
