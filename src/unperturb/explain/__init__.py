"""Pictures of what a classifier looks at and how it orders images, with the numbers behind them;
and of the classes by which a corrector of logits corrects."""

from __future__ import annotations

from unperturb.explain.approach import approach, figure_approach
from unperturb.explain.bhattacharyya import Overlap, bhattacharyya, overlap
from unperturb.explain.canvas import save_figure
from unperturb.explain.causal import Causal, causal_check
from unperturb.explain.embedding_figure import figure_embedding
from unperturb.explain.explanation import Explained, explain_correction
from unperturb.explain.grad_cam import GradCAM, gradcam
from unperturb.explain.gradcam_figure import Column, Columns, figure_gradcam, gradcam_columns
from unperturb.explain.instance_figure import figure_instance
from unperturb.explain.instances import instance_shares
from unperturb.explain.logit_change import LogitChange, logit_change
from unperturb.explain.logit_change_figure import (
    figure_bars,
    figure_changes,
    figure_roc,
    figure_statistic,
)
from unperturb.explain.mean_logit import MeanLogits, mean_logits
from unperturb.explain.mean_logit_figure import figure_mean_logits
from unperturb.explain.overlap_figure import figure_overlap
from unperturb.explain.panels import PanelColumn, Panels, restoration_panels
from unperturb.explain.panels_figure import figure_panels
from unperturb.explain.penultimate import penultimate_features
from unperturb.explain.products import Contributions, contributions, vector_jacobian_product
from unperturb.explain.supporting import Supporting, supporting_classes
from unperturb.explain.supporting_figure import figure_supporting
from unperturb.explain.tsne import Embedding, Panel, Row, embedding

__all__ = [
    "Causal",
    "Column",
    "Columns",
    "Contributions",
    "Embedding",
    "Explained",
    "GradCAM",
    "LogitChange",
    "MeanLogits",
    "Overlap",
    "Panel",
    "PanelColumn",
    "Panels",
    "Row",
    "Supporting",
    "approach",
    "bhattacharyya",
    "causal_check",
    "contributions",
    "embedding",
    "explain_correction",
    "figure_approach",
    "figure_bars",
    "figure_changes",
    "figure_embedding",
    "figure_gradcam",
    "figure_instance",
    "figure_mean_logits",
    "figure_overlap",
    "figure_panels",
    "figure_roc",
    "figure_statistic",
    "figure_supporting",
    "gradcam",
    "gradcam_columns",
    "instance_shares",
    "logit_change",
    "mean_logits",
    "overlap",
    "penultimate_features",
    "restoration_panels",
    "save_figure",
    "supporting_classes",
    "vector_jacobian_product",
]
