"""Pictures of what a classifier looks at and how it orders images, with the numbers behind them."""

from __future__ import annotations

from unperturb.explain.canvas import save_figure
from unperturb.explain.embedding_figure import figure_embedding
from unperturb.explain.grad_cam import GradCAM, gradcam
from unperturb.explain.gradcam_figure import Column, Columns, figure_gradcam, gradcam_columns
from unperturb.explain.panels import PanelColumn, Panels, restoration_panels
from unperturb.explain.panels_figure import figure_panels
from unperturb.explain.penultimate import penultimate_features
from unperturb.explain.tsne import Embedding, Panel, Row, embedding

__all__ = [
    "Column",
    "Columns",
    "Embedding",
    "GradCAM",
    "Panel",
    "PanelColumn",
    "Panels",
    "Row",
    "embedding",
    "figure_embedding",
    "figure_gradcam",
    "figure_panels",
    "gradcam",
    "gradcam_columns",
    "penultimate_features",
    "restoration_panels",
    "save_figure",
]
