"""The turns of OFT and BOFT: of a layer's outputs as LyCORIS has them, of its inputs as PEFT has them.

A turn of a block is a matrix R, made of a skew-symmetric Q by Cayley's transform, exactly or by the
first terms of Neumann's series.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from core.schema.errors import UserError

NEUMANN_TERMS = 5
"""Terms of PEFT's and OneTrainer's series where no setting says otherwise."""
MAX_TERMS = 100


@dataclass(frozen=True, kw_only=True)
class InputTurn:
    """How a program makes turns of a layer's inputs from the numbers that it stores."""

    terms: int | None = NEUMANN_TERMS
    """Terms of Neumann's series; `None` for the exact inverse."""
    divisor: float = 1.0
    """What the numbers are divided by."""
    limit: float | None = None
    """The largest norm of a block's Q; `None` for any."""
    is_peft: bool
    """Whether PEFT made it; OneTrainer turns a convolution's weight the other way round."""


def read_peft_turn(settings: Mapping[str, Any], count: int, where: str) -> InputTurn:
    """Return how PEFT made the turns of `count` blocks, by an adapter's settings; its defaults without any.

    Raises `UserError`, beginning with `where`, if a setting is not valid.
    """
    if not settings:
        return InputTurn(is_peft=True)
    terms: Any = None  # settings of before the series was there do not name it
    if settings.get("use_cayley_neumann") is True:
        terms = settings.get("num_cayley_neumann_terms", NEUMANN_TERMS)
        if isinstance(terms, bool) or not isinstance(terms, int) or not 1 <= terms <= MAX_TERMS:
            raise UserError(
                "lora",
                f"{where} has num_cayley_neumann_terms {str(terms)[:40]}; it is a whole number from 1 to "
                f"{MAX_TERMS}.",
            )
    limit = None
    if settings.get("coft") is True:
        limit = settings.get("eps")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1e6:
            raise UserError("lora", f"{where} has the limit eps {str(limit)[:40]}; it is a positive number.")
        limit = limit / math.sqrt(count)
    return InputTurn(terms=terms, limit=limit, is_peft=True)


class BlockRotation:
    """Turns of blocks of a layer's outputs or inputs."""

    def __init__(self, turns: torch.Tensor, *, is_butterfly: bool = False, of_inputs: bool = False):
        """Keep turns (factors, n, size, size), one factor for OFT; one block may serve for all.

        Raises `UserError` for numbers that no rotation can be made of in float32.
        """
        if not bool(torch.isfinite(turns).all()):
            raise UserError(
                "lora", "a rotation of an OFT has numbers that are too large; the file is broken."
            )
        self.turns = turns - torch.eye(turns.shape[-1], device=turns.device)
        """R - I: float32, (factors, n, size, size)."""
        self.is_butterfly, self.of_inputs = is_butterfly, of_inputs

    def compute_change(
        self, values: torch.Tensor, channels: int, strength: float | torch.Tensor
    ) -> torch.Tensor:
        """Return what the turns add to values whose dimension `channels` is what they turn."""
        start = turned = values.movedim(channels, -1)
        size = self.turns.shape[-1]
        for number, turn in enumerate(self.turns.to(values)):
            # A factor of BOFT mixes outputs that are this far apart.
            apart = 2**number * size // 2 if self.is_butterfly else 1
            pair = 2 if self.is_butterfly else 1
            blocks = turned.unflatten(-1, (-1, pair, apart)).mT.flatten(-3).unflatten(-1, (-1, size))
            turn = turn.expand(blocks.shape[-2], -1, -1)
            mixed = torch.einsum("kij,...kj->...ki", turn, blocks).flatten(-2)
            turned = turned + mixed.unflatten(-1, (-1, apart, pair)).mT.flatten(-3) * strength
        return (turned - start).movedim(-1, channels)


def turn_outputs(blocks: torch.Tensor, limit: torch.Tensor | None) -> BlockRotation:
    """Return kohya's and LyCORIS' turns: blocks (n, size, size) of OFT, (factors, n, size, size) of BOFT.

    Q is what the file has minus its transpose, and R = (I + Q) (I - Q)^-1; OFT applies R's transpose, as
    their code does. `limit` times the outputs is the largest norm of all Q together; without one, or 0,
    it is free.
    """
    free = blocks.float()
    q = free - free.mT
    is_butterfly, outputs = blocks.ndim == 4, q.shape[-3] * q.shape[-1]
    most = 0.0 if limit is None else float(limit) * outputs
    if most > 0:
        q = q * (most / q.norm().clamp(min=1e-8)).clamp(max=1)
    turn = _transform_exactly(q)
    return BlockRotation(turn if is_butterfly else turn.mT[None], is_butterfly=is_butterfly)


def turn_inputs(vectors: torch.Tensor, law: InputTurn, is_convolution: bool) -> BlockRotation:
    """Return PEFT's and OneTrainer's turns, of vectors (n, size * (size - 1) / 2).

    Each is the upper half of a Q. A weight's row w becomes R w, with the inputs of a convolution and its
    kernel in one row; in OneTrainer's code a convolution's becomes R^T w.
    """
    size = count_turned(vectors.shape[-1])
    q = torch.zeros(len(vectors), size, size, device=vectors.device)
    rows, columns = torch.triu_indices(size, size, 1, device=vectors.device)
    q[:, rows, columns] = vectors.float() / law.divisor
    q = q - q.mT
    if law.limit is not None:
        q = q * (law.limit / q.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)).clamp(max=1)
    turn = _transform_exactly(-q) if law.terms is None else _sum_series(q, law.terms)
    return BlockRotation((turn.mT if is_convolution and not law.is_peft else turn)[None], of_inputs=True)


def count_turned(numbers: int) -> int:
    """Return the size of the block whose upper half has so many numbers; 0 if there is none."""
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2
    return size if size > 1 and size * (size - 1) // 2 == numbers else 0


def _transform_exactly(q: torch.Tensor) -> torch.Tensor:
    """Return (I + Q) (I - Q)^-1; NaN where there is none in float32."""
    one = torch.eye(q.shape[-1], device=q.device)
    inverse, failed = torch.linalg.inv_ex(one - q)
    return torch.where(failed[..., None, None] == 0, (one + q) @ inverse, torch.nan)


def _sum_series(q: torch.Tensor, terms: int) -> torch.Tensor:
    """Return I + 2 Q + 2 Q^2 + ... + Q^(terms - 1), the last power once, as PEFT sums it.

    With three terms PEFT adds Q^3, too.
    """
    power = q @ q
    total = torch.eye(q.shape[-1], device=q.device) + (2 * q if terms > 1 else 0)
    if terms > 2:
        total = total + 2 * power
        for _ in range(3, terms - 1):
            power = power @ q
            total = total + 2 * power
        total = total + power @ q
    return total
