"""One ONNX file and its manifest, checked against each other and ready to run.

A model is a folder with `manifest.json` (`ModelManifest`) and the `.onnx` file it names. The
manifest says what the file is (sha256, licence, source) and what goes in and out; `OnnxModel.load`
believes neither until both agree. Every provider runs the same IOBinding path: inputs are bound
where they lie in host memory, outputs are bound to host buffers, and ONNX Runtime makes the one
copy to and from the device, none at all on the CPU.

Weights may be float16 initialisers followed by a Cast: ONNX Runtime folds the Cast at load, so
half precision is storage only on the CPU.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, overload

import msgspec
import numpy as np
import onnxruntime
import structlog
from numpy.typing import NDArray

from keystep_capture.errors import ConfigError, ModelError, ShapeError

PREFERRED_PROVIDERS = (
    "TensorrtExecutionProvider",
    "CUDAExecutionProvider",
    "CPUExecutionProvider",
)
"""Execution providers in the order they are tried."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_MODEL_BYTES = 1 << 30

_ORT_DTYPES = {
    "bool": "tensor(bool)",
    "uint8": "tensor(uint8)",
    "int8": "tensor(int8)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
}

_Dtype = Literal["bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64"]
_Dim = Annotated[str, msgspec.Meta(min_length=1)] | Annotated[int, msgspec.Meta(ge=1)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]

_log = structlog.get_logger(__name__)


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An input or output: a fixed dimension is a number, a free one a name.

    The same name stands for the same size wherever it occurs in one manifest.
    """

    name: _Text
    dtype: _Dtype
    shape: tuple[_Dim, ...]


class ModelManifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model file is and what goes in and out; the content of `manifest.json`.

    Attributes:
        name: Which model this is; with the hash it names the model everywhere.
        version: The maker's version.
        file: The ONNX file, relative to the manifest's folder and inside it.
        sha256: Of the ONNX file, 64 lower-case hex digits.
        licence: SPDX expression of the weights' licence.
        source: Where the weights come from.
        inputs: Tensors the caller gives.
        outputs: Tensors the caller gets.
        preprocessing: What was done to the inputs in training; read by the cue, not here.
        rate_hz: How often the model is meant to run.
    """

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: _Text
    file: _Text
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    licence: _Text
    source: _Text
    inputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    outputs: Annotated[tuple[TensorSpec, ...], msgspec.Meta(min_length=1)]
    preprocessing: dict[str, Any]
    rate_hz: Annotated[float, msgspec.Meta(gt=0)]

    @classmethod
    def read(cls, path: Path) -> ModelManifest:
        """Read and check a manifest file.

        Raises:
            ModelError: The file is missing, too long, not JSON of this form, or names a model
                file outside its own folder.
        """
        content = _read_file(path, "manifest", MAX_MANIFEST_BYTES)
        try:
            manifest = msgspec.json.decode(content, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{path} is not a model manifest: {error}; export the model again or correct it"
            ) from error
        inside = PurePosixPath(manifest.file)
        if inside.is_absolute() or ".." in inside.parts or set(manifest.file) & set("\\:\0"):
            raise ModelError(
                f"{path}: `file` must lie inside the manifest's folder, got {manifest.file!r}; "
                "put the model file beside its manifest"
            )
        return manifest


class OnnxModel:
    """A loaded ONNX model whose file agrees with its manifest.

    `run` may be called from any thread; a lock lets one run through at a time, since the binding
    is shared. `beside` gives another for two runs at once.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        session: onnxruntime.InferenceSession,
        missing_providers: tuple[str, ...] = (),
    ) -> None:
        """Wrap a session; `load` is the way in, which checks everything first."""
        self._manifest = manifest
        self._session = session
        self._missing_providers = missing_providers
        self._provider: str = session.get_providers()[0]
        self._binding = session.io_binding()
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        manifest_path: Path | str,
        *,
        providers: Sequence[str] | None = None,
        intra_op_threads: int = 1,
        max_bytes: int = MAX_MODEL_BYTES,
    ) -> OnnxModel:
        """Load the model a manifest names and check one against the other.

        Args:
            manifest_path: The `manifest.json`; the model file lies in the same folder.
            providers: ONNX Runtime execution providers, best first; by default TensorRT, CUDA
                and CPU as far as this installation has them. A list without the CPU provider
                forbids falling back to it.
            intra_op_threads: Threads one run may use, 1 or more.
            max_bytes: Larger model files are refused unread.

        Returns:
            The model. Where a listed provider did not start, a warning was logged and
            `missing_providers` names it.

        Raises:
            ConfigError: A provider this installation does not have, or no thread.
            ModelError: The manifest or the model file is missing, corrupt, or they disagree;
                or none of the providers asked for started.
        """
        wanted = choose_providers(providers)
        if intra_op_threads < 1:
            raise ConfigError(f"intra_op_threads must be 1 or more, got {intra_op_threads}")
        manifest_path = Path(manifest_path)
        manifest = ModelManifest.read(manifest_path)
        path = manifest_path.parent / manifest.file
        content = _read_file(path, "model file", max_bytes)
        came = hashlib.sha256(content).hexdigest()
        if came != manifest.sha256:
            raise ModelError(
                f"{path} is corrupt or another version: expected sha256 {manifest.sha256}, "
                f"got {came}; fetch or export the model again"
            )
        session = _start_session(content, path, wanted, intra_op_threads)
        _check_tensors(path, "input", manifest.inputs, session.get_inputs())
        _check_tensors(path, "output", manifest.outputs, session.get_outputs())
        missing = missing_providers(wanted, session.get_providers())
        if missing:
            _log.warning(
                "execution provider did not start; the model runs on the next one",
                model=manifest.name,
                missing=missing,
                runs_on=session.get_providers()[0],
            )
        return cls(manifest, session, missing)

    def beside(self) -> OnnxModel:
        """The same model, its weights shared, to be run at the same time as this one."""
        return OnnxModel(self._manifest, self._session, self._missing_providers)

    @property
    def manifest(self) -> ModelManifest:
        """The manifest the file was checked against."""
        return self._manifest

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """For those that bind buffers of their own, as `keystep_models.incremental` does."""
        return self._session

    @property
    def sha256(self) -> str:
        """Hash of the model file, hex."""
        return self._manifest.sha256

    @property
    def provider(self) -> str:
        """The execution provider that runs the model, as ONNX Runtime names it."""
        return self._provider

    @property
    def missing_providers(self) -> tuple[str, ...]:
        """Providers that were asked for, or installed, and did not start; normally empty."""
        return self._missing_providers

    @overload
    def run(self, batch: NDArray[Any]) -> NDArray[Any]: ...

    @overload
    def run(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]: ...

    def run(
        self, batch: NDArray[Any] | Mapping[str, NDArray[Any]]
    ) -> NDArray[Any] | dict[str, NDArray[Any]]:
        """Run the model once.

        Args:
            batch: One array per input by name; a bare array where there are just one input and
                one output. Dtypes and shapes as the manifest says, C-contiguous. They are read
                in place: leave them alone until the call returns.

        Returns:
            New arrays by output name; a bare array for a bare array.

        Raises:
            ShapeError: An input is missing, unknown, or has another dtype, shape or layout.
            ModelError: ONNX Runtime failed on these values.
        """
        if isinstance(batch, np.ndarray):
            inputs, outputs = self._manifest.inputs, self._manifest.outputs
            if len(inputs) != 1 or len(outputs) != 1:
                raise ShapeError(
                    f"{self._manifest.name} has {len(inputs)} inputs and {len(outputs)} outputs; "
                    "give a mapping from input name to array"
                )
            return self._run({inputs[0].name: batch})[outputs[0].name]
        return self._run(batch)

    def _run(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        sizes = self._check_batch(batch)
        with self._lock:
            try:
                for name, array in batch.items():
                    self._binding.bind_cpu_input(name, array)
                buffers = [self._bind_output(spec, sizes) for spec in self._manifest.outputs]
                self._session.run_with_iobinding(self._binding)
                return {
                    spec.name: self._binding.get_outputs()[place].numpy()
                    if buffer is None
                    else buffer
                    for place, (spec, buffer) in enumerate(
                        zip(self._manifest.outputs, buffers, strict=True)
                    )
                }
            except Exception as error:  # ONNX Runtime's errors share no other base
                shapes = {name: array.shape for name, array in batch.items()}
                raise ModelError(
                    f"{self._manifest.name} failed on {self._provider} with inputs of shape "
                    f"{shapes}: {error}; check the values against the manifest's preprocessing"
                ) from error

    def _bind_output(self, spec: TensorSpec, sizes: Mapping[str, int]) -> NDArray[Any] | None:
        """Bind an output to a new buffer; None where its size is known only after the run."""
        shape = [sizes.get(dim) if isinstance(dim, str) else dim for dim in spec.shape]
        known = [dim for dim in shape if dim is not None]
        if len(known) < len(shape):
            self._binding.bind_output(spec.name, "cpu")
            return None
        result = np.empty(known, spec.dtype)
        self._binding.bind_output(spec.name, "cpu", 0, result.dtype, known, result.ctypes.data)
        return result

    def _check_batch(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, int]:
        """Check the inputs against the manifest; return the size of every free dimension."""
        expected = {spec.name for spec in self._manifest.inputs}
        if batch.keys() != expected:
            raise ShapeError(
                f"{self._manifest.name} takes the inputs {sorted(expected)}, got {sorted(batch)}"
            )
        sizes: dict[str, int] = {}
        for spec in self._manifest.inputs:
            check_array(spec, batch[spec.name], self._manifest.name, sizes)
        return sizes


def check_array(
    spec: TensorSpec, array: NDArray[Any], model: str, sizes: dict[str, int] | None = None
) -> None:
    """Check one array against the manifest's word on it.

    Args:
        spec: What the manifest says.
        array: What came.
        model: Name for the message.
        sizes: Free dimensions seen so far; filled in, and compared with.

    Raises:
        ShapeError: Another dtype or shape, nothing in it, or not C-contiguous.
    """
    sizes = {} if sizes is None else sizes
    fits = array.ndim == len(spec.shape) and array.dtype == spec.dtype and array.size > 0
    if fits:
        for dim, size in zip(spec.shape, array.shape, strict=True):
            fits &= size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
    if not fits:
        raise ShapeError(
            f"{model}: input {spec.name!r} must be {spec.dtype} {list(spec.shape)} and not empty"
            + (f" with {sizes}" if sizes else "")
            + f", got {array.dtype} {list(array.shape)}"
        )
    if not array.flags.c_contiguous:
        raise ShapeError(
            f"{model}: input {spec.name!r} must be C-contiguous, got strides {array.strides}; "
            "pass it through numpy.ascontiguousarray"
        )


def choose_providers(providers: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the execution providers to try, best first.

    Raises:
        ConfigError: A provider in `providers` is not part of the installed ONNX Runtime.
    """
    available = onnxruntime.get_available_providers()
    if providers is None:
        return tuple(name for name in PREFERRED_PROVIDERS if name in available)
    if not providers or not set(providers) <= set(available):
        raise ConfigError(
            f"providers must be one or more of {available}, got {list(providers)}; GPU providers "
            "come with the package onnxruntime-gpu (`keystep[gpu]`)"
        )
    return tuple(providers)


def missing_providers(wanted: Sequence[str], started: Sequence[str]) -> tuple[str, ...]:
    """Return the providers that did not start, in order.

    Args:
        wanted: Providers asked for, best first.
        started: What the session says it has; ONNX Runtime drops providers that fail, and adds
            the CPU's, without an error.

    Raises:
        ModelError: None of them started, and the CPU was not among them.
    """
    missing = tuple(name for name in wanted if name not in started)
    if len(missing) == len(wanted):
        raise ModelError(
            f"expected the model to run on one of {list(wanted)}, but only {list(started)} "
            "started; check the driver and the CUDA, cuDNN and TensorRT libraries, or add "
            "CPUExecutionProvider to the list"
        )
    return missing


def _read_file(path: Path, kind: str, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise ModelError(f"expected a {kind} at {path}, found none; export or fetch the model")
        size = path.stat().st_size
        if size > max_bytes:
            raise ModelError(f"{kind} {path} has {size} bytes, at most {max_bytes} are accepted")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the {kind} {path}: {error}") from error


def _start_session(
    content: bytes, path: Path, wanted: Sequence[str], intra_op_threads: int
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 2  # warning
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The manifest's hash covers one file only. External weights would be looked for below the
    # model file, which is no folder, so that a model that has them is refused.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(path)
    )
    failure: Exception | None = None
    # A GPU provider that raises at start is left out, and named by `missing_providers`.
    for first in range(len(wanted)):
        try:
            return onnxruntime.InferenceSession(
                content, options, providers=list(wanted[first:]), enable_fallback=0
            )
        except Exception as error:  # ONNX Runtime's errors share no other base
            failure = failure or error
    raise ModelError(
        f"ONNX Runtime {onnxruntime.__version__} cannot load {path} on {list(wanted)}: {failure}; "
        "expected one self-contained ONNX file with operators this version knows"
    ) from failure


def _check_tensors(
    path: Path, kind: str, specs: Sequence[TensorSpec], found: Sequence[Any]
) -> None:
    """Compare the manifest's tensors with the file's: names, dtypes, dimensions."""
    expected = {spec.name: spec for spec in specs}
    tensors = {tensor.name: tensor for tensor in found}
    # Order matters for outputs, which ONNX Runtime returns by position.
    if list(expected) != list(tensors) or len(expected) < len(specs):
        raise ModelError(
            f"{path}: the manifest has the {kind}s {[spec.name for spec in specs]}, the file has "
            f"{list(tensors)}; write the manifest again from this file"
        )
    for name, spec in expected.items():
        tensor = tensors[name]
        fits = tensor.type == _ORT_DTYPES[spec.dtype] and len(tensor.shape) == len(spec.shape)
        if fits:
            fits = all(map(_dim_agrees, spec.shape, tensor.shape))
        if not fits:
            raise ModelError(
                f"{path}: the manifest says {kind} {name!r} is {spec.dtype} {list(spec.shape)}, "
                f"the file has {tensor.type} {tensor.shape}; write the manifest again from this "
                "file"
            )


def _dim_agrees(said: int | str, has: int | str | None) -> bool:
    """Tell whether a manifest's dimension is one the file has; a free one must be free in both.

    One the manifest fixes may be free in the file: exporters often lose the sizes of outputs, and
    a run that gives another size fails on its bound buffer.
    """
    if isinstance(said, str) or not isinstance(has, int):
        return not isinstance(has, int)
    return said == has
