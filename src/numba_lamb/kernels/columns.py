"""The columns of the per-layer tables that every kernel reads, CPU and CUDA alike.

``addresses`` (int64, one row per layer) says where the layer's arrays start; a gradient address of 0 skips
the layer. ``hyper`` (the parameter's dtype, one row per layer) holds its hyper-parameters, already cast.
``norms`` (float64) and ``scales`` (the parameter's dtype) are written by the kernels, one row per layer.
``hyper64`` (float64, one row per layer) holds what enters arithmetic that is done in float64.
"""

WEIGHTS, GRADIENT, EXP_AVG, EXP_AVG_SQ = range(4)
# Of what is stored in fewer bits: the rest of the weights, and the scales of the moments, in the moments' order.
REST, EXP_AVG_SCALES, EXP_AVG_SQ_SCALES = range(4, 7)
ADDRESSES = 7

# How an array is stored, in ``formats`` (int64, one row per layer, the first columns of ``addresses``): as it is
# computed with; in another floating-point dtype; weights as a master and its bfloat16 rounding, or with a float32
# master beside float16; first and second moments in 8 bits, second ones in bfloat16.
NATIVE, BFLOAT16, FLOAT16, FLOAT32, FLOAT64, SPLIT, MASTERED = range(7)
FIRST_8, SECOND_8, SECOND_16 = range(7, 10)
FORMATS = 4
# For 16-bit weights without a master and for moments: what random bits are made of, by layer (int64).
SEED, PARAMETER = range(2)
KEYS = 2

# ADAPT says whether a layer has a trust ratio in this step; where it is 0 the ratio is 1. RESCALE is the
# gradient's factor: that of clipping over the loss scale.
# Lamb and Lans: all to EPS, decoupled DECAY. Lars and Momentum: BETA1 is the momentum, coupled DECAY, and the
# direction is VELOCITY*v + LOOKAHEAD*g.
ADAPT, BETA1, DECAY, RESCALE = range(4)
COMPLEMENT1, CORRECTION1, BETA2, COMPLEMENT2, CORRECTION2, EPS = range(4, 10)
VELOCITY, LOOKAHEAD = range(4, 6)
# What weights are multiplied by before the step, where their decay is not in the direction.
SHRINK = 10
HYPER = 11

# A chunk's sums of squares: of w; of what the other norm is of; of the gradient, where a rule asks for it; of
# the direction that Lans makes of the gradient alone.
WEIGHT_SQUARES, UPDATE_SQUARES, GRADIENT_SQUARES, GRADIENT_UPDATE_SQUARES = range(4)
SUMS = 4

# UPDATE_NORM is the gradient's norm in Lars. The rest is Lans's: the gradient's norm, and norm and ratio of the
# direction that is made of the gradient alone.
WEIGHT_NORM, UPDATE_NORM, RATIO, GRADIENT_NORM, GRADIENT_UPDATE_NORM, GRADIENT_RATIO = range(6)
NORMS = 6

# The factor of what enters the first moment, and of what is taken from the weights. Lans: what the gradient is
# divided by, and the factor of the direction that is made of the gradient alone.
ADVANCE, DESCEND = range(2)
DIVISOR, GRADIENT_DESCEND = 0, 2
SCALES = 3

# What ratios are made with comes first, side by side. RATIO_EPS stands below the ratio; then bounds of ||w||
# above it, and of the ratio itself.
RATIO_EPS, MIN_WEIGHT_NORM, MAX_WEIGHT_NORM, MIN_RATIO, MAX_RATIO = range(5)
# Lamb: whose norm the ratio divides by, of `numba_lamb.numerics.rules`.
NORM_OF = 5
# Lars: GUARD is one of `numba_lamb.numerics.rules`; RATE_INSIDE puts the rate into the momentum buffer,
# RATIO_OUTSIDE keeps the ratio out of it; DECAYED_NORM has the ratio divide by the norm of the decayed gradient.
COEFFICIENT, GUARD, TRUST_CLIP, RATE_INSIDE, RATIO_OUTSIDE, DECAYED_NORM = range(6, 12)
# Lamb: the decay rates of the moments, exactly; whether moments are corrected, and how the rate is.
BETA1_64, BETA2_64, BIAS_CORRECTION, RATE_CORRECTION = range(12, 16)
# DECAYED is the factor of the group's decay, DECOUPLED whether it shrinks the weights in place of entering the
# direction. SIGN is -1 to maximize. CHECKED: gradients must be finite. MAX_GRAD_NORM is 0 for no clip. BOUND is
# what a gradient without loss scale may be at most, where it is CHECKED. ADAPTS says which layers of a group have
# a ratio, as far as a filter lets this one: one of `numba_lamb.numerics.rules`.
DECAYED, DECOUPLED, SIGN, CHECKED, MAX_GRAD_NORM, BOUND, ADAPTS = range(16, 23)
HYPER64 = 23

# The mark of a layer in ``updated``: not yet, in its last step without a trust ratio, with one.
NOT_UPDATED, UNADAPTED, ADAPTED = range(3)

# What became of the steps so far (int64).
APPLIED, SKIPPED = range(2)
COUNTS = 2
LARGEST_COUNT = 2**62
"""The most steps that are counted, so that one more never overflows."""
