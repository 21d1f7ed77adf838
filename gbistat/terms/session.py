"""Sessions of onnxruntime: made for one thread, evaluated in batches, their errors in words of a term."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gbistat.errors import TermError
from gbistat.extras import onnxruntime

if TYPE_CHECKING:
    from gbistat.typing import FloatArray

__all__ = ["BATCH_SIZE", "DTYPES", "make_session", "run_graph"]

BATCH_SIZE = 65_536
"""Events given to a graph at once: bounds the memory of its hidden layers."""

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64}


def make_session(graph: bytes, where: str) -> Any:
    """Session of a graph, one thread.

    Raises
    ------
    TermError
        If the graph is not one that onnxruntime can run.
    """
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    # The other format that onnxruntime would accept is not checked for references to other files.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    try:
        return runtime.InferenceSession(graph, sess_options=options, providers=["CPUExecutionProvider"])
    except _runtime_errors() as problem:
        raise TermError(
            f"{where} is not a usable ONNX graph: {_first_line(problem)}; export the term again (gbistat export)"
        ) from None


def run_graph(
    session: Any, inputs: FloatArray, columns: int | None, where: str, *, batch_size: int | None = None
) -> FloatArray:
    """Output of a graph in float64.

    Parameters
    ----------
    session : onnxruntime.InferenceSession
        With one input and one output.
    inputs : array of shape (n, d)
        Raw inputs.
    columns : int or None
        Columns of the output; None for one number an event, of shape (n,) or (n, 1).
    where : str
        The graph's name, for messages.
    batch_size : int, optional
        Events given at once, `BATCH_SIZE` by default.

    Returns
    -------
    array of shape (n,), or (n, columns)
        Not checked for NaN.

    Raises
    ------
    TermError
        If the graph cannot be evaluated, or its output has another shape.
    """
    node = session.get_inputs()[0]
    wanted = "" if columns is None else f", {columns}"
    result = np.empty(len(inputs) if columns is None else (len(inputs), columns))
    step = batch_size or BATCH_SIZE
    for start in range(0, len(inputs), step):
        batch = np.ascontiguousarray(inputs[start : start + step], dtype=DTYPES[node.type])
        try:
            (output,) = session.run(None, {node.name: batch})
        except _runtime_errors() as problem:
            raise TermError(f"{where} cannot be evaluated: {_first_line(problem)}; export the term again") from None
        n = len(batch)
        allowed = ((n,), (n, 1)) if columns is None else ((n, columns),)
        if output.shape not in allowed:
            shapes = f"({n},) or ({n}, 1): one natural log an event" if columns is None else f"({n}{wanted})"
            raise TermError(f"{where} gives an output of shape {output.shape} for {n} events; it must be {shapes}")
        result[start : start + n] = output.reshape(result[start : start + n].shape)
    return result


def _runtime_errors() -> tuple[type[Exception], ...]:
    """Exceptions of onnxruntime, which have no common base of their own."""
    onnxruntime()
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError)


def _first_line(problem: Exception) -> str:
    text = str(problem).strip().splitlines()
    return text[0][:200].rstrip(" .;") if text else type(problem).__name__
