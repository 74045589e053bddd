"""Chromium without a window, driven by selenium, for the tests of pages."""

import contextlib
import shutil
import time

import pytest

OPTIONS = (
    '--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync --window-size=1400,1000'
)


@contextlib.contextmanager
def chromium(profile):
    """Start Chromium with a profile in the folder ``profile``; skip the test if it is not installed."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed (pip install selenium)')
    from selenium.webdriver.chrome.service import Service

    program, driver_program = shutil.which('chromium'), shutil.which('chromedriver')
    if not program or not driver_program:
        pytest.skip('chromium or chromedriver is not installed (apt-get install chromium chromium-driver)')
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in (*OPTIONS.split(), f'--user-data-dir={profile}'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=Service(driver_program))
    try:
        yield driver
    finally:
        driver.quit()


@contextlib.contextmanager
def window(page, width, height=900):
    """Show the page in a window of a size; below 600 px as on a telephone."""
    metrics = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
    page.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', metrics)
    try:
        yield
    finally:
        page.browser.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})


class Page:
    """An opened page; call :meth:`close` at the end."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get('about:blank')  # an address that differs only behind '#' would not load the page again
        browser.get_log('browser')
        browser.get(address)

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def click(self, selector):
        self.js('document.querySelector(arguments[0]).click()', selector)

    def all(self, selector):
        from selenium.webdriver.common.by import By

        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, condition, what):
        """Wait up to 10 s for a true value of ``condition`` and return it."""
        end = time.monotonic() + 10
        while not (found := condition()):
            assert time.monotonic() < end, what
            time.sleep(0.03)
        return found

    def close(self):
        """Forget what the page remembers; return its errors and warnings."""
        self.js('localStorage.clear()')
        return [e for e in self.browser.get_log('browser') if e['level'] in ('SEVERE', 'WARNING')]
