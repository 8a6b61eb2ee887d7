"""No kernel has what NVVM before 13.4 never ends on: a tuple that is stored as a whole in more than one place.

Compiling with CUDA 12.9 and 13.0 never came to an end for kernels that assigned a tuple on both sides of a
branch or carried one round a loop; with all tuples assigned once it does. The newest NVVM takes both, so the
rule is checked in what is handed to it.
"""

import re
from collections import Counter

import pytest

pytest.importorskip("numba_cuda")

from numba_lamb.kernels.cuda.numpy_names import names_supplied
from numba_lamb.kernels.cuda.table import KERNELS
from numba_lamb.kernels.cuda.variants import STORED_KERNELS
from tests.cuda.kernel_texts import texts_of

WHOLE_STORE = re.compile(r'store (\[\d+ x \w+\]) %[^\n]*?, \[\d+ x \w+\]\* (%"[^"]+")')


def tuples_stored_twice(llvm):
    # The clearing of a variable at the start stores a constant, which the pattern leaves out.
    stores = Counter(match.group(2) for match in WHOLE_STORE.finditer(llvm))
    return [name for name, count in stores.items() if count > 1]


@pytest.mark.parametrize("kernel", [*KERNELS.values(), *STORED_KERNELS.values()], ids=lambda k: k.__name__)
def test_no_tuple_is_assigned_twice(kernel):
    assert tuples_stored_twice(texts_of(kernel, "float32").llvm) == []


def carried_round_a_loop(book, scalars):
    sums = (scalars[0], scalars[1])
    i = book[0]
    while i < book[1]:
        sums = (sums[0] + scalars[i], sums[1] + scalars[i + 1])
        i += 128
    scalars[3] = sums[0] + sums[1]


def assigned_in_a_branch(book, scalars):
    for i in range(book[0], book[1]):
        if i % 3:  # noqa: SIM108  (the branch is what is looked for)
            pair = (scalars[i], scalars[i + 1])
        else:
            pair = (scalars[i + 1], scalars[i])
        scalars[i + 2] = pair[0] - pair[1]


@pytest.mark.parametrize("kernel", [carried_round_a_loop, assigned_in_a_branch])
def test_the_check_finds_what_never_ended(kernel):
    from numba.cuda import compiler, types

    arguments = (types.CPointer(types.int64), types.CPointer(types.float32))
    with names_supplied():
        compiled = compiler.compile_cuda(kernel, types.void, arguments, cc=(9, 0))
    assert tuples_stored_twice(compiled.library.get_llvm_str())
