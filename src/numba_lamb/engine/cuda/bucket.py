"""CudaBucket: the layers of one arithmetic whose arrays live on a GPU, with their tables and state there."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_lamb.engine.bucket import Bucket
from numba_lamb.engine.cuda.transfers import Block, Mirror, Snapshot, Snapshots, block_of
from numba_lamb.engine.interface import Written
from numba_lamb.engine.precision import Precision
from numba_lamb.groups import Parameter
from numba_lamb.kernels import columns
from numba_lamb.kernels.cuda import build, fields
from numba_lamb.kernels.cuda.table import KERNELS
from numba_lamb.kernels.cuda.variants import STORED_KERNELS
from numba_lamb.layout import FlatLayout
from numba_lamb.memory.cuda_memory import Buffer, zeros
from numba_lamb.memory.device import Device, Launch
from numba_lamb.methods.table import UNITS
from numba_lamb.numerics import storage
from numba_lamb.sharding import Division


class CudaBucket(Bucket):
    """Tables, state and scratch of the layers that are computed with in one dtype, on a GPU.

    What the host says (addresses, hyper-parameters, kernel arguments) is one block, sent when it changes. What
    the kernels write (norms, step counts, state) is read when it is asked for.
    """

    def __init__(
        self,
        layout: FlatLayout,
        dtype: np.dtype[Any],
        parameters: Sequence[Parameter],
        precisions: Sequence[Precision],
        state_names: Sequence[str],
        device: Device,
        division: Division | None = None,
        rank: int = 0,
    ) -> None:
        super().__init__(layout, dtype, parameters, precisions, state_names, division, rank)
        self.device = device
        count, chunks = len(self.layers), len(self.chunks)
        self.host = Block(
            {
                "args": ((fields.FIELDS,), np.int64),
                "addresses": ((count, columns.ADDRESSES), np.int64),
                "hyper": ((count, columns.HYPER), dtype),
                "hyper64": ((count, columns.HYPER64), np.float64),
                "constants": ((fields.CONSTANTS_COUNT,), np.float64),
                "formats": ((count, columns.FORMATS), np.int64),
                "random": ((count, columns.KEYS), np.int64),
            }
        )
        self.host.fill(
            {
                "addresses": self.addresses,
                "hyper": self.hyper,
                "hyper64": self.hyper64,
                "formats": self.format_table,
                "random": self.random,
            }
        )
        host = self.host.tables
        self.addresses, self.hyper, self.hyper64 = host["addresses"], host["hyper"], host["hyper64"]
        self.format_table, self.random = host["formats"], host["random"]
        self.args, self.constants = host["args"], host["constants"]
        self.constants[fields.LARGEST] = self.largest
        self.mirror = Mirror(device, self.host.memory)
        self._work = Block(
            {
                "norms": ((count, columns.NORMS), np.float64),
                "updated": ((count,), np.int64),
                "steps": ((count,), np.int64),
                "rates": ((count,), np.float64),
                "scales": ((count, columns.SCALES), dtype),
                "squares": ((count,), np.float64),
                "sums": ((chunks, columns.SUMS), np.float64),
                "nonfinite": ((chunks,), np.int32),
                "keys": ((count, storage.USES), np.int64),
                "all_sums": ((len(self.all_chunks) if division else 0, columns.SUMS), np.float64),
            }
        )
        self._work_memory = zeros(device, len(self._work.memory))
        # Norms and marks lie side by side at the start.
        written = self._work.memory[: self._work.offsets["steps"]]
        self._snapshots = Snapshots(device, self._work_memory.address, written)
        self._state_memory = {name: zeros(device, nbytes) for name, nbytes in self.state.nbytes.items()}
        for name, memory in self._state_memory.items():
            self.state.point(self.addresses, name, memory.address)
        self._place_tables()
        # Whether kernels read the gradients before the update.
        self._looks = False
        self._launches: dict[Callable[..., None], Launch] = {}
        # Kept for each choice of groups, because a captured graph may still read them.
        self._rows_memory: dict[tuple[int, ...] | None, tuple[Block, Buffer]] = {}
        self.centralize(())

    def _place_tables(self) -> None:
        self._tables = block_of(
            {
                "sizes": self.sizes,
                "first_chunk": self.all_first_chunk,
                "chunks": self.chunks,
                "group_of": self.group_of.astype(np.int64),
            }
        )
        self._tables_memory = self._sent(self._tables)
        self.args[fields.LAYERS] = len(self.layers)
        self.args[fields.CHUNK_COUNT] = len(self.chunks)
        self.args[fields.ALL_COUNT] = len(self.all_chunks)
        host, work, tables = self.mirror.address, self._work_memory.address, self._tables_memory.address
        for field, name in (
            (fields.ADDRESSES, "addresses"),
            (fields.HYPER64, "hyper64"),
            (fields.CONSTANTS, "constants"),
            (fields.FORMATS, "formats"),
            (fields.RANDOM, "random"),
        ):
            self.args[field] = host + self.host.offsets[name]
        for field, name in (
            (fields.NORMS, "norms"),
            (fields.UPDATED, "updated"),
            (fields.STEPS, "steps"),
            (fields.RATES, "rates"),
            (fields.SCALES, "scales"),
            (fields.SQUARES, "squares"),
            (fields.SUMS, "sums"),
            (fields.ALL_SUMS, "sums" if self.division is None else "all_sums"),
            (fields.NONFINITE, "nonfinite"),
            (fields.KEYS, "keys"),
        ):
            self.args[field] = work + self._work.offsets[name]
        for field, name in (
            (fields.SIZES, "sizes"),
            (fields.FIRST_CHUNK, "first_chunk"),
            (fields.CHUNKS, "chunks"),
            (fields.GROUP_OF, "group_of"),
        ):
            self.args[field] = tables + self._tables.offsets[name]

    def _sent(self, block: Block) -> Buffer:
        buffer = Buffer(self.device, len(block.memory))
        self.device.write(buffer.address, block.memory)
        return buffer

    def _make_rows(self, groups: Sequence[int]) -> None:
        self.rows_are_placed = False
        """Whether `place_rows` told kernels of the rows as they are now."""
        super()._make_rows(groups)

    def place_rows(self) -> None:
        """Put the tables of row means on the device, with space for the means."""
        if self.centralized not in self._rows_memory:
            block = block_of(
                {
                    "first_row": self.first_row,
                    "row_lengths": self.row_lengths,
                    "row_table": self.row_table,
                    "means": np.zeros(len(self.row_table), dtype=self.dtype),
                }
            )
            self._rows_memory[self.centralized] = block, self._sent(block)
        block, buffer = self._rows_memory[self.centralized]
        self.args[fields.ROW_COUNT] = len(self.row_table)
        for field, name in (
            (fields.FIRST_ROW, "first_row"),
            (fields.ROW_LENGTHS, "row_lengths"),
            (fields.ROW_TABLE, "row_table"),
            (fields.MEANS, "means"),
        ):
            self.args[field] = buffer.address + block.offsets[name]
        self._launches = {}
        self.rows_are_placed = True

    def use_steps(self, address: int) -> None:
        """Have the layers' steps counted in the owner's float32 table on the device; 0 goes back to this bucket's.

        It has one value for each layer, in the order of this bucket's layers, and must live as long as steps are
        taken or replayed. What it holds is what counts: nothing is copied.
        """
        self.args[fields.OWNED_STEPS] = address

    def inspect_gradients(self, clips: bool) -> None:
        """Say whether a step clips any bucket's gradients; what it does with this bucket's is in `hyper64`."""
        self.args[fields.CLIPS], self.args[fields.WATCHES] = clips, self.checks and self.clips
        if self._looks != (self.checks or self.clips):
            self._launches = {}
            self._looks = self.checks or self.clips

    def lacks(self, name: str) -> bool:
        """Return whether a kernel is still to be compiled or loaded."""
        kernel = self._kernel(name)
        return kernel not in self._launches and not self.device.has_function(kernel.__name__, self.dtype)

    def load(self, name: str) -> None:
        """Have a kernel of this bucket ready to run."""
        kernel = self._kernel(name)
        if kernel not in self._launches:
            self._launches[kernel] = self._bind(name)

    def on(self, stream: int, name: str) -> Callable[[], Any]:
        """Return what queues one kernel of this bucket, which was loaded, on `stream`."""
        return self._launches[self._kernel(name)].on(stream)

    def _kernel(self, name: str) -> Callable[..., None]:
        """Return a kernel for arrays as they are stored now."""
        stored = None if self.formats is None else STORED_KERNELS.get(name)
        return stored or KERNELS[name]

    def bound(self, name: str, blocks: int, args: int, stored: bool = False) -> Launch:
        """Return a kernel with arguments at `args`; `stored` if they are of arrays in other formats."""
        kernel = STORED_KERNELS.get(name, KERNELS[name]) if stored else self._kernel(name)
        function = self.device.function(
            kernel.__name__,
            self.dtype,
            lambda: build.machine_code(kernel, self.dtype, self.device.capability),
        )
        return Launch(function, blocks, args, self.mirror.address + self.host.offsets["hyper"])

    def _bind(self, name: str) -> Launch:
        layers, chunks = len(self.layers), len(self.chunks)
        of_layers = -(-layers // fields.THREADS)
        blocks = {
            "open_step": of_layers + chunks * self._looks,
            "gradient_squares": layers,
            "clip_gradients": 1,
            "scale_gradients": of_layers,
        }.get(name)
        if blocks is None:
            blocks = {"chunk": chunks, "layer": layers, "row": len(self.row_table)}[UNITS[name]]
        return self.bound(name, blocks, self.mirror.address + self.host.offsets["args"])

    # -- what the kernels wrote ----------------------------------------------------------------------------

    def snapshot(self, stream: int) -> Snapshot:
        """Queue a copy of what `written_in` takes apart."""
        return self._snapshots.take(stream)

    def written_in(self, memory: NDArray[np.uint8]) -> Written:
        """Return each layer's norms, whether it was updated, and whether it adapted then, in a snapshot."""
        forms = self._work.tables
        block = Block({name: (forms[name].shape, forms[name].dtype) for name in ("norms", "updated")})
        block.memory[:] = memory
        marks = block.tables["updated"]
        return block.tables["norms"], marks != columns.NOT_UPDATED, marks == columns.ADAPTED

    def read(self, name: str) -> NDArray[Any]:
        """Return one of the tables that kernels write, as all work so far leaves it."""
        values = np.empty_like(self._work.tables[name])
        with self.device.current():
            self.device.read(self._work_memory.address + self._work.offsets[name], values)
        return values

    def beyond_float16(self) -> dict[str, float]:
        """Return how many elements of each float32 master its float16 parameter cannot hold; this waits."""
        if "master" not in self._state_memory:
            return {}
        master = np.empty(self.state.nbytes["master"], dtype=np.uint8)
        with self.device.current():
            self.device.read(self._state_memory["master"].address, master)
        return self.counted_beyond_float16({"master": master}, self.read("updated"))

    def looked_at(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return how many values of each chunk are not finite, and each layer's squares; 0 where nobody asks."""
        nonfinite, squares = (np.zeros_like(self._work.tables[name]) for name in ("nonfinite", "squares"))
        return (
            self.read("nonfinite") if self.checks else nonfinite,
            self.read("squares") if self.clips else squares,
        )

    def saved(self) -> dict[str, NDArray[Any]]:
        """Return copies of what a step leaves behind, by name."""
        values = {name: self.read(name) for name in ("steps", "updated", "norms")}
        with self.device.current():
            if self.args[fields.OWNED_STEPS]:
                owned = np.empty(len(self.layers), dtype=np.float32)
                self.device.read(int(self.args[fields.OWNED_STEPS]), owned)
                values["steps"] = owned.astype(np.int64)
            for name, memory in self._state_memory.items():
                values[name] = np.empty(self.state.nbytes[name], dtype=np.uint8)
                self.device.read(memory.address, values[name])
        return values

    def blank(self) -> dict[str, NDArray[Any]]:
        """Return zeros of the form of `saved`."""
        values = {name: np.zeros_like(self._work.tables[name]) for name in ("steps", "updated", "norms")}
        return values | {name: np.zeros(nbytes, dtype=np.uint8) for name, nbytes in self.state.nbytes.items()}

    def restore(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Put back what `saved` returned, of this bucket or of one with the first of its layers."""
        with self.device.current():
            self.device.finish()
            for name, table in values.items():
                if name in self._state_memory:
                    address = self._state_memory[name].address
                elif name == "steps" and self.args[fields.OWNED_STEPS]:
                    address, table = int(self.args[fields.OWNED_STEPS]), table.astype(np.float32)
                else:
                    address = self._work_memory.address + self._work.offsets[name]
                self.device.write(address, np.ascontiguousarray(table))
