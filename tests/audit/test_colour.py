"""Colours that some images of a class have as much of as each other, and the cells that are replaced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.audit.synthetic import CORNER, Pictures, build, cells_of, logit, pictures
from xattn.audit import Audit, AuditSettings
from xattn.audit.colour import cells_of_colour, colour_in_words, find_colours
from xattn.audit.evidence import EvidenceStore
from xattn.audit.gather import gather
from xattn.audit.sign import APART


def test_images_with_as_much_red_are_a_group(found: Audit, planted: Pictures) -> None:
    group = next(f for f in found if f.group.kind == "colour" and f.group.class_index == 0)
    marked = {i for i in np.flatnonzero(planted.marked) if logit(c := cells_of(planted.pixels[i]), 0) > logit(c, 1)}
    assert {m.index for m in group.group.members} == marked
    assert group.candidate
    apart = group.sign(APART)
    assert apart is not None
    assert apart.value == 1.0  # all members have the usual share, no other image has any
    for m in group.group.members:
        red = planted.pixels[m.index][:, :, 0] == 255
        assert (np.kron(m.cells, np.ones((2, 2))) == red).all()
    rows, columns = np.nonzero(group.group.place)
    assert {(r // 4, c // 4) for r, c in zip(rows, columns, strict=True)} == {CORNER}
    assert group.effect.moves


def test_colours_that_come_in_all_degrees_are_no_group(tmp_path: Path) -> None:
    images, model = pictures(20), build()
    store = EvidenceStore(tmp_path, "key")
    gather(model, images, model.spec, store, AuditSettings(), labels=images.labels)
    whole = store.read([0, 1])
    shares = np.random.default_rng(0).uniform(0, 0.02, (len(whole), 512)).astype(np.float32)
    assert find_colours(replace(whole, colours=shares), AuditSettings()) == []
    shares[:12, 7], shares[12:, 7] = 0.05, 0.0
    (one,) = find_colours(replace(whole, colours=shares), AuditSettings())
    assert int(one.centre[0]) == 7


def test_cells_hold_a_quarter_of_the_colour_or_the_most_of_it() -> None:
    spec = build().spec
    x = torch.zeros(2, 3, 32, 32)
    x[0, 0, 0:2, 0:1] = 1.0  # half of a cell of 2 x 2 pixels
    x[1, 1] = 1.0
    cells = cells_of_colour(x, 448, spec)  # red at its end, green and blue at none
    assert cells.shape == (2, 16, 16)
    assert np.argwhere(cells[0]).tolist() == [[0, 0]]
    assert colour_in_words(448) == "rgb(255, 0, 0)"
