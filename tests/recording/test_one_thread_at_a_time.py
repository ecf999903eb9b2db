"""Threads that share a model: they take turns, and do not see what another one does to it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import xattn
from tests.tiny_models import TinyCNN, images
from xattn.inspection import infer_spec
from xattn.running import evaluating, in_this_thread, lock_of

pytestmark = pytest.mark.filterwarnings("ignore::xattn.errors.XattnWarning")  # maps of random weights may be zero

METHODS = ("layercam", "guided-gradcam", "lrp", "fullgrad", "ablationcam", "input-x-gradient", "lime:samples=20")


def hooks(model: nn.Module) -> int:
    """How many hooks are on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize(("method", "training"), [*((m, False) for m in METHODS), ("layercam", True), ("lrp", True)])
def test_threads_give_the_maps_of_one(method: str, training: bool) -> None:
    torch.manual_seed(0)
    model = TinyCNN().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batches = [images(2, seed=i) for i in range(12)]
    wanted = [xattn.explain(model, x, method, target=1).maps for x in batches]
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(lambda x: xattn.explain(model, x, method, target=1).maps, batches))
    for got, want in zip(maps, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-7)
    assert all(module.training == training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert hooks(model) == 0


def beside(work: Callable[[], object], serve: Callable[[], Tensor]) -> list[Tensor]:
    """What `serve` gives in another thread while `work` is done in this one."""
    stop, served, failures = threading.Event(), [], []

    def loop() -> None:
        while not stop.is_set():
            try:
                served.append(serve())
            except Exception as error:
                failures.append(error)
                return

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    assert not failures, failures
    assert served
    return served


def test_a_prediction_beside_explanations_and_inspections() -> None:
    torch.manual_seed(1)
    model = TinyCNN().eval()
    x, other = images(1), images(3, seed=5)
    methods = ["gradcam", "guided-gradcam", "lrp", "fullgrad", "gradcam++"]
    with torch.no_grad():
        expected = model(other)
    wanted = [e.maps for e in xattn.explain(model, x, methods)]
    seen: list[list[Tensor]] = []

    def work() -> None:
        for _ in range(6):
            seen.append([e.maps for e in xattn.explain(model, x, methods)])
            assert infer_spec(model, x).classifier == "fc"

    with torch.no_grad():
        answers = beside(work, lambda: model(other).detach())
    assert all(torch.allclose(answer, expected, atol=1e-6) for answer in answers)
    for maps in seen:
        for got, want in zip(maps, wanted, strict=True):
            torch.testing.assert_close(got, want)


def test_attention_is_not_recorded_from_another_thread() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, norm_first=True)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 16, 8, 8), layer, nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.stem(x).flatten(2).transpose(1, 2)).mean(1))

    model = Tokens().eval()
    x, other = images(2), images(1, seed=3)
    wanted = xattn.explain(model, x, "attention-x-gradient", target=1).maps
    with torch.no_grad():
        expected = model(other)
    maps: list[Tensor] = []
    answers = beside(
        lambda: maps.extend(xattn.explain(model, x, "attention-x-gradient", target=1).maps for _ in range(15)),
        lambda: model(other).detach(),
    )
    assert all(torch.allclose(answer, expected, atol=1e-5) for answer in answers)
    for got in maps:
        torch.testing.assert_close(got, wanted)


def test_the_lock_is_given_back_after_an_error() -> None:
    model = TinyCNN().train()
    with pytest.raises(RuntimeError, match="on the way"), evaluating(model):
        raise RuntimeError("on the way")
    assert model.training
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: lock_of(model).acquire(timeout=5)).result(timeout=10)


def test_the_lock_goes_with_the_model_and_not_into_it() -> None:
    model = TinyCNN()
    lock = lock_of(model)
    assert lock is lock_of(model)
    assert lock_of(TinyCNN()) is not lock
    assert not any("lock" in name.lower() for name in vars(model))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_does_not_wait_for_threads_that_it_has_not() -> None:
    model = TinyCNN()
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock_of(model):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(20)
    try:
        child = os.fork()
        if child == 0:
            os._exit(0 if lock_of(model).acquire(timeout=5) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        leave.set()
        thread.join()


def test_a_hook_sees_its_own_thread_alone() -> None:
    seen: list[int] = []
    hook = in_this_thread(lambda value: seen.append(value) or value)
    assert hook(1) == 1
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(hook, 2).result() is None
    assert seen == [1]
