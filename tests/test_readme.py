"""The README is true: its tables are the registry's and the results', its commands and its code run.

`python -m tests.test_readme` writes the tables anew, those of benchmarks/README.md too.
"""

from __future__ import annotations

import csv
import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import run_document, workshop  # noqa: F401 (a fixture)
from xattn.cli.catalog import first_sentence
from xattn.explainers import explainers
from xattn.models import create_model

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MEASUREMENTS = ROOT / "benchmarks" / "README.md"
RESULTS = ROOT / "benchmarks" / "speed" / "results"


def rows(header: str, *lines: str) -> str:
    """A Markdown table."""
    return "\n".join([header, "|" + " --- |" * (header.count("|") - 1), *lines]) + "\n"


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def device(environment: dict[str, Any], *packages: str) -> str:
    """The line that says where figures come from."""
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", *packages))
    return f"\n{environment['device']}, {environment['cores']} cores, {versions}.\n"


def methods() -> str:
    """The methods, from the registry, with what they were measured to cost."""
    result = RESULTS / "methods.json"
    costs = importlib.import_module("docs.generate.results").costs()
    lines = []
    for name in explainers.names():
        kind = explainers.get(name)
        specific = "yes" if kind.class_specific else "no"
        what = first_sentence(kind).replace("|", "\\|")
        ratio, network = costs.get(name, (None, ""))
        cost = "-" if ratio is None else f"{ratio:.3g}" if network == "resnet18" else f"{ratio:.3g} ({network})"
        lines.append(
            f"| `{name}` | {what} | {kind.family.value} | {specific} | {kind.passes} | {cost} | {kind.serves} "
            f"| {kind.computed_by} | {kind.paper} |"
        )
    header = "| name | what | kind | class-specific | passes | x forward | models | computed by | paper |"
    return rows(header, *lines) + (device(read(result)["environment"]) if result.is_file() else "")


def families() -> str:
    """The methods by kind, by name alone."""
    kinds: dict[str, list[str]] = {}
    for name in explainers.names():
        kinds.setdefault(explainers.get(name).family.value, []).append(f"`{name}`")
    order = sorted(kinds, key=lambda kind: kind == "control")  # what they are compared with comes last
    return rows("| kind | methods |", *(f"| {kind} | {', '.join(kinds[kind])} |" for kind in order))


def embedded() -> str:
    """The embedded networks, from the file of their evaluation."""
    lines = []
    for name, found in read(ROOT / "benchmarks" / "attention" / "embedded" / "embedded.json").items():
        values, network = found["validation"], create_model(name).architecture
        grid = "patches of 8 px" if network["backbone"] == "tiny-vit" else network["resolution"]
        maps = "CAM" if values["maps"] == "cam" else values["maps"]
        sparsity = "-" if values["sparsity"] is None else f"{values['sparsity']:.2f} ({maps})"
        lines.append(
            f"| `{name}` | {network['head']}, {grid} | {found['bytes'] / 1e6:.2f} MB "
            f"| {values['top1']:.2%} | {values['top5']:.2%} | {sparsity} |"
        )
    return rows("| network | head, resolution | size | top-1 | top-5 | sparsity 1/x of its maps |", *lines)


def cams() -> str:
    """The speed of the CAMs, from the result of its script."""
    found = read(RESULTS / "cams.json")
    lines = [
        f"| {run['network']}, {run['batch']} | {run['times']['xattn, five CAMs']['ratio']:.2f} "
        f"| {run['peers_over_xattn']:.1f} |"
        for run in found["runs"]
    ]
    header = (
        "| network, batch | five CAMs of xattn / one Grad-CAM of captum | five of pytorch-grad-cam / five of xattn |"
    )
    return rows(header, *lines) + device(found["environment"], "captum", "grad-cam")


def br_npa() -> str:
    """The speed of the BR-NPA maps, from the two results of its script."""
    plain, quiet = (read(RESULTS / f"{name}.json") for name in ("br_npa", "br_npa_quiet_allocator"))

    def of(result: Any, kind: str) -> Any:
        wanted = {"shape": [8, 2048, 56, 56], "pass": kind, "case": "xattn"}
        (row,) = [r for r in result["rows"] if wanted.items() <= r.items()]
        return row

    lines = []
    for kind, bar in plain["bars"].items():
        times = [f"{r['ratio']:.2f} [{r['q25']:.2f}, {r['q75']:.2f}]" for r in (of(plain, kind), of(quiet, kind))]
        memory = of(plain, kind)["peak_ratio"]
        lines.append(f"| {kind} | {times[0]} | {times[1]} | {memory:.3f} | {bar['time']} / {bar['memory']} |")
    header = "| pass | time [quartiles] | time, quiet allocator | memory | aim (time / memory) |"
    return rows(header, *lines) + device(plain["environment"])


def perturbation() -> str:
    """Deletion and insertion beside other libraries, and what the fast mode does, from the results of two scripts."""
    found, fast = read(RESULTS / "perturbation.json"), read(RESULTS / "fast.json")
    lines = [
        f"| {name} | {row['samples']:,} | {row['share_cpu_ratio']:.2f} "
        f"| {row['time_an_image_over_xattn']:.2f} | {row['time_an_image_over_xattn_fast']:.2f} |"
        for name, row in found["times"].items()
    ]
    header = "| what | images evaluated | share of the bare forward | time an image / xattn | / xattn --fast |"
    text = rows(header, *lines) + device(found["environment"], "torchvision", "torchcam", "quantus", "grad-cam")
    lines = []
    for name, row in fast["networks"].items():
        share, memory = row["share_of_forward"], row["peak_mb"]
        lines.append(
            f"| {name} | {row['images']} | {share['exact']:.2f} | {share['fast']:.2f} | {row['fast_over_exact']:.2f} "
            f"| {row['mean_abs_change_of_area']:.4f} | {row['largest_change_of_area']:.3f} "
            f"| {row['time_of_four_times_the_images']:.2f} | {memory['all images'] / memory['a quarter']:.2f} |"
        )
    header = (
        "| network | images | exact, share of the forward | fast, share | fast / exact | mean change of an area "
        "| largest | time of 4x the images | memory of 4x the images |"
    )
    return text + "\n" + rows(header, *lines) + device(fast["environment"])


# Page, name of the part and what stands in it, between <!-- name --> and <!-- /name -->.
PARTS = [
    (README, families), (README, embedded), (README, cams),
    (MEASUREMENTS, methods), (MEASUREMENTS, br_npa), (MEASUREMENTS, perturbation),
]  # fmt: skip


def place(page: str, name: str) -> tuple[int, int]:
    """Where a part begins and ends in the text of a page."""
    begin = f"<!-- {name} -->\n"
    return page.index(begin) + len(begin), page.index(f"<!-- /{name} -->")


@pytest.mark.parametrize(("path", "part"), PARTS, ids=lambda value: getattr(value, "__name__", None))
def test_tables_are_what_the_program_and_the_results_say(path: Path, part: Callable[[], str]) -> None:
    page = path.read_text(encoding="utf-8")
    begin, end = place(page, part.__name__)
    assert page[begin:end] == part(), "write it anew with `python -m tests.test_readme`"


def test_sentences_about_the_grid_are_those_of_the_scores() -> None:
    text = " ".join(MEASUREMENTS.read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "benchmarks" / "confound" / "confound.json").read_text(encoding="utf-8"))[
        "confound-tiny"
    ]
    means = {
        (row["method"], row["grid"]): row["mean"]
        for row in found["rows"]
        if row["metric"].startswith("insertion:steps=")
    }
    above = {
        (row["method"], row["grid"]) for row in found["rows"]
        if row["metric"].startswith("insertion:steps=") and row["beats_controls"]
    }  # fmt: skip
    assert ("input-x-gradient", "pixels") in above
    assert ("input-x-gradient", "8") not in above
    assert means["input-x-gradient", "8"] < min(means[m, "8"] for m in ("gradcam", "brnpa"))
    assert f"{means['input-x-gradient', '8']:.2f}" == f"{means['edges', '8']:.2f}"
    said = f"insertion against a blur, {means['input-x-gradient', 'pixels']:.2f}, and beats every control;"
    assert said in text
    assert f"averaged to 8 x 8 cells has {means['input-x-gradient', '8']:.2f}," in text
    assert f"Grad-CAM ({means['gradcam', '8']:.2f}) and BR-NPA ({means['brnpa', '8']:.2f})" in text
    assert f"edges of the image ({means['edges', '8']:.2f})" in text
    assert f"`tiny-cnn`, {found['rows'][0]['images']} images" in text


def test_sentences_about_one_grid_are_those_of_the_answers() -> None:
    """On one network class activation maps beat the controls by insertion, on another LRP; input x gradient nowhere."""
    results = ROOT / "benchmarks" / "results"
    with (results / "birds" / "FunnyBirds-tiny-cnn" / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
        birds = {row["method"]: row["standing"] for row in csv.DictReader(stream)}
    assert birds["lrp"] == birds["guided-backprop"] == "best in some columns"
    assert birds["cam"] == birds["layercam"] == birds["input-x-gradient"] == "fails"
    for panel in ("photographs", "CUB-20"):
        folder = results / "matched-lite0" / f"{panel}-efficientnet_lite0"
        with (folder / "leaderboard.csv").open(encoding="utf-8", newline="") as stream:
            rows = {row["method"]: row for row in csv.DictReader(stream)}
        assert rows["cam"]["standing"] == rows["layercam"]["standing"] == "best in some columns"
        assert rows["gradcam"]["standing"].removeprefix("'") == "= cam"  # no formula for a spreadsheet
        assert rows["input-x-gradient"]["standing"] == "fails"
        with (folder / "columns.csv").open(encoding="utf-8", newline="") as stream:
            above = {row["column"]: row["methods above controls"] for row in csv.DictReader(stream)}
        for settings in ("steps=8", "baseline=mean,steps=8"):
            assert above[f"deletion ({settings}) ↓"].startswith("0 of ")
            assert not above[f"insertion ({settings}) ↑"].startswith("0 of ")


def test_every_picture_and_link_is_there() -> None:
    for page in (README, MEASUREMENTS):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), target


def test_everything_runs(workshop: Path) -> None:  # noqa: F811
    run_document(README, workshop)
    for written in ("xattn-out/panel.png", "out/panel.png", "chelsea.png", "chelsea.npz", "runs/high/best.safetensors"):
        assert (workshop / written).exists(), written


if __name__ == "__main__":
    for path, part in PARTS:
        page = path.read_text(encoding="utf-8")
        begin, end = place(page, part.__name__)
        path.write_text(page[:begin] + part() + page[end:], encoding="utf-8")
