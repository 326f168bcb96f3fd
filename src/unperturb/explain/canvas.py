"""Drawing without a screen and without global state: matplotlib's objects, never pyplot."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unperturb.errors import ConfigError, MissingExtraError
from unperturb.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "FORMATS",
    "LINES",
    "check_format",
    "class_name",
    "new_figure",
    "picture_of",
    "save_figure",
    "small_print",
    "tidy",
]

FORMATS = ("png", "svg", "pdf")
INK, MUTED, RIGHT, WRONG = "#1f2328", "#656d76", "#116329", "#b42318"
FRAME = "#d0d7de"
LINES = ("#2b5c9e", "#d9822b", "#57a3a0", "#8a4f9e", "#7a5c2e", "#9aa4ae")
"""Colors of lines in one picture, in their order."""
_LONGEST = 20


def check_format(path: Path) -> str:
    """The format that a picture's name asks for.

    Raises:
        ConfigError: It is none that can be written.

    Example:
        >>> check_format(Path("cam.PNG"))
        'png'
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ConfigError(
            f"The picture is named {path.name!r}",
            expected="a name that ends in .png, .svg or .pdf",
            fix=f"{path.with_suffix('.png').name}, say",
        )
    return kind


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure with a canvas of its own.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib", extra="explain", purpose="Drawing a picture", detail=str(error)
        ) from None
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def small_print(sentences: Sequence[str], width: float) -> list[str]:
    """Lines for the foot of a picture, each sentence begun on a new one.

    Example:
        >>> small_print(["n = 48; one t-SNE", "linf 8/255"], 0.7)
        ['n = 48; one', 't-SNE', 'linf 8/255']
    """
    # The mean width of a letter at the size of small print, in inches.
    letters = max(4, int(width / 0.056))
    return [line for sentence in sentences for line in textwrap.wrap(sentence, letters)]


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> None:
    """Write a figure as PNG, SVG or PDF, whole or not at all.

    Args:
        figure: What `figure_gradcam` or `figure_embedding` drew.
        path: Where to; its suffix says the format.
        dpi: Dots per inch.

    Raises:
        ConfigError: The suffix is another.
        OutputError: It cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(1, 1), Path(folder) / "empty.png")
        ...     (Path(folder) / "empty.png").stat().st_size > 0
        True
    """
    path = Path(path)
    kind = check_format(path)
    # The day of making would make equal pictures differ.
    undated: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}

    def write(temporary: Path) -> None:
        with warnings.catch_warnings():
            # A class name in a script that the font lacks shows as boxes.
            warnings.simplefilter("ignore")
            figure.savefig(temporary, format=kind, dpi=dpi, metadata=undated.get(kind))

    write_atomic(path, write)


def tidy(axes: Any, size: float = 7) -> None:
    """Quiet ticks, and of the frame the left and the lower line alone.

    Args:
        axes: Axes of matplotlib.
        size: Letters of the ticks, in points.
    """
    axes.tick_params(which="both", length=2, labelsize=size, labelcolor=MUTED, color=FRAME)
    for side, line in axes.spines.items():
        line.set_visible(side in ("left", "bottom"))
        line.set_color(FRAME)


def class_name(label: int, classes: Sequence[str]) -> str:
    """A class's name, shortened; its number where there is no name.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(7, [])
        ('dog', 'class 7')
    """
    name = classes[label] if 0 <= label < len(classes) else f"class {label}"
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def picture_of(image: Tensor) -> Any:
    """One image (C, H, W) as matplotlib shows it: (H, W, 3) in [0, 1], grey unless C is 3."""
    pixels = image.detach().float().cpu().clamp(0.0, 1.0)
    if len(pixels) != 3:
        pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
    return pixels.permute(1, 2, 0).numpy()
