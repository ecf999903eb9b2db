"""`xattn app` in a browser: photographs in, the comparison and its command out; nothing else is read or asked."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from tests.cli.test_folders import spotted
from tests.pages.browser import Tab, chromium
from xattn.cli.drop_page import Asked, DropPage
from xattn.errors import DataError, NotApplicableError, UnknownNameError

CNN = "tests.cli.models:cnn"


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    """Two photographs where they were dropped."""
    files = [tmp_path / "in" / name for name in ("a b.png", "c.png")]
    files[0].parent.mkdir()
    for i, file in enumerate(files):
        spotted(i).save(file)
    return [str(file) for file in files]


def cells(page: str) -> list[Any]:
    """What the page holds of each image."""
    blocks = page.split('<script type="application/json">')[1:]
    return [json.loads(block.split("</script>")[0]) for block in blocks]


@pytest.mark.parametrize(
    "choice",
    [{}, {"target": "teapot", "topk": 2, "parts": 2, "controls": False, "curves": False}],
    ids=["as it comes", "all chosen"],
)
def test_the_command_makes_the_same_page(run: Run, photos: list[str], choice: dict[str, Any]) -> None:
    page = DropPage(models=(CNN, "tiny-cnn"), given={"mean": 0.4, "std": 0.3}, words=("--mean", "0.4", "--std", "0.3"))
    asked = Asked(photos, CNN, ["gradcam", "brnpa"], **choice)
    made = page.answer(asked, Path("mine.html")).read_text(encoding="utf-8")
    command = page.command(asked)
    assert command.startswith("xattn compare 'a b.png' c.png --model tests.cli.models:cnn --mean 0.4")
    os.chdir(Path(photos[0]).parent)
    assert run(*shlex.split(command)[1:]).exit_code == 0
    assert cells(Path("comparison.html").read_text(encoding="utf-8")) == cells(made)
    assert len(cells(made)) == 2


def test_what_cannot_be_is_said(photos: list[str], tmp_path: Path) -> None:
    page = DropPage(models=(CNN,))
    (tmp_path / "bad.png").write_text("no image")
    for asked, error, text in (
        (Asked([], CNN, ["gradcam"]), DataError, "drop some"),
        (Asked(photos, CNN, []), DataError, "choose a method"),
        (Asked(photos * 20, CNN, ["gradcam"]), DataError, "takes 24 photographs but there are 40"),
        (Asked(photos, "tests.cli.models:raising", ["gradcam"]), DataError, "none of the networks of this page"),
        (Asked(photos, CNN, ["gradcam"], target="teapod"), UnknownNameError, "Did you mean 'teapot'"),
        (Asked(photos, CNN, ["rollout"]), NotApplicableError, "rollout"),
        (Asked([str(tmp_path / "bad.png")], CNN, ["gradcam"], curves=False), DataError, "bad.png is not an image"),
    ):
        with pytest.raises(error, match=text):
            page.answer(asked, tmp_path / "page.html")
    assert "rollout" not in page.methods(CNN)
    assert page.methods(CNN)[:3] == ["brnpa", "gradcam", "layercam"]


def test_without_its_extra_the_line_that_installs_it_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = run("app", "--no-browser")
    assert result.exit_code == 2
    assert "xattn app needs gradio; pip install 'xattn[app]'" in result.stderr


def test_an_address_that_others_reach_is_told_apart() -> None:
    from xattn.cli.local_page import _is_loopback

    assert [_is_loopback(host) for host in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert not any(map(_is_loopback, ("0.0.0.0", "192.168.0.2", "example.org")))


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """The page while the command runs; what was dropped is deleted when Ctrl-C ends it."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'xattn[app]'")
    words = ["app", "--model", CNN, "--port", "0", "--no-browser"]
    place = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", "xattn", *words], stdout=subprocess.PIPE, text=True, env=place) as run:
        assert run.stdout is not None
        line = run.stdout.readline()
        assert line.startswith("the page is at http://127.0.0.1:"), line
        yield line.split()[4]
        assert list(tmp_path.glob("xattn-app-*"))
        run.send_signal(signal.SIGINT)
        assert run.wait(20) == 0
        assert "deleted" in run.stdout.read()
    assert not list(tmp_path.glob("xattn-app-*"))


def test_in_a_browser(url: str, photos: list[str], tmp_path: Path) -> None:
    with chromium() as browser:
        page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
        tab = Tab(page)
        page.goto(url)
        page.locator("input[type=file]").first.wait_for(state="attached", timeout=30_000)
        page.set_input_files("input[type=file]", photos)
        page.locator(".file-preview").get_by_text("a b").wait_for(timeout=30_000)
        page.get_by_role("button", name="Explain").click()
        inside = page.frame_locator("iframe[title=Comparison]")
        inside.locator(".block canvas[data-drawn]").first.wait_for(timeout=60_000)
        assert inside.locator(".block").count() == 2
        assert "xattn compare 'a b.png' c.png --model" in page.locator(".cm-content").inner_text().replace("\n", " ")
        if folder := os.environ.get("XATTN_SCREENSHOTS"):
            page.screenshot(path=str(Path(folder) / "app-1440.png"))
            page.set_viewport_size({"width": 400, "height": 900})
            page.locator("iframe").scroll_into_view_if_needed()
            page.wait_for_timeout(1500)
            page.screenshot(path=str(Path(folder) / "app-400.png"))
        with page.expect_download() as saved:
            page.get_by_text("Save the page").click()
        assert len(cells(Path(saved.value.path()).read_text(encoding="utf-8"))) == 2
        asked = {u.split("/")[2] for u in tab.asked if u.startswith(("http", "ws"))}
        assert asked == {url.split("/")[2]}, asked
        assert not [text for text in tab.trouble if "Comparison" in text or "sandbox" in text], tab.trouble
    for path in (Path(__file__), Path("/etc/hostname"), tmp_path / "in" / "c.png"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}gradio_api/file={path}", timeout=10)
        assert refused.value.code in (403, 404)
