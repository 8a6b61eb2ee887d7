"""What CUDA kernels are told, as columns of a few device tables; a kernel takes two pointers whatever it reads.

``args`` (int64) holds the addresses of all tables of one bucket and the plain integers about it. ``control``
(int64) is shared by all buckets: the counters and flags of the step, so that no decision needs the host.
``groups`` (int64, group by quantity by field) says where a learning rate or weight decay comes from.
"""

from numba_lamb.layout import LANES

# Tables that CPU kernels read too, under the same names.
(
    ADDRESSES,
    RATES,
    HYPER64,
    SIZES,
    FIRST_CHUNK,
    CHUNKS,
    FIRST_ROW,
    ROW_LENGTHS,
    ROW_TABLE,
    MEANS,
    SUMS,
    NORMS,
    SCALES,
    NONFINITE,
    # Tables that the host keeps to itself on the CPU, by layer: squares are float64, the rest int64.
    GROUP_OF,
    STEPS,
    UPDATED,
    SQUARES,
    # What others own, 0 where there is none: float32 steps by layer, in place of ours; two float32 values of a
    # loss scaler, what gradients were multiplied by, and one that is not 0 where the step must be left out.
    OWNED_STEPS,
    GRAD_SCALE,
    FOUND_INF,
    # How the value at GRAD_SCALE follows the steps (float64, see below), 0 where it does not.
    SCALER,
    # Tables of the whole optimizer.
    GROUPS,
    RATE_TABLE,
    CONSTANTS,
    CONTROL,
    GRAD_CLIP,
    # Integers.
    LAYERS,
    CHUNK_COUNT,
    ROW_COUNT,
    GROUP_COUNT,
    TABLE_STEPS,
    TABLE_REPEATS,
    # Whether moments are corrected by the step count, and whether decay is centralized with the gradient.
    CORRECTS,
    CENTRALIZES_DECAY,
    # Whether any bucket clips, and whether this one has layers that are clipped and layers that must be finite.
    CLIPS,
    WATCHES,
    LAST_BUCKET,
    # Which generation of the tables this args is of.
    GENERATION,
    # Tables of kernels that read arrays in other formats, by layer (int64): those formats, what random bits are
    # made of, and what they are made of in this step, by use.
    FORMATS,
    RANDOM,
    KEYS,
    # The sums of all chunks, and how many: those in SUMS unless ranks have other chunks.
    ALL_SUMS,
    ALL_COUNT,
    # Of kernels for what ranks send each other (`numba_lamb.kernels.cuda.exchange`). How many ranks there are; the
    # message, and how much of it each rank has; runs of layers, and how many; averaged gradients, and how many;
    # each layer's bytes of an element; for each chunk whose it is, and which of theirs; columns of sums, and how
    # many; chunks of buckets before this one.
    RANKS,
    MESSAGE,
    ROOM,
    RUNS,
    RUN_COUNT,
    AVERAGES,
    AVERAGE_COUNT,
    WIDTHS,
    OWNERS,
    WRITTEN,
    WRITTEN_COUNT,
    BEFORE,
) = range(56)
FIELDS = 56

# What a message of sums begins with, 1 or 0 (float64): whether a rank has FOUND something, has a REFUSAL, or was
# told by a loss scaler to leave the step out.
HAS_FOUND, HAS_REFUSED, LEAVES_OUT = range(3)
FLAGS = 3

# A loss scale that follows the steps: steps taken since it changed, and by what and when it changes.
SCALE_STEPS, SCALE_INTERVAL, SCALE_GROWTH, SCALE_BACKOFF, SCALE_LEAST, SCALE_MOST = range(6)
SCALER_FIELDS = 6

# float64 hyper.
LARGEST, LOSS_SCALE = range(2)
CONSTANTS_COUNT = 2

# APPLIED, SKIPPED and REFUSED count steps. FOUND (a gradient is not finite, here or as a loss scaler says) and
# REFUSAL (why the step cannot be taken at all) are set before any kernel of a step changes something, and cleared
# by its last; STOPPED is their verdict for that last one, which may not read what it clears. REASONS holds all
# refusals so far. CURRENT is the generation that books must be of: a captured graph may hold an older one.
APPLIED, SKIPPED, REFUSED, FOUND, REFUSAL, STOPPED, REASONS, CURRENT = range(8)
CONTROLS = 8

# Refusals, each a byte of REFUSAL that is 1, so that threads which store different ones at once lose none: a table
# of rates has no value for the step; a rate in device memory is negative or not finite; the args is of an older
# generation; another rank has one of these.
ENDED, BAD_RATE, STALE, ELSEWHERE = range(4)

# The sum of squares over buckets so far, and its norm; that of the last step that was applied, and
# whether it was clipped at all.
CLIP_SUM, STEP_NORM, CLIP_NORM, CLIPPED = range(4)
CLIP_FIELDS = 4

# A group's rates, and for each where it comes from and the float64 bits or address that goes with it.
LEARNING_RATE, WEIGHT_DECAY = range(2)
QUANTITIES = 2
SOURCE, PAYLOAD = range(2)
SOURCE_FIELDS = 2
NUMBER, TABLE, DEVICE_FLOAT32, DEVICE_FLOAT64 = range(4)

THREADS = LANES
"""Threads in a block: one for each lane that sums are made of."""
