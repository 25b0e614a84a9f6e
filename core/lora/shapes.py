"""Infer the rank and the shape of a change from the shapes of its tensors.

Parts have the names that `LoraModule.keys` gives them. What cannot be a change of a layer is refused.
"""

import math
from collections.abc import Mapping

from core.lora.rotation import count_turned
from core.schema.errors import UserError

RANK_RANGE = (1, 4096)
MAX_BLOCK_SIZE = 2560
"""Outputs or inputs in a block of OFT: a quarter of the most outputs in SDXL. Time grows with the cube."""

Shape = tuple[int, ...]


def infer_shape(
    parts: Mapping[str, Shape], where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of a module; see the fields of `LoraModule`."""
    if "down" in parts:
        return _infer_low_rank(parts, where)
    if "hada_w1_a" in parts:
        return _infer_hadamard(parts, where)
    if "w1" in parts or "w1_a" in parts:
        return _infer_kronecker(parts, where)
    if "b1" in parts:
        return _infer_glora(parts, where)
    if blocks := parts.get("rotation", parts.get("butterfly")):
        return _infer_rotation(blocks, parts.get("rescale"), where)
    if "vectors" in parts:
        return 0, (0, math.prod(infer_input_blocks(parts["vectors"], where))), (), (1, 1)
    if "gain" in parts:
        many = math.prod(parts["gain"])
        if many not in parts["gain"]:
            raise UserError(
                "lora", f"{where} has gains of {parts['gain']}; IA3 has one row or column of them."
            )
        return 0, (many, 0), (), (1, 1)
    whole = parts.get("diff", ())
    if len(whole) in (2, 4) and 0 not in whole:
        return 0, (whole[0], whole[1]), whole[2:], (1, 1)
    vectors = {parts[part] for part in ("diff_b", "w_norm", "b_norm") if part in parts}
    if "diff" in parts or len(vectors) != 1 or len(shape := vectors.pop()) != 1 or 0 in shape:
        raise UserError("lora", f"{where} has a difference of {tuple(parts.values())}, which no layer has.")
    return 0, (shape[0], 0), (), (1, 1)


def _infer_low_rank(
    parts: Mapping[str, Shape], where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of up @ down, or of up @ mid @ down."""
    first, second = parts["down"], parts["up"]
    rank = first[0] if first else 0
    core = parts.get("mid", (rank, rank, *first[2:]))
    if (
        len(first) not in (2, 4)
        or len(second) != len(first)
        or second[1] != rank
        or set(second[2:]) - {1}
        or core[:2] != (rank, rank)
        or len(core) != len(first)
        or ("mid" in parts and set(first[2:]) - {1})
        or not RANK_RANGE[0] <= rank <= RANK_RANGE[1]
        or 0 in first + second + core
    ):
        raise UserError(
            "lora",
            f"{where} has matrices of {first} and {second}; rank must be from {RANK_RANGE[0]} to "
            f"{RANK_RANGE[1]} and the same in all.",
        )
    return rank, (second[0], first[1]), tuple(core[2:]), (1, 1)


def _infer_glora(
    parts: Mapping[str, Shape], where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of W @ a1 @ a2 + b1 @ b2, or of b1 @ bm @ b2 in its place."""
    own = {part: shape for part, shape in parts.items() if part in ("a1", "a2", "b1", "b2", "bm")}
    rank, inputs = parts["b2"][:2] if len(parts["b2"]) in (2, 4) else (0, 0)
    core = parts.get("bm", (rank, rank, *parts["b2"][2:]))
    wanted = {"a1": (inputs, rank), "a2": (rank, inputs), "b1": (*parts["b1"][:1], rank), "bm": (rank, rank)}
    if (
        any(shape[:2] != wanted.get(part, shape[:2]) or 0 in shape for part, shape in own.items())
        or any(len(shape) != len(parts["b2"]) for shape in own.values())
        or any(set(parts[part][2:]) - {1} for part in ("a1", "a2", "b1", *(["b2"] if "bm" in parts else [])))
        or not RANK_RANGE[0] <= rank <= RANK_RANGE[1]
    ):
        shown = ", ".join(f"{part} {shape}" for part, shape in sorted(own.items()))
        raise UserError("lora", f"{where} has matrices that make no GLoRA: {shown}.")
    return rank, (parts["b1"][0], inputs), tuple(core[2:]), (1, 1)


def infer_input_blocks(vectors: Shape, where: str) -> tuple[int, int]:
    """Return the number and the size of the blocks of an OFT of inputs; one block may serve for all."""
    size = count_turned(vectors[1]) if len(vectors) == 2 and vectors[0] > 0 else 0
    if not 2 <= size <= MAX_BLOCK_SIZE:
        raise UserError(
            "lora",
            f"{where} has numbers of {vectors} for the turns of an OFT; a block of n inputs has "
            f"n (n - 1) / 2 of them, for n from 2 to {MAX_BLOCK_SIZE}.",
        )
    return vectors[0], size


def _infer_rotation(
    blocks: Shape, rescale: Shape | None, where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of an OFT, (n, size, size), or BOFT, (factors, n, size, size).

    `rescale` is (out, 1, ...).
    """
    count, size = blocks[-3:-1] if len(blocks) in (3, 4) else (0, 0)
    if size > MAX_BLOCK_SIZE:
        raise UserError(
            "lora",
            f"{where} has blocks of {size} outputs, which take too long to turn; the limit is "
            f"{MAX_BLOCK_SIZE}.",
        )
    # A factor of BOFT mixes outputs that are size / 2, size, 2 * size ... apart, two by two.
    apart = 2 ** (blocks[0] - 1) * size if len(blocks) == 4 and blocks[0] <= 32 and size % 2 == 0 else 1
    if (
        0 in (count, *blocks)
        or size != blocks[-1]
        or count * size % apart
        or (len(blocks) == 4 and apart == 1)
    ):
        raise UserError(
            "lora", f"{where} has blocks of {blocks}; OFT's are square, (n, size, size), and so are BOFT's."
        )
    if rescale is not None and (rescale[:1] != (count * size,) or math.prod(rescale) != count * size):
        raise UserError(
            "lora",
            f"{where} has a rescale of {rescale}; it is one number for each of {count * size} outputs.",
        )
    return 0, (count * size, 0), (), (1, 1)


def _infer_hadamard(
    parts: Mapping[str, Shape], where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of LoHa, the product of two products place by place.

    Without cores, `hada_w1_a` is (out, rank) and `hada_w1_b` (rank, in * area); with them, they are
    (rank, out) and (rank, in), and `hada_t1` is (rank, rank, k, k). The second two are alike.
    """
    has_core = "hada_t1" in parts
    found = []
    for number in "12":
        a, b = parts[f"hada_w{number}_a"], parts[f"hada_w{number}_b"]
        core = parts.get(f"hada_t{number}", ())
        if len(a) == len(b) == 2 and 0 not in a + b and (len(core) == 4 if has_core else True):
            rank, out = a if has_core else a[::-1]
            if b[0] == rank and core[:2] in ((), (rank, rank)) and RANK_RANGE[0] <= rank <= RANK_RANGE[1]:
                found.append((rank, (out, b[1]), tuple(core[2:])))
    if len(found) != 2 or found[0] != found[1]:
        shown = ", ".join(f"{part} {shape}" for part, shape in sorted(parts.items()) if part != "magnitude")
        raise UserError("lora", f"{where} has matrices that make no Hadamard product: {shown}.")
    return (*found[0], (1, 1))


def _infer_kronecker(
    parts: Mapping[str, Shape], where: str
) -> tuple[int, tuple[int, int], Shape, tuple[int, int]]:
    """Return rank, shape, kernel and groups of a Kronecker product.

    It is that of `w1` (rows, columns) and `w2` (rows, columns[, k, k]).
    """
    ranks: set[int] = set()
    sound, factors = True, []
    for name in ("w1", "w2"):
        first, second = (parts[name], None) if name in parts else (parts[f"{name}_a"], parts[f"{name}_b"])
        core = parts.get("t2") if name == "w2" else None
        if core is not None:  # then w2_a is (rank, out)
            first = first[::-1]
            sound &= len(core) == 4 and 0 not in core and core[:2] == (*first[1:], *first[1:])
        sound &= 0 not in first and len(first) in ((2, 4) if (name, second) == ("w2", None) else (2,))
        if second is not None:
            sound &= 0 not in second and len(second) == 2 and first[1:] == second[:1]
            ranks |= {*first[1:2], *second[:1]}
        factors.append(first if second is None else (*first[:1], *second[1:], *(core or ())[2:]))
    if not sound or len(ranks) > 1 or any(not RANK_RANGE[0] <= rank <= RANK_RANGE[1] for rank in ranks):
        shown = ", ".join(f"{part} {shape}" for part, shape in sorted(parts.items()) if part != "magnitude")
        raise UserError(
            "lora",
            f"{where} has matrices that make no Kronecker product: {shown}; a rank must be from "
            f"{RANK_RANGE[0]} to {RANK_RANGE[1]} and the same in all.",
        )
    w1, w2 = factors
    rank = ranks.pop() if ranks else min(w2[0], math.prod(w2[1:]))
    return rank, (w1[0] * w2[0], w1[1] * w2[1]), tuple(w2[2:]), (w1[0], w1[1])


def infer_magnitudes(
    magnitude_shape: Shape, shape: tuple[int, int], keys: Mapping[str, str], where: str
) -> tuple[int, int]:
    """Return the number of magnitudes and their dimension.

    LyCORIS has both (out, 1, ...) and (1, in, ...); PEFT has one per output, as a row.
    """
    many, long = math.prod(magnitude_shape), shape[1]
    if many == shape[0] and (magnitude_shape[:1] == (many,) or "dora_scale" not in keys["magnitude"]):
        return many, 0
    is_flat = bool(
        {"w2_b", "hada_w1_b"} & keys.keys()
    )  # `long` is then in times the area of an unknown kernel
    if (
        len(magnitude_shape) > 1
        and magnitude_shape[1] == many
        and (many == long or (is_flat and many and long % many == 0))
    ):
        return many, 1
    raise UserError(
        "lora",
        f"{where} has magnitudes of {magnitude_shape} for a layer of {shape}; DoRA has one for each "
        f"output, ({shape[0]}, 1), or each input, (1, {shape[1]}).",
    )
