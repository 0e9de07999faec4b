"""The page in a real browser: type, choose, hear, see the mel and the words; record and clone."""

import os
import shutil
import time

import pytest
from serving import make_app, recording, running
from sounds import talk
from tiny import make_weights

from engine import Engine
from engine.serve.device import EngineDevice

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium-driver)"
)
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream",
    "--autoplay-policy=no-user-gesture-required", "--window-size=900,1100",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from selenium import webdriver

    folder = tmp_path_factory.mktemp("browser")
    (folder / "me.wav").write_bytes(recording(6.0))
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    capture = f"--use-file-for-fake-audio-capture={folder / 'me.wav'}"
    for flag in (*FLAGS, capture, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, tmp_path):
    engine = Engine(make_weights(tmp_path))
    engine.clone(talk(3.0), 24_000).save(tmp_path / "voice.safetensors")
    device = EngineDevice(engine)
    app, _ = make_app(engine, tmp_path / "voices", device, drain_lag_s=0.0, drain_s=2.0)
    with running(app) as port:
        browser.get(f"http://localhost:{port}/")
        wait(browser, "return document.querySelectorAll('#voice option').length > 0")
        yield browser


def wait(browser, condition, seconds=60):
    """Wait for a JavaScript condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if browser.execute_script(condition):
            return
        time.sleep(0.1)
    status = browser.execute_script("return document.getElementById('status').textContent")
    raise AssertionError(f"never: {condition}; status: {status}")


def of(browser, id):
    return browser.find_element("id", id)


def test_typing_speaking_recording_and_cloning(page):
    text = "The words light up as they are spoken."
    of(page, "text").clear()
    of(page, "text").send_keys(text)
    of(page, "play").click()
    wait(page, "return document.querySelector('#words span.now')")
    if folder := os.environ.get("CLONEWAVE_SCREENSHOTS"):
        page.save_screenshot(os.path.join(folder, "speaking.png"))
    wait(page, "return !document.getElementById('save').hidden")
    wait(page, "return document.getElementById('stop').disabled")
    words = page.execute_script(
        "return [...document.querySelectorAll('#words span')]"
        ".map(s => [s.textContent, s.dataset.lit])"
    )
    assert [word for word, _ in words] == text.rstrip(".").split()
    lit = [float(at) for _, at in words if at is not None]
    assert len(lit) >= len(words) / 2 and lit == sorted(lit)  # a busy machine may skip a frame
    lights = page.execute_script(
        "const c = document.getElementById('mel');"
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 0; i < d.length; i += 4) n += d[i] + d[i+1] + d[i+2] > 200;"
        "return n / (c.width * c.height)"
    )
    assert 0.05 < lights < 0.95  # neither black nor one colour

    page.execute_script("document.getElementById('cloning').open = true")
    of(page, "record").click()
    wait(page, "return /Stop \\([3-9]/.test(document.getElementById('record').textContent)")
    of(page, "record").click()
    wait(page, "return !document.getElementById('make').disabled")
    of(page, "name").send_keys("My voice")
    of(page, "consent").click()
    of(page, "make").click()
    wait(page, "return /^cloned My voice/.test(document.getElementById('status').textContent)")
    if folder:
        page.save_screenshot(os.path.join(folder, "cloned.png"))
    chosen = page.execute_script("return document.getElementById('voice').selectedOptions[0].text")
    assert chosen == "My voice"
    of(page, "play").click()
    wait(page, "return /of speech in/.test(document.getElementById('status').textContent)")
    of(page, "forget").click()
    page.switch_to.alert.accept()
    wait(page, "return document.querySelectorAll('#voice option').length === 1")
    problems = [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"]
    assert not [p for p in problems if "favicon" not in p["message"]]


def test_errors_of_the_server_are_shown(page):
    of(page, "text").clear()
    of(page, "text").send_keys("☃")
    of(page, "play").click()
    wait(page, "return document.getElementById('status').classList.contains('error')")
    assert "spoken" in of(page, "status").text
