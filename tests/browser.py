"""A real Chromium without a window, driven by its own chromedriver, both from the system; nothing is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.servers import ServerMissing

_FLAGS = (
    "--headless",
    "--no-sandbox",  # it cannot make one as root; it only sees pages of ours
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    "--window-size=1400,900",
)


@contextmanager
def chromium(folder: Path) -> Iterator[webdriver.Chrome]:
    """Run a Chromium that keeps its profile in `folder`, which is empty, and end it with the block."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        raise ServerMissing("no Chromium with its chromedriver on PATH: `make browser` installs it, or says how")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*_FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    running = webdriver.Chrome(options=options, service=Service(driver, log_output=str(folder) + ".log"))
    try:
        running.set_page_load_timeout(60)
        yield running
    finally:
        running.quit()
