"""What CUDA kernels are told, as columns of a few device tables; a kernel takes two pointers whatever it reads.

``book`` (int64) holds the addresses of all tables of one part and the plain integers about it. ``control``
(int64) is shared by all parts: the counters and flags of the step, so that no decision needs the host.
``groups`` (int64, group by quantity by field) says where a learning rate or weight decay comes from.
"""

# Tables that CPU kernels read too, under the same names.
(
    ADDRESSES,
    RATES,
    TRUST,
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
    # Tables that the host keeps to itself on the CPU, by layer: decay factors and squares float64, the rest int64.
    DECAYED,
    GROUP_OF,
    STEPS,
    UPDATED,
    SQUARES,
    # Tables of the whole optimizer.
    GROUPS,
    RATE_TABLE,
    CONSTANTS,
    CONTROL,
    CLIP,
    # Integers.
    LAYERS,
    CHUNK_COUNT,
    ROW_COUNT,
    GROUP_COUNT,
    TABLE_STEPS,
    TABLE_REPEATS,
    CENTERED_DECAY,
    CHECKS,
    CLIPS,
    LAST_PART,
    # Which making of the tables this book is of.
    MAKING,
) = range(35)
FIELDS = 35

# float64 scalars.
BETA1, BETA2, CORRECTED, LARGEST, MAX_GRAD_NORM, LOSS_SCALE = range(6)
CONSTANTS_COUNT = 6

# APPLIED, SKIPPED and REFUSED count steps. FOUND (a gradient is not finite) and REFUSAL (why the step cannot be
# taken at all) are set before any kernel of a step changes something, and cleared by its last; STOPPED is their
# verdict for that last one, which may not read what it clears. REASONS holds all refusals so far. CURRENT is the
# making that books must be of: a captured graph may hold an older one.
APPLIED, SKIPPED, REFUSED, FOUND, REFUSAL, STOPPED, REASONS, CURRENT = range(8)
CONTROLS = 8

# Refusals, which are bits: a table of rates has no value for the step; a rate in device memory is negative or not
# finite; the book is of an older making.
ENDED, BAD_RATE, STALE = 1, 2, 4

# The sum of squares over parts so far; that of the last step that was applied, and whether it was clipped at all.
CLIP_SUM, CLIP_NORM, CLIPPED = range(3)
CLIP_FIELDS = 3

# A group's quantities, and for each where it comes from and the float64 bits or address that goes with it.
LEARNING_RATE, WEIGHT_DECAY = range(2)
QUANTITIES = 2
SOURCE, PAYLOAD = range(2)
SOURCE_FIELDS = 2
NUMBER, TABLE, DEVICE_FLOAT32, DEVICE_FLOAT64 = range(4)

THREADS = 128
"""Threads in a block: four warps, so that a finished chunk frees its place soon."""
