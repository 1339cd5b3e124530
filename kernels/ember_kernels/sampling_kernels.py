"""The kernels of `sampling`. A batch without filters needs only the first and the last of the four.

    prepare    (row, split)  masks, bias, penalties, temperature; greedy and unfiltered rows are decided up to a maximum
                             over splits here; rows with top-k, top-p or min-p store their scaled logits
    histogram  (row, split)  of filtered rows: how many tokens lie how far below the maximum, and their mass
    collect    (row, split)  of filtered rows: the tokens of bins that are kept whole take part in the draw here; the
                             ids of bins in which a threshold may lie are collected, usually a few dozen
    select     (row)         the exact thresholds among those, and the sampled token

Order. Tokens are compared by one 52-bit key: the value's bits in order, then the lower id first. There are no ties, so
every filtered set is a prefix of one order. Masses are integers (exp(x - max) * 2^40): sums do not depend on the order
of addition, and therefore neither on the number of splits nor on the other rows of the batch.

Flat distributions. A row may keep the whole vocabulary. What the histogram decides is therefore never walked through by
one program: `select` sees the tokens of one to four bins of 1/8 nat.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ember_kernels.launch import direct
from ember_kernels.sampling_keys import gumbel, key_index, key_value, pack, splitmix64
from ember_kernels.step_update import SAMPLING_FIELDS

MAX_SPLITS = 64
MASSES = 3
BINS = 256  # of 1/8 nat each; the last one has all tokens further down
NOT_SPECIALISED = ["sampling_stride", "mask_words", "bias_width", "blocks_per_split", "num_splits", "sampling_ptr"]
NOT_SPECIALISED += ["positions_ptr", "slots_ptr", "mask_rows_ptr"]

_BINS: tl.constexpr = tl.constexpr(BINS)
_SPLITS: tl.constexpr = tl.constexpr(MAX_SPLITS)
# Columns of the masses of a row: of all tokens; of the bins that are kept whole; of those that top-k keeps whole and
# top-p drops.
_MASSES: tl.constexpr = tl.constexpr(MASSES)
_MASS: tl.constexpr = tl.constexpr(float(1 << 40))
# Rows of the table of parameters.
_TEMPERATURE: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("temperature"))
_TOP_P: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("top_p"))
_MIN_P: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("min_p"))
_TOP_K: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("top_k"))
_SEED_LOW: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("seed_low"))
_SEED_HIGH: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("seed_high"))
_REPETITION: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("repetition_penalty"))
_PRESENCE: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("presence_penalty"))
_FREQUENCY: tl.constexpr = tl.constexpr(SAMPLING_FIELDS.index("frequency_penalty"))


@triton.jit
def _word(sampling_ptr, stride, FIELD: tl.constexpr):
    """A parameter of the row at sampling_ptr, as the int32 that it is stored as."""
    return tl.load(sampling_ptr + FIELD * stride)


@triton.jit
def _real(sampling_ptr, stride, FIELD: tl.constexpr):
    return _word(sampling_ptr, stride, FIELD).to(tl.float32, bitcast=True)


@triton.jit
def _stream(sampling_ptr, stride, position):
    """64 bits for a row's (seed, position)."""
    low = _word(sampling_ptr, stride, _SEED_LOW).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = _word(sampling_ptr, stride, _SEED_HIGH).to(tl.uint32, bitcast=True).to(tl.uint64)
    return splitmix64(splitmix64((high << 32) | low) ^ position.to(tl.uint64))


@triton.jit
def _filters(sampling_ptr, stride, vocab):
    """Whether the row has any filter, which of top-k and top-p it has, and their values."""
    top_k = _word(sampling_ptr, stride, _TOP_K)
    top_p = _real(sampling_ptr, stride, _TOP_P)
    has_k = (top_k > 0) & (top_k < vocab)
    has_p = top_p < 1.0
    is_random = _real(sampling_ptr, stride, _TEMPERATURE) > 0.0
    return is_random & (has_k | has_p | (_real(sampling_ptr, stride, _MIN_P) > 0.0)), has_k, top_k, has_p, top_p


@triton.jit
def _log_min_p(sampling_ptr, stride):
    min_p = _real(sampling_ptr, stride, _MIN_P)
    return tl.where(min_p > 0.0, tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))


@triton.jit
def _row_best(best_ptr, num_splits):
    splits = tl.arange(0, _SPLITS)
    return tl.max(tl.load(best_ptr + splits, mask=splits < num_splits, other=-1), axis=0)


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def prepare_kernel(
    logits_ptr,
    sampling_ptr,
    positions_ptr,
    slots_ptr,
    mask_rows_ptr,
    mask_ptr,
    bias_counts_ptr,
    bias_ids_ptr,
    bias_values_ptr,
    prompt_mask_ptr,
    counts_ptr,
    scaled_ptr,
    best_ptr,
    nan_ptr,
    histogram_ptr,
    mass_ptr,
    counter_ptr,
    logits_stride,
    scaled_stride,
    sampling_stride,
    vocab,
    mask_words,
    bias_width,
    blocks_per_split,
    HAS_BIAS: tl.constexpr,
    HAS_TABLES: tl.constexpr,
    HAS_FILTERS: tl.constexpr,
    BIAS_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    sampling_ptr += row
    if split == 0:  # for the kernels that follow
        tl.store(histogram_ptr + row * _BINS + tl.arange(0, _BINS), tl.zeros([_BINS], tl.int32))
        for kind in tl.static_range(_MASSES):
            tl.store(mass_ptr + row * _MASSES + kind, 0)
        tl.store(counter_ptr + row, 0)
    temperature = _real(sampling_ptr, sampling_stride, _TEMPERATURE)
    repetition = _real(sampling_ptr, sampling_stride, _REPETITION)
    presence = _real(sampling_ptr, sampling_stride, _PRESENCE)
    frequency = _real(sampling_ptr, sampling_stride, _FREQUENCY)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    mask_row = tl.load(mask_rows_ptr + row).to(tl.int64)
    num_bias = tl.load(bias_counts_ptr + slot, mask=HAS_BIAS & (slot >= 0), other=0)
    has_penalties = HAS_TABLES & (slot >= 0) & ((repetition != 1.0) | (presence != 0.0) | (frequency != 0.0))
    is_filtered, _, _, _, _ = _filters(sampling_ptr, sampling_stride, vocab)
    is_filtered = is_filtered & HAS_FILTERS
    stream = _stream(sampling_ptr, sampling_stride, tl.load(positions_ptr + row))

    is_nan = tl.zeros([BLOCK], tl.int32)
    first = split * blocks_per_split * BLOCK
    # Each lane keeps its largest value, of equal ones the first, which has the lowest id: what the order of keys keeps.
    best_value = tl.full([BLOCK], float("-inf"), tl.float32)
    best_index = first + tl.arange(0, BLOCK)
    for start in range(first, tl.minimum(first + blocks_per_split * BLOCK, vocab), BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = index < vocab
        x = tl.load(logits_ptr + row * logits_stride + index, mask=valid, other=float("-inf")).to(tl.float32)
        if num_bias > 0:  # the ids are in order: each entry is looked at in its own block alone
            entries = tl.arange(0, BIAS_BLOCK)
            ids = tl.load(bias_ids_ptr + slot * bias_width + entries, mask=entries < num_bias, other=2147483647)
            first_entry = tl.sum((ids < start).to(tl.int32), axis=0)
            end = tl.sum((ids < start + BLOCK).to(tl.int32), axis=0)
            for entry in range(first_entry, end):
                token = tl.load(bias_ids_ptr + slot * bias_width + entry)
                x += tl.where(index == token, tl.load(bias_values_ptr + slot * bias_width + entry), 0.0)
        if mask_row >= 0:
            words = tl.load(mask_ptr + mask_row * mask_words + index // 32, mask=valid, other=0)
            x = tl.where((words >> (index % 32)) & 1 != 0, x, float("-inf"))
        if has_penalties:
            words = tl.load(prompt_mask_ptr + slot * mask_words + index // 32, mask=valid, other=0)
            count = tl.load(counts_ptr + slot * vocab + index, mask=valid, other=0).to(tl.float32)
            is_seen = ((words >> (index % 32)) & 1 != 0) | (count > 0.0)
            x = tl.where(is_seen, tl.where(x > 0.0, tl.div_rn(x, repetition), x * repetition), x)
            x = tl.where(count > 0.0, x - (frequency * count + presence), x)
        is_nan |= (x != x).to(tl.int32)
        if temperature > 0.0:
            x = tl.div_rn(x, temperature)
            if is_filtered:
                tl.store(scaled_ptr + row * scaled_stride + index, x, mask=valid)
            else:
                x += gumbel(stream, index)
        is_better = x > best_value  # false for NaN, and beyond the vocabulary, where x is -inf
        best_value = tl.where(is_better, x, best_value)
        best_index = tl.where(is_better, index, best_index)
    best = tl.where(best_index < vocab, pack(best_value, best_index), -1)
    tl.store(best_ptr + row * _SPLITS + split, tl.max(best, axis=0))
    tl.store(nan_ptr + row * _SPLITS + split, tl.max(is_nan, axis=0))


@triton.jit
def _distance(x, largest, log_min_p):
    """How far below the largest logit, in nats, and whether the token passes min-p."""
    passes = (x >= largest + log_min_p) & (x > float("-inf"))
    return tl.where(x == largest, 0.0, largest - x), passes


@triton.jit
def _mass(distance, keep):
    return tl.where(keep, (tl.exp(-distance) * _MASS).to(tl.int64), 0)


@triton.jit
def _bin(distance, keep):
    return tl.where(keep, tl.minimum(distance * 8.0, _BINS - 1.0), _BINS - 1.0).to(tl.int32)


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def histogram_kernel(
    sampling_ptr,
    scaled_ptr,
    best_ptr,
    histogram_ptr,
    mass_ptr,
    scaled_stride,
    sampling_stride,
    vocab,
    blocks_per_split,
    num_splits,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sampling_ptr += row
    is_filtered, _, _, _, _ = _filters(sampling_ptr, sampling_stride, vocab)
    if not is_filtered:
        return
    largest = key_value(_row_best(best_ptr + row * _SPLITS, num_splits))
    log_min_p = _log_min_p(sampling_ptr, sampling_stride)
    counts = tl.zeros([_BINS], tl.int32)
    masses = tl.zeros([BLOCK], tl.int64)
    first = tl.program_id(1) * blocks_per_split * BLOCK
    for start in range(first, tl.minimum(first + blocks_per_split * BLOCK, vocab), BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = tl.load(scaled_ptr + row * scaled_stride + index, mask=index < vocab, other=float("-inf"))
        distance, keep = _distance(x, largest, log_min_p)
        counts += tl.histogram(_bin(distance, keep), _BINS)  # what min-p excludes is in the last bin
        masses += _mass(distance, keep)
    tl.atomic_add(histogram_ptr + row * _BINS + tl.arange(0, _BINS), counts, mask=counts > 0)
    tl.atomic_add(mass_ptr + row * _MASSES, tl.sum(masses, axis=0))


@triton.jit
def _uncertain_bins(histogram_ptr, mass_ptr, has_k, top_k, has_p, top_p):
    """(k, first, last): top-k's threshold lies in bin k, and top-p's in a bin from `first` to `last`. Bins before all
    of them are kept whole. A threshold that does not exist lies in bin BINS.

    Counts are exact. Masses within a bin are bounded by those at its edges, with a margin for rounding. With both
    filters, top-p is of the mass of top-k's tokens, of which bin k has from none to all of its own.
    """
    bins = tl.arange(0, _BINS)
    counts = tl.load(histogram_ptr + bins)
    k = _BINS
    if has_k:
        k = tl.sum((tl.cumsum(counts, axis=0) < top_k).to(tl.int32), axis=0)
    first, last = _BINS, _BINS
    if has_p:
        upper = counts.to(tl.float32) * tl.exp(bins.to(tl.float32) * -0.125) * 1.001
        lower = tl.where(bins < _BINS - 1, upper * 0.8807, 0.0)  # exp(-0.125) * 0.998
        if has_k:
            upper = tl.where(bins <= k, upper, 0.0)
            lower = tl.where(bins < k, lower, 0.0)
            most, least = tl.sum(upper, axis=0), tl.sum(lower, axis=0)
        else:
            total = tl.load(mass_ptr).to(tl.float32) / _MASS
            most, least = total * 1.001, total * 0.999
        # The threshold is in the first bin with less behind it than (1 - p) of the mass.
        behind_most = tl.cumsum(upper, axis=0, reverse=True) - upper
        behind_least = tl.cumsum(lower, axis=0, reverse=True) - lower
        first = tl.sum((behind_least > (1.0 - top_p) * most * 1.001 + 1e-6).to(tl.int32), axis=0)
        last = tl.sum((behind_most > (1.0 - top_p) * least * 0.998 - 1e-6).to(tl.int32), axis=0)
        last = tl.minimum(last, _BINS - 1)
    return k, tl.minimum(first, last), last


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def collect_kernel(
    sampling_ptr,
    positions_ptr,
    scaled_ptr,
    best_ptr,
    sure_ptr,
    histogram_ptr,
    mass_ptr,
    counter_ptr,
    candidates_ptr,
    scaled_stride,
    sampling_stride,
    vocab,
    blocks_per_split,
    num_splits,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    sampling_ptr += row
    is_filtered, has_k, top_k, has_p, top_p = _filters(sampling_ptr, sampling_stride, vocab)
    if not is_filtered:
        return
    largest = key_value(_row_best(best_ptr + row * _SPLITS, num_splits))
    log_min_p = _log_min_p(sampling_ptr, sampling_stride)
    mass_ptr += row * _MASSES
    k, first_p, last_p = _uncertain_bins(histogram_ptr + row * _BINS, mass_ptr, has_k, top_k, has_p, top_p)
    stream = _stream(sampling_ptr, sampling_stride, tl.load(positions_ptr + row))
    best = tl.full([BLOCK], -1, tl.int64)
    sure_masses = tl.zeros([BLOCK], tl.int64)
    dropped_mass = tl.zeros([], tl.int64)  # a scalar, to save registers: few rows have both filters
    first = split * blocks_per_split * BLOCK
    for start in range(first, tl.minimum(first + blocks_per_split * BLOCK, vocab), BLOCK):
        index = start + tl.arange(0, BLOCK)
        x = tl.load(scaled_ptr + row * scaled_stride + index, mask=index < vocab, other=float("-inf"))
        distance, keep = _distance(x, largest, log_min_p)
        bin = _bin(distance, keep)
        is_candidate = keep & ((bin == k) | ((bin >= first_p) & (bin <= last_p) & (bin < k)))
        is_sure = keep & (bin < k) & (bin < first_p)
        if tl.max(is_sure.to(tl.int32), axis=0) > 0:
            best = tl.maximum(best, tl.where(is_sure, pack(x + gumbel(stream, index), index), -1))
        if has_p:
            sure_masses += _mass(distance, is_sure)
            if has_k:
                dropped_mass += tl.sum(_mass(distance, keep & (bin < k) & (bin > last_p)), axis=0)
        order = tl.cumsum(is_candidate.to(tl.int32), axis=0)
        num_candidates = tl.max(order, axis=0)
        if num_candidates > 0:
            base = tl.atomic_add(counter_ptr + row, num_candidates)
            tl.store(candidates_ptr + row * scaled_stride + base + order - 1, index, mask=is_candidate)
    tl.store(sure_ptr + row * _SPLITS + split, tl.max(best, axis=0))
    if has_p:
        tl.atomic_add(mass_ptr + 1, tl.sum(sure_masses, axis=0))
        tl.atomic_add(mass_ptr + 2, dropped_mass)


@triton.jit
def _threshold(
    candidates_ptr, scaled_ptr, count, largest, minimum, above, target, BY_MASS: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest key such that the candidates at or above it reach `target`, in number or mass. Candidates below the
    key `minimum`, and those in bins before `above`, are not counted. Each pass finds 4 bits of the key, from the top.
    """
    key = tl.full([], 0, tl.int64)
    for digit in range(13):
        shift = 48 - 4 * digit
        pivots = key + (tl.arange(0, 16).to(tl.int64) << shift)
        sums = tl.zeros([16], tl.int64)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            index = tl.load(candidates_ptr + i, mask=i < count, other=0)
            x = tl.load(scaled_ptr + index, mask=i < count, other=float("-inf"))
            keys = pack(x, index)
            distance = tl.where(x == largest, 0.0, largest - x)
            counts = (i < count) & (keys >= minimum) & (_bin(distance, i < count) >= above)
            weight = _mass(distance, counts) if BY_MASS else counts.to(tl.int64)
            sums += tl.sum(tl.where(keys[:, None] >= pivots[None, :], weight[:, None], 0), axis=0)
        key += (tl.sum((sums >= target).to(tl.int64), axis=0) - 1) << shift
    return key


@direct
@triton.jit(do_not_specialize=NOT_SPECIALISED)
def select_kernel(
    sampling_ptr,
    positions_ptr,
    slots_ptr,
    scaled_ptr,
    best_ptr,
    sure_ptr,
    nan_ptr,
    histogram_ptr,
    mass_ptr,
    counter_ptr,
    candidates_ptr,
    counts_ptr,
    token_ptr,
    broken_ptr,
    threshold_ptr,
    scaled_stride,
    sampling_stride,
    vocab,
    num_splits,
    HAS_TABLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    sampling_ptr += row
    is_filtered, has_k, top_k, has_p, top_p = _filters(sampling_ptr, sampling_stride, vocab)
    winner = _row_best(best_ptr + row * _SPLITS, num_splits)
    largest = key_value(winner)
    splits = tl.arange(0, _SPLITS)
    is_nan = tl.max(tl.load(nan_ptr + row * _SPLITS + splits, mask=splits < num_splits, other=0), axis=0)
    tl.store(broken_ptr + row, ((is_nan > 0) | (largest == float("-inf"))).to(tl.int8))

    threshold = tl.full([], 0, tl.int64)
    if is_filtered:
        candidates_ptr += row * scaled_stride
        scaled_ptr += row * scaled_stride
        mass_ptr += row * _MASSES
        count = tl.load(counter_ptr + row)
        k, first_p, _ = _uncertain_bins(histogram_ptr + row * _BINS, mass_ptr, has_k, top_k, has_p, top_p)
        if k < _BINS:
            bins = tl.arange(0, _BINS)
            num_before = tl.sum(tl.where(bins < k, tl.load(histogram_ptr + row * _BINS + bins), 0), axis=0)
            # The last bin also counts what min-p excludes, so there may be fewer candidates than are wanted.
            if top_k - num_before <= count:
                target = (top_k - num_before).to(tl.int64)
                threshold = _threshold(candidates_ptr, scaled_ptr, count, largest, threshold, k, target, False, BLOCK)
        if has_p:
            sure = tl.load(mass_ptr + 1)
            total = tl.load(mass_ptr)
            if has_k:
                masses = tl.zeros([BLOCK], tl.int64)
                for start in range(0, count, BLOCK):
                    i = start + tl.arange(0, BLOCK)
                    index = tl.load(candidates_ptr + i, mask=i < count, other=0)
                    x = tl.load(scaled_ptr + index, mask=i < count, other=float("-inf"))
                    keep = (i < count) & (pack(x, index) >= threshold)
                    masses += _mass(tl.where(x == largest, 0.0, largest - x), keep)
                total = tl.sum(masses, axis=0) + sure + tl.load(mass_ptr + 2)
            target = tl.maximum((top_p.to(tl.float64) * total.to(tl.float64)).to(tl.int64), 1) - sure
            if total - sure >= target:  # false only if no token is allowed
                threshold = _threshold(
                    candidates_ptr, scaled_ptr, count, largest, threshold, first_p, target, True, BLOCK
                )
        stream = _stream(sampling_ptr, sampling_stride, tl.load(positions_ptr + row))
        best = tl.full([BLOCK], -1, tl.int64)
        for start in range(0, count, BLOCK):
            i = start + tl.arange(0, BLOCK)
            index = tl.load(candidates_ptr + i, mask=i < count, other=0)
            x = tl.load(scaled_ptr + index, mask=i < count, other=float("-inf"))
            keep = (i < count) & (pack(x, index) >= threshold)
            best = tl.maximum(best, tl.where(keep, pack(x + gumbel(stream, index), index), -1))
        drawn = tl.maximum(tl.max(best, axis=0), _row_best(sure_ptr + row * _SPLITS, num_splits))
        winner = tl.where(drawn >= 0, drawn, winner)
    token = key_index(winner)
    tl.store(token_ptr + row, token)
    tl.store(threshold_ptr + row, threshold)

    slot = tl.load(slots_ptr + row).to(tl.int64)
    if HAS_TABLES & (slot >= 0):
        count_ptr = counts_ptr + slot * vocab + token
        count = tl.load(count_ptr).to(tl.int32)
        tl.debug_barrier()  # no thread may load what another has already overwritten
        tl.store(count_ptr, tl.minimum(count + 1, 32767).to(tl.int16))
