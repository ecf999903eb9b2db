"""Methods that explain, by name: `explainers.names()` lists them, `resolve` turns names into objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from xattn.errors import NotApplicableError, ParameterError
from xattn.registry import Registry

if TYPE_CHECKING:
    from xattn.explainer import Explainer
    from xattn.spec import ModelSpec


class _Explainers(Registry["Explainer"]):
    """The registered methods, and those of other libraries by `library/Class`."""

    def get(self, name: str) -> Callable[..., Explainer]:
        """The factory called `name`."""
        if "/" not in name:
            return super().get(name)
        from xattn.explainers.peers import peer

        return peer(name)


explainers: Registry[Explainer] = _Explainers("method", "xattn.explainers", "xattn.explainers", named=True)


def resolve(methods: str | Explainer | Iterable[str | Explainer]) -> list[Explainer]:
    """Methods as objects, in order.

    >>> resolve(["Grad-CAM++", "brnpa:parts=4"])
    [GradCAMPlusPlus(layer=None), BRNPA(layer=None, parts=4, saliency='first', activation='norm', \
suppress='similarity', refine=True)]

    Args:
        methods: names with their parameters (`"brnpa:parts=4,saliency=mean"`), those of other libraries among them
            (`"captum/IntegratedGradients:n_steps=20"`), `Explainer` objects, or `"all"`, which stands for every
            registered method with its default parameters; `applicable` tells which fit a model.

    Raises:
        UnknownNameError: for a method or a parameter that does not exist, with the nearest name.
        ParameterError: for a value that a parameter cannot take.
    """
    from xattn.explainer import Explainer

    chosen: list[Explainer] = []
    for method in [methods] if isinstance(methods, (str, Explainer)) else methods:
        if isinstance(method, Explainer):
            chosen.append(method)
        elif not isinstance(method, str):
            raise ParameterError(
                f"method: expected a name or an Explainer object but got {method!r}; "
                "create a class before you pass it, as in GradCAM()."
            )
        elif method.strip().lower() == "all":
            chosen.extend(explainers.create(name) for name in explainers.names())
        else:
            chosen.append(explainers.parse(method.strip()))
    return chosen


def applicable(method: Explainer, spec: ModelSpec) -> str | None:
    """Why a method is not defined for models with these facts, or None if nothing speaks against it.

    A method that proves itself on a recorded pass, such as CAM, can still refuse the model then.
    """
    from xattn.explainer import refuse

    try:
        refuse(method, spec)
    except NotApplicableError as reason:
        return str(reason)
    return None
