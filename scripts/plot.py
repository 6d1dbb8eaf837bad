#!/usr/bin/env python3
"""Draws docs/img/*.svg from the reports in load-tests/results/: `make plots`.

  plot.py           draws them
  plot.py --check   exit 1 if one is not what its reports say

Needs nothing but Python. The same reports always give the same bytes, so that a picture that is out of date can be told.
"""

import json
import math
import sys
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
RESULTS, IMAGES = ROOT / "load-tests/results", ROOT / "docs/img"

WIDTH, MARGIN, ROW = 860, 24, 30
CHAR = 6.4  # of 12 px text, on average: texts are placed, never measured

# Inside the picture, because a page can't reach into one: it follows the reader's system. No CSS variables: few renderers know them.
STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328 }
  .title { font-size: 15px; font-weight: 600 }
  .soft { fill: #59636e }
  .inside { fill: #fff; font-size: 11px }
  .grid { stroke: #d8dee4; stroke-width: 1 }
  .range { stroke: #1f2328; stroke-width: 1.5 }
  .card { fill: #fff }
  .ours { fill: #1f6feb }
  .peer { fill: #8c959f }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .soft { fill: #9198a1 }
    .inside { fill: #fff }
    .grid { stroke: #30363d }
    .range { stroke: #e6edf3 }
    .card { fill: #0d1117 }
    .ours { fill: #4c8dff }
    .peer { fill: #6e7681 }
  }
"""

# One colour per process in all pictures; white text is readable on each.
PROCESSES = {
    "api": "#1f6feb",
    "peer": "#1f6feb",
    "consumer": "#0f7b5f",
    "relay": "#4a7a9c",
    "auditor": "#7d5a1e",
    "postgres": "#9a5b00",
    "redis": "#a8324a",
    "kafka": "#7a4bb3",
    "generator": "#6e7781",
}
LINES = {"p50": "#2da44e", "p95": "#1f6feb", "p99": "#bf5a00"}


class Picture:
    def __init__(self, title, subtitle, height):
        self.height = height
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" '
            f'aria-label="{escape(title)}">',
            f"<style>{STYLE}</style>",
            f'<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>',
        ]
        self.text(MARGIN, 30, title, "title")
        self.text(MARGIN, 49, subtitle, "soft")

    def text(self, x, y, text, kind="", anchor="start"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>')

    def line(self, x1, y1, x2, y2, kind):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def bar(self, x, y, width, height, kind="", color=""):
        fill = f' fill="{color}"' if color else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height}" rx="2" class="{kind}"{fill}/>'
        )

    def raw(self, part):
        self.parts.append(part)

    def done(self):
        return "\n".join([*self.parts, "</svg>"]) + "\n"


def number(value):
    if value >= 1_000_000:
        return f"{value / 1_000_000:.2f} M"
    return f"{value:,.0f}".replace(",", " ") if value >= 100 or value == int(value) else f"{value:.1f}"


def rates(title, subtitle, arms):
    """Bars of rates on a logarithmic axis: each step to the right is ten times as much."""
    arms = [arm for arm in arms if arm["median"]]
    if not arms:
        return None
    left = MARGIN + CHAR * max(len(arm["name"]) for arm in arms) + 12
    right = WIDTH - MARGIN - CHAR * 10
    least = 10 ** math.floor(math.log10(min(arm["least"] for arm in arms)))
    most = max(arm["most"] for arm in arms)

    def x(value):
        return left + (right - left) * math.log10(value / least) / math.log10(most / least)

    top = 70
    picture = Picture(title, subtitle, top + ROW * len(arms) + 40)
    bottom = top + ROW * len(arms)
    tick = least
    while tick <= most:
        picture.line(x(tick), top - 4, x(tick), bottom, "grid")
        picture.text(x(tick), bottom + 18, number(tick), "soft", "middle")
        tick *= 10
    for at, arm in enumerate(arms):
        y = top + ROW * at
        picture.text(left - 8, y + 17, arm["name"], "", "end")
        picture.bar(left, y + 4, x(arm["median"]) - left, ROW - 12, "ours" if arm["name"].startswith("flashsale") else "peer")
        picture.line(x(arm["least"]), y + 13, x(arm["most"]), y + 13, "range")
        picture.text(x(arm["most"]) + 8, y + 17, number(arm["median"]))
    return picture.done()


def stacks(title, subtitle, rows):
    """Bars of CPU time, one part per process. `rows`: name and microseconds by process."""
    rows = [(name, {process: us for process, us in parts.items() if us >= 0.05}) for name, parts in rows]
    rows = [(name, parts) for name, parts in rows if parts]
    if not rows:
        return None
    present = [process for process in PROCESSES if any(process in parts for _, parts in rows)]
    left = MARGIN + CHAR * max(len(name) for name, _ in rows) + 12
    right = WIDTH - MARGIN - CHAR * 9
    most = max(sum(parts.values()) for _, parts in rows)
    top = 96
    picture = Picture(title, subtitle, top + ROW * len(rows) + 16)
    at = MARGIN
    for color in dict.fromkeys(PROCESSES[process] for process in present):
        label = " or ".join(process for process in present if PROCESSES[process] == color)
        picture.bar(at, 63, 11, 11, "", color)
        picture.text(at + 16, 73, label, "soft")
        at += 16 + CHAR * len(label) + 18
    for row, (name, parts) in enumerate(rows):
        y, x = top + ROW * row, left
        picture.text(left - 8, y + 17, name, "", "end")
        for process in present:
            width = (right - left) * parts.get(process, 0) / most
            if width <= 0:
                continue
            picture.bar(x, y + 2, width - 1, ROW - 8, "", PROCESSES[process])
            label = number(parts[process])
            if width > CHAR * len(label) + 6:
                picture.text(x + width / 2, y + 17, label, "inside", "middle")
            x += width
        picture.text(x + 8, y + 17, number(sum(parts.values())))
    return picture.done()


def latencies(title, subtitle, points):
    """Percentiles against the offered rate, logarithmic upwards. `points`: rate and percentiles in ms."""
    points = sorted(points, key=lambda point: point[0])
    if len({rate for rate, _ in points}) < 2:
        return None
    top, bottom, left, right = 74, 320, MARGIN + 50, WIDTH - MARGIN - 60
    values = [ms[name] for _, ms in points for name in LINES]
    least, most = 10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))
    rate_max = points[-1][0] * 1.05

    def x(rate):
        return left + (right - left) * rate / rate_max

    def y(ms):
        return bottom - (bottom - top) * math.log10(ms / least) / math.log10(most / least)

    picture = Picture(title, subtitle, bottom + 56)
    tick = least
    while tick <= most:
        picture.line(left, y(tick), right, y(tick), "grid")
        picture.text(left - 8, y(tick) + 4, f"{number(tick)} ms", "soft", "end")
        tick *= 10
    for rate in sorted({rate for rate, _ in points}):
        picture.line(x(rate), bottom, x(rate), bottom + 5, "grid")
        picture.text(x(rate), bottom + 20, number(rate), "soft", "middle")
    picture.text((left + right) / 2, bottom + 42, "requests offered a second", "soft", "middle")
    ends = spread([y(points[-1][1][name]) for name in LINES])
    for (name, color), end in zip(LINES.items(), ends):
        path = " ".join(f"{x(rate):.1f},{y(ms[name]):.1f}" for rate, ms in points)
        picture.raw(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for rate, ms in points:
            picture.raw(f'<circle cx="{x(rate):.1f}" cy="{y(ms[name]):.1f}" r="3.5" fill="{color}"/>')
        picture.text(x(points[-1][0]) + 10, end + 4, name)
    return picture.done()


def spread(heights):
    """Moves labels apart that would cover each other."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    placed = list(heights)
    for before, at in zip(order, order[1:]):
        placed[at] = max(placed[at], placed[before] + 15)
    return placed


def read(name):
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def machine(report):
    return f"{report['machine']['cores']} cores, {report['at'][:10]}"


def pictures():
    drawn = {}
    peers = read("peers")
    for table in peers["tables"] if peers else []:
        subtitle = f"{table['unit']}; logarithmic; median, least and most of {peers['rounds']}; {machine(peers)}"
        title = {
            "http": "One hot SKU over HTTP, each way to sell it",
            "consumers": "One log, each way to decide it",
            "producers": "Publishing to Kafka, acks=all",
        }[table["name"]]
        drawn[f"peers-{table['name']}"] = rates(title, subtitle, table["arms"])
        costs = [(arm["name"], arm["cpu_us_per_operation"]) for arm in table["arms"] if arm["median"]]
        if table["name"] == "http":
            drawn["peers-http-cpu"] = stacks("CPU time of one reservation", f"microseconds by process; {machine(peers)}", costs)
    loads = {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}
    loads = {name: report for name, report in loads.items() if "profile" in report and not name.startswith("traces-")}
    loads = {name: report for name, report in loads.items() if not report["violations"]}
    rows = [
        (f"{name}, {number(report['rate'])}/s", {p: us for p, us in report["cpu_us_per_request"].items() if p != "all"})
        for name, report in loads.items()
    ]
    if rows:
        when = machine(next(iter(loads.values())))
        drawn["load-cpu"] = stacks("CPU time of one request under load", f"microseconds by process; {when}", rows)
    steady = [
        (report["rate"], report["decision_ms"])
        for report in loads.values()
        if report["profile"] == "steady" and report["skus"] == 1 and report["keyed"] and report["wait_seconds"] and report["decision_ms"]
    ]
    if steady:
        title = "From due to decided: one SKU, keyed, answered with the decision"
        drawn["load-latency"] = latencies(title, f"open model, percentiles of each run; logarithmic; {when}", steady)
    return {name: svg for name, svg in drawn.items() if svg}


def main():
    is_check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not is_check:
        sys.exit(__doc__)
    drawn = pictures()
    there = {file.stem: file.read_text() for file in IMAGES.glob("*.svg")}
    if is_check:
        stale = sorted(name for name in {**drawn, **there} if drawn.get(name) != there.get(name))
        if stale:
            sys.exit(f"plot.py: not what the reports say, run `make plots`: {', '.join(stale)}")
        return
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in there.keys() - drawn.keys():
        (IMAGES / f"{name}.svg").unlink()
    for name, svg in drawn.items():
        (IMAGES / f"{name}.svg").write_text(svg)
        print(f"docs/img/{name}.svg")


main()
