"""Pure tensor formulas by name; no module here knows a model, a file or a class.

Tensors whose shapes do not fit what is said of them raise `ShapeError`.

>>> from xattn.functional import grad_cam, br_npa_maps

Not here are `cam` and `resize`, which have the names of their modules: take them from there.
"""

from __future__ import annotations

import importlib
from typing import Any

# Module and its formulas, imported on first use: each of them alone costs a fraction of all.
_FORMULAS = {
    "attention": "attention_pool class_map weighted_sums",
    "baselines": "gaussian_kernel separable_blur",
    "boxes": "box_iou box_iou_curve component_boxes fill_rectangles max_box_accuracy overlap threshold_overlap",
    "br_npa": "br_npa_maps coverage_maps",
    "cam": "activation_map eigen_cam grad_cam grad_cam_elementwise grad_cam_plus_plus hires_cam layer_cam "
    "smooth_grad_cam_plus_plus weighted_channels xgrad_cam",
    "complexity": "effective_complexity entropy gini histogram_entropy",
    "components": "eigen_grad_cam factor_maps kernel_cam strong_cells",
    "control": "center_map sobel_map",
    "curves": "area_over curve_correlation pearson step_counts step_means trapezoid_auc",
    "episodes": "draw_episodes episode_accuracy episode_scores half_interval learned_scores",
    "gradient": "guided_relu reduce_channels",
    "grid": "cell_of_pixel common_cells grid_cells resample to_grid to_pixels",
    "imputation": "linear_imputation",
    "localization": "average_precision dilate energy_pointing energy_share mask_share pixel_average_precision "
    "pixel_counts pixel_ranking pointing_hit relevance_rank roc_auc top_k_intersection top_share",
    "path": "blur_matrix blurred guided_step quadrature",
    "perturb": "curve_scores packed_scores removal replaced_scores seen_through segment_means",
    "pixels": "denormalize denormalize_pixels normalize_pixels",
    "points": "part_counts part_entropy part_information parts_at",
    "ranking": "average_ranks sort_values sort_with_order tie_groups",
    "relevance_parts": "leading_cells relevance shifted_elsewhere whole_relevance",
    "resize": "normalize",
    "retrieval": "pair_distances part_cosines part_shares retrieval_ranks",
    "sampling": "grid_segments lime_weights ridge rise_masks shapley_coalitions shapley_regression shapley_weights "
    "slic_segments window_means window_starts",
    "scenes": "important_parts opposed_classes part_sums sufficient_sets",
    "similarity": "ssim",
    "sparsity": "attention_density map_density",
    "statistics": "bootstrap_means cliques exact_signed_rank holm kendall krippendorff_alpha ranks_of_methods",
    "transformer": "agcam attention_rollout gradient_rollout legrad linear_relevance product_relevance raw_attention "
    "sum_relevance",
    "volume": "box_masks box_means box_segments smooth_masks",
}
_HOMES = {name: module for module, names in _FORMULAS.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
