"""The report: one file, nothing from outside, everything in it; looked at by a real browser where there is one."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import matplotlib.image
import msgspec
import pytest
from click.testing import CliRunner

from raidlib import sim
from raidlib.cli import program

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLOTS = {"curve", "improvements", "causes", "time"}
HARD = {
    "level": 6,
    "raid_devices": 10,
    "lifetime": "weibull:1.12:461386h",
    "mttr": "weibull:2:12h:6h",
    "lse": "9259h",
    "scrub": "168h",
    "size": "8T",
    "shock": "0.0001:3",
    "spares": 1,
    "human": "72h",
    "relative_error": "5%",
    "seed": 42,
}


@pytest.fixture(scope="module")
def results():
    return {
        "exact": sim.simulate(sim.Inputs(level=6, raid_devices=10, afr="2%", mttr="24h").study(), compare=True),
        "drawn": sim.simulate(sim.Inputs(**HARD).study(), compare=True),
        "none seen": sim.simulate(sim.Inputs(level=1, raid_devices=3, lifetime="weibull:3:1e9h:9y", missions=100).study(), compare=True),
        "pool": sim.simulate(
            sim.Inputs(level=5, raid_devices=4, afr="50%", pool_disks=12, years=1, missions=2000).study(), compare=True, improvements=False
        ),
    }


@pytest.fixture(scope="module")
def pages(results):
    return {name: sim.report.report_html(result) for name, result in results.items()}


class Page(HTMLParser):
    """Ids, links to other files, the words, and how deep the tags are nested at the end."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.outside, self.words, self.open = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids += [given["id"]] if "id" in given else []
        self.outside += [given[key] for key in ("src", "href", "xlink:href") if given.get(key) and not re.match(r"#|data:", given[key])]
        if tag in ("script", "iframe", "object", "base"):
            self.outside.append(tag)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in ("meta", "link", "br"):
            self.handle_endtag(tag)

    def handle_data(self, data):
        self.words.append(data)


@pytest.mark.parametrize("name", ["exact", "drawn", "none seen", "pool"])
def test_page_is_whole_and_by_itself(results, pages, name):
    result, text = results[name], pages[name]
    page = Page(text)
    assert page.open == [] and page.outside == []
    assert len(set(page.ids)) == len(page.ids)
    used = set(re.findall(r"url\(#([^)]*)\)", text)) | set(re.findall(r'xlink:href="#([^"]*)"', text))
    assert used <= set(page.ids)
    assert not re.search(r"url\((?!#)|@import|@font-face", text)
    words = " ".join(page.words)
    for sentence in (result.words, *result.assumptions):
        assert sentence in words
    for part in ("Result", "Availability and degraded time", "Inputs", "Health of the estimator", "Assumptions", "Repair discipline"):
        assert part in words
    assert "None" not in words and "nan" not in words


def test_what_is_in_it(results, pages):
    words = {name: " ".join(Page(text).words) for name, text in pages.items()}
    assert "1.079e-07 (exact)" in words["exact"] and "minutes a year" in words["exact"] and "10.70" in words["exact"]
    assert "exact curve beside Monte Carlo" in words["exact"] and "Effective sample size" in words["exact"]
    low, high = results["drawn"].p_loss_ci95
    assert f"95 %: {low:.4g} to {high:.4g}" in words["drawn"] and "Largest share of one mission" in words["drawn"]
    assert "42" in words["drawn"] and f"raidlib {results['drawn'].versions['raidlib']}" in words["drawn"]
    assert "Sensitivity" in words["drawn"] and "a latent error" in words["drawn"] and "8 TiB" in words["drawn"]
    assert "no loss was seen" in words["none seen"] and "or more" in words["none seen"]
    assert "not told" in words["pool"] and "12 disks, 12 groups" in words["pool"]
    for name in ("exact", "drawn"):
        assert set(Page(pages[name]).ids) >= PLOTS


def test_interval_of_monte_carlo_is_of_all_arrays():
    """Beside an exact answer, and by itself."""
    inputs = {"level": 6, "raid_devices": 10, "afr": "2%", "mttr": "24h", "groups": 50}
    exact = sim.simulate(sim.Inputs(**inputs).study(), compare=True, improvements=False)
    words = " ".join(Page(sim.report.report_html(exact)).words)
    low, high = (float(word) for word in re.search(r"unbiased; 95 %: (\S+) to (\S+)", words).groups())
    assert low < exact.p_loss < high < 1.3 * low
    drawn = sim.simulate(sim.Inputs(**inputs, method="mc", seed=1).study(), improvements=False)
    assert drawn.p_loss_ci95[0] < exact.p_loss < drawn.p_loss_ci95[1] < 1.1 * drawn.p_loss_ci95[0]


def test_where_a_year_goes_adds_up(results):
    """RAID 0 is whole or without its data, never degraded."""
    raid0 = sim.simulate(sim.Inputs(level=0, raid_devices=10, afr="100%", mttr="24h").study(), improvements=False)
    hours = sim.report.year_hours(raid0)
    assert hours["whole"] == pytest.approx(8760 * (8760 / 8784) ** 10, rel=1e-9) and hours["degraded"] == pytest.approx(0, abs=1e-9)
    assert all(sum(sim.report.year_hours(result).values()) == pytest.approx(8760) for result in (raid0, results["exact"], results["drawn"]))


def test_a_loss_that_is_certain(results):
    """The curve begins at 0, the legend is not over it, and what is left of the chance is not called 0."""
    lost = sim.simulate(sim.Inputs(level=0, raid_devices=20, afr="1000%").study(), compare=True, improvements=False)
    assert lost.p_loss == 1 and "below 1e-16" in " ".join(Page(sim.report.report_html(lost)).words)
    drawn = sim.simulate(
        sim.Inputs(level=0, raid_devices=20, afr="1000%", method="mc", missions=100).study(), compare=True, improvements=False
    )
    assert f"below {1 - 0.05 ** (1 / 100):.2g} of keeping all data" in drawn.words

    def curve_and_legend(result):
        """The curve's first and second point, and the legend's, in units of the plot."""
        svg = sim.report._curve_plot(result)["svg"]
        line = re.search(r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) ([\d.]+)[^"]*"[^>]*stroke: #d9730d', svg)
        legend = re.search(r'id="curve-legend_1">.*?<path d="M ([\d.]+) ([\d.]+)', svg, re.DOTALL)
        return [float(value) for value in line.groups()], [float(value) for value in legend.groups()]

    (x0, y0, x1, y1), (_, low) = curve_and_legend(lost)
    (_, bottom, _, _), (_, high) = curve_and_legend(results["exact"])
    assert x0 < x1 and y0 == pytest.approx(bottom, abs=3) and y1 < y0 - 100  # from 0 to the top, within one bin
    assert low > high + 50


def test_frail_estimator_is_said_to_be_frail(results, pages):
    weak = msgspec.structs.replace(results["drawn"], effective_missions=7.0)
    assert "few missions carry it" in sim.report.report_html(weak)
    assert "few missions carry it" not in pages["drawn"]


def test_same_result_same_page(results, pages):
    assert sim.report.report_html(results["drawn"]) == pages["drawn"]


def test_verb_writes_it(tmp_path):
    path = tmp_path / "report.html"
    done = CliRunner().invoke(program, ["simulate", "-l", "5", "-n", "4", "--afr", "2%", "--report", str(path)])
    assert done.exit_code == 0 and done.stdout.endswith(f"Report: {path}\n")
    assert path.read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(program, ["simulate", "-l", "5", "-n", "4", "--report", str(tmp_path / "no" / "r.html")]).exit_code == 64


FRAME = """<!doctype html><body style="margin:0"><iframe id="f" src="{page}" style="border:0;width:{width}px;height:6000px"></iframe>
<pre id="seen"></pre><script>
onload = () => {{
  const page = f.contentDocument, svgs = [...page.querySelectorAll("figure svg")];
  const wide = [...page.querySelectorAll("section, figure, p, td, th, li")].filter(e => e.scrollWidth > e.clientWidth + 1).length;
  seen.textContent = JSON.stringify([page.documentElement.scrollWidth, wide, svgs.map(s => [s.getBoundingClientRect().width,
    Math.min(...[...s.querySelectorAll("text")].map(t => t.getBoundingClientRect().height))])]);
}};</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the page with")
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(results, tmp_path, width):
    """Without a network: no complaint on the console, every plot there, nothing wider than the window, no word in a plot too small."""
    page, frame, picture = tmp_path / "report.html", tmp_path / "frame.html", tmp_path / "picture.png"
    sim.write_report(results["drawn"], page)
    frame.write_text(FRAME.format(page=page.as_uri(), width=width))
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}"]
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", *offline]
    browser += ["--allow-file-access-from-files", f"--window-size={max(width, 500)},6000"]

    bare = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}  # no sanitizer in the browser

    def look(*what):
        done = subprocess.run([*browser, *what, frame.as_uri()], check=True, capture_output=True, text=True, timeout=240, env=bare)
        assert "CONSOLE" not in done.stderr, done.stderr
        return done.stdout

    seen = re.search(r'<pre id="seen">(.*?)</pre>', look("--dump-dom")).group(1)
    scroll, too_wide, plots = json.loads(seen)
    assert scroll == width and too_wide == 0
    assert len(plots) == len(PLOTS) and all(0.3 * width < wide <= width and high >= 8 for wide, high in plots), plots
    look(f"--screenshot={picture}")
    pixels = matplotlib.image.imread(picture)[:, :width, :3]
    assert (abs(pixels - [0x1F / 255, 0x5F / 255, 0xA8 / 255]).max(axis=2) < 0.02).sum() > 2000  # the blue of the bars
