"""Whatever is printed is a line and cannot act on the terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xattn.cli import console

HOSTILE = "[/bold][red]\x1b[31m\x1b]0;owned\x07 a\rb\nc \u202e$\\frac{"


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.say(HOSTILE)
    console.fail(HOSTILE)
    console.warn("x" * 100_000)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    first, second = err.splitlines()
    assert first.startswith("xattn: [/bold][red]\\x1b[31m")
    assert second.startswith("xattn: warning: xxx")
    assert len(second) < 1000
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(out + err)


def test_tables_read_no_markup(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    console.table([(HOSTILE, ("fine", "green")), (), ("last", "x")], {"header": HOSTILE}, {}, title=HOSTILE)
    out = capsys.readouterr().out
    assert out.count("[/bold][red]\\x1b[31m") == 3
    assert not {"\x1b", "\x07", "\r"} & set(out)


def test_progress_reads_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress(count=True) as bar:
        bar.update(what=HOSTILE, total=3, note=HOSTILE)
        bar.update(more=1)
        bar.say(HOSTILE)
    with console.working(HOSTILE) as tell:
        tell(HOSTILE)
    with console.progress(shown=False) as bar:
        bar.update(done=1, what="x")
        bar.say("nothing")
    err = capsys.readouterr().err
    assert "[/bold][red]\\x1b[31m" in err
    assert "owned\x07" not in err
    assert "nothing" not in err


def test_json_is_ascii_and_strict(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_json({"a": [float("nan"), 1.5, (HOSTILE, "\udce9")]})
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": [None, 1.5, [HOSTILE, "\udce9"]]}


def child(code: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    before = "import os, sys\nfrom xattn.cli import console\n"
    return subprocess.run([sys.executable, "-c", before + code], capture_output=True, check=False, env=environment)


def test_libraries_do_not_write_between(tmp_path: Path) -> None:
    code = "with console.own_streams(alone={}):\n    os.write(2, b'TIFF: odd\\n'); console.fail('λ fine')\n"
    code += "os.write(2, b'end')"
    assert child(code.format(True)).stderr == b"xattn: \\u03bb fine\nend"
    assert child(code.format(False)).stderr == b"TIFF: odd\nxattn: \\u03bb fine\nend"


def test_a_crash_still_says_where() -> None:
    result = child("with console.own_streams(alone=True):\n    os.abort()")
    assert result.returncode < 0
    assert b"Fatal Python error: Aborted" in result.stderr


def test_a_file_name_cannot_act(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    for name in (b"a\x1b]0;owned\x07.jpg", b"b\rc.jpg", b"caf\xe9.jpg"):
        Path(os.fsdecode(os.path.join(folder, name))).write_bytes(b"no image")  # noqa: PTH118
    command = [sys.executable, "-m", "xattn", "explain", str(tmp_path), "-m", "gradcam", "-o", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, check=False)
    assert result.returncode == 2
    lines = result.stderr.decode("utf-8").splitlines()
    assert len(lines) == 3
    assert b"\x1b" not in result.stderr
    assert b"\\x1b]0;owned\\x07.jpg" in result.stderr
    assert b"caf\\xe9.jpg" in result.stderr


def test_threads_of_torch_do_not_spin_unless_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    import xattn.cli

    monkeypatch.setattr(xattn.cli, "app", lambda **options: None)
    for given, kept in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = dict(given)
        monkeypatch.setattr("os.environ", environment)
        xattn.cli.main()
        assert environment["OMP_WAIT_POLICY"] == kept
