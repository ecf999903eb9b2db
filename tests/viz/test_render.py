from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.cli import models
from xattn.errors import ParameterError, ShapeError
from xattn.explainer import Explainer, Family
from xattn.explaining import explain
from xattn.explanation import Explanation
from xattn.spec import ModelSpec
from xattn.trace import Trace
from xattn.viz import (
    Bar,
    Cell,
    Note,
    Swatch,
    gallery,
    keys_of,
    overlay,
    part_key,
    part_strip,
    percent,
    rank_overlay,
    render,
    row,
    title,
)
from xattn.viz.render import picture_of


@dataclass(frozen=True)
class Plain(Explainer):
    name: ClassVar[str] = "gradcam"
    title: ClassVar[str] = "Grad-CAM"
    family: ClassVar[Family] = Family.CAM
    layer: str | None = None

    def attribute(self, trace: Trace) -> Tensor:
        return trace.x


@dataclass(frozen=True)
class Signed(Plain):
    opposes: ClassVar[bool] = True


@dataclass(frozen=True)
class Ranked(Plain):
    name: ClassVar[str] = "brnpa"
    title: ClassVar[str] = "BR-NPA"
    rank_colors: ClassVar[bool] = True
    parts: int | None = None


SPEC = ModelSpec(feature_layer="features", classes=("tabby", "lynx", "fox"))


def explanation(method: Explainer | None = None, n: int = 2, **changes: Any) -> Explanation:
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(n, 3, 5, 6, generator=generator)
    method = method or Plain()
    values: dict[str, Any] = {
        "maps": parts[:, :1],
        "parts": parts if isinstance(method, Ranked) else None,
        "target": torch.arange(n) % 3,
        "method": method,
        "input_size": (40, 48),
        "probability": torch.linspace(0.9, 0.4, n),
        "inputs": torch.randint(0, 255, (n, 3, 40, 48), generator=generator, dtype=torch.uint8),
        "spec": SPEC,
    }
    return Explanation(**(values | changes))


def pixels(picture: Image.Image) -> Any:
    return np.asarray(picture).astype(int)


def test_a_single_map_is_drawn_by_overlay() -> None:
    e = explanation()
    expected = overlay(e.images[1], e.maps[1, 0], colormap="viridis", alpha=0.7, size=(40, 48))
    got = render(e, 1, colormap="viridis", alpha=0.7, size=(40, 48))
    np.testing.assert_array_equal(pixels(got), pixels(expected))


def test_parts_of_a_ranked_method_are_drawn_in_rank_colours() -> None:
    e = explanation(Ranked())
    assert e.parts is not None
    expected = rank_overlay(e.images[0], e.parts[0], size=(40, 48))
    np.testing.assert_array_equal(pixels(render(e, size=(40, 48))), pixels(expected))
    others = explanation(parts=e.parts)  # has parts but is not ranked
    assert np.abs(pixels(render(others, size=(40, 48))) - pixels(expected)).max() > 20


def test_small_images_are_enlarged_and_other_images_can_stand_in() -> None:
    e = explanation()
    assert render(e).size == (448, 373)
    assert render(e, size=96).size == (96, 80)
    large = np.zeros((400, 480, 3), np.uint8)
    assert render(e, image=large).size == (480, 400)


def test_the_status_is_on_the_picture() -> None:
    good = explanation(maps=torch.zeros(2, 1, 5, 6), status=("ok", "ok"))
    assert explanation(maps=torch.zeros(2, 1, 5, 6)).status == ("all-zero", "all-zero")
    bad = dataclasses.replace(explanation(), status=("hook never fired", "ok"))
    assert np.abs(pixels(render(bad, 0)) - pixels(render(explanation(), 0))).max() > 50
    np.testing.assert_array_equal(pixels(render(bad, 1)), pixels(render(explanation(), 1)))
    np.testing.assert_array_equal(
        pixels(render(good)), pixels(render(dataclasses.replace(good, status=("all-zero",) * 2)))
    )


def test_an_explanation_without_images_is_drawn_on_a_plain_field() -> None:
    assert render(explanation(inputs=None), size=(40, 48)).size == (48, 40)


@pytest.mark.parametrize("method", [Plain(), Ranked()])
def test_a_legend_goes_around_the_picture(method: Explainer) -> None:
    e = explanation(method)
    around, alone = pixels(render(e, legend=True)), pixels(render(e))
    tops = [r for r in range(len(around) - len(alone)) if (around[r, 32 : 32 + 448] == alone[0]).all()]
    assert len(tops) == 1
    np.testing.assert_array_equal(around[tops[0] : tops[0] + len(alone), 32 : 32 + 448], alone)
    for margin in (around[: tops[0]], around[tops[0] + len(alone) :]):
        assert margin.min() < 100  # something is written


def test_unknown_images_are_refused() -> None:
    with pytest.raises(ParameterError, match="there is no image 2; the explanation has images 0 to 1"):
        render(explanation(), 2)
    with pytest.raises(ParameterError, match="size must be at least 1 but is 0"):
        render(explanation(), size=0)


# ------------------------------------------------------------------------------------------------------------ words


def test_titles_name_the_method_and_what_was_changed() -> None:
    assert title(Plain()) == "Grad-CAM"
    assert title(Ranked(parts=4)) == "BR-NPA (parts=4)"
    assert title(Plain(layer="layer3")) == "Grad-CAM (layer=layer3)"


def test_percentages_are_never_rounded_to_certainty() -> None:
    assert [percent(p) for p in (1.0, 0.99951, 0.5, 0.0004, 0.0, float("nan"))] == [
        *("> 99.9 %", "> 99.9 %", "50.0 %", "< 0.1 %", "0.0 %", "undefined")
    ]


def test_keys_say_what_occurs() -> None:
    plain, signed, ranked = explanation(), explanation(Signed()), explanation(Ranked())
    assert keys_of([plain], colormap="magma") == [Bar("magma", "less important", "more important")]
    assert keys_of([signed]) == [Bar("blue-red", "against the class", "for the class")]
    assert keys_of([signed], signed="no") == [Bar("plasma", "less important", "more important")]
    assert keys_of([ranked]) == [
        Swatch((255, 0, 0), "1st part"),
        Swatch((0, 255, 0), "2nd part"),
        Swatch((0, 0, 255), "3rd part"),
    ]
    assert len(keys_of([plain, "failed", signed, ranked])) == 5
    fine = dataclasses.replace(plain, maps=torch.rand(2, 1, 65, 64))
    assert keys_of([fine])[1:] == [Note("maps as fine as pixels: smoothed, the highest 1-2 % clipped")]


def test_colours_are_those_of_the_method_on_every_image() -> None:
    e = explanation(Signed())  # no value is negative here
    mixed = dataclasses.replace(e, maps=torch.cat([e.maps[:1], e.maps[1:] - 0.5]))
    np.testing.assert_array_equal(pixels(render(mixed)), pixels(render(e, signed="yes")))
    below = dataclasses.replace(explanation(), maps=e.maps - 0.5)
    np.testing.assert_array_equal(pixels(render(below)), pixels(render(below, signed="no")))


def test_part_keys_carry_the_share_of_each_part() -> None:
    parts = torch.zeros(1, 3, 2, 2)
    parts[0, 0], parts[0, 1], parts[0, 2] = 5.0, 3.0, 2.0
    e = explanation(Ranked(), n=1, parts=parts, maps=parts[:, :1])
    assert [s.text for s in part_key(e, 0)] == ["1st 50 %", "2nd 30 %", "3rd 20 %"]
    assert [s.color for s in part_key(e, 0)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert part_key(explanation(), 0) == ()


# ------------------------------------------------------------------------------------------------------------- rows


def test_a_common_class_stands_below_the_image_alone() -> None:
    cells = row([explanation(), explanation(Ranked()), "no linear layer"], 1)
    assert [c.caption for c in cells] == ["lynx", "", "", ""]
    assert [c.detail for c in cells] == ["40.0 %", "", "", ""]
    assert [bool(c.key) for c in cells] == [False, False, True, False]
    assert cells[3] == Cell(note="no linear layer")


def test_of_a_class_with_several_names_the_first_stands_in_the_picture() -> None:
    one = explanation()
    several = dataclasses.replace(one.spec, classes=("tabby, tabby cat", "lynx, catamount", "fox"))
    assert row([dataclasses.replace(one, spec=several)], 1)[0].caption == "lynx"
    told = dataclasses.replace(one, spec=several, described=("tabby, tabby cat - fox",) * 2)
    assert row([told], 1)[0].caption == "tabby, tabby cat - fox"


def test_different_classes_stand_below_each_picture() -> None:
    other = dataclasses.replace(explanation(), target=torch.tensor([2, 2]))
    cells = row([explanation(), other], 0, caption="cat.jpg")
    assert [c.caption for c in cells] == ["cat.jpg", "tabby", "fox"]
    assert [c.detail for c in cells] == ["", "90.0 %", "90.0 %"]


def test_all_pictures_of_a_row_have_one_size() -> None:
    cells = row([explanation(), explanation(Ranked())], 0, size=120)
    assert {c.picture.size for c in cells if c.picture is not None} == {(120, 100)}


def test_gallery_has_a_row_an_image_and_a_column_a_method() -> None:
    two, one = (gallery([explanation(n=n), explanation(Ranked(), n=n)], cell=80, scale=1) for n in (2, 1))
    assert two.width == one.width > 3 * 80
    assert two.height > one.height + 60
    assert gallery([explanation(n=3)], limit=1, cell=80, scale=1).height < two.height


def test_many_methods_of_one_image_go_on_below() -> None:
    flat = gallery([explanation(n=1)] * 3, cell=80, scale=1)
    broken = gallery([explanation(n=1)] * 11, cell=80, scale=1)
    assert broken.width < 2 * flat.width
    assert broken.height > 1.8 * flat.height - 40
    assert gallery([explanation(n=2)] * 11, cell=80, scale=1).width > 12 * 80


def test_gallery_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"explanations are of \[1, 2\] images"):
        gallery([explanation(n=1), explanation(n=2)])
    with pytest.raises(ShapeError, match="1 images do not fit 2 maps"):
        gallery([explanation()], images=[np.zeros((4, 4, 3), np.uint8)])
    with pytest.raises(ShapeError, match="2 titles do not fit 1 explanations"):
        gallery([explanation()], titles=["a", "b"])


def test_part_strip_shows_each_part_in_its_colour() -> None:
    e = explanation(Ranked())
    strip = part_strip(e, 0)
    assert strip.width > 4.5 * strip.height / 1.6
    with pytest.raises(ParameterError, match="gradcam has no parts"):
        part_strip(explanation())
    with pytest.raises(ParameterError, match="there is no image 7"):
        part_strip(e, 7)


def test_explanations_draw_themselves() -> None:
    e = explanation()
    np.testing.assert_array_equal(pixels(e.overlay(1)), pixels(render(e, 1)))
    assert e._repr_png_().startswith(b"\x89PNG")


def test_drawing_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    gallery([explanation(), explanation(Ranked())])
    assert "matplotlib" not in sys.modules


def test_pictures_have_the_resolution_of_the_photograph(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    Image.fromarray(noise).save(photo)
    model = models.cnn()
    found = explain(model, str(photo), "gradcam")
    side = round(600 * model.spec.crop)
    assert abs(found.overlay().width - side) <= 10  # a crop of whole pixels of the input
    # What is drawn has the detail of the photograph, which the input of 32 pixels has not.
    sharp, seen = picture_of(found, 0), picture_of(dataclasses.replace(found, photographs=()), 0)
    detail = [np.abs(np.diff(pixels(p.resize(sharp.size)), axis=1)).mean() for p in (sharp, seen)]
    assert detail[0] > 5 * detail[1]
    assert explain(model, torch.rand(1, 3, 32, 32), "gradcam").overlay().size == (448, 448)
    Image.fromarray(255 - noise).save(photo)  # the file is another image now
    assert found.overlay().size == (448, 448)  # what the model saw
    photo.unlink()
    assert found.overlay().size == (448, 448)


def test_an_array_that_was_written_over_is_not_drawn() -> None:
    array = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    found = explain(models.cnn(), array, "gradcam")
    assert found.overlay().width > 448
    array[:] = 255 - array
    assert found.overlay().size == (448, 448)  # what the model saw
