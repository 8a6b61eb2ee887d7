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
    # Tables that the host keeps to itself on the CPU, by layer: float64 decay factors, the rest int64.
    DECAYED,
    GROUP_OF,
    STEPS,
    UPDATED,
    # Tables of the whole optimizer.
    GROUPS,
    RATE_TABLE,
    CONSTANTS,
    CONTROL,
    CLIP,
    SQUARES,
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
) = range(34)
FIELDS = 34

# float64 scalars.
BETA1, BETA2, CORRECTED, LARGEST, MAX_GRAD_NORM, LOSS_SCALE = range(6)
CONSTANTS_COUNT = 6

# APPLIED, SKIPPED and REFUSED count steps. FOUND (a gradient is not finite), ENDED (a table of rates has no value
# for the step) and BAD_RATE (a rate in device memory is negative or not finite) are raised by the step's first
# kernel and lowered by its last; STOPPED is their verdict for that last one, which may not read what it lowers.
APPLIED, SKIPPED, REFUSED, FOUND, ENDED, BAD_RATE, STOPPED, REASONS = range(8)
CONTROLS = 8

# The sum of squares over parts so far; that of the last step that was applied, and whether it was clipped at all.
CLIP_SUM, CLIP_NORM, CLIPPED = range(3)
CLIP_FIELDS = 3

# A group's quantities, and for each where it comes from and the float64 bits or address that goes with it.
LEARNING_RATE, WEIGHT_DECAY = range(2)
QUANTITIES = 2
SOURCE, PAYLOAD = range(2)
SOURCE_FIELDS = 2
NUMBER, TABLE, DEVICE_FLOAT32, DEVICE_FLOAT64 = range(4)
