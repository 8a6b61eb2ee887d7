"""The columns of the per-layer tables that every kernel reads, CPU and CUDA alike.

``addresses`` (int64, one row per layer) says where the layer's arrays start; a gradient address of 0 skips
the layer. ``scalars`` (the parameter's dtype, one row per layer) holds its hyper-parameters, already cast.
``norms`` (float64) and ``scales`` (the parameter's dtype) are written by the kernels, one row per layer.
``trust`` (float64) holds what all layers of a LARS step share.
"""

WEIGHTS, GRADIENT, FIRST, SECOND = range(4)
ADDRESSES = 4

# ADAPT says whether a layer has a trust ratio; where it is 0 the ratio is 1. RESCALE is the gradient's factor:
# that of clipping over the loss scale.
# Lamb: all to EPS, decoupled DECAY. Lars and Momentum: BETA1 is the momentum, coupled DECAY, and the direction
# is VELOCITY*v + LOOKAHEAD*g.
ADAPT, BETA1, DECAY, RESCALE = range(4)
COMPLEMENT1, CORRECTION1, BETA2, COMPLEMENT2, CORRECTION2, EPS = range(4, 10)
VELOCITY, LOOKAHEAD = range(4, 6)
SCALARS = 10

# UPDATE_NORM is the gradient's norm in Lars.
WEIGHT_NORM, UPDATE_NORM, RATIO = range(3)
NORMS = 3

# The factor of what enters the first moment, and of what is taken from the weights.
ADVANCE, DESCEND = range(2)
SCALES = 2

COEFFICIENT, EPSILON, CLIP, RATE_INSIDE, GUARDED = range(5)
TRUST = 5
