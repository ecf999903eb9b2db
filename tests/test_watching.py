"""Panels and scores of the same photographs while a network learns, in whichever logger there is."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import xattn
from tests.cli import models
from tests.cli.test_folders import spotted
from xattn.data.preprocessing import preprocess
from xattn.errors import ParameterError
from xattn.explaining import record_for
from xattn.labels import slug
from xattn.watching import Watch, Watched, log

METHODS = ["gradcam", "brnpa:parts=2"]
NAMES = {
    "probability",
    "right",
    "gradcam/ok",
    "brnpa-parts-2/ok",
    "gradcam/deletion.deletion",
    "brnpa-parts-2/deletion.deletion",
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two photographs in folders of their classes."""
    paths = [tmp_path / "goldfish" / "1.png", tmp_path / "teapot" / "1.png"]
    for i, path in enumerate(paths):
        path.parent.mkdir()
        spotted(i).save(path)
    return list(map(str, paths))


def seen_by(watch: Watch, loggers: Any = None, epochs: int = 2) -> list[Watched]:
    model = models.cnn()
    found = [watch(model, step, loggers) for step in range(epochs)]
    return [one for one in found if one is not None]


def test_what_is_seen_is_what_explain_and_the_metric_say(files: list[str]) -> None:
    (seen,) = seen_by(Watch(files, METHODS, ["deletion:steps=3"]), epochs=1)
    model, targets = models.cnn(), [2, 4]
    x = torch.stack([preprocess(file, model.spec) for file in files])
    expected = xattn.explain(model, x, METHODS, targets)
    for mine, theirs in zip(seen.explanations, expected, strict=True):
        torch.testing.assert_close(mine.maps, theirs.maps)
    with torch.no_grad():
        p = model(x).double().softmax(1)
    assert seen.scores["probability"] == pytest.approx(float((p[0, 2] + p[1, 4]) / 2), rel=1e-5)
    assert seen.scores["right"] == sum(int(p[i].argmax()) == k for i, k in enumerate(targets)) / 2
    assert {n for n in seen.scores if "deletion" not in n or n.endswith("deletion.deletion")} == NAMES
    (metric,) = Watch(files, "gradcam", ["deletion:steps=3"])._metrics
    trace = record_for(model, x, [], targets, spec=model.spec)
    for method, explanation in zip(METHODS, expected, strict=True):
        values = metric.measure(explanation, trace, None)["deletion"]
        assert seen.scores[f"{slug(method)}/deletion.deletion"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert seen.panel.width > 3 * 64


def test_a_metric_twice_with_other_parameters_has_two_scores(files: list[str]) -> None:
    (seen,) = seen_by(Watch(files, "gradcam", ["deletion:steps=3", "deletion:steps=7", "sparsity"]), epochs=1)
    names = [name for name in seen.scores if name.endswith(".deletion")]
    assert [name.split("/")[1].split("-grid")[0] for name in names] == ["deletion-steps-3", "deletion-steps-7"]
    assert seen.scores[names[0]] != seen.scores[names[1]]
    assert "gradcam/sparsity.sparsity" in seen.scores


def test_training_goes_on_as_if_nobody_had_looked(files: list[str]) -> None:
    def trained(watch: Watch | None) -> dict[str, Tensor]:
        torch.manual_seed(1)
        model = models.cnn().train()
        model.register_module("drop", nn.Dropout())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for epoch in range(3):
            x = model.drop(torch.rand(4, 3, 32, 32))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
            optimizer.step()
            if watch is not None:
                watch(model, epoch)
                assert model.training
        return copy.deepcopy(model.state_dict())

    alone, watched = trained(None), trained(Watch(files, [*METHODS, "random", "smoothgrad:samples=2"]))
    assert all(torch.equal(alone[name], watched[name]) for name in alone)


def test_every_and_out(files: list[str], tmp_path: Path) -> None:
    found = seen_by(Watch(files, "gradcam", every=2, out=tmp_path / "out"), epochs=4)
    assert [seen.step for seen in found] == [0, 2]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["epoch-0000.png", "epoch-0002.png"]


def test_tensorboard_has_pictures_and_numbers(files: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "events") as writer:
        found = seen_by(Watch(files, METHODS, ["deletion:steps=3"]), writer)
    events = EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    for name, value in found[1].scores.items():
        stored = events.Scalars(f"xattn/{name}")
        assert [event.step for event in stored] == [0, 1]
        assert stored[1].value == pytest.approx(value, rel=1e-6)
    pictures = events.Images("xattn/panel")
    assert [picture.step for picture in pictures] == [0, 1]
    assert (pictures[0].width, pictures[0].height) == found[0].panel.size


def test_wandb_has_pictures_and_numbers(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs wandb: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with wandb.init(dir=str(tmp_path), project="watched") as run:
            found = seen_by(Watch(files, "gradcam"), run)
            assert run.summary["xattn/probability"] == pytest.approx(found[-1].scores["probability"])
            assert run.summary["xattn/epoch"] == 1
    assert len(list(tmp_path.rglob("media/images/xattn/panel*.png"))) == 2


def test_mlflow_has_pictures_and_numbers(files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow = pytest.importorskip("mlflow", reason="needs mlflow: pip install mlflow", exc_type=ImportError)
        mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
        with mlflow.start_run() as run:
            found = seen_by(Watch(files, "gradcam++"), mlflow)
            mlflow.flush_artifact_async_logging()
        client = mlflow.MlflowClient()
        history = client.get_metric_history(run.info.run_id, "xattn/gradcam__/ok")
        assert [(m.step, m.value) for m in history] == [
            (i, seen.scores["gradcam++/ok"]) for i, seen in enumerate(found)
        ]
        assert len(list((tmp_path / "runs").rglob("*.png"))) >= 2


def test_a_function_gets_name_value_and_step(files: list[str]) -> None:
    told: list[tuple[str, Any, int]] = []
    (seen,) = seen_by(Watch(files, "gradcam"), lambda *values: told.append(values), epochs=1)
    assert dict((name, value) for name, value, _ in told[:-1]) == {f"xattn/{n}": v for n, v in seen.scores.items()}
    assert told[-1] == ("xattn/panel", seen.panel, 0)


def test_lightning_calls_it_at_the_end_of_each_epoch(files: list[str], tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    class Module(lightning.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = models.cnn()

        def training_step(self, batch: list[Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.arange(4))
    watch = Watch(files, "gradcam", out=tmp_path / "panels")
    board = TensorBoardLogger(tmp_path, name="board", version="")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, callbacks=[watch.callback(lambda module: module.net)],
            logger=[board, CSVLogger(tmp_path)], enable_progress_bar=False, enable_model_summary=False,
            enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=2))
    assert sorted(p.name for p in (tmp_path / "panels").iterdir()) == ["epoch-0000.png", "epoch-0001.png"]
    first, second = (np.asarray(Image.open(p)) for p in sorted((tmp_path / "panels").iterdir()))
    assert first.shape != second.shape or not np.array_equal(first, second)  # it learned
    assert list((tmp_path / "board").glob("events*"))


def test_what_is_wrong_is_said(files: list[str]) -> None:
    with pytest.raises(ParameterError, match="1 labels do not fit 2 images"):
        Watch(files, "gradcam", labels=[0])
    with pytest.raises(ParameterError, match="pointing_game needs masks; leave it out"):
        Watch(files, "gradcam", ["pointing_game"])
    with pytest.raises(ParameterError, match="every must be at least 1"):
        Watch(files, "gradcam", every=0)
    (seen,) = seen_by(Watch(files, "gradcam"), epochs=1)
    with pytest.raises(ParameterError, match=r"SummaryWriter of TensorBoard.* but the logger is int"):
        log(3, seen)
    with pytest.raises(ParameterError, match="pass mean= and std="):
        Watch(files, "saliency")(models.unknown(), 0)


def test_facts_that_the_model_lacks_are_given(files: list[str]) -> None:
    watch = Watch(files, "gradcam", labels=[1, 0], mean=0.5, std=0.25, size=32, classes=models.CLASSES)
    seen = watch(models.unknown(), 0)
    assert seen is not None
    assert [seen.explanations[0].class_name(i) for i in (0, 1)] == [models.CLASSES[1], models.CLASSES[0]]
    given = Watch(torch.rand(2, 3, 32, 32), "gradcam")(models.cnn(), 0)
    assert given is not None
    assert "right" not in given.scores  # no class is known
