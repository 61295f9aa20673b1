"""Python, packages, ONNX Runtime's providers and the models they load."""

from __future__ import annotations

import shutil
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
from packaging.requirements import Requirement

from keystep_capture.errors import ModelError
from keystep_capture.findings import Finding
from keystep_models.onnx_model import OnnxModel, TensorSpec, choose_providers

SMALLEST_PYTHON = (3, 11)
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = "install Keystep again: make demo, or pip install --constraint constraints.txt '.[cpu]'"


def check_python() -> list[Finding]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    fits = sys.version_info >= SMALLEST_PYTHON
    return [
        Finding(
            area="software",
            name="python",
            level="ok" if fits else "problem",
            detail=f"Python {version} at {sys.executable}",
            remedy="" if fits else "install Python 3.11 or newer and call make PYTHON=...",
        )
    ]


def check_packages(distribution: str = "keystep") -> list[Finding]:
    """Installed versions against what the distribution requires, extras apart."""
    try:
        required = [Requirement(line) for line in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return [_package(distribution, "is not installed as a package", _INSTALL)]
    wanted = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [finding for one in wanted if (finding := _check_package(one)) is not None]
    if wrong:
        return wrong
    detail = f"all {len(wanted)} required packages are there in versions that fit"
    return [Finding(area="software", name="packages", level="ok", detail=detail)]


def _check_package(required: Requirement) -> Finding | None:
    version = _version(required.name)
    if version is None:
        return _package(required.name, f"is missing; {required} is required", _INSTALL)
    if not required.specifier.contains(version, prereleases=True):
        return _package(required.name, f"{version} is there, {required} is required", _INSTALL)
    return None


def _package(name: str, detail: str, remedy: str) -> Finding:
    return Finding(area="software", name=name, level="problem", detail=detail, remedy=remedy)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_runtime() -> list[Finding]:
    """ONNX Runtime: one of its packages, and whether it uses the GPU where there is one."""
    there = {name: version for name in _RUNTIMES if (version := _version(name)) is not None}
    shown = ", ".join(f"{name} {version}" for name, version in there.items())
    if len(there) > 1:
        remedy = "uninstall both, then install one: pip install 'keystep[gpu]' or 'keystep[cpu]'"
        return [_package("onnxruntime", f"{shown} are both installed and clash", remedy)]
    providers = onnxruntime.get_available_providers()
    detail = f"{shown or onnxruntime.__version__}; providers {', '.join(providers)}"
    if shutil.which("nvidia-smi") and not any(
        name.startswith(("CUDA", "Tensorrt")) for name in providers
    ):
        return [
            Finding(
                area="software",
                name="onnxruntime",
                level="warning",
                detail=f"{detail}; there is an NVIDIA GPU it cannot use",
                remedy="pip uninstall onnxruntime, then pip install 'keystep[gpu]'",
            )
        ]
    return [Finding(area="software", name="onnxruntime", level="ok", detail=detail)]


def check_model(manifest_path: Path, *, threads: int = 1) -> list[Finding]:
    """Load a model as the server does, run it once on zeros, and say what runs it."""
    try:
        model = OnnxModel.load(manifest_path, intra_op_threads=threads)
        inputs = {spec.name: _zeros(spec) for spec in model.manifest.inputs}
        model.run(inputs)
        start_ns = time.perf_counter_ns()
        model.run(inputs)
        took_ms = (time.perf_counter_ns() - start_ns) / 1e6
    except ModelError as error:
        remedy = "check out or install the file again, or name another --bundle-dir"
        name = manifest_path.parent.name
        return [
            Finding(area="models", name=name, level="problem", detail=str(error), remedy=remedy)
        ]
    detail = f"{model.manifest.name} runs on {model.provider}, {took_ms:.1f} ms a call"
    if model.missing_providers:
        return [
            Finding(
                area="models",
                name=manifest_path.parent.name,
                level="warning",
                detail=f"{detail}; {', '.join(model.missing_providers)} did not start",
                remedy="check the driver and the CUDA, cuDNN and TensorRT libraries",
            )
        ]
    tried = ", ".join(choose_providers())
    return [
        Finding(
            area="models",
            name=manifest_path.parent.name,
            level="ok",
            detail=f"{detail} (tried in order: {tried})",
        )
    ]


def _zeros(spec: TensorSpec) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    return np.zeros([dim if isinstance(dim, int) else 1 for dim in spec.shape], spec.dtype)
