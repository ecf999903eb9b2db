"""Methods of many passes with as few of them as their tests need: name → the specification that tests run."""

from __future__ import annotations

CHEAP: dict[str, str] = {
    "integrated-gradients": "integrated-gradients:steps=8",
    "blur-ig": "blur-ig:steps=16,sigma=0.05",
    "guided-ig": "guided-ig:steps=12,reach=0.1",
    "gradient-shap": "gradient-shap:samples=5",
    "smoothgrad": "smoothgrad:samples=5",
    "smoothgrad-squared": "smoothgrad-squared:samples=5",
    "vargrad": "vargrad:samples=5",
    "deeplift-shap": "deeplift-shap:samples=2",
    "occlusion": "occlusion:window=0.3,stride=1",
    "rise": "rise:samples=24",
    "feature-ablation": "feature-ablation:segments=grid,count=9",
    "shapley-sampling": "shapley-sampling:samples=2,segments=grid,count=9",
    "kernel-shap": "kernel-shap:samples=40,segments=grid,count=9",
    "lime": "lime:samples=40,segments=grid,count=9",
}


def cheap(method: str) -> str:
    """The specification to run in a test for a registered name."""
    return CHEAP.get(method, method)


CONTRASTS: set[str] = {"finercam", "shapleycam"}
"""Methods whose map depends on the logits of other classes by design."""
