"""Hostile names in a report as a browser sees them: nothing runs, no element is added, and the names can be read."""

import html
import os
import shutil
import subprocess

import pytest

from tests.fuzz.test_report_names import HOSTILE, Elements, page_with

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium to look at the page with")
DEED = "document.title=41+1"
"""What a name would do if it were run: visible in what the browser has made of the page."""
NAMES = [name.replace("alert(1)", DEED) for name in HOSTILE.values()]


def seen(page, folder):
    """The page's elements after its scripts, if any, have run, as the browser writes them out."""
    command = [
        CHROMIUM, "--headless", "--disable-gpu", "--virtual-time-budget=2000", f"--user-data-dir={folder / 'profile'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium refuses to be root inside its sandbox
        "--dump-dom", page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def elements(text):
    parser = Elements()
    parser.feed(text)
    return parser.found


def test_the_browser_runs_no_name_and_adds_no_element(tmp_path):
    hostile = seen(page_with(tmp_path / "hostile", NAMES), tmp_path)
    harmless = seen(page_with(tmp_path / "harmless", [f"x{number}" for number in range(len(NAMES))]), tmp_path)
    assert "<title>42</title>" not in hostile
    assert elements(hostile) == elements(harmless)
    for name in NAMES:
        assert name in html.unescape(hostile), "it is shown, as text"


def test_the_deed_would_be_seen(tmp_path):
    """Of every name that holds one: put into a page as it is, it runs or adds an element."""
    page = tmp_path / "page.html"
    page.write_text(f"<title>a page</title><p title='harmless'>{NAMES[0]}</p>")
    assert "<title>42</title>" in seen(page, tmp_path)
