"""Words of the report explained, for a reader who has not read the papers."""

from __future__ import annotations

__all__ = ["COLUMN_HELP", "GLOSSARY"]

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "Oblivious attacker",
        "Computes the attack on the undefended classifier only, as if no defense were there; the "
        "defended classifier then answers on the same images. Many published figures are of this "
        "kind.",
    ),
    (
        "Adaptive attacker",
        "Knows the defense and attacks the whole of it. For each image the strongest of the "
        "backward rules counts. A defense that is to be deployed must be judged by this attacker.",
    ),
    (
        "Backward rule",
        "How the attacker takes a gradient through the defense's purification step, which may have "
        "no useful derivative of its own.",
    ),
    (
        "exact",
        "Automatic differentiation as it is. Through a sign function the derivative is zero, so "
        "the step counts as a constant.",
    ),
    (
        "identity",
        "The purification is run forward, and treated backward as if it returned its input (also "
        "known as BPDA).",
    ),
    (
        "smoothed-sign",
        "Backward, the sign function is replaced by a smooth curve, so that the gradient also sees "
        "how the purification step itself reacts to the attack.",
    ),
    (
        "undefended",
        "The images are judged by the whole defense, and the gradient is that of the classifier "
        "alone: a transfer attack that is told what worked.",
    ),
    (
        "Goal",
        "What the attacker wants: a wrong answer; wrong-unflagged, a wrong answer that the "
        "detector lets pass; branch:NAME, a wrong answer by way of one branch of the decision; "
        "predicted-label, the control for label leaking, which steps away from the label that "
        "the classifier predicts.",
    ),
    (
        "Majority of N",
        "A random defense is asked N times, and its most frequent answer counts. Worst of N: one "
        "wrong answer out of N is enough.",
    ),
    (
        "AUROC",
        "The chance that a detector finds an attacked image more suspicious than a clean one, "
        "over all thresholds.",
    ),
    (
        "Fixed-step",
        "All steps of the attack are run and the last image is the result. It is the papers' rule, "
        "used for every oblivious figure.",
    ),
    (
        "First success",
        "An image leaves the attack as soon as the attacked model is wrong about it. It is used "
        "for adaptive figures: once broken, an image stays broken.",
    ),
    (
        "Worst case per image",
        "An image counts as right only if it is answered rightly unperturbed and under every "
        "attack that was run. It can never be above clean accuracy.",
    ),
    (
        "95% interval",
        "Wilson's interval: the range of accuracies that fit the counted images. It covers the "
        "choice of images, not attacks that nobody tried.",
    ),
    (
        "McNemar test",
        "Compares two models on the same images by those on which only one of them is right. A "
        "small p says that the difference is no accident of these images.",
    ),
    (
        "Threat model, norm and eps",
        "How far the attacker may move an image. L\N{INFINITY} 8/255: each pixel value by at most "
        "8 of 255 gray levels. L2: the root of the summed squared changes.",
    ),
    (
        "Digest",
        "SHA-256 of all result rows and kept pixels, timings excluded. Equal plan and equal "
        "environment give an equal digest (promise G1).",
    ),
)

COLUMN_HELP: tuple[tuple[str, str], ...] = (
    ("Scored on", "the model whose answers are counted; an oblivious attack always follows the "
                  "undefended classifier's gradients, whichever model is scored"),
    ("Backward", "how the gradient was taken through the defense; see the glossary"),
    ("Goal", "what the attacker wanted; see the glossary"),
    ("Stop", "fixed: all steps are run, the last image counts. First success: an image leaves "
             "once it is broken"),
    ("8-bit", "accuracy on the same images rounded to 8 bits, as a PNG file would hold them"),
    ("Distance", "median size of the perturbation of images that were right unperturbed and fell, "
                 "in the threat model's norm"),
    ("Queries", "forward passes of the attacked model for each image"),
    ("Zero gradients", "share of images whose gradient was exactly zero in more than half of the "
                       "steps; well above zero, the attack was blind rather than the model strong"),
    ("Wrong when clean", "accuracy under attack of images that were answered wrongly unperturbed; "
                         "much above zero, the attack's own step leaks the true label"),
)  # fmt: skip
