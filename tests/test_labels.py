"""Labels of methods and metrics: what is made is read again, by one parser."""

from __future__ import annotations

import dataclasses

import pytest

from xattn.errors import ParameterError
from xattn.explainers import explainers
from xattn.labels import Label, label_of, slug
from xattn.metrics import metrics


@pytest.mark.parametrize("registry", [explainers, metrics], ids=["methods", "metrics"])
def test_every_label_is_read_as_what_it_names(registry: object) -> None:
    for name in registry.names():  # type: ignore[attr-defined]
        thing = registry.create(name)  # type: ignore[attr-defined]
        always = [f for f in dataclasses.fields(thing) if f.metadata.get("told")]
        told = "".join(f":{f.name}={f.default}" for f in always if getattr(thing, f.name) == f.default)
        assert label_of(thing) == thing.name + told
        assert registry.parse(label_of(thing)) == thing  # type: ignore[attr-defined]


def test_long_and_short_form() -> None:
    label = Label.of(metrics.parse("deletion:steps=8,baseline=black"))
    assert str(label) == "deletion:baseline=black,steps=8,grid=common"
    assert label.short == "deletion (baseline=black,steps=8,grid=common)"
    assert Label.parse(str(label)) == label
    assert label.parameters() == {"baseline": "black", "steps": "8", "grid": "common"}
    assert Label.parse("gradcam:layer=encoder:block").parameters() == {"layer": "encoder:block"}
    assert label_of(dataclasses.replace(explainers.create("rise"), chunk=8)) == "rise"  # no part of the result


def test_what_is_no_parameter_is_refused_only_where_it_is_read() -> None:
    label = Label.parse("[/bold]:$\\frac{")
    assert (label.name, str(label)) == ("[/bold]", "[/bold]:$\\frac{")
    with pytest.raises(ParameterError, match="expected parameter=value"):
        label.parameters("metric")


def test_names_of_files_are_inside_their_folder() -> None:
    for text in ("../x", "/etc/passwd", "..", "", "a\0b", "a" * 100_000, "é" * 5_000, "\ud800"):
        name = slug(text)
        assert name
        assert not {"/", "\\", "\0"} & set(name)
        assert not name.startswith(".")
        assert len(name.encode()) <= 100
    assert slug("a" * 200) != slug("a" * 201)
    assert slug("gradcam++") != slug("gradcam")
