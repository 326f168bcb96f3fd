"""Two exact oracles for the ball of local transports: linear maximization, and projection.

The set is that of all transports of an image ``x`` within a window whose cost is within a budget,

    B = {p : p >= 0, sum_k p[i, k] = x_i, sum_ik p[i, k] c_k <= budget},

where the center ``k = 0`` is the mass that stays (Wu, Wang, Yu 2020, the constraint of eq. 4).
One multiplier ``lam`` for the budget parts the problem into one of a few variables for each
pixel; what remains is a search for one number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unperturb.attacks.wasserstein_transport import Window

__all__ = ["maximize", "project"]

_HALVINGS = 30
_PROJECTIONS = 60


def maximize(
    gradient: Tensor,
    images: Tensor,
    budget: Tensor,
    window: Window,
    full: Tensor | None = None,
) -> Tensor:
    """The transport that gains most in a linear objective: the linear oracle of Frank-Wolfe.

    ``max_{p in B} sum_ik p[i, k] g[i + o_k]``. For a multiplier ``lam`` every pixel sends all it
    has to the place of greatest ``g[i + o_k] - g[i] - lam |o_k|``; its cost falls in steps as
    ``lam`` rises. The two plans at the step across the budget, mixed so that they cost just the
    budget, are an optimum (complementary slackness).

    Args:
        gradient: What a unit of mass is worth at each place (N, C, H, W).
        images: Masses (N, C, H, W), float64.
        budget: Mass times pixels that may be spent, (N,), float64.
        window: Where mass may go.
        full: Places that nothing more may be sent to, (N, C, H, W) bool.

    Returns:
        Flows (N, C, K * K, H * W) in float64, the center 0, at a cost within the budget up to
        rounding.
    """
    count, channels = gradient.shape[:2]
    worth = gradient if full is None else gradient.masked_fill(full, float("-inf"))
    seen = window.gather(worth, float("-inf"))
    gain, place, price = [], [], []
    # At one distance only the best place can win, so few are left to be searched many times.
    for cost, offsets in window.classes():
        best, which = seen[:, :, offsets].max(2)
        gain.append(best - gradient.flatten(2))
        place.append(offsets[which])
        price.append(cost)
    gains = torch.stack(gain, 1).flatten(2)
    prices = gains.new_tensor(price).view(1, -1, 1)
    mass = images.flatten(1)

    def choose(multiplier: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Distance class of each pixel, the mass it sends there, and what all that costs."""
        value, choice = (gains - multiplier.to(gains.dtype).view(-1, 1, 1) * prices).max(1)
        sent = mass * (value > 0)
        return choice, sent, (sent * prices.flatten().to(mass.dtype)[choice]).sum(1)

    low = torch.zeros_like(budget)
    # Slightly above every gain for its price: there nothing is sent.
    high = (gains / prices).amax((1, 2)).clamp(min=0.0).to(budget.dtype) * 1.000001 + 1e-300
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        over = choose(middle)[2] > budget
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    (far, sent_far, dear), (near, sent_near, cheap) = choose(low), choose(high)
    share = ((budget - cheap) / (dear - cheap).clamp(min=1e-300)).clamp(0.0, 1.0)
    places = torch.stack(place, 1).flatten(2)
    flows = seen.new_zeros(seen.shape, dtype=mass.dtype)
    for choice, sent, part in ((far, sent_far, share), (near, sent_near, 1.0 - share)):
        target = places.gather(1, choice[:, None]).view(count, channels, 1, -1)
        flows.scatter_add_(2, target, (sent * part[:, None]).view_as(target))
    return flows


def project(plan: Tensor, images: Tensor, budget: Tensor, window: Window) -> Tensor:
    """The transport of ``B`` nearest to a plan in the Euclidean norm (the dual projection).

    For a multiplier ``lam`` each pixel's row ``p[i] - lam c`` is projected on the simplex of
    mass ``x_i``; the cost falls continuously in ``lam``, and the ``lam >= 0`` that meets the
    budget is found by a safeguarded secant search from its feasible side.

    Args:
        plan: (N, C, K * K, H * W), float64: masses sent, and at the center the mass that stays;
            ``-inf`` where an offset leaves the image.
        images: Masses (N, C, H, W), float64.
        budget: (N,), float64.
        window: Where mass may go.

    Returns:
        A plan of that shape in ``B``, within a millionth of the budget of the exact projection's
        cost; 0 where an offset leaves the image.
    """
    costs = window.costs.to(plan.dtype).view(1, 1, -1, 1)
    mass = images.flatten(2).unsqueeze(2)

    def at(multiplier: Tensor) -> Tensor:
        return _onto_simplex(plan - multiplier.view(-1, 1, 1, 1) * costs, mass)

    outside = torch.ones(len(costs.flatten()), dtype=torch.bool, device=plan.device)
    outside[window.center] = False
    ahead = (plan - plan[:, :, window.center : window.center + 1] + mass)[:, :, outside]
    low = torch.zeros_like(budget)
    # Here the center is so far ahead of all others that it takes the whole mass.
    high = (ahead / costs[:, :, outside]).amax((1, 2, 3)).clamp(min=0.0)
    above, below = window.cost(at(low)) - budget, -budget
    done = above <= 0.0
    high = torch.where(done, low, high)
    for turn in range(_PROJECTIONS):
        if bool(done.all()):
            break
        slope = (above - below).clamp(min=1e-300)
        share = (below.neg() / slope).clamp(0.02, 0.98)
        # Now and then a plain halving: a secant may creep along one side.
        middle = high - (0.5 if turn % 3 == 2 else share) * (high - low)
        excess = window.cost(at(middle)) - budget
        over = (excess > 0.0) & ~done
        under = (excess <= 0.0) & ~done
        low, above = torch.where(over, middle, low), torch.where(over, excess, above)
        high, below = torch.where(under, middle, high), torch.where(under, excess, below)
        done = done | (under & (excess >= -1e-6 * budget))
    return at(high)


def _onto_simplex(rows: Tensor, mass: Tensor) -> Tensor:
    """Rows along axis 2 projected on ``{p >= 0, sum p = mass}``, by Michelot's active set."""
    level = rows.amax(2, keepdim=True)
    # The greatest is at most the mass above the level, so nothing lower can be in.
    active = rows > level - mass
    for _ in range(rows.shape[2] + 1):
        members = active.sum(2, keepdim=True)
        total = torch.where(active, rows, 0.0).sum(2, keepdim=True)
        level = torch.where(members > 0, (total - mass) / members.clamp(min=1), level)
        kept = active & (rows > level)
        if bool((kept == active).all()):
            break
        active = kept
    return (rows - level).clamp_(min=0.0)
